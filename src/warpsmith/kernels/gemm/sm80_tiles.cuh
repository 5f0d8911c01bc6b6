// SPDX-License-Identifier: Apache-2.0
// The main loop over tiles in shared memory that all warps of a block share.
#pragma once

#include "common/cp_async.cuh"
#include "common/types.cuh"
#include "gemm/sm80_config.cuh"
#include "gemm/sm80_fragments.cuh"
#include "gemm/sm80_producer.cuh"
#include "gemm/sm80_schedule.cuh"
#include "gemm/sm80_tile_copy.cuh"

namespace ws {

// The consuming side of a warp: its place in the ring of stages, and two sets of fragments in turn.
struct Consumer {
  Producer& producer;
  WarpPlace place;
  TileReader<Left, true> left;
  TileReader<Right, false> right;
  u32 slot, k_tile;
  LeftWords left_words[2];
  RightWords right_words[2];

  WS_DEVICE Consumer(Producer& source, const WarpPlace& where)
      : producer(source), place(where), left(where.left, where.k), right(where.right, where.k), slot(0),
        k_tile(source.next) {}

  WS_DEVICE void read_left(u32 stage, u32 step, u32 unit, LeftWords& words) const {
    left.read(stage, step, unit * kUnitM16 * 2, words);
  }
  WS_DEVICE void read_right(u32 stage, u32 step, RightWords& words) const {
    right.read(stage + Left::kTileBytes, step, 0, words);
  }

  // One stage. Fragments are read while those before them are multiplied; the barrier stands where the last of a stage
  // have been read, so that its place is filled again at once. kOdd: an odd number of stages has gone before.
  template <bool kOdd>
  WS_DEVICE void multiply_stage(Sums& sums) {
    const u32 next_slot = slot + 1 == kStages ? 0 : slot + 1;
    const u32 stage = producer.shared + slot * Shared::kStage, next_stage = producer.shared + next_slot * Shared::kStage;
    producer.decode_scales(k_tile + 1, next_slot);
#pragma unroll
    for (u32 step = 0; step < kSteps; ++step) {
      const u32 right_set = (kOdd * kSteps + step) % 2;
      StepScales<Left, true> left_scales;
      StepScales<Right, false> right_scales;
      const u32 k_step = step * kWarpsK + place.k;
      left_scales.read(producer.left_decoded(k_tile), place.left, k_step);
      right_scales.read(producer.right_decoded(k_tile), place.right, k_step);
      Columns columns;
#pragma unroll
      for (u32 unit = 0; unit < kUnitsM; ++unit) {
        const u32 left_set = ((kOdd * kSteps + step) * kUnitsM + unit) % 2;
        const bool last_unit = unit + 1 == kUnitsM, last = last_unit && step + 1 == kSteps;
        if (last) {
          wait_for_copies<kStages - 2>();
          __syncthreads();
        }
        read_left(last ? next_stage : stage, last ? 0 : last_unit ? step + 1 : step, last_unit ? 0 : unit + 1,
                  left_words[left_set ^ 1]);
        if (last_unit) read_right(last ? next_stage : stage, last ? 0 : step + 1, right_words[right_set ^ 1]);
        if (last) producer.copy_stage(slot);
        if (unit == 0) to_columns(right_words[right_set], right_scales, columns);
        multiply(sums, unit * kUnitM16, left_words[left_set], columns, left_scales, right_scales);
      }
    }
    slot = next_slot;
    ++k_tile;
  }

  WS_DEVICE void run(Sums& sums) {
    producer.start();
    read_left(producer.shared, 0, 0, left_words[0]);
    read_right(producer.shared, 0, right_words[0]);
#pragma unroll 1
    while (k_tile < producer.end) {
      multiply_stage<false>(sums);
      if constexpr (kSteps % 2 == 1) {
        if (k_tile == producer.end) break;
        multiply_stage<true>(sums);
      }
    }
    wait_for_copies<0>();
    __syncthreads();
  }
};

// Sums of this block's part of K.
WS_DEVICE void multiply_tile(Sums& sums, const Problem& p, const Tile& tile, u32 shared) {
  Producer producer = make_producer(p, tile, shared);
  Consumer(producer, WarpPlace()).run(sums);
}

}  // namespace ws
