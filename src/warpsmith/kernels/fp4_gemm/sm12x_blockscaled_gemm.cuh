// SPDX-License-Identifier: Apache-2.0
// D[M, N] = alpha · A[M, K] · B[N, K]ᵀ + bias for block-scaled operands, within the 99 KB of shared memory that a block
// of 12.x has; on 9.0 the same code runs with the software MMA.
//
// A producer warp copies K tiles of A, B and their scales into a ring of stages; MMA warps consume them, each for its
// part of the tile. Blocks are persistent and walk the tiles of D. One program serves dense, batched, grouped and
// masked problems, all types of D and bias; macros choose what shapes the main loop:
//
//   WS_A_FORMAT, WS_B_FORMAT          WS_NVFP4 WS_MXFP4 WS_MXFP8 WS_FP8_BLOCK, the same for both, or mxfp8 by mxfp4
//   WS_TILE_M, WS_TILE_N, WS_TILE_K   tile of D, and K of a stage
//   WS_WARPS_M, WS_WARPS_N            MMA warps along M and N
//   WS_SWAP                           1: rows of B are the MMA's 16-row operand (small M)
//
// With splits of K, `workspace` takes tiles · splits · TILE_M · TILE_N floats and `arrivals` one word a tile, 0 at
// launch and 0 again after it. Only dense and batched problems are split.
#include "common/dependent_launch.cuh"
#include "common/mbarrier.cuh"
#include "common/record.cuh"
#include "common/tma.cuh"
#include "common/types.cuh"
#include "common/warpgroup.cuh"
#include "fp4_gemm/sm12x_config.cuh"
#include "fp4_gemm/sm12x_epilogue.cuh"
#include "fp4_gemm/sm12x_fragments.cuh"
#include "fp4_gemm/sm12x_main_loop.cuh"
#include "fp4_gemm/sm12x_producer.cuh"
#include "fp4_gemm/sm12x_schedule.cuh"

namespace ws {

WS_DEVICE void consume(const Problem& p, Ring ring, TileRing slots, u32 warp, u32 lane) {
  const u32 splits = splits_of(p);
  Reader reader(warp, lane);
#pragma unroll 1
  for (;; slots.advance()) {
    mbarrier_wait(ring.full, ring.parity);
    const Tile tile = load_tile(slots.slot());
    if (tile.stages == 0) return;
    const float alpha = alpha_of(p, tile.batch);
    Sums sums = {};
    MainLoop loop{reader, ring, tile.stages, {}};
    if constexpr (kPromoted) {
      loop.run_promoted(sums, tile.row % 4);
    } else {
      reader.set_rows(tile.scale_row);
      loop.run(sums);
    }
    const Tile written = load_tile(slots.slot());
    if (add_splits(sums, p, written, splits, ring.base)) write_d(sums, p, written, reader, ring.base, alpha);
  }
}

}  // namespace ws

WS_RECORD(ws::Shared::kBytes, ws::kThreads, ws::Shared::kStages, WS_FLAG_WAITS, ws::kTileM, ws::kTileN, ws::kTileK)

// Strides are in bytes. Any of bias, alphas, the global scales, index, workspace and arrivals may be null where the
// flags or `splits` do not ask for it.
extern "C" __global__ void __launch_bounds__(ws::kThreads, 1)
    ws_sm12x_blockscaled_gemm(const __grid_constant__ ws::TensorMap a_map, const __grid_constant__ ws::TensorMap b_map,
                              const void* a_scales, const void* b_scales, void* d, const void* bias,
                              const float* alphas, const float* a_global_scale, const float* b_global_scale,
                              const void* index, float* workspace, unsigned* arrivals, long long d_row,
                              long long d_batch, long long a_scale_batch, long long b_scale_batch,
                              long long bias_batch, unsigned m, unsigned n, unsigned k, unsigned batches,
                              unsigned splits, float alpha, unsigned flags) {
  using namespace ws;
  const Problem problem{&a_map, &b_map, static_cast<const u8*>(a_scales), static_cast<const u8*>(b_scales),
                        static_cast<const u8*>(bias), static_cast<u8*>(d), alphas, a_global_scale, b_global_scale,
                        index, workspace, arrivals, d_row, d_batch, a_scale_batch, b_scale_batch, bias_batch, m, n, k,
                        batches, splits, alpha, flags};
  extern __shared__ __align__(1024) u8 shared[];
  const Ring ring(shared_address(shared));
  const TileRing slots{ring.base};
  const u32 warp = __shfl_sync(kAllLanes, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    if (ring.base % 1024 != 0) __trap();
    for (u32 i = 0; i < Shared::kStages; ++i) {
      mbarrier_init(ring.base + Shared::kFull + i * 8, 1);
      mbarrier_init(ring.base + Shared::kEmpty + i * 8, WS_EVERY_LANE_ARRIVES ? 32 * kMmaWarps : kMmaWarps);
    }
    fence_mbarrier_init();
    prefetch_tensor_map(a_map);
    prefetch_tensor_map(b_map);
  }
  __syncthreads();
  wait_for_predecessor();
  if (warp >= kMmaWarps) {
    if constexpr (kMovesRegisters) shrink_registers<kProducerRegisters>();
    if (warp == kMmaWarps) {
      produce(problem, ring, slots, lane);
      release_successor();
    }
  } else {
    if constexpr (kMovesRegisters) grow_registers<kMmaRegisters>();
    consume(problem, ring, slots, warp, lane);
  }
}
