// SPDX-License-Identifier: Apache-2.0
// The block-scaled MMA out of fp16 MMAs, for targets without the instruction. Operands are converted exactly; only
// the order in which fp32 sums are formed is the hardware's own. Fragments and selectors: mma_blockscaled.cuh.
//
// A sum over K does not depend on the order of K, so each lane feeds m16n8k16's K slots from its own elements, A and B
// alike, and no element changes lanes. Chunk c of a fragment is what one m16n8k16 consumes: four elements of each of a
// lane's rows.
#pragma once

#include "common/mma_f16.cuh"
#include "common/packed_arithmetic.cuh"
#include "common/ptx.cuh"
#include "common/types.cuh"

namespace ws {

WS_DEVICE u32 multiply_f16x2(u32 a, u32 b) { return fma_f16x2(a, b, 0x80008000u); }

// An e2m1 magnitude whose three bits are put at the top of fp16's magnitude field is 2^−14 of its value, zero and
// subnormal included.
enum : u32 { kTwoTo14 = 0x74007400u };

// Eight packed codes to fp16: pair i holds elements i (low half) and i + 4.
WS_DEVICE void f16_from_e2m1x8(u32 codes, u32 (&pairs)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const u32 sign = (codes << (12 - 4 * i)) & 0x80008000u;
    const u32 magnitude = (i < 3 ? codes << (9 - 4 * i) : codes >> 3) & 0x0E000E00u;
    pairs[i] = multiply_f16x2(sign | magnitude, kTwoTo14);
  }
}

// Four elements of an 8-bit kind to fp16: elements 0, 1 in pair 0, elements 2, 3 in pair 1.
template <bool kNibbles>
WS_DEVICE void f16_from_bytes(u32 bytes, u32 (&pairs)[2]) {
  if constexpr (kNibbles) {
    // 00ABCD00, moved to the upper byte of each half
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const u32 upper = permute(bytes, 0u, i == 0 ? 0x1404 : 0x3424);
      pairs[i] = multiply_f16x2(((upper << 2) & 0x80008000u) | ((upper >> 1) & 0x0E000E00u), kTwoTo14);
    }
  } else {
    convert_e4m3x4_to_f16(bytes, pairs[0], pairs[1]);
  }
}

// One word from another lane of the warp.
WS_DEVICE u32 from_lane(u32 word, u32 lane) { return __shfl_sync(kAllLanes, word, static_cast<int>(lane)); }

WS_DEVICE u32 warp_lane() { return threadIdx.x % 32; }

// ---- nvfp4 ------------------------------------------------------------------------------------------------------

// The scales that a lane's elements of one row need, in both halves of a word each: [0] those of the low half of K.
WS_DEVICE void own_ue4m3_scales(u32 word, u32 (&factors)[2]) {
  const u32 twice = warp_lane() % 4 < 2 ? 0x1010 : 0x3232;  // elements 8t..8t+7 lie in block t / 2 of their half
  u32 pairs[2];
  convert_e4m3x4_to_f16(word, pairs[0], pairs[1]);
  factors[0] = permute(pairs[0], 0u, twice);
  factors[1] = permute(pairs[1], 0u, twice);
}

// m16n8k64, e2m1 · ue4m3: an element times its scale has at most 6 significant bits and a magnitude of 2^−10 to 2688,
// exact in fp16. Four chunks.
WS_DEVICE void software_mma_ue4m3(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], u32 scale_a, u32 scale_b,
                                  u32 thread_a, u32 thread_b) {
  const u32 quad = warp_lane() / 4 * 4;
  u32 scales_a[2][2], scales_b[2];
  own_ue4m3_scales(from_lane(scale_a, quad + 2 * thread_a), scales_a[0]);
  own_ue4m3_scales(from_lane(scale_a, quad + 2 * thread_a + 1), scales_a[1]);
  own_ue4m3_scales(from_lane(scale_b, quad + thread_b), scales_b);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    u32 rows[2][4], column[4];
    f16_from_e2m1x8(a[2 * half], rows[0]);
    f16_from_e2m1x8(a[2 * half + 1], rows[1]);
    f16_from_e2m1x8(b[half], column);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      rows[0][i] = multiply_f16x2(rows[0][i], scales_a[0][half]);
      rows[1][i] = multiply_f16x2(rows[1][i], scales_a[1][half]);
      column[i] = multiply_f16x2(column[i], scales_b[half]);
    }
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      mma_f16(d, {rows[0][i], rows[1][i], rows[0][i + 1], rows[1][i + 1]}, {column[i], column[i + 1]});
    }
  }
}

// ---- ue8m0 ------------------------------------------------------------------------------------------------------

// Scale bytes of one stretch of K: of a lane's two rows of A and two columns of D, and of its column of B.
// D + P·2^(a + b − 254) takes two steps, since one factor of 2^254 or 2^−254 is no float. With e = a + b they are
// 2^(⌊e/2⌋ − 127) and 2^(⌈e/2⌉ − 127), made by moving bits; that 2^−127 comes out as 0 and that a step may leave fp32's
// range only matters where the result does as well. Byte 255 turns the elements it scales into NaN.
struct Ue8m0Scales {
  u32 row[2], column[2];      // byte · 2^22
  u32 row_nan[2], column_nan;  // bits that turn a pair of fp16 into NaN

  WS_DEVICE Ue8m0Scales(u32 scale_a, u32 scale_b, u32 byte_a, u32 thread_a, u32 byte_b, u32 thread_b) {
    const u32 lane = warp_lane(), quad = lane / 4 * 4;
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      const u32 code = from_lane(scale_a, quad + 2 * thread_a + i) >> (8 * byte_a) & 0xFFu;
      row[i] = code << 22;
      row_nan[i] = nan_bits(code);
      column[i] = (from_lane(scale_b, 4 * (2 * (lane % 4) + i) + thread_b) >> (8 * byte_b) & 0xFFu) << 22;
    }
    column_nan = nan_bits(from_lane(scale_b, quad + thread_b) >> (8 * byte_b) & 0xFFu);
  }

  WS_DEVICE void add(float (&d)[4], const float (&product)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 sum = row[i / 2] + column[i % 2];
      const u32 first = sum & 0x7F800000u;
      d[i] = __fmaf_rn(__fmul_rn(product[i], float_of(first)), float_of(2 * sum - first), d[i]);
    }
  }

 private:
  WS_DEVICE static u32 nan_bits(u32 code) { return code == 0xFFu ? 0x7E007E00u : 0u; }
};

template <int kPairs>
WS_DEVICE void set_bits(u32 (&pairs)[kPairs], u32 bits) {
#pragma unroll
  for (int i = 0; i < kPairs; ++i) pairs[i] |= bits;
}

// m16n8k64, e2m1 · ue8m0: one scale for each half of K.
WS_DEVICE void software_mma_mxfp4(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], u32 scale_a, u32 scale_b,
                                  u32 byte_a, u32 thread_a, u32 byte_b, u32 thread_b) {
#pragma unroll
  for (u32 half = 0; half < 2; ++half) {
    const Ue8m0Scales scales(scale_a, scale_b, byte_a + half, thread_a, byte_b + half, thread_b);
    u32 rows[2][4], column[4];
    f16_from_e2m1x8(a[2 * half], rows[0]);
    f16_from_e2m1x8(a[2 * half + 1], rows[1]);
    f16_from_e2m1x8(b[half], column);
    set_bits(rows[0], scales.row_nan[0]);
    set_bits(rows[1], scales.row_nan[1]);
    set_bits(column, scales.column_nan);
    float product[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      mma_f16(product, {rows[0][i], rows[1][i], rows[0][i + 1], rows[1][i + 1]}, {column[i], column[i + 1]});
    }
    scales.add(d, product);
  }
}

// m16n8k32, 8-bit containers · ue8m0: one scale for all of K.
template <bool kNibblesA, bool kNibblesB>
WS_DEVICE void software_mma_8bit(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], u32 scale_a, u32 scale_b,
                                 u32 byte_a, u32 thread_a, u32 byte_b, u32 thread_b) {
  const Ue8m0Scales scales(scale_a, scale_b, byte_a, thread_a, byte_b, thread_b);
  float product[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    u32 rows[2][2], column[2];
    f16_from_bytes<kNibblesA>(a[2 * half], rows[0]);
    f16_from_bytes<kNibblesA>(a[2 * half + 1], rows[1]);
    f16_from_bytes<kNibblesB>(b[half], column);
    set_bits(rows[0], scales.row_nan[0]);
    set_bits(rows[1], scales.row_nan[1]);
    set_bits(column, scales.column_nan);
    mma_f16(product, {rows[0][0], rows[1][0], rows[0][1], rows[1][1]}, {column[0], column[1]});
  }
  scales.add(d, product);
}

}  // namespace ws
