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
    if (lane < kArriving) mbarrier_arrive(empty);
  } else if constexpr (kArriving > 1) {
    for (u32 rank = 0; rank < kCluster; ++rank) mbarrier_arrive_at(empty, rank);
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

// The product over a stage of e4m3.
WS_DEVICE void multiply_part(Part& part, const Ring& ring, const Place& place) {
  const u64 left = wgmma_operand(ring.left() + place.left() * kRowBytes);
  const u64 right = wgmma_operand(ring.right() + place.right() * kRowBytes);
  wgmma_fence();
  Wgmma<kN>::product_e4m3(part, left, right);
  wgmma_commit();
}

// One stage's MMAs run while the next one's are started.
WS_DEVICE void add_stages(Sums& sums, Ring& ring, const Place& place, u32 stages) {
  u32 before = 0;
#pragma unroll 1
  for (u32 i = 0; i < stages; ++i, ring.advance()) {
    mbarrier_wait(ring.full(), ring.parity);
    multiply_stage(sums, ring, place, i);
    wgmma_wait<1>();
    if (i != 0) release_stage(before, place.lane);
    before = ring.empty();
  }
  wgmma_wait<0>();
#pragma unroll
  for (u32 i = 0; i < kM64; ++i) hold_sums(sums[i]);
  release_stage(before, place.lane);
}

// ---- fp8_row, fp8_tensor ------------------------------------------------------------------------------------------

// Sums of kPeriod stages, whose MMAs may be under way.
struct Period {
  Part part;
  u32 empty[kPeriod == 0 ? 1 : kPeriod];

  WS_DEVICE void start(Ring& ring, const Place& place) {
#pragma unroll
    for (u32 i = 0; i < kPeriod; ++i) {
      mbarrier_wait(ring.full(), ring.parity);
      empty[i] = ring.empty();
      const u64 left = wgmma_operand(ring.left() + place.left() * kRowBytes);
      const u64 right = wgmma_operand(ring.right() + place.right() * kRowBytes);
      if (i == 0) {
        wgmma_fence();
        Wgmma<kN>::product_e4m3(part, left, right);
      } else {
#pragma unroll
        for (u32 step = 0; step < kRowBytes / kStepBytes; ++step) {
          Wgmma<kN>::template multiply_add<kType>(part, left + step * kStepBytes / 16, right + step * kStepBytes / 16, 1u);
        }
      }
      ring.advance();
    }
    wgmma_commit();
  }

  // Its MMAs have ended.
  WS_DEVICE void add(Sums& sums, const Place& place) {
    hold_sums(part);
#pragma unroll
    for (u32 i = 0; i < kPeriod; ++i) release_stage(empty[i], place.lane);
#pragma unroll
    for (u32 c = 0; c < kN / 2; ++c) sums[0][c] += part[c];
    hold_sums(sums[0]);
  }
};

template <u32 kNumber>
WS_DEVICE void add_period_turn(Sums& sums, Period& last, Period& next, Ring& ring, const Place& place) {
  if constexpr (kNumber < kTurn) {
    next.start(ring, place);
    wgmma_wait<1>();
    last.add(sums, place);
    add_period_turn<kNumber + 1>(sums, next, last, ring, place);
  } else {
    wgmma_wait<0>();
    last.add(sums, place);
  }
}

// A period's sums are added while the next one's MMAs run, as those of a stage of fp8_block.
WS_DEVICE void add_periods(Sums& sums, Ring& ring, const Place& place, u32 stages) {
#pragma unroll
  for (u32 c = 0; c < kN / 2; ++c) sums[0][c] = 0.0f;
#pragma unroll 1
  for (; stages >= kTurn * kPeriod; stages -= kTurn * kPeriod) {
    Period first, second;
    first.start(ring, place);
    add_period_turn<1>(sums, first, second, ring, place);
  }
#pragma unroll 1
  for (; stages != 0; --stages, ring.advance()) {
    Part part;
    mbarrier_wait(ring.full(), ring.parity);
    multiply_part(part, ring, place);
    wgmma_wait<0>();
    hold_sums(part);
    release_stage(ring.empty(), place.lane);
#pragma unroll
    for (u32 c = 0; c < kN / 2; ++c) sums[0][c] += part[c];
  }
}

// ---- fp32 scales --------------------------------------------------------------------------------------------------

// What sums over 128 of K are multiplied by: a lane's two rows' scales, times the one of all columns, or of each column
// (`by_column`). The columns' are with them for swapped tiles, which have few, and else stay in the stage.
struct Factors {
  float rows[2], columns[kSwap ? kN / 4 : 1];
  u32 scales;  // the stage's
};

struct Promotion {
  const bool by_rows;  // scales of B
  u32 a, b;            // where a lane's first ones lie in a stage's

  // Scales of A start at a multiple of four rows.
  WS_DEVICE Promotion(const Problem& p, const Tile& tile, const Place& place) : by_rows(p.flags & kRowScalesB) {
    const u32 g = place.lane / 4, t = place.lane % 4;
    const u32 row = place.left() + place.warp * 16 + g, column = place.right() + 2 * t;
    a = Scales::kA + ((kSwap ? column : row) + tile.row % 4) * 4;
    b = Scales::kB + (kSwap ? row : column) * 4;
  }

  WS_DEVICE bool by_column() const { return kSwap || by_rows; }

  WS_DEVICE Factors read(const Ring& ring) const {
    Factors f;
    f.scales = ring.scales();
    const u32 one = f.scales + Scales::kB;  // of B, unless by_rows
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
      f.rows[h] = shared_float(kSwap && !by_rows ? one : f.scales + (kSwap ? b : a) + h * 32);
      if (!by_column()) f.rows[h] *= shared_float(one);
    }
    if constexpr (kSwap) {
#pragma unroll
      for (u32 i = 0; i < kN / 4; ++i) f.columns[i] = column(f, i);
    }
    return f;
  }

  WS_DEVICE void add_square(Sums& sums, const Part& part, const Factors& f) const {
#pragma unroll
    for (u32 c = 0; c < kN / 2; ++c) sums[0][c] = __fmaf_rn(part[c], f.rows[c / 2 % 2], sums[0][c]);
  }

  // The scale of a lane's i-th column.
  WS_DEVICE float column(const Factors& f, u32 i) const {
    return shared_float(f.scales + (kSwap ? a : b) + (i / 2 * 8 + i % 2) * 4);
  }

  WS_DEVICE void add_columns(Sums& sums, const Part& part, const Factors& f) const {
#pragma unroll
    for (u32 c = 0; c < kN / 2; c += 4) {
#pragma unroll
      for (u32 e = 0; e < 2; ++e) {
        const float factor = kSwap ? f.columns[c / 2 + e] : column(f, c / 2 + e);
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
          float& sum = sums[0][c + 2 * h + e];
          sum = __fmaf_rn(part[c + 2 * h + e], f.rows[h] * factor, sum);
        }
      }
    }
  }

  // Without anything that is still in the stage.
  WS_DEVICE void add(Sums& sums, const Part& part, const Factors& f) const {
    if constexpr (kSwap) {
      add_columns(sums, part, f);
    } else {
      add_square(sums, part, f);
    }
  }
};

WS_DEVICE void add_stage(Sums& sums, const Promotion& promotion, const Ring& ring, const Place& place) {
  Part part;
  const Factors factors = promotion.read(ring);
  multiply_part(part, ring, place);
  wgmma_wait<0>();
  hold_sums(part);
  if (!kSwap && promotion.by_rows) {
    promotion.add_columns(sums, part, factors);
    __syncwarp();
    release_stage(ring.empty(), place.lane);
  } else {
    release_stage(ring.empty(), place.lane);
    promotion.add(sums, part, factors);
  }
}

// A stage's sums, whose MMAs may be under way.
struct Buffer {
  Part part;
  Factors factors;
  u32 empty;

  WS_DEVICE void start(const Promotion& promotion, Ring& ring, const Place& place) {
    mbarrier_wait(ring.full(), ring.parity);
    factors = promotion.read(ring);
    empty = ring.empty();
    multiply_part(part, ring, place);
    ring.advance();
  }

  // Its MMAs have ended.
  WS_DEVICE void add(Sums& sums, const Promotion& promotion, const Place& place) {
    hold_sums(part);
    release_stage(empty, place.lane);
    promotion.add(sums, part, factors);
    hold_sums(sums[0]);
  }
};

// A stage's sums are added while the next one's MMAs run, without a gap until the last.
WS_DEVICE void add_overlapped_stages(Sums& sums, Ring& ring, const Place& place, const Promotion& promotion,
                                     u32 stages) {
  Buffer first, second;
  first.start(promotion, ring, place);
#pragma unroll 1
  for (; stages > 2; stages -= 2) {
    second.start(promotion, ring, place);
    wgmma_wait<1>();
    first.add(sums, promotion, place);
    first.start(promotion, ring, place);
    wgmma_wait<1>();
    second.add(sums, promotion, place);
  }
  if (stages == 2) {
    second.start(promotion, ring, place);
    wgmma_wait<1>();
    first.add(sums, promotion, place);
    wgmma_wait<0>();
    second.add(sums, promotion, place);
  } else {
    wgmma_wait<0>();
    first.add(sums, promotion, place);
  }
}

}  // namespace ws
