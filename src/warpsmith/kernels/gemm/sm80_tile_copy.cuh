// SPDX-License-Identifier: Apache-2.0
// Elements from global memory to the tiles of a stage.
#pragma once

#include "common/cp_async.cuh"
#include "common/types.cuh"
#include "gemm/sm80_config.cuh"

namespace ws {

// 16-byte chunks of a row change places by this, XORed into their number. Within any 128 bytes of banks it sets apart
// 8 rows of one chunk (ldmatrix), 4 of two (8-byte loads) and 2 of four (16-byte loads): so the lowest bit of the row
// moves the highest bit of the chunk.
template <u32 kChunks>
WS_DEVICE constexpr u32 chunk_swizzle(u32 row) {
  if constexpr (kChunks >= 8) return (row & 1) << 2 | (row & 2) | (row >> 2 & 1);
  if constexpr (kChunks == 4) return (row >> 1 & 1) << 1 | (row >> 2 & 1);
  if constexpr (kChunks == 2) return row >> 2 & 1;
  return 0;
}

// A thread's share of the copies of an operand's tiles: one chunk column, every kRowStep-th row.
template <class Op>
class TileCopy {
  enum : u32 { kChunksInTile = Op::kRows * Op::kChunks };
  enum : u32 { kCopies = kChunksInTile <= kThreads ? 1 : kChunksInTile / kThreads };
  enum : bool { kAllThreads = kChunksInTile >= kThreads };
  enum : u32 { kRowStep = kThreads / Op::kChunks };
  static_assert(!kAllThreads || (kChunksInTile % kThreads == 0 && kThreads % Op::kChunks == 0), "equal shares");
  static_assert(kCopies == 1 || (kRowStep & (kRowStep - 1)) == 0, "steps in bits of the row that the first one lacks");
  static_assert(kCopies <= 32, "a bit for each copy");

 public:
  // `data` is row 0 of the tile; K starts at k_tile · kTileK.
  WS_DEVICE TileCopy(const u8* data, i64 row_bytes, u32 rows, u32 k, u32 k_tile) : step_(kRowStep * row_bytes) {
    const u32 row = threadIdx.x / Op::kChunks, chunk = threadIdx.x % Op::kChunks;
    const u32 start = k_tile * Op::kRowBytes + chunk * 16;
    source_ = data + row * row_bytes + start;
    left_ = static_cast<int>(k / 8 * Op::kBits - start);
    to_ = row * Op::kRowBytes + ((chunk ^ chunk_swizzle<Op::kChunks>(row)) << 4);
    valid_ = 0;
#pragma unroll
    for (u32 i = 0; i < kCopies; ++i) valid_ |= (row + i * kRowStep < rows ? 1u : 0u) << i;
  }

  // Copies the next tile along K; rows and K beyond the operand become zeros.
  WS_DEVICE void copy(u32 tile) {
    if (kAllThreads || threadIdx.x < kChunksInTile) {
      const u32 valid = left_ > 0 ? valid_ : 0;
      const u8* source = source_;
#pragma unroll
      for (u32 i = 0; i < kCopies; ++i, source += step_) {
        const u32 to = (to_ ^ chunk_swizzle<Op::kChunks>(i * kRowStep) << 4) + i * kRowStep * Op::kRowBytes;
        copy_async_16(tile + to, source, valid >> i & 1 ? 16 : 0);
      }
    }
    source_ += Op::kRowBytes;
    left_ -= Op::kRowBytes;
  }

 private:
  const u8* source_;
  i64 step_;
  int left_;  // bytes of the row from source_ on
  u32 to_, valid_;
};

}  // namespace ws
