// SPDX-License-Identifier: Apache-2.0
// Conversions between fp32 and the storage types. The only place that chooses by architecture, between its own
// instruction and software; both give the same bits.
#pragma once

#include "common/ptx.cuh"
#include "common/types.cuh"

namespace ws {

// e2m1 conversions exist from 10.0 on, in architecture-specific and family targets only.
#if __CUDA_ARCH__ >= 1000 && defined(__CUDA_ARCH_FAMILY_SPECIFIC__)
enum : bool { kNativeE2m1 = true };
#else
enum : bool { kNativeE2m1 = false };
#endif

enum : bool { kNativeE4m3 = __CUDA_ARCH__ >= 890 };
enum : bool { kNativeXorsign = __CUDA_ARCH__ >= 860 };  // max.xorsign.abs

template <u32 kBits>
constexpr float kLargestElement = kBits == 4 ? 6.0f : 448.0f;  // e2m1, e4m3

// ---- 16-bit floating point ------------------------------------------------------------------------------------

WS_DEVICE void unpack_bf16x2(u32 pair, float& low, float& high) {
  low = float_of(pair << 16);
  high = float_of(pair & 0xFFFF0000u);
}

// The larger magnitude of each half; the signs are arbitrary, NaN wins.
WS_DEVICE u32 larger_magnitude_bf16x2(u32 a, u32 b) {
  if constexpr (kNativeXorsign) return max_nan_xorsign_bf16x2(a, b);
  return max_nan_bf16x2(a & 0x7FFF7FFFu, b & 0x7FFF7FFFu);
}

WS_DEVICE u32 larger_magnitude_f16x2(u32 a, u32 b) {
  if constexpr (kNativeXorsign) return max_nan_xorsign_f16x2(a, b);
  return max_nan_f16x2(a & 0x7FFF7FFFu, b & 0x7FFF7FFFu);
}

// ---- software encoding ----------------------------------------------------------------------------------------
//
// One fused multiply-add rounds a value to a small float. Let E be the power of two at or below |y|, at least the
// smallest normal's, with the sign of y. C·E is so large that the sum C·E + y has the target's spacing at E as its ulp,
// so that it is rounded as the cast would be, ties to even included, and its lowest bits count |y| in units of that
// spacing. The exponent of the sum, shifted down to just above the mantissa, adds what the count lacks. The low bits
// of C cancel the constant part. Of the result, the low 16 bits are clean: the magnitude's code, and the sign in the
// bit where the shift brings it (9 for e2m1, 11 for e4m3).

template <u32 kMantissaBits, u32 kSmallestNormal>
WS_DEVICE u32 encode_software(float y) {
  constexpr u32 shift = 23 - kMantissaBits;                  // ulp of the sum is E >> kMantissaBits
  constexpr u32 unit = (127 + shift) << 23;                  // 2^shift
  constexpr u32 exponent = (kSmallestNormal >> 23) + shift;  // of the sum, at the smallest normal
  constexpr u32 cancel = (0x10000u - (exponent << kMantissaBits)) & 0xFFFFu;
  static_assert(cancel % 2 == 0, "an odd constant would turn ties to odd");
  float power;
  if constexpr (kNativeXorsign) {
    power = max_xorsign(float_of(bits_of(y) & ~kMantissa), float_of(kSmallestNormal));
  } else {
    power = fmaxf(float_of(bits_of(y) & kInfinity), float_of(kSmallestNormal));
    power = float_of(bits_of(power) | (bits_of(y) & ~kAbs));
  }
  const u32 sum = bits_of(__fmaf_rn(power, float_of(unit | cancel), y));
  return sum + (sum >> shift);
}

// Eight values, |y| < 7 (larger ones must be clamped to 6 first); value 0 in the lowest nibble.
WS_DEVICE u32 encode_e2m1x8_software(const float (&y)[8]) {
  u32 pair[4];  // two codes in bits 0-7, their signs in bits 9 and 13
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pair[i] = encode_software<1, 0x3F800000u>(y[2 * i]) + (encode_software<1, 0x3F800000u>(y[2 * i + 1]) << 4);
  }
  const u32 low = permute(pair[0], pair[1], 0x5410);
  const u32 high = permute(pair[2], pair[3], 0x5410);
  return permute(low, high, 0x6420) + (permute(low, high, 0x7531) << 2);
}

// Four values, |y| ≤ 464 (larger ones must be clamped to 448 first); value 0 in the lowest byte.
WS_DEVICE u32 encode_e4m3x4_software(float a, float b, float c, float d) {
  const u32 low = permute(encode_software<3, 0x3C800000u>(a), encode_software<3, 0x3C800000u>(b), 0x5410);
  const u32 high = permute(encode_software<3, 0x3C800000u>(c), encode_software<3, 0x3C800000u>(d), 0x5410);
  return permute(low, high, 0x6420) + (permute(low, high, 0x7531) << 4);
}

WS_DEVICE float decode_e4m3_software(u32 code) {
  const float magnitude = __fmul_rn(float_of((code & 0x7Fu) << 20), 0x1p120f);
  const u32 bits = (code & 0x7Fu) == 0x7Fu ? kQuietNan : bits_of(magnitude);
  return float_of(bits | ((code & 0x80u) << 24));
}

// ---- e2m1 -----------------------------------------------------------------------------------------------------

// Eight values to e2m1, value 0 in the lowest nibble. Native conversion saturates, software needs |y| < 7.
WS_DEVICE u32 encode_e2m1x8(const float (&y)[8]) {
  if constexpr (kNativeE2m1) return convert_e2m1x8(y);
  return encode_e2m1x8_software(y);
}

// Eight codes to fp32. The upper byte of a value's fp16 form says all of it, and a byte permutation looks it up.
WS_DEVICE void decode_e2m1x8(u32 codes, float (&values)[8]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const u32 four = codes >> (16 * i);
    const u32 upper = permute(0x3E3C3800u, 0x46444240u, four & 0x7777u);
    const u32 first = permute(upper, 0u, 0x1404) | ((four << 12) & 0x8000u) | ((four << 24) & 0x80000000u);
    const u32 second = permute(upper, 0u, 0x3424) | ((four << 4) & 0x8000u) | ((four << 16) & 0x80000000u);
    unpack_f16x2(first, values[4 * i], values[4 * i + 1]);
    unpack_f16x2(second, values[4 * i + 2], values[4 * i + 3]);
  }
}

// ---- e4m3 -----------------------------------------------------------------------------------------------------

// Four values to e4m3, a in the lowest byte. Native conversion saturates, software needs |y| ≤ 464.
WS_DEVICE u32 encode_e4m3x4(float a, float b, float c, float d) {
  if constexpr (kNativeE4m3) return join(convert_e4m3x2(a, b), convert_e4m3x2(c, d));
  return encode_e4m3x4_software(a, b, c, d);
}

// One value ≥ 0, saturating at 448; the code is in 0..0x7E.
WS_DEVICE u32 encode_e4m3(float value) {
  if constexpr (kNativeE4m3) return convert_e4m3x2(value, 0.0f);
  return encode_software<3, 0x3C800000u>(fminf(value, kLargestElement<8>)) & 0xFFu;
}

WS_DEVICE void decode_e4m3x4(u32 codes, float (&values)[4]) {
  if constexpr (kNativeE4m3) {
    u32 low, high;
    convert_e4m3x4_to_f16(codes, low, high);
    unpack_f16x2(low, values[0], values[1]);
    unpack_f16x2(high, values[2], values[3]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = decode_e4m3_software((codes >> (8 * i)) & 0xFFu);
  }
}

WS_DEVICE float decode_e4m3(u32 code) {
  float values[4];
  decode_e4m3x4(code, values);
  return values[0];
}

// ---- ue8m0 ----------------------------------------------------------------------------------------------------

// 2^(code − 127) exactly: code 0 is the subnormal 2^−127, 255 NaN.
WS_DEVICE float decode_ue8m0(u32 code) {
  const u32 bits = code == 0u ? 0x00400000u : code << 23;
  return float_of(code == 0xFFu ? kQuietNan : bits);
}

}  // namespace ws
