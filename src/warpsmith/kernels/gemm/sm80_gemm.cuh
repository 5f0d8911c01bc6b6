// SPDX-License-Identifier: Apache-2.0
// The portable GEMM: D[M, N] = alpha · A[M, K] · B[N, K]ᵀ + bias with mma.sync, for every target from sm_80.
//
// Operands are bf16 or fp16, or quantized and dequantized in registers. Elements reach shared memory in packed form by
// cp.async, kStages tiles ahead; every warp reads its fragments and converts them for itself. One program serves dense,
// batched, grouped and masked problems, all types of D, bias and scale layout; macros choose what shapes the inner loop:
//
//   WS_A_FORMAT, WS_B_FORMAT          WS_BF16 WS_FP16 WS_NVFP4 WS_MXFP4 WS_MXFP8 WS_FP8_BLOCK (A 1 x 128, B 128 x 128)
//                                     WS_FP8_ROW (fp8_tensor too; the same for both)
//   WS_TILE_M, WS_TILE_N, WS_TILE_K   tile of D, and K of a stage
//   WS_WARPS_M, WS_WARPS_N            warps along the tile
//   WS_WARPS_K                        warps that divide a stage's K
//   WS_STAGES, WS_BLOCKS              stages; blocks that an SM should hold
//   WS_SWAP                           1: rows of B are the MMA's 16-row operand (small M)
//
// grid = (tiles, splits of K, 1). With splits, `workspace` takes tiles · splits · TILE_M · TILE_N floats and `arrivals`
// one word a tile, 0 at launch and 0 again after it.
//
// How exact it is. What the MMA multiplies is exact, whatever the formats:
//   nvfp4      element · scale, at most 6 significant bits within 2^−10..2688, 2^7 times smaller: fits fp16 and bf16
//   mxfp4/8    the bare element; both scales multiply the fp32 sum over their 32 of K: powers of two, whose product is
//   fp8_block  rounded once for fp8_block and exact for the others unless it leaves fp32's range
//   fp8_row    the bare element; the scales multiply the sum over all of K
// Products are exact in fp32. Unscaled sums grow in the tensor core's accumulator over all of K (it truncates: within
// 3e-9 · K of the norm); scaled ones are short and added by rounding fused multiply-adds. Splits and warps that divide K
// add a handful of rounded fp32 additions.
#ifndef __CUDA_ARCH__
#error "device code only: __CUDA_ARCH__ is not set"
#elif __CUDA_ARCH__ < 800
#error "sm80_gemm needs sm_80 or newer"
#endif

#include "common/record.cuh"
#include "common/types.cuh"
#include "gemm/sm80_config.cuh"
#include "gemm/sm80_epilogue.cuh"
#include "gemm/sm80_schedule.cuh"
// Two blocks an SM hide what each waits for; one alone has a loop of its own, where both operands are plain.
#if WS_A_FORMAT <= WS_FP16 && WS_B_FORMAT <= WS_FP16 && !WS_SWAP && WS_BLOCKS == 1
#include "gemm/sm80_plain.cuh"
#else
#include "gemm/sm80_tiles.cuh"
#endif

namespace ws {

// The main loop has no registers to spare for what only the epilogue needs: the tile waits in shared memory.
WS_DEVICE void compute(const Problem& p, u8* shared) {
  const u32 address = static_cast<u32>(__cvta_generic_to_shared(shared));
  Tile tile;
  if (!find_tile(p, blockIdx.x, reinterpret_cast<u32*>(shared), tile)) return;
  if (threadIdx.x == 0) save_tile(address + Shared::kTile, tile);
  __syncthreads();
  Sums sums = {};
  multiply_tile(sums, p, tile, address);
  add_warps(sums, reinterpret_cast<float4*>(shared));
  if (!add_splits(sums, p)) return;
  if (kWarpsK > 1 && threadIdx.x >= kWriters) return;
  write_d(sums, p, load_tile(address + Shared::kTile), WarpPlace(), reinterpret_cast<float*>(shared));
}

}  // namespace ws

WS_RECORD(ws::Shared::kBytes, ws::kThreads, ws::kStages, 0, ws::kTileM, ws::kTileN, ws::kTileK)

// Strides are in bytes. Any of bias, alphas, the global scales, index, workspace may be null where the flags or the grid
// do not ask for it.
extern "C" __global__ void __launch_bounds__(ws::kThreads, WS_BLOCKS)
    ws_sm80_gemm(const void* a, const void* b, void* d, const void* a_scales, const void* b_scales, const void* bias,
                 const float* alphas, const float* a_global_scale, const float* b_global_scale, const void* index,
                 float* workspace, unsigned* arrivals, long long a_row, long long b_row, long long d_row,
                 long long a_batch, long long b_batch, long long d_batch, long long a_scale_batch,
                 long long b_scale_batch, long long bias_batch, unsigned m, unsigned n, unsigned k, unsigned batches,
                 float alpha, unsigned flags) {
  extern __shared__ __align__(1024) ws::u8 shared[];
  using ws::u8;
  const ws::Problem p{static_cast<const u8*>(a), static_cast<const u8*>(b), static_cast<const u8*>(a_scales),
                static_cast<const u8*>(b_scales), static_cast<const u8*>(bias), static_cast<u8*>(d), alphas,
                a_global_scale, b_global_scale, index, workspace, arrivals, a_row, b_row, d_row, a_batch, b_batch,
                d_batch, a_scale_batch, b_scale_batch, bias_batch, m, n, k, batches, alpha, flags};
  ws::compute(p, shared);
}
