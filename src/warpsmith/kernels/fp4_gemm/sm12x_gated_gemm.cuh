// SPDX-License-Identifier: Apache-2.0
// The first product of a MoE layer of 12.x, activated and quantized: rows of x by the w13 of their expert, gate and up
// through an activation, and D as codes and grouped 128x4 scales in A's format, which the second product reads.
//
// What loads and multiplies is sm12x_blockscaled_gemm's, and so are its macros; WS_GATED is 1. Rows of B are 16 of the
// gate and 16 of up in turn (ops/gated_order.py), the bias has that order too, n is a multiple of 64, and problems are
// grouped.
#define WS_GATED 1
#include "common/dependent_launch.cuh"
#include "common/mbarrier.cuh"
#include "common/record.cuh"
#include "common/tma.cuh"
#include "common/types.cuh"
#include "common/warpgroup.cuh"
#include "fp4_gemm/sm12x_config.cuh"
#include "fp4_gemm/sm12x_fragments.cuh"
#include "fp4_gemm/sm12x_gated_epilogue.cuh"
#include "fp4_gemm/sm12x_main_loop.cuh"
#include "fp4_gemm/sm12x_producer.cuh"
#include "fp4_gemm/sm12x_schedule.cuh"

namespace ws {

static_assert(!kPromoted, "formats with one-byte scales");

WS_DEVICE void consume(const Problem& p, const Quantizing& q, Ring ring, TileRing slots, u32 warp, u32 lane) {
  Reader reader(warp, lane);
#pragma unroll 1
  for (;; slots.advance()) {
    mbarrier_wait(ring.full, ring.parity);
    const Tile tile = load_tile(slots.slot());
    if (tile.stages == 0) return;
    const float alpha = alpha_of(p, tile.batch);
    Sums sums = {};
    MainLoop loop{reader, ring, tile.stages, {}};
    reader.set_rows(tile.scale_row);
    loop.run(sums);
    write_codes(sums, p, q, load_tile(slots.slot()), reader, ring.base, alpha);
  }
}

}  // namespace ws

WS_RECORD(ws::Shared::kBytes, ws::kThreads, ws::Shared::kStages, WS_FLAG_WAITS, ws::kTileM, ws::kTileN, ws::kTileK)

// The parameters of ws_sm12x_blockscaled_gemm, and behind them what D is made by. Splits, batches of A or D and alphas
// are not read.
extern "C" __global__ void __launch_bounds__(ws::kThreads, 1)
    ws_sm12x_gated_gemm(const __grid_constant__ ws::TensorMap a_map, const __grid_constant__ ws::TensorMap b_map,
                        const void* a_scales, const void* b_scales, void* d, const void* bias, const float* alphas,
                        const float* a_global_scale, const float* b_global_scale, const void* index, float* workspace,
                        unsigned* arrivals, long long d_row, long long d_batch, long long a_scale_batch,
                        long long b_scale_batch, long long bias_batch, unsigned m, unsigned n, unsigned k,
                        unsigned batches, unsigned splits, float alpha, unsigned flags, void* d_scales,
                        const float* d_global_scale, unsigned activation, float activation_alpha, float limit) {
  using namespace ws;
  const Problem problem{&a_map, &b_map, static_cast<const u8*>(a_scales), static_cast<const u8*>(b_scales),
                        static_cast<const u8*>(bias), static_cast<u8*>(d), alphas, a_global_scale, b_global_scale,
                        index, workspace, arrivals, d_row, d_batch, a_scale_batch, b_scale_batch, bias_batch, m, n, k,
                        batches, splits, alpha, flags};
  const Quantizing quantizing{static_cast<u8*>(d_scales), d_global_scale, activation, activation_alpha, limit};
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
    consume(problem, quantizing, ring, slots, warp, lane);
  }
}
