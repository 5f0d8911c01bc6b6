// SPDX-License-Identifier: Apache-2.0
// fp32 scales of 128 x 128 blocks of B beside bf16 A. A scale is a power of two, which the codes of its block are
// multiplied by, exactly, times a unit, in which sums are kept: where the next block of K has another unit, sums change
// to it, and at last to 1. So there is one set of sums, and nothing to round but its change.
#pragma once

#include "common/dependent_launch.cuh"
#include "common/mbarrier.cuh"
#include "common/ptx.cuh"
#include "common/shared_load.cuh"
#include "common/shared_store.cuh"
#include "common/wgmma.cuh"
#include "gemm/sm90_config.cuh"
#include "gemm/sm90_mixed_scales.cuh"
#include "gemm/sm90_producer.cuh"
#include "gemm/sm90_schedule.cuh"

namespace ws {

// What codes are multiplied by: a pair of bf16, 2^120 times the power of two; and the unit, of 1 to 2 unless the scale is
// so small or large that the power would not fit.
struct SquareScale {
  static constexpr int kLeast = -60, kMost = 7;
  u32 factor;
  float unit;

  WS_DEVICE static SquareScale of(float scale) {
    const u32 bits = bits_of(scale);
    if (scale == 0.0f || !is_finite(scale)) {
      const u32 half = scale != scale ? 0x7FC0u : bits >> 16;
      return {half * 0x10001u, 1.0f};
    }
    const int power = max(kLeast, min(static_cast<int>(bits >> 23 & 255u) - 127, kMost));
    return {static_cast<u32>(power + 127 + 120) * 0x00800080u, scale * float_of(static_cast<u32>(127 - power) << 23)};
  }
};

// The warp that copies scales of the tiles that the other producer warp walks.
WS_DEVICE void produce_square_scales(const Problem& p, Ring ring, u32 lane, u32 rank) {
  wait_for_predecessor();
  TileFinder finder(p, lane, kCluster > 1 ? rank : 0);
  Tile tile;
#pragma unroll 1
  for (u32 unit = blockIdx.x / kClusterBlocks;; unit += gridDim.x / kClusterBlocks) {
    const u32 number = divide(p, unit, rank, tile);
    if ((kPartsK > 1 && tile.stages == 0) || !finder.find(p, number, tile)) break;
    SquareScales scales(p.b_scales + tile.batch * p.b_scale_batch, tile.column, p.k, lane);
    u32 before = ~0u;
    float scale = 0.0f;
#pragma unroll 1
    for (u32 i = 0; i < tile.stages; ++i, ring.advance()) {
      const u32 block = (tile.first_stage + i) * kTileK / 128;
      if (block != before) scale = scales.at(block, i == 0);
      before = block;
      mbarrier_wait(ring.empty(), ring.parity ^ 1);
      if (lane != 0) continue;
      const SquareScale parts = SquareScale::of(scale);
      store_shared(ring.scales(), {parts.factor, bits_of(parts.unit)});
      mbarrier_arrive(ring.full());
    }
  }
  mbarrier_wait(ring.empty(), ring.parity ^ 1);
  if (lane == 0) mbarrier_arrive(ring.full());
}

// A stage's scale, the same for all rows.
struct SquarePlace {
  WS_DEVICE SquarePlace(const Problem&, const Tile&, const Place&) {}

  // Returns the unit.
  WS_DEVICE float read(u32 scales, u32, RowScales (&of)[kM64][2]) const {
    u32 words[2];
    load_shared(scales, words);
#pragma unroll
    for (u32 i = 0; i < kM64 * 2; ++i) of[i / 2][i % 2].codes[0] = words[0];
    return float_of(words[1]);
  }
};

WS_DEVICE void multiply_sums(Sums& sums, float by) {
#pragma unroll
  for (u32 i = 0; i < kM64; ++i) {
#pragma unroll
    for (u32 c = 0; c < kN / 2; ++c) sums[i][c] *= by;
  }
}

// Of sums whose MMAs may be under way.
WS_DEVICE void change_unit(Sums& sums, float by) {
  wgmma_wait<0>();
#pragma unroll
  for (u32 i = 0; i < kM64; ++i) hold_sums(sums[i]);
  multiply_sums(sums, by);
#pragma unroll
  for (u32 i = 0; i < kM64; ++i) hold_sums(sums[i]);
}

template <bool kOfSquares>
struct StagePlaces {
  using Type = ScalePlace;
};
template <>
struct StagePlaces<true> {
  using Type = SquarePlace;
};
using StagePlace = StagePlaces<kSquares>::Type;

}  // namespace ws
