// SPDX-License-Identifier: Apache-2.0
#include "shim.h"
extern "C" { alignas(1024) unsigned char shared[101376]; }
#if EMU_GATED
#include "fp4_gemm/sm12x_gated_gemm.cuh"
#else
#include "fp4_gemm/sm12x_blockscaled_gemm.cuh"
#endif
#include "main.h"
