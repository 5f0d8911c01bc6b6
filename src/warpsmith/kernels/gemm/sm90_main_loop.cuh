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

// Starts the MMAs of a stage. With `keep` = 0 sums begin with them.
WS_DEVICE void multiply_stage(Sums& sums, const Ring& ring, const Place& place, u32 keep) {
  const u64 left = wgmma_operand(ring.left() + place.left() * kRowBytes);
  const u64 right = wgmma_operand(ring.right() + place.right() * kRowBytes);
  wgmma_fence();
#pragma unroll
  for (u32 step = 0; step < kRowBytes / kStepBytes; ++step) {
#pragma unroll
    for (u32 i = 0; i < kM64; ++i) {
      const u32 rows = i * 64 * kRowBytes, along = step * kStepBytes;
      Wgmma<kN>::multiply_add<kType>(sums[i], left + (rows + along) / 16, right + along / 16, step == 0 ? keep : 1u);
    }
  }
  wgmma_commit();
}

// The product of a part of kPartN columns over a stage.
WS_DEVICE void multiply_part(float (&part)[kPartN / 2], const Ring& ring, const Place& place, u32 number) {
  const u64 left = wgmma_operand(ring.left() + place.left() * kRowBytes);
  const u64 right = wgmma_operand(ring.right() + place.right() * kRowBytes) + number * kPartN * kRowBytes / 16;
  wgmma_fence();
  Wgmma<kPartN>::product_e4m3(part, left, right);
  wgmma_commit();
}

// Whether the stages of the other of two warpgroups that share K come next; it is then done with.
WS_DEVICE bool skip_stage(const Ring& ring, const Place& place, u32 stage) {
  if (kGroupsK == 1 || stage % kGroupsK == place.group) return false;
  release_stage(ring.empty(), place.lane);
  return true;
}

// One stage's MMAs run while the next one's are started.
WS_DEVICE void add_stages(Sums& sums, Ring& ring, const Place& place, u32 stages) {
  u32 before = 0;
  if (stages <= place.group && kGroupsK == 2) {
#pragma unroll
    for (u32 c = 0; c < kN / 2; ++c) sums[0][c] = 0.0f;
  }
#pragma unroll 1
  for (u32 i = 0; i < stages; ++i, ring.advance()) {
    mbarrier_wait(ring.full(), ring.parity);
    if (skip_stage(ring, place, i)) continue;
    multiply_stage(sums, ring, place, i / kGroupsK);
    wgmma_wait<1>();
    if (before != 0) release_stage(before, place.lane);
    before = ring.empty();
  }
  wgmma_wait<0>();
#pragma unroll
  for (u32 i = 0; i < kM64; ++i) hold_sums(sums[i]);
  if (before != 0) release_stage(before, place.lane);
}

// ---- fp32 scales --------------------------------------------------------------------------------------------------

// What sums over 128 of K are multiplied by: scales of a lane's two rows, times those of columns where kColumns share
// one; those that are `by_column` stay in the stage.
struct Factors {
  static constexpr u32 kColumns = kSwap || kN < 64 ? kN : kTileN % 128 == 0 && kPartN % 128 == 0 ? 128 : 64;
  float rows[2][kN / kColumns];
  u32 scales;  // the stage's
};

struct Promotion {
  const bool by_rows;  // scales of B
  u32 a, b;            // where a lane's first ones lie in a stage's
  u32 first, boundary;  // the warpgroup's first column, and the first one with the second of 128 x 128 scales

  // Scales of A start at a multiple of four rows.
  WS_DEVICE Promotion(const Problem& p, const Tile& tile, const Place& place)
      : by_rows(p.flags & kRowScalesB), first(place.right()), boundary(128 - tile.column % 128) {
    const u32 g = place.lane / 4, t = place.lane % 4;
    const u32 row = place.left() + place.warp * 16 + g, column = place.right() + 2 * t;
    a = Scales::kA + ((kSwap ? column : row) + tile.row % 4) * 4;
    b = Scales::kB + (kSwap ? row : column) * 4;
  }

  WS_DEVICE bool by_column() const { return kSwap || by_rows; }

  WS_DEVICE Factors read(const Ring& ring) const {
    Factors f;
    f.scales = ring.scales();
    const bool one = kSwap && !by_rows;
#pragma unroll
    for (u32 h = 0; h < 2; ++h) f.rows[h][0] = shared_float(f.scales + (one ? Scales::kB : (kSwap ? b : a) + h * 32));
    if (by_column()) return f;
    const float left[2] = {f.rows[0][0], f.rows[1][0]};
#pragma unroll
    for (u32 q = 0; q < kN / Factors::kColumns; ++q) {
      const u32 column = first + q * Factors::kColumns;
      const u32 block = kTileN % 128 == 0 ? column / 128 : column < boundary ? 0 : 1;
      const float square = shared_float(f.scales + Scales::kB + block * 4);
#pragma unroll
      for (u32 h = 0; h < 2; ++h) f.rows[h][q] = left[h] * square;
    }
    return f;
  }

  template <u32 kFirst>
  WS_DEVICE void add_square(Sums& sums, const Part& part, const Factors& f) const {
#pragma unroll
    for (u32 c = 0; c < kPartN / 2; ++c) {
      float& sum = sums[0][kFirst / 2 + c];
      sum = __fmaf_rn(part[c], f.rows[c / 2 % 2][(kFirst + 2 * c) / Factors::kColumns], sum);
    }
  }

  template <u32 kFirst>
  WS_DEVICE void add_columns(Sums& sums, const Part& part, const Factors& f) const {
    const u32 right = f.scales + (kSwap ? a : b) + kFirst * 4;
#pragma unroll
    for (u32 c = 0; c < kPartN / 2; c += 4) {
#pragma unroll
      for (u32 e = 0; e < 2; ++e) {
        const float factor = shared_float(right + (2 * c + e) * 4);
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
          float& sum = sums[0][kFirst / 2 + c + 2 * h + e];
          sum = __fmaf_rn(part[c + 2 * h + e], f.rows[h][0] * factor, sum);
        }
      }
    }
  }
};

// Parts kFirst / kPartN and on of a stage, one after the other.
template <u32 kFirst = 0>
WS_DEVICE void add_parts(Sums& sums, const Promotion& promotion, const Factors& factors, const Ring& ring,
                         const Place& place) {
  if constexpr (kFirst < kN) {
    constexpr bool last = kFirst + kPartN == kN;
    Part part;
    multiply_part(part, ring, place, kFirst / kPartN);
    wgmma_wait<0>();
    hold_sums(part);
    if (promotion.by_column()) {
      promotion.add_columns<kFirst>(sums, part, factors);
      __syncwarp();
      if (last) release_stage(ring.empty(), place.lane);
    } else {
      if (last) release_stage(ring.empty(), place.lane);
      promotion.add_square<kFirst>(sums, part, factors);
    }
    add_parts<kFirst + kPartN>(sums, promotion, factors, ring, place);
  }
}

// A part whose MMAs may be under way.
struct Buffer {
  Part part;
  Factors factors;
  u32 empty;

  // `number` is that of the part in its stage; the ring moves on after the last.
  template <u32 kNumber>
  WS_DEVICE void start(const Promotion& promotion, Ring& ring, const Place& place) {
    if (kNumber == 0) mbarrier_wait(ring.full(), ring.parity);
    factors = promotion.read(ring);
    empty = ring.empty();
    multiply_part(part, ring, place, kNumber);
    if (kNumber + 1 == kPartsN) ring.advance();
  }

  // Its MMAs have ended.
  template <u32 kNumber>
  WS_DEVICE void add(Sums& sums, const Promotion& promotion, const Place& place) {
    hold_sums(part);
    if (kNumber + 1 == kPartsN) release_stage(empty, place.lane);
    promotion.add_square<kNumber * kPartN>(sums, part, factors);
    hold_sums(sums[0]);
  }
};

// Parts kNumber and on of a turn.
template <u32 kNumber>
WS_DEVICE void add_turn(Sums& sums, Buffer& last, Buffer& next, const Promotion& promotion, Ring& ring,
                        const Place& place) {
  if constexpr (kNumber < kTurn * kPartsN) {
    next.start<kNumber % kPartsN>(promotion, ring, place);
    wgmma_wait<1>();
    last.add<(kNumber - 1) % kPartsN>(sums, promotion, place);
    add_turn<kNumber + 1>(sums, next, last, promotion, ring, place);
  } else {
    wgmma_wait<0>();
    last.add<(kNumber - 1) % kPartsN>(sums, promotion, place);
  }
}

// A part's sums are added while the next one's MMAs run. None run from one turn of the loop to the next: the compiler
// would wait for every MMA. Returns the stages that are left.
WS_DEVICE u32 add_overlapped_stages(Sums& sums, Ring& ring, const Place& place, const Promotion& promotion,
                                    u32 stages) {
#pragma unroll 1
  for (; stages >= kTurn; stages -= kTurn) {
    Buffer first, second;
    first.start<0>(promotion, ring, place);
    add_turn<1>(sums, first, second, promotion, ring, place);
  }
  return stages;
}

// A warpgroup adds while the other one's MMAs run.
WS_DEVICE void add_promoted_stages(Sums& sums, Ring& ring, const Place& place, const Problem& p, const Tile& tile) {
  const Promotion promotion(p, tile, place);
  u32 stages = tile.stages;
#pragma unroll
  for (u32 c = 0; c < kN / 2; ++c) sums[0][c] = 0.0f;
  if constexpr (kBuffers == 2) {
    if (!promotion.by_column()) stages = add_overlapped_stages(sums, ring, place, promotion, stages);
  }
#pragma unroll 1
  for (; stages != 0; --stages, ring.advance()) {
    mbarrier_wait(ring.full(), ring.parity);
    if (skip_stage(ring, place, tile.stages - stages)) continue;
    add_parts(sums, promotion, promotion.read(ring), ring, place);
  }
}

}  // namespace ws
