// SPDX-License-Identifier: Apache-2.0
// The main loop with quantized rows of B: they become the left operand in registers, rows of A lie in shared memory.
//
// Fragments have two places by turns: while the MMAs of a unit of K run, those of the next one are made.
#pragma once

#include "common/mbarrier.cuh"
#include "common/ptx.cuh"
#include "common/shared_load.cuh"
#include "common/shared_store.cuh"
#include "common/warpgroup.cuh"
#include "common/wgmma.cuh"
#include "gemm/sm90_config.cuh"
#include "gemm/sm90_main_loop.cuh"
#include "gemm/sm90_mixed_fragments.cuh"
#include "gemm/sm90_mixed_scales.cuh"
#include "gemm/sm90_mixed_squares.cuh"
#include "gemm/sm90_schedule.cuh"

namespace ws {

// The left operands of two MMAs of 16 columns, for each 64 rows.
struct Fragments {
  u32 words[2][kM64][4];

  // Keeps an MMA's registers from other use until here.
  WS_DEVICE void hold(u32 step) const {
#pragma unroll
    for (u32 i = 0; i < kM64 * 4; ++i) asm volatile("" ::"r"(words[step][i / 4][i % 4]));
  }
};

// A lane's codes of a unit, which it shares with the others of its rows.
struct Codes {
  u32 words[kM64][2][4];

  WS_DEVICE void load(u32 from) {
#pragma unroll
    for (u32 i = 0; i < kM64; ++i) {
#pragma unroll
      for (u32 h = 0; h < 2; ++h) load_shared(from + (i * 64 + h * 8) * kRowBytesB, words[i][h]);
    }
  }

  // The left operands of 16 columns.
  WS_DEVICE void convert(const RowScales (&scales)[kM64][2], u32 k16, u32 pick, Fragments& to) const {
#pragma unroll
    for (u32 i = 0; i < kM64; ++i) {
#pragma unroll
      for (u32 h = 0; h < 2; ++h) {
        u32 pairs[2];
        convert_row(words[i][h] + k16 % kSteps * 2, pick, scales[i][h].scale(k16), pairs);
#pragma unroll
        for (u32 j = 0; j < 2; ++j) to.words[k16 % 2][i][j * 2 + h] = pairs[j];
      }
    }
  }
};

// Starts an MMA of 16 columns for each 64 rows, and waits until there are three under way: the registers of the next one,
// which the fourth last has read, are free.
WS_DEVICE void multiply_step(Sums& sums, const Fragments& left, u32 step, u64 right) {
  wgmma_fence();
#pragma unroll
  for (u32 i = 0; i < kM64; ++i) Wgmma<kN>::multiply_add_bf16(sums[i], left.words[step][i], right, 1);
  wgmma_commit();
  wgmma_wait<3>();
}

// What a stage needs of a lane: where its codes are.
struct CodePlace {
  u32 from[kUnits], pick;  // of bytes

  WS_DEVICE explicit CodePlace(const Place& place) {
    const u32 g = place.lane / 4, t = place.lane % 4;
    const u32 row = (place.left() + place.warp * 16 + g) * kRowBytesB, turn = g * kRowBytesB / 128 % (kRowBytesB / 16);
    pick = kWholeBytes ? 0x9180 + t * 0x2222 : 0x40 + t * 0x11;
#pragma unroll
    for (u32 unit = 0; unit < kUnits; ++unit) from[unit] = opaque(row + (unit ^ turn) * 16);
  }
};

// `codes[0]` are the first unit's. Releases the stage before once its MMAs have ended.
WS_DEVICE void add_mixed_stage(Sums& sums, Fragments (&fragments)[2], Codes (&codes)[2], const CodePlace& from,
                               const RowScales (&scales)[kM64][2], const Ring& ring, const Place& place, u32 before,
                               float by) {
  const u64 right = wgmma_operand(ring.right() + place.right() * kRowBytes);
#pragma unroll
  for (u32 unit = 0; unit < kUnits; ++unit) {
    if (unit + 1 < kUnits) codes[(unit + 1) % 2].load(ring.left() + from.from[unit + 1]);
#pragma unroll
    for (u32 step = 0; step < kSteps; ++step) {
      const u32 k16 = unit * kSteps + step, next = k16 + 1;
      const u32 at = k16 / 4 * kRightRows * kRowBytes + k16 % 4 * kStepBytes;
      codes[unit % 2].convert(scales, k16, from.pick, fragments[k16 / 2 % 2]);
      if (kSquares && k16 == 0 && by != 1.0f) change_unit(sums, by);
      multiply_step(sums, fragments[k16 / 2 % 2], k16 % 2, right + at / 16);
      fragments[next / 2 % 2].hold(next % 2);
      if (k16 == 2 && before != 0) release_stage(before, place.lane);
    }
  }
}

WS_DEVICE void zero_sums(Sums& sums) {
#pragma unroll
  for (u32 i = 0; i < kM64; ++i) {
#pragma unroll
    for (u32 c = 0; c < kN / 2; ++c) sums[i][c] = 0.0f;
    hold_sums(sums[i]);
  }
}

// All MMAs of a tile have been started.
WS_DEVICE void end_stages(Sums& sums, const Fragments (&fragments)[2], const Place& place, u32 before) {
  wgmma_wait<0>();
#pragma unroll
  for (u32 i = 0; i < 4; ++i) fragments[i / 2].hold(i % 2);
#pragma unroll
  for (u32 i = 0; i < kM64; ++i) hold_sums(sums[i]);
  if (before != 0) release_stage(before, place.lane);
}

WS_DEVICE void add_mixed_stages(Sums& sums, Ring& ring, const Place& place, const Problem& p, const Tile& tile) {
  const StagePlace scale_place(p, tile, place);
  float unit = 1.0f;  // of the sums
  const CodePlace code_place(place);
  const u32 all = div_up(p.k, kTileK), first_stage = kPartsK > 1 || tile.splits > 1 ? all * tile.split / tile.splits : 0;
  Fragments fragments[2] = {};
  u32 before = 0;
  zero_sums(sums);
#pragma unroll 1
  for (u32 i = 0; i < tile.stages; ++i, ring.advance()) {
    if (kGroupsK > 1 && i % kGroupsK != place.turn) continue;
    mbarrier_wait(ring.full(), ring.parity);
    RowScales scales[kM64][2];
    Codes codes[2];
    codes[0].load(ring.left() + code_place.from[0]);
    const float to = scale_place.read(ring.scales(), first_stage + i, scales);
    const float by = to == unit ? 1.0f : unit * reciprocal_approx(to);
    unit = to;
    add_mixed_stage(sums, fragments, codes, code_place, scales, ring, place, before, by);
    before = ring.empty();
    if constexpr (kDrains) end_stages(sums, fragments, place, before), before = 0;
  }
  end_stages(sums, fragments, place, before);
  if (kSquares) multiply_sums(sums, unit);
}

// Adds the sums of warpgroups that take stages by turns. Whether the warp then has the tile's.
WS_DEVICE bool gather_turns(Sums& sums, const Place& place, u32 shared) {
  if constexpr (kGroupsK == 1) return true;
  constexpr u32 quads = kM64 * kN / 8, per_tile = kN / 8, of_turn = quads * kTileThreads * 16;
  const u32 own = shared + Shared::kSums + (place.group * 128 + place.warp * 32 + place.lane) * 16;
  if (place.turn != 0) {
#pragma unroll
    for (u32 i = 0; i < quads; ++i) {
      const float* const s = &sums[i / per_tile][i % per_tile * 4];
      store_shared(own + (place.turn - 1) * of_turn + i * kTileThreads * 16,
                   {bits_of(s[0]), bits_of(s[1]), bits_of(s[2]), bits_of(s[3])});
    }
  }
  sync_warps<2, kMmaThreads>();
  if (place.turn != 0) return false;
#pragma unroll 1
  for (u32 turn = 1; turn < kGroupsK; ++turn) {
#pragma unroll
    for (u32 i = 0; i < quads; ++i) {
      u32 words[4];
      load_shared(own + (turn - 1) * of_turn + i * kTileThreads * 16, words);
#pragma unroll
      for (u32 j = 0; j < 4; ++j) sums[i / per_tile][i % per_tile * 4 + j] += float_of(words[j]);
    }
  }
  return true;
}

}  // namespace ws
