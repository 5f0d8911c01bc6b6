// SPDX-License-Identifier: Apache-2.0
// Packed e2m1 and e4m3 codes to pairs of fp16 or bf16, as mma.sync takes them. All of it is exact, on every target.
//
// The bits of a small float, put at the top of the larger type's mantissa and the bottom of its exponent, are its value
// times a power of two, subnormals included; one multiplication takes that out again. For e2m1 it is left to the caller,
// whose block scales can share it.
#pragma once

#include "common/convert.cuh"
#include "common/packed_arithmetic.cuh"
#include "common/ptx.cuh"
#include "common/types.cuh"

namespace ws {

// Products of pairs. Multiply-adds with −0, since 8.x has no bf16 multiplication.
template <bool kBf16>
WS_DEVICE u32 multiply_pairs(u32 a, u32 b) {
  return kBf16 ? fma_bf16x2(a, b, 0x80008000u) : fma_f16x2(a, b, 0x80008000u);
}

// Pairs of the powers of two that the software conversions leave out.
template <bool kBf16>
constexpr u32 kE2m1Factor = kBf16 ? 0x7E807E80u : 0x74007400u;  // 2^126, 2^14
template <bool kBf16>
constexpr u32 kE4m3Factor = kBf16 ? 0x7B807B80u : 0x5C005C00u;  // 2^120, 2^8

// Which two of eight consecutive elements pair i holds. With nibbles one shift aligns elements 4 apart (bf16) or, a
// byte being all of an fp16 e2m1 value, 2 apart.
template <bool kNibbles, bool kBf16>
WS_DEVICE constexpr u32 low_element(u32 i) {
  return !kNibbles ? 2 * i : kBf16 ? i : (i % 2) * 4 + i / 2;
}
template <bool kNibbles, bool kBf16>
WS_DEVICE constexpr u32 high_element(u32 i) {
  return low_element<kNibbles, kBf16>(i) + (!kNibbles ? 1 : kBf16 ? 4 : 2);
}

// Eight e2m1 codes, still to be multiplied by kE2m1Factor.
template <bool kBf16>
WS_DEVICE void pairs_from_e2m1x8(u32 codes, u32 (&pairs)[4]) {
  if constexpr (kBf16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 sign = (codes << (12 - 4 * i)) & 0x80008000u;
      const u32 magnitude = (i < 2 ? codes << (6 - 4 * i) : codes >> (4 * i - 6)) & 0x01C001C0u;
      pairs[i] = sign | magnitude;
    }
  } else {
    const u32 even = ((codes << 4) & 0x80808080u) | ((codes << 1) & 0x0E0E0E0Eu);
    const u32 odd = (codes & 0x80808080u) | ((codes >> 3) & 0x0E0E0E0Eu);
    pairs[0] = permute(even, 0u, 0x1404);
    pairs[1] = permute(even, 0u, 0x3424);
    pairs[2] = permute(odd, 0u, 0x1404);
    pairs[3] = permute(odd, 0u, 0x3424);
  }
}

// Four e4m3 codes to two pairs; NaN is kept.
template <bool kBf16>
WS_DEVICE void pairs_from_e4m3x4(u32 codes, u32& first, u32& second) {
  if constexpr (kNativeE4m3) {
    convert_e4m3x4_to_f16(codes, first, second);
    if constexpr (kBf16) {
      float low, high;
      unpack_f16x2(first, low, high);
      first = pack_bf16x2(low, high);
      unpack_f16x2(second, low, high);
      second = pack_bf16x2(low, high);
    }
  } else {
    u32* const pairs[2] = {&first, &second};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const u32 upper = permute(codes, 0u, i == 0 ? 0x1404 : 0x3424);
      const u32 magnitude = upper & 0x7F007F00u;
      const u32 carry = magnitude + 0x01000100u;  // into the top bit of a half for NaN alone
      const u32 nan = carry & 0x80008000u;
      const u32 value = (upper & 0x80008000u) | magnitude >> (kBf16 ? 4 : 1);
      *pairs[i] = multiply_pairs<kBf16>(value, kE4m3Factor<kBf16>) | (nan - (nan >> (kBf16 ? 9 : 6)));
    }
  }
}

}  // namespace ws
