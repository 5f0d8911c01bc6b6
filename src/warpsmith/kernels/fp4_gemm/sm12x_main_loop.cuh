// SPDX-License-Identifier: Apache-2.0
// The main loop: a warp's sums over the stages of a tile.
#pragma once

#include "common/mbarrier.cuh"
#include "common/shared_load.cuh"
#include "fp4_gemm/sm12x_config.cuh"
#include "fp4_gemm/sm12x_fragments.cuh"

namespace ws {

// The fp32 scales of a lane's rows of the left operand and columns of the right one, for 128 of K.
struct FloatScales {
  float left[2 * kM16], right[2 * kN8];

  // `shift` is where the first row's scale of A lies: copies start at a multiple of four rows. A scale that serves all
  // of B's rows goes into those of A.
  WS_DEVICE void read(u32 stage, const Reader& reader, u32 shift, bool one_for_b) {
    const u32 g = reader.lane / 4, t = reader.lane % 4;
    const u32 first_left = reader.warp_left * Left::kWarpRows + (kSwap ? 0 : shift);
    const u32 first_right = reader.warp_right * Right::kWarpRows + (kSwap ? shift : 0);
    const float for_all = one_for_b ? word(stage + (kSwap ? Stage::kLeftScales : Stage::kRightScales)) : 1.0f;
    if (!kSwap || !one_for_b) {
#pragma unroll
      for (u32 i = 0; i < 2 * kM16; ++i) {
        left[i] = word(stage + Stage::kLeftScales + (first_left + slab_row(i, g)) * 4) * (kSwap ? 1.0f : for_all);
      }
    }
    if (kSwap || !one_for_b) {
#pragma unroll
      for (u32 j = 0; j < kN8; ++j) {
        const u32 at = stage + Stage::kRightScales + (first_right + slab_row(j, 2 * t)) * 4;
        right[2 * j] = word(at) * (kSwap ? for_all : 1.0f);
        right[2 * j + 1] = word(at + 4) * (kSwap ? for_all : 1.0f);
      }
    }
  }

  WS_DEVICE void add(Sums& sums, const Sums& part, bool one_for_b) const {
    if (one_for_b) {
      add_with(sums, part, [&](u32 l, u32 r) { return kSwap ? right[r] : left[l]; });
    } else {
      add_with(sums, part, [&](u32 l, u32 r) { return left[l] * right[r]; });
    }
  }

 private:
  WS_DEVICE static float word(u32 address) {
    u32 words[1];
    load_shared(address, words);
    return float_of(words[0]);
  }

  template <class Factor>
  WS_DEVICE static void add_with(Sums& sums, const Sums& part, const Factor& factor) {
#pragma unroll
    for (u32 i = 0; i < kM16; ++i) {
#pragma unroll
      for (u32 j = 0; j < kN8; ++j) {
#pragma unroll
        for (u32 c = 0; c < 4; ++c) {
          sums[i][j][c] = __fmaf_rn(part[i][j][c], factor(2 * i + c / 2, 2 * j + c % 2), sums[i][j][c]);
        }
      }
    }
  }
};

struct MainLoop {
  const Reader& reader;
  Ring& ring;
  u32 stages;  // left
  Fragments fragments[2];
  bool fresh = true;  // the next stage is the first of those that share scales

  // Waits for the next stage, if there is one, and reads its first fragments.
  WS_DEVICE void start() {
    if (stages == 0) return;
    mbarrier_wait(ring.full(), ring.parity);
    reader.read<0>(ring.stage(), fragments[0], fragments[1], fresh);
    fresh = !fresh;
  }

  // All steps of a stage but the last: each reads the next one's fragments before it multiplies its own.
  template <u32 kStep = 0>
  WS_DEVICE void multiply_steps(Sums& sums) {
    if constexpr (kStep + 1 < kSteps) {
      reader.read<kStep + 1>(ring.stage(), fragments[(kStep + 1) % 2], fragments[kStep % 2], true);
      fragments[kStep % 2].multiply_add(sums, kScaleByte<kStep>);
      multiply_steps<kStep + 1>(sums);
    }
  }

  // The last step runs while the next stage's first fragments arrive.
  WS_DEVICE void multiply_stage(Sums& sums) {
    multiply_steps(sums);
    const u32 empty = ring.empty();
    ring.advance();
    --stages;
    start();
    __syncwarp();
    if (WS_EVERY_LANE_ARRIVES || reader.lane == 0) mbarrier_arrive(empty);
    fragments[1].multiply_add(sums, kScaleByte<kSteps - 1>);
  }

  WS_DEVICE void run(Sums& sums) {
    start();
#pragma unroll 1
    while (stages != 0) multiply_stage(sums);
  }

  // With fp32 scales: a turn is what they cover.
  WS_DEVICE void run_promoted(Sums& sums, u32 shift, bool one_for_b) {
    start();
#pragma unroll 1
    while (stages != 0) {
      Sums part = {};
      FloatScales scales;
      if constexpr (kScaleStages == 2) multiply_stage(part);
      scales.read(ring.stage(), reader, shift, one_for_b);
      multiply_stage(part);
      scales.add(sums, part, one_for_b);
    }
  }
};

}  // namespace ws
