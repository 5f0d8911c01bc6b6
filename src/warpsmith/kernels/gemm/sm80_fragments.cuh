// SPDX-License-Identifier: Apache-2.0
// Elements and scales from shared memory to the MMA's registers, and the products of one step of K.
#pragma once

#include "common/element_pairs.cuh"
#include "common/min_nan.cuh"
#include "common/mma_bf16.cuh"
#include "common/mma_f16.cuh"
#include "common/ptx.cuh"
#include "common/shared_load.cuh"
#include "common/types.cuh"
#include "gemm/sm80_config.cuh"
#include "gemm/sm80_tile_copy.cuh"

namespace ws {

WS_DEVICE void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  if constexpr (kBf16) {
    mma_bf16(d, a, b);
  } else {
    mma_f16(d, a, b);
  }
}

// How a warp reads an operand's tile: groups of 8 rows, kWords registers of each a step.
template <class Op, bool kIsLeft>
class TileReader {
  // ldmatrix where a lane's register of a group is 4 consecutive bytes of its own row, and there are enough groups.
  // The MMA wants the registers of the left operand's two groups in turn, those of a right one's group together.
  enum : bool { kPlainPairs = kBothPlain && Op::kGroups % 2 == 0 };  // two groups by two chunks
  enum : bool { kNibbleQuads = Op::kBits == 4 && Op::kGroups % 4 == 0 };  // four groups by one chunk

 public:
  // Warp `warp_k` of those that divide K begins at step `warp_k`.
  WS_DEVICE TileReader(u32 warp, u32 warp_k) {
    const u32 lane = threadIdx.x % 32, t = lane % 4;
    u32 row = lane / 4, chunk = 0, byte = 0;
    if constexpr (kPlainPairs) {
      row = (kIsLeft ? lane / 8 % 2 : lane / 16) * 8 + lane % 8;
      chunk = kIsLeft ? lane / 16 : lane / 8 % 2;
    } else if constexpr (kNibbleQuads) {
      row = lane;
    } else if constexpr (kBothPlain || Op::kBits == 4) {
      byte = 4 * t;
    } else if constexpr (Op::kBits == 8) {
      chunk = t / 2;
      byte = t % 2 * 8;
    } else {
      chunk = t;
    }
    chunk += warp_k * Op::kStepChunks;
    offset_ = (warp * Op::kWarpRows + row) * Op::kRowBytes + ((chunk ^ chunk_swizzle<Op::kChunks>(row)) << 4) + byte;
  }

  // kCount groups of a step, from `first` on.
  template <u32 kCount>
  WS_DEVICE void read(u32 tile, u32 step, u32 first, u32 (&words)[kCount][Op::kWords]) const {
    constexpr u32 group_bytes = 8 * Op::kRowBytes;
    const u32 from = tile + (offset_ ^ (step * kWarpsK * Op::kStepChunks << 4)) + first * group_bytes;
    if constexpr (kPlainPairs) {
#pragma unroll
      for (u32 g = 0; g < kCount; g += 2) {
        u32(&low)[2] = words[g], (&high)[2] = words[g + 1];
        ldmatrix_x4(from + g * group_bytes, low[0], kIsLeft ? high[0] : low[1], kIsLeft ? low[1] : high[0], high[1]);
      }
    } else if constexpr (kNibbleQuads) {
#pragma unroll
      for (u32 g = 0; g < kCount; g += 4) {
        ldmatrix_x4(from + g * group_bytes, words[g][0], words[g + 1][0], words[g + 2][0], words[g + 3][0]);
      }
    } else if constexpr (kBothPlain) {
      u32 word[1];
      load_shared(from, word);
      words[0][0] = word[0];
      load_shared(tile + (offset_ ^ (step * kWarpsK * Op::kStepChunks << 4) ^ 16), word);
      words[0][1] = word[0];
    } else {
#pragma unroll
      for (u32 g = 0; g < kCount; ++g) load_shared(from + g * group_bytes, words[g]);
    }
  }

 private:
  u32 offset_;
};

// A group's words as pairs of the MMA's type; pair i holds the K slots that pair i of the other operand holds.
template <class Op>
WS_DEVICE void to_pairs(const u32 (&words)[Op::kWords], u32 scale, u32 (&pairs)[kStepPairs]) {
  if constexpr (kBothPlain) {
    pairs[0] = words[0];
    pairs[1] = words[1];
  } else if constexpr (Op::kBits == 16) {
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      constexpr bool n = kAnyNibbles;
      const u32 low = low_element<n, kBf16>(i), high = high_element<n, kBf16>(i);
      pairs[i] = n ? permute(words[low / 2], words[high / 2], low % 2 ? 0x7632 : 0x5410) : words[i];
    }
  } else if constexpr (Op::kBits == 8) {
    u32 codes[2] = {words[0], words[1]};
    if constexpr (kAnyNibbles) {
#pragma unroll
      for (u32 i = 0; i < 2; ++i) {
        const u32 first = low_element<true, kBf16>(2 * i) | high_element<true, kBf16>(2 * i) << 4;
        const u32 second = low_element<true, kBf16>(2 * i + 1) | high_element<true, kBf16>(2 * i + 1) << 4;
        codes[i] = permute(words[0], words[1], first | second << 8);
      }
    }
    pairs_from_e4m3x4<kBf16>(codes[0], pairs[0], pairs[1]);
    pairs_from_e4m3x4<kBf16>(codes[1], pairs[2], pairs[3]);
  } else {
    pairs_from_e2m1x8<kBf16>(words[0], pairs);
    const u32 factor = Op::kScalesElements ? scale : kE2m1Factor<kBf16>;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) pairs[i] = multiply_pairs<kBf16>(pairs[i], factor);
  }
}

// The decoded scales that a lane needs for a step: for elements one word a group (the lane's elements lie in one block);
// for sums, those of D's rows g of each group (left) or of D's columns 2t and 2t+1 (right).
template <class Op, bool kIsLeft>
struct StepScales {
  enum : u32 { kPerGroup = kIsLeft || Op::kScalesElements ? 1 : 2 };
  u32 words[Op::kGroups][kPerGroup];

  WS_DEVICE void read(u32 decoded, u32 warp, u32 step) {
    if constexpr (!Op::kHasScales) return;
    const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    u32 block = step * kStepK / Op::kBlock % Op::kBlocks, row = kPerGroup == 2 ? 2 * t : g;
    if constexpr (Op::kScalesElements) block = step * 2 + t / 2;
    if constexpr (!Op::kOneScale) {
      const u32 from = decoded + (block * Op::kScaleStride + warp * Op::kWarpRows + row) * 4;
#pragma unroll
      for (u32 i = 0; i < Op::kGroups; ++i) load_shared(from + i * 32, words[i]);
    } else {
      u32 word[1];
      load_shared(decoded + block * Op::kScaleStride * 4, word);
#pragma unroll
      for (u32 i = 0; i < Op::kGroups; ++i) words[i][0] = words[i][kPerGroup - 1] = word[0];
    }
  }

  WS_DEVICE float value(u32 group, u32 i) const { return float_of(words[group][i]); }
};

// What a sum in row `i` (0, 1: g, g + 8) of MMA tile m and column 2t + j of tile n is multiplied by. The product of two
// scales may exceed fp32 where the sum is 0 all the same: it is kept finite, NaN excepted.
WS_DEVICE float sum_factor(const StepScales<Left, true>& left, const StepScales<Right, false>& right, u32 m, u32 n, u32 i,
                           u32 j) {
  if constexpr (!Right::kScalesSums) return left.value(2 * m + i, 0);
  const float of_column = right.value(n, Right::kScalesSums ? j : 0);
  if constexpr (!Left::kScalesSums) return of_column;
  return min_nan(left.value(2 * m + i, 0) * of_column, float_of(kLargest));
}

// The left operand is read and multiplied in units: as many MMA tiles as there are registers for, twice.
enum : u32 { kUnitM16 = Left::kBits == 16 && !kBothPlain ? 1 : kM16 };
enum : u32 { kUnitsM = kM16 / kUnitM16 };

using LeftWords = u32[2 * kUnitM16][Left::kWords];
using RightWords = u32[kN8][Right::kWords];
using Columns = u32[kN8][kStepPairs];

WS_DEVICE void to_columns(const RightWords& words, const StepScales<Right, false>& scales, Columns& columns) {
#pragma unroll
  for (u32 n = 0; n < kN8; ++n) to_pairs<Right>(words[n], scales.words[n][0], columns[n]);
}

// sums += left · right over one step, for MMA tiles `first` on of the left operand.
WS_DEVICE void multiply(Sums& sums, u32 first, const LeftWords& left, const Columns& columns,
                        const StepScales<Left, true>& left_scales, const StepScales<Right, false>& right_scales) {
#pragma unroll
  for (u32 in_unit = 0; in_unit < kUnitM16; ++in_unit) {
    const u32 m = first + in_unit;
    u32 low[kStepPairs], high[kStepPairs];  // rows g and g + 8
    to_pairs<Left>(left[2 * in_unit], left_scales.words[2 * m][0], low);
    to_pairs<Left>(left[2 * in_unit + 1], left_scales.words[2 * m + 1][0], high);
    float block_sums[kN8][4] = {};
#pragma unroll
    for (u32 i = 0; i < kStepPairs; i += 2) {
#pragma unroll
      for (u32 n = 0; n < kN8; ++n) {
        mma(kScaledSums ? block_sums[n] : sums[m][n], {low[i], high[i], low[i + 1], high[i + 1]},
            {columns[n][i], columns[n][i + 1]});
      }
    }
    if constexpr (kScaledSums) {
#pragma unroll
      for (u32 n = 0; n < kN8; ++n) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
          const float factor = sum_factor(left_scales, right_scales, m, n, i / 2, i % 2);
          sums[m][n][i] = __fmaf_rn(block_sums[n][i], factor, sums[m][n][i]);
        }
      }
    }
  }
}

}  // namespace ws
