// SPDX-License-Identifier: Apache-2.0
// Scales on their way from global memory to the MMA warps.
//
// A row's scales of one stage are few bytes at any alignment, in one of several layouts. Each thread copies the aligned
// words that hold its share, and, once they have come, decodes them for all: to fp32 where they multiply sums, to pairs
// of the MMA's type where they multiply elements. Words travel one group of copies before their stage's elements, so that
// the decoded scales are there, one barrier later, together with the elements.
#pragma once

#include "common/convert.cuh"
#include "common/cp_async.cuh"
#include "common/shared_load.cuh"
#include "common/shared_store.cuh"
#include "common/types.cuh"
#include "gemm/sm80_config.cuh"
#include "gemm/sm80_schedule.cuh"

namespace ws {

// Where the scales of an operand lie.
struct ScaleSource {
  const u8* data;  // of the batch
  u32 row, rows;   // first row of the tile in the layout, rows of the tile that exist
  u32 layout_rows;  // rows of an m_major matrix
  u32 k;
  bool tiled;      // 128x4 or m_major
};

template <class Op>
class ScaleCopy {
  enum : u32 { kPerThread = div_up(Op::kUnits, kThreads) };
  enum : u32 { kUnitsOfRow = Op::kBlocks / Op::kUnitScales };

 public:
  WS_DEVICE explicit ScaleCopy(const ScaleSource& source)
      : blocks_(source.k / Op::kBlock), tiled_(source.tiled) {
    column_step_ = !Op::kFloatScales || !tiled_ ? 4 : div_up(source.layout_rows, 4) * 16;
    const u32 tiles_of_row = div_up(blocks_, 4);
#pragma unroll
    for (u32 i = 0; i < kPerThread; ++i) {
      const u32 local = unit(i) % Op::kScaleRows;
      const i64 row = source.row + min(local, source.rows - 1);
      i64 offset;
      if constexpr (Op::kFloatScales) {
        offset = Op::kSquareBlocks ? row / 128 * blocks_ * 4 : tiled_ ? row * 4 : row * blocks_ * 4;
      } else {
        offset = tiled_ ? row / 128 * tiles_of_row * 512 + row % 32 * 16 + row % 128 / 32 * 4 : row * blocks_;
      }
      start_[i] = source.data + offset;
    }
  }

  // Copies the words of stage k_tile to its place in the ring.
  WS_DEVICE void copy(u32 raw, u32 k_tile) const {
#pragma unroll
    for (u32 i = 0; i < kPerThread; ++i) {
      if (!has_unit(i)) continue;
      const u32 to = raw + unit(i) * Op::kUnitBytes, block = first_block(i, k_tile);
      const u32 left = block < blocks_ ? blocks_ - block : 0;
      if constexpr (Op::kFloatScales) {
        copy_async_4(to, start_[i] + static_cast<i64>(block) * column_step_, left ? 4 : 0);
      } else if (tiled_) {
        copy_async_4(to, start_[i] + static_cast<i64>(block / 4) * 512, left ? 4 : 0);
      } else {
        // never past the end of the row: what follows may not be the tensor's
        const u8* const from = start_[i] + block;
        const u32 shift = misalignment(from), end = left ? left + shift : 0;
        copy_async_4(to, from - shift, min(end, 4u));
        copy_async_4(to + 4, from - shift + 4, shift && end > 4 ? min(end - 4, 4u) : 0);
      }
    }
  }

  // Decodes this thread's words of stage k_tile, whose copies it has waited for. Scales beyond K become 0: their elements
  // are zeros, and 0 · NaN would not be.
  WS_DEVICE void decode(u32 raw, u32 decoded, u32 k_tile) const {
#pragma unroll
    for (u32 i = 0; i < kPerThread; ++i) {
      if (!has_unit(i)) continue;
      const u32 from = raw + unit(i) * Op::kUnitBytes, block = first_block(i, k_tile);
      u32 words[Op::kUnitBytes / 4];
      load_shared(from, words);
      u32 scales[Op::kUnitScales];
      if constexpr (Op::kFloatScales) {
        scales[0] = words[0];
      } else {
        const u32 shift = tiled_ ? block % 4 : misalignment(start_[i] + block);
        decode_bytes(__funnelshift_r(words[0], words[1], 8 * shift), scales);
      }
      const u32 row = unit(i) % Op::kScaleRows, first = unit(i) / Op::kScaleRows * Op::kUnitScales;
#pragma unroll
      for (u32 j = 0; j < Op::kUnitScales; ++j) {
        store_shared(decoded + ((first + j) * Op::kScaleStride + row) * 4, block + j < blocks_ ? scales[j] : 0);
      }
    }
  }

 private:
  WS_DEVICE static u32 unit(u32 i) { return threadIdx.x + i * kThreads; }
  WS_DEVICE static bool has_unit(u32 i) { return Op::kUnits >= (i + 1) * kThreads || unit(i) < Op::kUnits; }
  WS_DEVICE static u32 misalignment(const u8* pointer) { return static_cast<u32>(reinterpret_cast<u64>(pointer)) & 3; }

  // The unit's first scale column in stage k_tile.
  WS_DEVICE static u32 first_block(u32 i, u32 k_tile) {
    return k_tile * kTileK / Op::kBlock + unit(i) / Op::kScaleRows * Op::kUnitScales;
  }

  WS_DEVICE static void decode_bytes(u32 codes, u32 (&scales)[Op::kUnitScales]) {
    if constexpr (Op::kScalesElements) {
      float values[4];
      decode_e4m3x4(codes, values);
      // Times kE2m1Factor a scale would leave the type's range; 2^7 less and it fits, as does every element · scale.
      constexpr float power = kBf16 ? 0x1p119f : 0x1p7f;
#pragma unroll
      for (u32 j = 0; j < Op::kUnitScales; ++j) {
        const float value = __fmul_rn(values[j], power);
        scales[j] = kBf16 ? pack_bf16x2(value, value) : pack_f16x2(value, value);
      }
    } else {
#pragma unroll
      for (u32 j = 0; j < Op::kUnitScales; ++j) scales[j] = bits_of(decode_ue8m0(codes >> (8 * j) & 0xFF));
    }
  }

  const u8* start_[kPerThread];
  u32 blocks_, column_step_;
  bool tiled_;
};

// An operand without scales.
struct NoScaleCopy {
  WS_DEVICE explicit NoScaleCopy(const ScaleSource&) {}
  WS_DEVICE void copy(u32, u32) const {}
  WS_DEVICE void decode(u32, u32, u32) const {}
};

template <class Op, bool kHasScales = Op::kHasScales>
struct ScaleCopyOf {
  using Type = ScaleCopy<Op>;
};
template <class Op>
struct ScaleCopyOf<Op, false> {
  using Type = NoScaleCopy;
};

}  // namespace ws
