// SPDX-License-Identifier: Apache-2.0
// The GEMM of few rows of bf16 and 4-bit weights in an order of their own (common/prepared_weights.cuh), as fast as they
// can be read: D[M, N] = alpha · A[M, K] · B[N, K]ᵀ + bias.
//
// Rows of B are the 16-row operand of mma.sync. A block computes 32 of them at a time; its 16 warps divide K, 64 each of
// a stage, and add their sums in shared memory. One more warp copies stages, large contiguous pieces of B and its scales,
// as far ahead as there is room, and rows of A, which stay. With WS_CLUSTER=2 or 4 blocks divide K too.
//
//   WS_B_FORMAT          WS_NVFP4 WS_MXFP4
//   WS_ROWS, WS_CLUSTER  8 or 16 rows of A at a time at most; blocks that divide K
//
// How exact it is. What the MMA multiplies is exact: element · scale of nvfp4 has at most 6 significant bits; an mx
// element times its scale is exact where the scale is at least 2^−110 of the largest of its matrix. Sums grow in the tensor
// core's accumulator (it truncates: within 3e-9 · K of the norm); those of warps and of blocks are added, rounded, in a
// fixed order.
#ifndef __CUDA_ARCH__
#error "device code only: __CUDA_ARCH__ is not set"
#elif __CUDA_ARCH__ < 900
#error "sm90_packed_gemm needs sm_90 or newer"
#endif

#include "common/record.cuh"
#include "common/types.cuh"
#include "gemm/sm90_packed_config.cuh"
#include "gemm/sm90_packed_main.cuh"
#include "gemm/sm90_packed_rows.cuh"

WS_RECORD(ws::Shared::kBytes, ws::kThreads, ws::Shared::kMostStages, WS_FLAG_WAITS, WS_ROWS, WS_CLUSTER, 0)

// The parameters are those of ws_sm80_gemm; A's scales, B's strides of rows, workspace and arrivals are not read. N is a
// multiple of 32 and K of 64, at least 64 for each block of a cluster. Strides are in bytes.
extern "C" __global__ void WS_CLUSTER_ATTRIBUTE __launch_bounds__(ws::kThreads, 1)
    ws_sm90_packed_gemm(const void* a, const void* b, void* d, const void*, const void* b_scales, const void* bias,
                        const float* alphas, const float* a_global_scale, const float* b_global_scale,
                        const void* index, float*, unsigned*, long long a_row, long long, long long d_row,
                        long long a_batch, long long b_batch, long long d_batch, long long, long long b_scale_batch,
                        long long bias_batch, unsigned m, unsigned n, unsigned k, unsigned batches, float alpha,
                        unsigned flags) {
  extern __shared__ __align__(1024) ws::u8 shared[];
  using ws::u8;
  const ws::Problem p{static_cast<const u8*>(a), static_cast<const u8*>(b), static_cast<const u8*>(b_scales),
                      static_cast<const u8*>(bias), static_cast<u8*>(d), alphas, a_global_scale, b_global_scale, index,
                      a_row, d_row, a_batch, b_batch, d_batch, b_scale_batch, bias_batch, m, n, k, batches, alpha,
                      flags};
  ws::compute(p, shared);
}
