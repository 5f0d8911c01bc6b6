// SPDX-License-Identifier: Apache-2.0
// The main loop of large tiles of two 16-bit operands.
//
// Fragments have one set of registers: those of a row of MMAs are loaded again for the next step of K as soon as that row
// has used them, columns of B with the last row. Copies of a stage are spread over the steps.
#pragma once

#include "common/cp_async.cuh"
#include "common/types.cuh"
#include "gemm/sm80_config.cuh"
#include "gemm/sm80_fragments.cuh"
#include "gemm/sm80_schedule.cuh"
#include "gemm/sm80_tile_copy.cuh"

namespace ws {

static_assert(kBothPlain && !kSwap && kWarpsK == 1 && kStages >= 3 && kSteps >= 2, "what this loop is for");
static_assert(Left::kGroups % 2 == 0 && Right::kGroups % 2 == 0, "ldmatrix loads two groups");

// A thread's share of the copies of an operand's tiles: one chunk column, every kRowStep-th row. Rows beyond the operand
// are its last row again: what comes of them is not stored.
template <class Op>
struct RowCopy {
  enum : u32 { kCopies = Op::kRows * Op::kChunks / kThreads };
  enum : u32 { kRowStep = kThreads / Op::kChunks };
  static_assert(Op::kRows * Op::kChunks % kThreads == 0 && kThreads % Op::kChunks == 0, "equal shares");
  static_assert(kRowStep % 8 == 0, "rows of a thread have their chunks in the same place");

  const u8* source[kCopies];
  int left;  // bytes of the row from there on
  u32 to;

  // `data` is row 0 of the tile; K starts at k_tile · kTileK.
  WS_DEVICE RowCopy(const u8* data, i64 row_bytes, u32 rows, u32 k, u32 k_tile) {
    const u32 row = threadIdx.x / Op::kChunks, chunk = threadIdx.x % Op::kChunks;
    const u32 start = k_tile * Op::kRowBytes + chunk * 16;
    left = static_cast<int>(k / 8 * Op::kBits - start);
    to = row * Op::kRowBytes + ((chunk ^ chunk_swizzle<Op::kChunks>(row)) << 4);
#pragma unroll
    for (u32 i = 0; i < kCopies; ++i) source[i] = data + min(row + i * kRowStep, rows - 1) * row_bytes + start;
  }

  WS_DEVICE void copy(u32 tile, u32 i) {
    copy_async_16(tile + to + i * kRowStep * Op::kRowBytes, source[i], left > 0 ? 16 : 0);
    source[i] += Op::kRowBytes;
  }
};

class PlainLoop {
 public:
  // For the tiles of K from `begin` to `end`.
  WS_DEVICE PlainLoop(const Problem& p, const Tile& tile, const WarpPlace& place, u32 begin, u32 end, u32 shared)
      : a_copy_((p.is_grouped() ? p.a : p.a + tile.batch * p.a_batch) + tile.row * p.a_row, p.a_row, tile.rows, p.k, begin),
        b_copy_(p.b + tile.batch * p.b_batch + tile.column * p.b_row, p.b_row, tile.columns, p.k, begin),
        a_reader_(place.left, 0),
        b_reader_(place.right, 0),
        shared_(shared),
        next_(begin),
        end_(end) {}

  WS_DEVICE void run(Sums& sums) {
    u32 k_tile = next_;
#pragma unroll
    for (u32 slot = 0; slot + 1 < kStages; ++slot) {
      if (next_ < end_) copy_part<0, 1>(slot);
      end_stage();
    }
    wait_for_copies<kStages - 2>();
    __syncthreads();
    const u32 first = shared_;
#pragma unroll
    for (u32 m = 0; m < kM16; ++m) read_a(first, 0, m);
#pragma unroll
    for (u32 n = 0; n < kN8; n += 2) read_b(first, 0, n);
    u32 slot = 0, into = kStages - 1;
#pragma unroll 1
    for (; k_tile < end_; ++k_tile) {
      const u32 next_slot = slot + 1 == kStages ? 0 : slot + 1;
      multiply_steps<0>(sums, shared_ + slot * Shared::kStage, shared_ + next_slot * Shared::kStage, into);
      into = slot;
      slot = next_slot;
    }
    wait_for_copies<0>();
    __syncthreads();
  }

 private:
  enum : u32 { kCopies = RowCopy<Left>::kCopies + RowCopy<Right>::kCopies };

  // Part kPart of kParts of the copies of the next stage.
  template <u32 kPart, u32 kParts>
  WS_DEVICE void copy_part(u32 slot) {
    const u32 to = shared_ + slot * Shared::kStage;
#pragma unroll
    for (u32 i = kCopies * kPart / kParts; i < kCopies * (kPart + 1) / kParts; ++i) {
      if (i < RowCopy<Left>::kCopies) {
        a_copy_.copy(to, i);
      } else {
        b_copy_.copy(to + Left::kTileBytes, i - RowCopy<Left>::kCopies);
      }
    }
  }

  WS_DEVICE void end_stage() {
    a_copy_.left -= Left::kRowBytes;
    b_copy_.left -= Right::kRowBytes;
    ++next_;
    commit_copies();
  }

  WS_DEVICE void read_a(u32 tile, u32 step, u32 m) {
    u32 words[2][2];
    a_reader_.read(tile, step, 2 * m, words);
    a_[m][0] = words[0][0], a_[m][1] = words[1][0], a_[m][2] = words[0][1], a_[m][3] = words[1][1];
  }

  WS_DEVICE void read_b(u32 tile, u32 step, u32 n) {
    u32 words[2][2];
    b_reader_.read(tile + Left::kTileBytes, step, n, words);
    b_[n][0] = words[0][0], b_[n][1] = words[0][1], b_[n + 1][0] = words[1][0], b_[n + 1][1] = words[1][1];
  }

  // Steps from kStep on of the stage at `stage`; copies go to place `into`, which the stage before has left. The last step
  // loads from the next stage: the barrier stands before it.
  template <u32 kStep>
  WS_DEVICE void multiply_steps(Sums& sums, u32 stage, u32 next_stage, u32 into) {
    constexpr bool kLast = kStep + 1 == kSteps;
    if constexpr (kLast) {
      end_stage();
      wait_for_copies<kStages - 2>();
      __syncthreads();
    } else {
      if (next_ < end_) copy_part<kStep, kSteps - 1>(into);
    }
    const u32 tile = kLast ? next_stage : stage;
    constexpr u32 kNextStep = kLast ? 0 : kStep + 1;
#pragma unroll
    for (u32 m = 0; m < kM16; ++m) {
#pragma unroll
      for (u32 n = 0; n < kN8; ++n) {
        mma(sums[m][n], a_[m], b_[n]);
        if (m + 1 == kM16 && n % 2 == 1) read_b(tile, kNextStep, n - 1);
      }
      read_a(tile, kNextStep, m);
    }
    if constexpr (!kLast) multiply_steps<kStep + 1>(sums, stage, next_stage, into);
  }

  RowCopy<Left> a_copy_;
  RowCopy<Right> b_copy_;
  TileReader<Left, true> a_reader_;
  TileReader<Right, false> b_reader_;
  u32 shared_, next_, end_;  // next: the tile of K to copy next
  u32 a_[kM16][4], b_[kN8][2];
};

// Sums of this block's part of K.
WS_DEVICE void multiply_tile(Sums& sums, const Problem& p, const Tile& tile, u32 shared) {
  const KRange range = k_range(p);
  PlainLoop(p, tile, WarpPlace(), range.begin, range.end, shared).run(sums);
}

}  // namespace ws
