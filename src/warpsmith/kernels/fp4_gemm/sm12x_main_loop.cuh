// SPDX-License-Identifier: Apache-2.0
// The main loop: a warp's sums over the stages of a tile.
#pragma once

#include "common/mbarrier.cuh"
#include "common/shared_load.cuh"
#include "fp4_gemm/sm12x_config.cuh"
#include "fp4_gemm/sm12x_fragments.cuh"

namespace ws {

// The fp32 scales of a lane's rows of A, times B's, for 128 of K.
struct FloatScales {
  float factors[kSwap ? 2 * kN8 : 2 * kM16];

  // `shift` is where the first row's scale of A lies: copies start at a multiple of four rows.
  WS_DEVICE void read(u32 stage, const Reader& reader, u32 shift) {
    const u32 g = reader.lane / 4, t = reader.lane % 4;
    if constexpr (kSwap) {
      const float b = word(stage + Stage::kLeftScales);
      const u32 from = stage + Stage::kRightScales + (reader.warp_right * Right::kWarpRows + shift) * 4;
#pragma unroll
      for (u32 j = 0; j < 2 * kN8; ++j) factors[j] = word(from + (slab_row(j / 2, 2 * t) + j % 2) * 4) * b;
    } else {
      const float b = word(stage + Stage::kRightScales);
      const u32 from = stage + Stage::kLeftScales + (reader.warp_left * Left::kWarpRows + shift) * 4;
#pragma unroll
      for (u32 i = 0; i < 2 * kM16; ++i) factors[i] = word(from + slab_row(i, g) * 4) * b;
    }
  }

  WS_DEVICE void add(Sums& sums, const Sums& part) const {
#pragma unroll
    for (u32 i = 0; i < kM16; ++i) {
#pragma unroll
      for (u32 j = 0; j < kN8; ++j) {
#pragma unroll
        for (u32 c = 0; c < 4; ++c) {
          sums[i][j][c] = __fmaf_rn(part[i][j][c], factors[kSwap ? 2 * j + c % 2 : 2 * i + c / 2], sums[i][j][c]);
        }
      }
    }
  }

 private:
  WS_DEVICE static float word(u32 address) {
    u32 words[1];
    load_shared(address, words);
    return float_of(words[0]);
  }
};

struct MainLoop {
  const Reader& reader;
  Ring& ring;
  u32 stages;  // left, one at least
  Fragments fragments[2];
  bool fresh = true;  // the next stage is the first of those that share scales

  // Waits for the next stage and reads its first fragments.
  WS_DEVICE void start() {
    mbarrier_wait(ring.full, ring.parity);
    reader.read<0>(ring.stage, fragments[0], fragments[1], fresh);
    fresh = !fresh;
  }

  // All steps of a stage but the last: each reads the next one's fragments before it multiplies its own.
  template <u32 kStep = 0>
  WS_DEVICE void multiply_steps(Sums& sums) {
    if constexpr (kStep + 1 < kSteps) {
      reader.read<kStep + 1>(ring.stage, fragments[(kStep + 1) % 2], fragments[kStep % 2], true);
      fragments[kStep % 2].multiply_add(sums, kScaleByte<kStep>);
      multiply_steps<kStep + 1>(sums);
    }
  }

  // The last step runs while the next stage's first fragments arrive.
  WS_DEVICE void multiply_stage(Sums& sums, bool last) {
    multiply_steps(sums);
    const u32 empty = ring.empty();
    ring.advance();
    if (!last) start();
    __syncwarp();
    if (WS_EVERY_LANE_ARRIVES || reader.lane == 0) mbarrier_arrive(empty);
    fragments[1].multiply_add(sums, kScaleByte<kSteps - 1>);
  }

  // With fp32 scales, which cover a stage.
  WS_DEVICE void promote_stage(Sums& sums, u32 shift, bool last) {
    Sums part = {};
    FloatScales scales;
    scales.read(ring.stage, reader, shift);
    multiply_stage(part, last);
    scales.add(sums, part);
  }

  WS_DEVICE void run(Sums& sums) {
    run_stages([&](bool last) { multiply_stage(sums, last); });
  }

  WS_DEVICE void run_promoted(Sums& sums, u32 shift) {
    run_stages([&](bool last) { promote_stage(sums, shift, last); });
  }

 private:
  // The last stage has code of its own, without a branch in the loop, but in software: there a stage is thousands of
  // instructions, and the branch is nothing.
  template <typename Stage>
  WS_DEVICE void run_stages(Stage stage) {
    start();
#if WS_SOFTWARE_BLOCK_SCALED
    bool last;
#pragma unroll 1
    do {
      last = --stages == 0;
      stage(last);
    } while (!last);
#else
#pragma unroll 1
    while (--stages != 0) stage(false);
    stage(true);
#endif
  }
};

}  // namespace ws
