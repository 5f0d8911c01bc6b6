// SPDX-License-Identifier: Apache-2.0
// D[M, N] = alpha · A[M, K] · B[N, K]ᵀ + bias, or, of bf16 and fp16, an activation of that, on the tensor cores of 9.0 (wgmma): bf16, fp16, and e4m3 with fp32 block
// scales.
//
// A producer warp copies K tiles of A and B into a ring of stages, another one their scales; two warpgroups multiply
// them, each for its half of the tile. Blocks are persistent and walk the tiles of D. One program serves dense, batched, grouped and
// masked problems, all types of D and bias; macros choose what shapes the main loop:
//
//   WS_A_FORMAT, WS_B_FORMAT          WS_BF16 WS_FP16 WS_FP8_BLOCK, the same for both
//   WS_TILE_M, WS_TILE_N, WS_TILE_K   tile of D, and K of a stage: 64, fp8_block 128
//   WS_SWAP                           1: rows of B are the MMA's 64-row operand (small M)
//   WS_CLUSTER                        blocks, one below the other, that share the copies of B; 1 by default
//   WS_PARTS                          blocks of a cluster that divide the K of a tile; 1 by default
//   WS_GROUPS                         warpgroups that multiply: 1 or 2 (default), 4 with WS_GROUPS_K
//   WS_GROUPS_K                       quantized B: warpgroups that take the stages of a tile by turns; 1 by default
//   WS_PACKED                         nvfp4, mxfp4: 1: B is as common/prepared_weights.cuh has it; 0 by default
//   WS_BLOCKS                         blocks that share a multiprocessor; 1 by default
//   WS_BUFFERS                        fp8_block: 2: a stage's sums are added while the next one's are made
//   WS_ACTIVATES                      bf16, fp16: 0: without the activations of the epilogue; 1 by default
//   WS_STAGES                         at most; by default as many as fit
//   WS_BAND                           rows of tiles in a band of the raster; 8 by default
//
// `splits` is the parts of K in its low 8 bits and, above them, the number of leading tiles that are not split. With
// splits of K, `workspace` takes TILE_M · TILE_N floats a part of each split tile and `arrivals` one word a split tile,
// 0 at launch and 0 again after it. Only dense and batched problems are split.
#if !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "sm90_gemm needs the target sm_90a"
#endif

#include "common/cluster.cuh"
#include "common/dependent_launch.cuh"
#include "common/mbarrier.cuh"
#include "common/record.cuh"
#include "common/tma.cuh"
#include "common/types.cuh"
#include "common/warpgroup.cuh"
#include "gemm/sm90_config.cuh"
#include "gemm/sm90_epilogue.cuh"
#include "gemm/sm90_exchange.cuh"
#include "gemm/sm90_late_stores.cuh"
#include "gemm/sm90_main_loop.cuh"
#include "gemm/sm90_mixed_loop.cuh"
#include "gemm/sm90_mixed_scales.cuh"
#include "gemm/sm90_mixed_squares.cuh"
#include "gemm/sm90_producer.cuh"
#include "gemm/sm90_promoted.cuh"
#include "gemm/sm90_scaling.cuh"
#include "gemm/sm90_schedule.cuh"
#if WS_PACKED
#include "gemm/sm90_mixed_packed.cuh"
#endif

namespace ws {

// Whether the warp then has the sums over all of K.
WS_DEVICE bool add_parts(Sums& sums, Exchange& exchange, const Problem& p, const Tile& tile, const Place& place,
                         u32 shared) {
  if constexpr (kPartsK > 1) {
    return exchange.add(sums, tile, place, shared);
  } else {
    return add_splits(sums, p, tile, shared);
  }
}

WS_DEVICE void consume(const Problem& p, Ring ring, TileRing slots, const Place& place) {
  Exchange exchange;
  LateStores late;
  const u32 own = ring.base + Shared::kParts + (place.group * 4 + place.warp) * kOwnBytes;
  if constexpr (kLate) late.clear();
#pragma unroll 1
  for (;; slots.advance()) {
    mbarrier_wait(ring.full(), ring.parity);
    const Tile tile = load_tile(slots.slot());
    if (tile.stages == 0) break;
    Sums sums;
    if constexpr (kMixed) {
      if (kGroupsK > 1) sync_warps<2, kMmaThreads>();  // all have the tile before its first stage is another's
#if WS_PACKED
      add_packed_stages(sums, ring, place, tile);
#else
      add_mixed_stages(sums, ring, place, p, tile);
#endif
      if (!gather_turns(sums, place, ring.base)) continue;
    } else if constexpr (kPromoted) {
      add_promoted_stages(sums, ring, place, p, tile);
    } else if constexpr (kPeriod != 0) {
      add_summed_stages(sums, ring, place, tile.stages);
    } else if constexpr (kLate) {
      add_stages_storing(sums, ring, place, tile.stages, late, *p.d_map, own);
      if (LateStores::serves(p) && late.take(sums, p, load_tile(slots.slot()), place)) continue;
      late.clear();
    } else {
      add_stages(sums, ring, place, tile.stages);
    }
    if (!add_parts(sums, exchange, p, load_tile(slots.slot()), place, ring.base)) continue;
    // read again: fewer registers in between
    if constexpr (kScaled) scale_sums(sums, p, load_tile(slots.slot()), place);
    Place here = place;
    if constexpr (kLate) here.lane = opaque(here.lane);  // no addresses of what is rare in registers all the time
    write_d(sums, p, load_tile(slots.slot()), here, ring.base);
  }
  if constexpr (kLate) late.store_all(*p.d_map, own, place.lane);
  if constexpr (kStores) wait_for_stores_to_read<0>();  // of this block's shared memory
}

}  // namespace ws

WS_RECORD(ws::Shared::kBytes, ws::kThreads, ws::Shared::kStages, WS_FLAG_WAITS, ws::kTileM, ws::kTileN, ws::kTileK)

#if WS_CLUSTER * WS_PARTS > 1
#define WS_CLUSTER_SHAPE __cluster_dims__(WS_CLUSTER * WS_PARTS, 1, 1)
#else
#define WS_CLUSTER_SHAPE
#endif

// Strides are in bytes. Any of bias, alphas, the global scales, index, workspace and arrivals may be null where the
// flags or `splits` do not ask for it.
extern "C" __global__ void __launch_bounds__(ws::kThreads, ws::kBlocks) WS_CLUSTER_SHAPE
    ws_sm90_gemm(const __grid_constant__ ws::TensorMap a_map, const __grid_constant__ ws::TensorMap b_map,
                 const void* a_scales, const void* b_scales, void* d, const void* bias, const float* alphas,
                 const float* a_global_scale, const float* b_global_scale, const void* index, float* workspace,
                 unsigned* arrivals, long long d_row, long long d_batch, long long a_scale_batch,
                 long long b_scale_batch, long long bias_batch, unsigned m, unsigned n, unsigned k, unsigned batches,
                 unsigned splits, float alpha, unsigned flags, float gate_slope, float gate_cube, float gate_limit,
                 float up_offset, const __grid_constant__ ws::TensorMap d_map) {
  using namespace ws;
  const Problem problem{&a_map, &b_map, &d_map, static_cast<const u8*>(a_scales), static_cast<const u8*>(b_scales),
                        static_cast<const u8*>(bias), static_cast<u8*>(d), alphas, a_global_scale, b_global_scale,
                        index, workspace, arrivals, d_row, d_batch, a_scale_batch, b_scale_batch, bias_batch, m, n, k,
                        batches, splits, alpha * unit_of_sums(), flags, {gate_slope, gate_cube, gate_limit, up_offset}};
  if constexpr (kHidesProducts) declare_hidden_products();
  extern __shared__ __align__(1024) u8 shared[];
  const Ring ring{shared_address(shared)};
  const TileRing slots{ring.base};
  const u32 warp = __shfl_sync(kAllLanes, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x < Shared::kStages) {
    const u32 of_scales = kPacked ? 1 : scale_arrivals(problem);
    mbarrier_init(ring.base + Shared::kFull + threadIdx.x * 8, kMixed ? 1 + of_scales : kProducers);
    mbarrier_init(ring.base + Shared::kEmpty + threadIdx.x * 8, kTileWarps * kCluster * kArriving);
    fence_mbarrier_init();
  } else if (kPartsK > 1 && threadIdx.x >= 32 && threadIdx.x < 32 + 2 * kTileWarps) {
    const u32 i = threadIdx.x - 32;
    mbarrier_init(ring.base + Shared::kArrived + i * 8, i < kTileWarps ? 1 : kArriving);
    fence_mbarrier_init();
  } else if (threadIdx.x == kThreads - 1) {
    if (ring.base % 1024 != 0) __trap();
    prefetch_tensor_map(a_map);
    if constexpr (!kPacked) prefetch_tensor_map(b_map);
  }
  if constexpr (kClusterBlocks > 1) {
    sync_cluster();
  } else {
    __syncthreads();
  }
  if (warp >= kMmaWarps) {
    if constexpr (kMovesRegisters) shrink_registers<kProducerRegisters>();
    if (warp == kMmaWarps) {
      produce(problem, ring, slots, lane, kClusterBlocks > 1 ? cluster_rank() : 0);
      release_successor();
    } else if (kProducers == 2 && warp == kMmaWarps + 1) {
      const u32 rank = kClusterBlocks > 1 ? cluster_rank() : 0;
#if WS_PACKED
      produce_packed(problem, ring, lane, rank);
#else
      if constexpr (kSquares) {
        produce_square_scales(problem, ring, lane, rank);
      } else if constexpr (kMixed) {
        produce_mixed_scales(problem, ring, lane, rank);
      } else {
        produce_scales(problem, ring, lane, rank);
      }
#endif
    }
  } else {
    if constexpr (kMovesRegisters) grow_registers<kMmaRegisters>();
    wait_for_predecessor();
    Place place{warp / 4, warp % 4, lane};
    if constexpr (kGroupsK > 1) place.group = warp / 4 % kGroupsTile, place.turn = warp / 4 / kGroupsTile;
    consume(problem, ring, slots, place);
  }
  // Until here other blocks of the cluster may copy to this one and arrive at its barriers.
  if constexpr (kClusterBlocks > 1) {
    __syncwarp();
    sync_cluster();
  }
}
