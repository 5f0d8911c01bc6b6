// SPDX-License-Identifier: Apache-2.0
// A warp's share of B, 32 rows by one column of 64 bytes at a time: from memory to its ring, and from there to the MMA.
//
// Lane 4g+t has unit t (16 contiguous bytes) of rows g, g+8, g+16, g+24. A sum over K does not depend on K's
// order: the MMA's K slots of lane t take that unit's elements as they lie, and those of A alike.
#pragma once

#include "common/convert.cuh"
#include "common/cp_async.cuh"
#include "common/element_pairs.cuh"
#include "common/mma_bf16.cuh"
#include "common/mma_f16.cuh"
#include "common/packed_arithmetic.cuh"
#include "common/ptx.cuh"
#include "common/shared_load.cuh"
#include "common/types.cuh"
#include "gemm/sm90_stream_config.cuh"
#include "gemm/sm90_stream_problem.cuh"

namespace ws {

struct Column {
  u32 words[kEights][4];
  u32 scales[kPlain ? 1 : kEights];  // codes of this lane's unit; fp8_block: fp32
};

// Sums of 32 rows of B and kRows of A: lane 4g+t has rows 16i + g (+8 for the last two) and rows 8j + 2t (+1) of A.
using Sums = float[kEights / 2][kN8][4];

// Where the columns of a warp's 32 rows are, and how they get to its ring. Offsets within a matrix, of 24 rows and of
// scales, fit 32 bits.
class ColumnSource {
 public:
  WS_DEVICE ColumnSource() = default;

  // The rows of B in `eights` groups of 8 from `first` on. Where there are fewer, the first ones stand in.
  WS_DEVICE ColumnSource(const Problem& p, u32 batch, u32 first, u32 eights) {
    const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    last_unit_ = p.k / kUnit - 1;
    weights_ = p.b + batch * p.b_batch + static_cast<i64>(8 * first + g) * p.b_row;
    const u32 blocks = kPlain ? 0 : p.k / kBlock;
    const bool tiled = p.flags & kTiledScales;
    const u32 row_blocks = tiled ? div_up(blocks, 4) * 4 : blocks;
    if constexpr (!kPlain) scales_ = p.b_scales + batch * p.b_scale_batch;
#pragma unroll
    for (u32 i = 0; i < kEights; ++i) {
      const u32 row = 8 * (first + (i < eights ? i : 0));
      row_offsets_[i] = static_cast<u32>((row - 8 * first) * p.b_row);
      const u32 r = row + g;
      scale_offsets_[i] = kFp8Block ? r / 128 * blocks * 4
                          : tiled   ? r / 128 * 128 * row_blocks + r % 32 * 16 + r % 128 / 32 * 4
                                    : r * row_blocks;
    }
    if constexpr (kFp8Block) {
      scales_ += scale_offsets_[0];
      if (lane < kEights) scales_ += scale_of_lane(lane);
    } else if constexpr (!kPlain) {
      // Words of four scales from an aligned address on. Linear ones of all groups of 8 rows are misaligned alike.
      // Lane t has word t of a column's: a whole one where the column's first is before `whole_`, or a part of one.
      shift_ = static_cast<u32>(reinterpret_cast<u64>(scales_) + scale_offsets_[0]) & 3;
      end_ = blocks + shift_;
      scales_ = scales_ + (tiled ? t * 512 : t * 4) - shift_;
      scale_step_ = tiled ? 128 : 1;
      whole_ = tiled ? (4 * t < kBlocks ? ~0u : 0) : t < kWords && end_ >= 4 * t + 4 ? end_ - 4 * t - 3 : 0;
      some_ = tiled || t >= kWords || end_ <= 4 * t ? whole_ : end_ - 4 * t;
    }
  }

  // A group of copies. Beyond the end of K its last unit is copied again: A is zero there.
  WS_DEVICE void copy(u32 lane, u32 slot, u32 index) const {
    const u32 t = lane % 4;
    const u8* const from = weights_ + 16ull * min(4 * index + t, last_unit_);
#pragma unroll
    for (u32 i = 0; i < kEights; ++i) copy_async_16(slot + (32 * i + lane) * 16, from + row_offsets_[i], 16);
    if constexpr (kFp8Block) {
      const u32 block = index * kColumn / (kPlain ? 1 : kBlock);
      if (lane < kEights) copy_async_4(slot + Shared::kScales + 4 * lane, scales_ + 4 * block, 4);
    } else if constexpr (!kPlain) {
      const u32 first = index * kBlocks / 4 * 4;
      const u8* const scales = opaque_global(scales_ + static_cast<u64>(first) * scale_step_);
      const u32 to = slot + Shared::kScales + lane * 4;
      if (first < whole_) {
#pragma unroll
        for (u32 i = 0; i < kEights; ++i) copy_async_4(to + 128 * i, scales + scale_offsets_[i], 4);
      } else if (first < some_) {
        const u32 bytes = end_ - first - 4 * t;
#pragma unroll 1
        for (u32 i = 0; i < kEights; ++i) copy_async_4(to + 128 * i, scales + scale_offset(i), bytes);
      }
    }
  }

  // What all lanes have copied to a slot; the source may be at other rows by now.
  WS_DEVICE void read(u32 lane, u32 slot, u32 index, Column& column) const {
    const u32 g = lane / 4, t = lane % 4;
#pragma unroll
    for (u32 i = 0; i < kEights; ++i) load_shared(slot + (32 * i + lane) * 16, column.words[i]);
    if constexpr (!kPlain) {
      const u32 unit = static_cast<u32>(min(static_cast<int>(t), static_cast<int>(last_unit_ - 4 * index)));
      const u32 block = unit * kUnit / (kPlain ? 1 : kBlock);
      const u32 at = kFp8Block ? 0 : g * 16 + shift_ + block + index * kBlocks % 4;
#pragma unroll
      for (u32 i = 0; i < kEights; ++i) {
        const u32 scale = slot + Shared::kScales + at + (kFp8Block ? 4 : 128) * i;
        column.scales[i] = kFp8Block ? load_shared_u32(scale) : kNvfp4 ? load_shared_u16(scale) : load_shared_u8(scale);
      }
    }
  }

 private:
  static constexpr u32 kBlocks = kPlain || kFp8Block ? 1 : kColumn / (kPlain ? 1 : kBlock);  // of a column
  static constexpr u32 kWords = kNvfp4 ? 3 : 2;  // that hold a column's scales of a row, however they lie

  WS_DEVICE u32 scale_offset(u32 i) const {
    u32 offset = scale_offsets_[0];
#pragma unroll
    for (u32 j = 1; j < kEights; ++j) {
      if (i == j) offset = scale_offsets_[j];
    }
    return offset;
  }

  WS_DEVICE u32 scale_of_lane(u32 i) const {
    u32 offset = 0;
#pragma unroll
    for (u32 j = 1; j < kEights; ++j) {
      if (i == j) offset = scale_offsets_[j] - scale_offsets_[0];
    }
    return offset;
  }

  const u8 *weights_, *scales_;
  u32 last_unit_, row_offsets_[kEights], scale_offsets_[kEights];
  u32 shift_ = 0, end_ = 0, scale_step_ = 0, whole_ = 0, some_ = 0;
};

WS_DEVICE void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  if constexpr (kBf16) {
    mma_bf16(d, a, b);
  } else {
    mma_f16(d, a, b);
  }
}

// Eight e2m1 codes to pairs of elements 4 apart, still to be multiplied by 2^126. A code times 2^6 + 2^12 has its
// magnitude at the bottom of bf16's exponent and its sign at the top.
WS_DEVICE void bf16_pairs_from_e2m1x8(u32 codes, u32 (&pairs)[4]) {
  const u32 upper = codes >> 8;
  pairs[0] = ((codes & 0x000F000Fu) * 0x1040u) & 0x81C081C0u;
  pairs[1] = ((codes & 0x00F000F0u) * 0x0104u) & 0x81C081C0u;
  pairs[2] = ((upper & 0x000F000Fu) * 0x1040u) & 0x81C081C0u;
  pairs[3] = ((upper & 0x00F000F0u) * 0x0104u) & 0x81C081C0u;
}

// Eight elements of a row of B, times their scale, as the MMA takes them.
WS_DEVICE void to_pairs(const u32* words, u32 scale, u32 (&pairs)[4]) {
  if constexpr (kPlain) {
#pragma unroll
    for (u32 i = 0; i < 4; ++i) pairs[i] = words[i];
  } else {
    if constexpr (kBits == 8) {
      pairs_from_e4m3x4<kBf16>(words[0], pairs[0], pairs[1]);
      pairs_from_e4m3x4<kBf16>(words[1], pairs[2], pairs[3]);
    } else if constexpr (kBf16) {
      bf16_pairs_from_e2m1x8(words[0], pairs);
    } else {
      pairs_from_e2m1x8<false>(words[0], pairs);
    }
    if constexpr (!kFp8Block) {
#pragma unroll
      for (u32 i = 0; i < 4; ++i) pairs[i] = multiply_pairs<kBf16>(pairs[i], scale);
    }
  }
}

// Eight elements of a row of A in the same order.
WS_DEVICE void order_like(const u32 (&words)[4], u32 (&pairs)[4]) {
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    constexpr bool n = kBits == 4;
    const u32 low = low_element<n, kBf16>(i), high = high_element<n, kBf16>(i);
    pairs[i] = n ? permute(words[low / 2], words[high / 2], low % 2 ? 0x7632 : 0x5410) : words[i];
  }
}

// Multiplies columns into sums. The elements' products are exact; what they are too small by is taken out at the end:
// nvfp4 2^7, since scale · 2^126 does not fit; mx formats 2^(127 − peak), where `peak` is the largest scale so far.
class Multiplier {
 public:
  // `a`: shared address of this lane's elements of its first row of A; `a_eight_rows`: bytes of 8 rows.
  WS_DEVICE void multiply(const Column& column, u32 a, u32 a_eight_rows) {
    u32 scales[kEights][kNvfp4 ? 2 : 1] = {};
    prepare_scales(column, scales);
    Sums of_column = {};
    Sums& into = kFp8Block ? of_column : sums;
#pragma unroll
    for (u32 octet = 0; octet < kOctets; ++octet) {
      u32 right[kN8][4];
#pragma unroll
      for (u32 n = 0; n < kN8; ++n) {
        u32 words[4];
        load_shared(a + n * a_eight_rows + 16 * octet, words);
        order_like(words, right[n]);
      }
#pragma unroll
      for (u32 m = 0; m < kEights / 2; ++m) {
        u32 low[4], high[4];
        constexpr u32 per_scale = kNvfp4 ? 2 : kOctets;
        to_pairs(column.words[2 * m] + octet * kOctetWords, scales[2 * m][octet / per_scale], low);
        to_pairs(column.words[2 * m + 1] + octet * kOctetWords, scales[2 * m + 1][octet / per_scale], high);
#pragma unroll
        for (u32 i = 0; i < 4; i += 2) {
#pragma unroll
          for (u32 n = 0; n < kN8; ++n) {
            mma(into[m][n], {low[i], high[i], low[i + 1], high[i + 1]}, {right[n][i], right[n][i + 1]});
          }
        }
      }
    }
    if constexpr (kFp8Block) add_scaled(of_column, column);
  }

  // What the sums must be multiplied by.
  WS_DEVICE float deficit() const {
    if constexpr (kMx) return decode_ue8m0(peak_);
    return kNvfp4 ? 128.0f : 1.0f;
  }

  WS_DEVICE void clear() {
#pragma unroll
    for (u32 m = 0; m < kEights / 2; ++m) {
#pragma unroll
      for (u32 n = 0; n < kN8; ++n) sums[m][n][0] = sums[m][n][1] = sums[m][n][2] = sums[m][n][3] = 0.0f;
    }
    peak_ = 0;
  }

  Sums sums;

 private:
  WS_DEVICE void prepare_scales(const Column& column, u32 (&scales)[kEights][kNvfp4 ? 2 : 1]) {
    if constexpr (kNvfp4) {
#pragma unroll
      for (u32 i = 0; i < kEights; ++i) {
        u32 both, none;
        float values[2];
        convert_e4m3x4_to_f16(column.scales[i], both, none);
        unpack_f16x2(both, values[0], values[1]);
        constexpr float power = kBf16 ? 0x1p119f : 0x1p7f;
#pragma unroll
        for (u32 j = 0; j < 2; ++j) {
          const float value = __fmul_rn(values[j], power);
          scales[i][j] = kBf16 ? pack_bf16x2(value, value) : pack_f16x2(value, value);
        }
      }
    } else if constexpr (kMx) {
      raise_peak(column);
      // mxfp4's elements are 2^126 too small, which the scale makes up for.
      const u32 bias = (kBits == 4 ? 253 : 127) - peak_;
#pragma unroll
      for (u32 i = 0; i < kEights; ++i) {
        const u32 code = column.scales[i];
        const u32 power = static_cast<u32>(max(static_cast<int>(code + bias), 0)) * 0x00800080u;
        scales[i][0] = code == 255 ? 0x7FC07FC0u : power;
      }
    }
  }

  // mx: sums are in units of 2^(peak − 127). Rows of B without a scale have code 0.
  WS_DEVICE void raise_peak(const Column& column) {
    u32 most = 0;
#pragma unroll
    for (u32 i = 0; i < kEights; ++i) most = max(most, column.scales[i] == 255 ? 0 : column.scales[i]);
    most = __reduce_max_sync(kAllLanes, most);
    if (most <= peak_) return;
    const u32 drop = most - peak_;
    const float factor = drop < 127 ? float_of((127 - drop) << 23) : 0.0f;
#pragma unroll
    for (u32 m = 0; m < kEights / 2; ++m) {
#pragma unroll
      for (u32 n = 0; n < kN8; ++n) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) sums[m][n][i] *= factor;
      }
    }
    peak_ = most;
  }

  WS_DEVICE void add_scaled(const Sums& of_column, const Column& column) {
#pragma unroll
    for (u32 m = 0; m < kEights / 2; ++m) {
#pragma unroll
      for (u32 n = 0; n < kN8; ++n) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
          sums[m][n][i] = __fmaf_rn(of_column[m][n][i], float_of(column.scales[2 * m + i / 2]), sums[m][n][i]);
        }
      }
    }
  }

  u32 peak_ = 0;
};

}  // namespace ws
