// SPDX-License-Identifier: Apache-2.0
// The main loop: a warpgroup's sums over the stages of a tile.
#pragma once

#include "common/cluster.cuh"
#include "common/mbarrier.cuh"
#include "common/shared_load.cuh"
#include "common/wgmma.cuh"
#include "gemm/sm90_config.cuh"
#include "gemm/sm90_schedule.cuh"

namespace ws {

// The warp has read a stage: tells the producers of all blocks that copy to it.
WS_DEVICE void release_stage(u32 empty, u32 lane) {
  if constexpr (kCluster == 1) {
    if (lane == 0) mbarrier_arrive(empty);
  } else {
    if (lane < kCluster) mbarrier_arrive_at(empty, lane);
  }
}

WS_DEVICE float shared_float(u32 address) {
  u32 words[1];
  load_shared(address, words);
  return float_of(words[0]);
}

// The MMAs of a stage for a warpgroup's part of kWidth columns. With `keep` = 0 sums begin with them.
template <u32 kWidth, u32 kTiles>
WS_DEVICE void multiply_stage(float (&sums)[kTiles][kWidth / 2], const Ring& ring, const Place& place, u32 part,
                              u32 keep) {
  const u64 left = wgmma_operand(ring.left() + place.left() * kRowBytes);
  const u64 right = wgmma_operand(ring.right() + place.right() * kRowBytes) + part * kWidth * kRowBytes / 16;
  wgmma_fence();
#pragma unroll
  for (u32 step = 0; step < kRowBytes / kStepBytes; ++step) {
#pragma unroll
    for (u32 i = 0; i < kTiles; ++i) {
      const u32 rows = i * 64 * kRowBytes, along = step * kStepBytes;
      Wgmma<kWidth>::template multiply_add<kType>(sums[i], left + (rows + along) / 16, right + along / 16,
                                                  step == 0 ? keep : 1u);
    }
  }
  wgmma_commit();
}

// One stage's MMAs run while the next one's are started.
WS_DEVICE void add_stages(Sums& sums, Ring& ring, const Place& place, u32 stages) {
  u32 before = 0;
#pragma unroll 1
  for (u32 i = 0; i < stages; ++i, ring.advance()) {
    mbarrier_wait(ring.full(), ring.parity);
    multiply_stage<kN>(sums, ring, place, 0, i);
    wgmma_wait<1>();
    if (i != 0) release_stage(before, place.lane);
    before = ring.empty();
  }
  wgmma_wait<0>();
#pragma unroll
  for (u32 i = 0; i < kM64; ++i) hold_sums(sums[i]);
  release_stage(before, place.lane);
}

// ---- fp32 scales --------------------------------------------------------------------------------------------------

// What sums over 128 of K are multiplied by: scales of the rows, and those of 64 columns each or, `by_column`, of each.
class Promotion {
 public:
  // Scales of A start at a multiple of four rows.
  WS_DEVICE Promotion(const Problem& p, const Tile& tile, const Place& place)
      : by_rows_(p.flags & kRowScalesB), place_(place), square_left_(128 - tile.column % 128) {
    const u32 g = place.lane / 4, t = place.lane % 4;
    const u32 row = place.left() + place.warp * 16 + g, column = place.right() + 2 * t;
    a_ = Scales::kA + ((kSwap ? column : row) + tile.row % 4) * 4;
    b_ = Scales::kB + (kSwap ? row : column) * 4;
  }

  WS_DEVICE bool by_column() const { return kSwap || by_rows_; }

  // Reads a stage's; those by column stay where they are.
  WS_DEVICE void read(const Ring& ring) {
    scales_ = ring.scales();
    const bool one = kSwap && !by_rows_;
#pragma unroll
    for (u32 h = 0; h < 2; ++h) left_[h] = shared_float(scales_ + (one ? Scales::kB : (kSwap ? b_ : a_) + h * 32));
    if constexpr (!kSwap) {
      if (by_rows_) return;
#pragma unroll
      for (u32 q = 0; q < kN / 64; ++q) {
        const u32 column = place_.right() + q * 64;
        const u32 block = kTileN % 128 == 0 ? column / 128 : column < square_left_ ? 0 : 1;
        square_[q] = shared_float(scales_ + Scales::kB + block * 4);
      }
    }
  }

  template <u32 kFirst>
  WS_DEVICE void add_square(Sums& sums, const Part& part) const {
    constexpr u32 kSquares = kSwap ? 1 : kPartN / 64;
    float factors[2][kSquares];
#pragma unroll
    for (u32 i = 0; i < 2 * kSquares; ++i) factors[i % 2][i / 2] = left_[i % 2] * square_[kFirst / 64 + i / 2];
#pragma unroll
    for (u32 c = 0; c < kPartN / 2; ++c) {
      float& sum = sums[0][kFirst / 2 + c];
      sum = __fmaf_rn(part[c], factors[c / 2 % 2][c / 32], sum);
    }
  }

  template <u32 kFirst>
  WS_DEVICE void add_columns(Sums& sums, const Part& part) const {
    const u32 right = scales_ + (kSwap ? a_ : b_) + kFirst * 4;
#pragma unroll
    for (u32 c = 0; c < kPartN / 2; c += 4) {
#pragma unroll
      for (u32 e = 0; e < 2; ++e) {
        const float factor = shared_float(right + (2 * c + e) * 4);
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
          float& sum = sums[0][kFirst / 2 + c + 2 * h + e];
          sum = __fmaf_rn(part[c + 2 * h + e], left_[h] * factor, sum);
        }
      }
    }
  }

 private:
  bool by_rows_;
  const Place& place_;
  u32 a_, b_;        // where a lane's first ones lie in a stage's
  u32 square_left_;  // columns that still belong to the first of 128 x 128 scales
  u32 scales_;
  float left_[2], square_[kSwap ? 1 : kN / 64];
};

// Parts kFirst / kPartN and on of a stage, one after the other.
template <u32 kFirst = 0>
WS_DEVICE void add_parts(Sums& sums, const Promotion& promotion, const Ring& ring, const Place& place) {
  if constexpr (kFirst < kN) {
    constexpr bool last = kFirst + kPartN == kN;
    float part[1][kPartN / 2];
    multiply_stage<kPartN>(part, ring, place, kFirst / kPartN, 0);
    wgmma_wait<0>();
    hold_sums(part[0]);
    if (promotion.by_column()) {
      promotion.add_columns<kFirst>(sums, part[0]);
      __syncwarp();
      if (last) release_stage(ring.empty(), place.lane);
    } else {
      if (last) release_stage(ring.empty(), place.lane);
      promotion.add_square<kFirst>(sums, part[0]);
    }
    add_parts<kFirst + kPartN>(sums, promotion, ring, place);
  }
}

// A part whose MMAs may be under way.
struct Buffer {
  float part[1][kPartN / 2];
  Promotion promotion;
  u32 empty;

  WS_DEVICE void start(Ring& ring, const Place& place) {
    mbarrier_wait(ring.full(), ring.parity);
    promotion.read(ring);
    empty = ring.empty();
    multiply_stage<kPartN>(part, ring, place, 0, 0);
    ring.advance();
  }

  // Its MMAs have ended.
  WS_DEVICE void add(Sums& sums, const Place& place) {
    hold_sums(part[0]);
    release_stage(empty, place.lane);
    promotion.add_square<0>(sums, part[0]);
    hold_sums(sums[0]);
  }
};

// A stage's sums are added while the next one's MMAs run.
WS_DEVICE void add_overlapped_stages(Sums& sums, Ring& ring, const Place& place, const Promotion& promotion,
                                     u32 stages) {
  Buffer even{{}, promotion, 0}, odd{{}, promotion, 0};
  even.start(ring, place);
#pragma unroll 1
  for (; stages > 2; stages -= 2) {
    odd.start(ring, place);
    wgmma_wait<1>();
    even.add(sums, place);
    even.start(ring, place);
    wgmma_wait<1>();
    odd.add(sums, place);
  }
  if (stages == 2) odd.start(ring, place);
  wgmma_wait<0>();
  even.add(sums, place);
  if (stages == 2) odd.add(sums, place);
}

// A warpgroup adds while the other one's MMAs run.
WS_DEVICE void add_promoted_stages(Sums& sums, Ring& ring, const Place& place, const Problem& p, const Tile& tile) {
  Promotion promotion(p, tile, place);
  const u32 stages = tile.stages;
#pragma unroll
  for (u32 c = 0; c < kN / 2; ++c) sums[0][c] = 0.0f;
  if constexpr (kBuffers == 2) {
    if (!promotion.by_column()) {
      add_overlapped_stages(sums, ring, place, promotion, stages);
      return;
    }
  }
#pragma unroll 1
  for (u32 stage = 0; stage < stages; ++stage, ring.advance()) {
    mbarrier_wait(ring.full(), ring.parity);
    promotion.read(ring);
    add_parts(sums, promotion, ring, place);
  }
}

}  // namespace ws
