// SPDX-License-Identifier: Apache-2.0
// The GEMM of few rows on Hopper: D[M, N] = alpha · A[M, K] · B[N, K]ᵀ + bias, as fast as B can be read.
//
// Rows of B are the 16-row operand of mma.sync. Each warp copies columns of its own, 32 rows by 64 bytes, to a ring that
// it alone reads, WS_AHEAD of them ahead. Rows of A, at most WS_ROWS of a batch or group, wait in shared memory. A block
// has an equal part of all rows of B that are to be read; its 16 warps divide them and K as the host says, and with
// WS_CLUSTER=2 a pair of blocks divides K. Copies of B start before the kernel before this one has ended where flags
// allow it.
//
//   WS_A_FORMAT          WS_BF16 WS_FP16
//   WS_B_FORMAT          that of A, WS_NVFP4 or WS_FP8_BLOCK (128 x 128); beside bf16 also WS_MXFP4 and WS_MXFP8
//   WS_ROWS, WS_CLUSTER  8 or 16 rows of A at a time; blocks that divide K, 1 or 2
//   WS_AHEAD             columns of 32 rows by 64 bytes that a warp has under way
//
// How exact it is. What the MMA multiplies is exact: element · scale of nvfp4 has at most 6 significant bits within
// 2^−10..2688; an mx element times its scale is exact where the scale is at least 2^−110 of the largest one that the
// warp has met in its rows; fp8_block's scale multiplies the fp32 sum over 64 of K. Sums grow in the tensor core's
// accumulator (it truncates: within 3e-9 · K of the norm); at most 16 warps and 2 blocks add theirs, rounded, in a fixed
// order.
#ifndef __CUDA_ARCH__
#error "device code only: __CUDA_ARCH__ is not set"
#elif __CUDA_ARCH__ < 900
#error "sm90_stream_gemm needs sm_90 or newer"
#endif

#include "common/record.cuh"
#include "common/types.cuh"
#include "gemm/sm90_stream_config.cuh"
#include "gemm/sm90_stream_main.cuh"
#include "gemm/sm90_stream_problem.cuh"

WS_RECORD(ws::Shared::kBytes, ws::kThreads, WS_AHEAD, WS_FLAG_WAITS, WS_ROWS, WS_CLUSTER, 0)

// The parameters are those of ws_sm80_gemm; A's scales, workspace and arrivals are not read. Strides are in bytes.
extern "C" __global__ void WS_CLUSTER_ATTRIBUTE __launch_bounds__(ws::kThreads, 1)
    ws_sm90_stream_gemm(const void* a, const void* b, void* d, const void*, const void* b_scales, const void* bias,
                        const float* alphas, const float* a_global_scale, const float* b_global_scale,
                        const void* index, float*, unsigned*, long long a_row, long long b_row, long long d_row,
                        long long a_batch, long long b_batch, long long d_batch, long long, long long b_scale_batch,
                        long long bias_batch, unsigned m, unsigned n, unsigned k, unsigned batches, float alpha,
                        unsigned flags) {
  extern __shared__ __align__(1024) ws::u8 shared[];
  using ws::u8;
  const ws::Problem p{static_cast<const u8*>(a), static_cast<const u8*>(b), static_cast<const u8*>(b_scales),
                static_cast<const u8*>(bias), static_cast<u8*>(d), alphas, a_global_scale, b_global_scale, index, a_row,
                b_row, d_row, a_batch, b_batch, d_batch, b_scale_batch, bias_batch, m, n, k, batches, alpha, flags};
  ws::compute(p, shared);
}
