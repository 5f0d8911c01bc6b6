// SPDX-License-Identifier: Apache-2.0
// From codes and scales of B's rows to the left operand of the MMA in registers, exactly.
//
// Of 16 columns of K a lane has columns 2t, 2t + 1, 2t + 8 and 2t + 9 of rows g and g + 8: byte t of each word of codes.
// A byte permutation looks up what stands for a code in the low byte of a bf16 whose upper byte is 0x42: 40 + value. A
// multiply-add with the block's scale s, (40 + value) · s - 40 · s, is value · s: both addends and the result are exact.
#pragma once

#include "common/convert.cuh"
#include "common/packed_arithmetic.cuh"
#include "common/ptx.cuh"
#include "common/shared_load.cuh"
#include "common/types.cuh"
#include "gemm/sm90_config.cuh"

namespace ws {

constexpr u32 kUnitK = 32, kUnits = kTileK / kUnitK;  // what is loaded at a time, and how often in a stage

// A row's codes of 16 columns to pairs: columns 2t and 2t + 1, then those 8 further on. A permutation's selector with
// its top bit set, a code's sign, gives the top bits of what is looked up, here 0: of two tables one answers.
WS_DEVICE void look_up(u32 first, u32 second, u32 byte_of_both, u32 (&pairs)[2]) {
  const u32 codes = permute(first, second, byte_of_both);  // four in the lower half
  const u32 bytes = permute(0x26242220u, 0x38302C28u, codes) | permute(0x1A1C1E20u, 0x08101418u, codes ^ 0x8888u);
  pairs[0] = permute(bytes, 0x42424242u, 0x4140);
  pairs[1] = permute(bytes, 0x42424242u, 0x4342);
}

// A row's scales of a stage.
struct RowScales {
  static constexpr u32 kWords = Scales::kWords;
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
  WS_DEVICE u32 scale(u32 unit, u32 step) const {
    if constexpr (kNvfp4) return permute(pairs[unit / 2 * 2 + step], 0u, unit % 2 ? 0x3232 : 0x1010);
    return max(permute(codes[0], 0u, 0x4040 + unit * 0x0101) * 0x80u, 0x00400040u);  // code 0 is the subnormal 2^-127
  }
};

}  // namespace ws
