// SPDX-License-Identifier: Apache-2.0
// 4-bit weights in the order that ops/prepared_order.py makes: codes and scales as operands of a bf16 MMA.
//
// A tile is 16 rows by 64 of K, 512 bytes: lane 4g+t has 16, a word for each 16 of K, and a word has the eight codes of
// that lane's four registers of the left operand of m16n8k16: k = 2t, 2t+1 (then 2t+8, 2t+9) of rows g and g+8.
#pragma once

#include "common/types.cuh"

namespace ws {

constexpr u32 kPreparedTileRows = 16, kPreparedTileK = 64, kPreparedTileBytes = 512;
constexpr u32 kPlaces = 0x81C081C0u;  // sign in bit 15, magnitude in bits 8 to 6: bf16 numbers 2^126 times too small

// What a word of eight codes gives: the registers of rows g, g+8, g and g+8.
WS_DEVICE void expand_prepared(u32 word, u32 (&registers)[4]) {
  const u32 turned = __funnelshift_l(word, word, 10);
  registers[0] = (word ^ (word << 8)) & kPlaces;
  registers[1] = turned & kPlaces;
  registers[2] = (word << 4) & kPlaces;
  registers[3] = (turned << 4) & kPlaces;
}

// Scales of rows g (lower half) and g+8, of a word that has those of g+16 and g+24 too, for which it is rotated left by 8.
// nvfp4's are 2^119 times too large, mx ones 2^(254 - largest byte) times.
template <bool kNvfp4>
WS_DEVICE u32 prepared_scales(u32 word) {
  return kNvfp4 ? (word & 0x0FF00FF0u) | 0x70007000u : word & 0x7F807F80u;
}

// Pairs of bf16 times the lower or upper half of `scales`; subnormals are kept.
template <u32 kHalf>
WS_DEVICE u32 multiply_by_half(u32 pairs, u32 scales) {
  u32 result;
  if constexpr (kHalf == 0) {
    asm("{.reg .b16 l, h; .reg .b32 s; mov.b32 {l, h}, %2; mov.b32 s, {l, l}; mul.rn.bf16x2 %0, %1, s;}"
        : "=r"(result)
        : "r"(pairs), "r"(scales));
  } else {
    asm("{.reg .b16 l, h; .reg .b32 s; mov.b32 {l, h}, %2; mov.b32 s, {h, h}; mul.rn.bf16x2 %0, %1, s;}"
        : "=r"(result)
        : "r"(pairs), "r"(scales));
  }
  return result;
}

// The left operand of an MMA, times its scales.
WS_DEVICE void prepared_operand(u32 word, u32 scales, u32 (&operand)[4]) {
  expand_prepared(word, operand);
  operand[0] = multiply_by_half<0>(operand[0], scales);
  operand[1] = multiply_by_half<1>(operand[1], scales);
  operand[2] = multiply_by_half<0>(operand[2], scales);
  operand[3] = multiply_by_half<1>(operand[3], scales);
}

}  // namespace ws
