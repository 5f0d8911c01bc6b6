// SPDX-License-Identifier: Apache-2.0
// From codes and scales of B's rows to the left operand of the MMA in registers, exactly.
//
// Of 16 columns of K a lane has columns 2t, 2t + 1, 2t + 8 and 2t + 9 of rows g and g + 8.
//
// e2m1: byte t of each word of codes. A byte permutation looks up what stands for a code in the low byte of a bf16 whose
// upper byte is 0x42: 40 + value. A multiply-add with the block's scale s, (40 + value) · s - 40 · s, is value · s: both
// addends and the result are exact.
//
// e4m3: bytes 2t and 2t + 1 of each eight. A byte permutation picks both and extends their signs; four bits higher, the
// sign, exponent and mantissa of a code are those of the bf16 value · 2^-120, subnormal or not.
#pragma once

#include "common/convert.cuh"
#include "common/packed_arithmetic.cuh"
#include "common/ptx.cuh"
#include "common/shared_load.cuh"
#include "common/types.cuh"
#include "gemm/sm90_config.cuh"

namespace ws {

constexpr u32 kUnitK = kWholeBytes ? 16 : 32, kUnits = kTileK / kUnitK;  // what is loaded at a time, and how often in a stage
constexpr u32 kSteps = kUnitK / 16;                                      // MMAs that it is for

// A row's codes of 16 columns to pairs: columns 2t and 2t + 1, then those 8 further on. A permutation's selector with
// its top bit set, a code's sign, gives the top bits of what is looked up, here 0: of two tables one answers.
WS_DEVICE void look_up(u32 first, u32 second, u32 byte_of_both, u32 (&pairs)[2]) {
  const u32 codes = permute(first, second, byte_of_both);  // four in the lower half
  const u32 bytes = permute(0x26242220u, 0x38302C28u, codes) | permute(0x1A1C1E20u, 0x08101418u, codes ^ 0x8888u);
  pairs[0] = permute(bytes, 0x42424242u, 0x4140);
  pairs[1] = permute(bytes, 0x42424242u, 0x4342);
}

// Two e4m3 codes of eight as bf16: value · 2^-120. A code of NaN is that of 480.
WS_DEVICE u32 widen(u32 first, u32 second, u32 two_bytes) {
  return (permute(first, second, two_bytes) << 4) & 0x87F087F0u;
}

// A row's scales of a stage.
struct RowScales {
  static constexpr u32 kWords = kSquares ? 1 : Scales::kWords;
  u32 codes[kWords];
  u32 pairs[kNvfp4 ? 2 * kWords : 1];  // nvfp4: of word i scales 0 and 2, then 1 and 3

  WS_DEVICE void prepare() {
    if constexpr (kNvfp4) {
#pragma unroll
      for (u32 i = 0; i < kWords; ++i) {
        u32 low, high;
        convert_e4m3x4_to_f16(codes[i], low, high);
        float s[4];
        unpack_f16x2(low, s[0], s[1]);
        unpack_f16x2(high, s[2], s[3]);
        pairs[2 * i] = pack_bf16x2(s[0], s[2]);
        pairs[2 * i + 1] = pack_bf16x2(s[1], s[3]);
      }
    }
  }

  // The scale of 16 columns, twice. ue8m0 beyond 2^122, of which 40 times is infinite, gives NaN.
  WS_DEVICE u32 scale(u32 k16) const {
    if constexpr (kSquares) return codes[0];
    const u32 unit = k16 / 2;
    if constexpr (kNvfp4) return permute(pairs[unit / 2 * 2 + k16 % 2], 0u, unit % 2 ? 0x3232 : 0x1010);
    return max(permute(codes[0], 0u, 0x4040 + unit * 0x0101) * 0x80u, 0x00400040u);  // code 0 is the subnormal 2^-127
  }
};

// A row's pairs of 16 columns times their scale. `pick` is what a lane takes.
WS_DEVICE void convert_row(const u32* words, u32 pick, u32 scale, u32 (&pairs)[2]) {
  if constexpr (!kWholeBytes) {
    look_up(words[0], words[1], pick, pairs);
    const u32 offset = multiply_bf16x2(scale, 0xC220C220u);  // -40
#pragma unroll
    for (u32 j = 0; j < 2; ++j) pairs[j] = fma_bf16x2(pairs[j], scale, offset);
  } else {
    const u32 infinite_is_nan = kSquares ? scale : fma_bf16x2(scale, 0u, scale);
#pragma unroll
    for (u32 j = 0; j < 2; ++j) {
      pairs[j] = widen(words[2 * j], words[2 * j + 1], pick);
      if (!kSquares) pairs[j] = multiply_bf16x2(pairs[j], 0x7B807B80u);  // 2^120, which squares' scales have with them
      pairs[j] = multiply_bf16x2(pairs[j], infinite_is_nan);
    }
  }
}

}  // namespace ws
