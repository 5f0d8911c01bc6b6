// SPDX-License-Identifier: Apache-2.0
// From a block's largest magnitude to its one-byte scale and to the factor that its elements are multiplied by, and
// from there to codes.
#pragma once

#include "common/arithmetic.cuh"
#include "common/convert.cuh"

namespace ws {

// What all blocks of a tile share.
struct Scaling {
  float global_scale;
  bool floor;  // ue8m0 rounding
};

// The elements are multiplied by the factor, which is ≥ 0, or NaN in a block that is not finite: its codes are zero.
struct BlockScale {
  u32 stored;  // scale byte, or fp32 bits
  float factor;
};

WS_DEVICE float bounded_quotient(float a, float b) { return fminf(__fdiv_rn(a, b), float_of(kLargest)); }

// Each kind of scale has two functions. `quick` is right unless it reports an exception, which is rare in data worth
// quantizing; `exact` is right always. An exception also says that products with the factor may reach 7 (e2m1) or
// exceed 464 (e4m3), where the software encoders need clamped ones.
template <bool kNibbles>
struct PowerScale {  // ue8m0
  enum : bool { native = kNibbles ? kNativeE2m1 : kNativeE4m3 };

  WS_DEVICE static BlockScale quick(u32 amax, const Scaling& scaling, bool& exception) {
    constexpr u32 exponent = kNibbles ? 2 : 8;               // of the element type's largest value
    constexpr u32 above = kNibbles ? 0x3FFFFFu : 0x1FFFFFu;  // carries from a mantissa above 1.5 or 1.75
    const u32 biased = (amax + (scaling.floor ? 0u : above)) >> 23;
    const u32 code = max(biased, exponent) - exponent;
    exception = amax >= kInfinity;
    if constexpr (!native) exception |= scaling.floor & ((amax & 0x600000u) == 0x600000u);
    return {code, float_of((254u - code) << 23)};
  }

  WS_DEVICE static BlockScale exact(u32 amax, const Scaling& scaling) {
    bool exception;
    const BlockScale scale = quick(amax, scaling, exception);
    return amax < kInfinity ? scale : BlockScale{0xFFu, float_of(kQuietNan)};
  }
};

struct E4m3Scale {  // ue4m3, beside a global scale
  // An element comes out above 6.375 only where the scale is subnormal or saturated. Infinity and NaN saturate too.
  WS_DEVICE static BlockScale quick(u32 amax, const Scaling& scaling, bool& exception) {
    const float gs = scaling.global_scale;
    const u32 code = encode_e4m3(sixth(__fmul_rn(gs, float_of(amax))));
    const float s = decode_e4m3(code);
    exception = (code - 8u >= 0x7Eu - 8u) | !is_moderate(gs);
    return {code, quotient(gs, s, reciprocal(s))};
  }

  WS_DEVICE static BlockScale exact(u32 amax, const Scaling& scaling) {
    const float gs = scaling.global_scale;
    if (amax >= kInfinity) return {0x7Fu, float_of(kQuietNan)};
    if (amax == 0u) return {0u, 0.0f};  // padding too, whatever the global scale
    const u32 code = encode_e4m3(sixth(__fmul_rn(gs, float_of(amax))));
    return {code, code == 0u ? 0.0f : bounded_quotient(gs, decode_e4m3(code))};
  }
};

// A value times a factor. `kCareful`: the factor may be NaN, and products too large for the software encoders.
template <bool kNibbles, bool kCareful>
WS_DEVICE float scaled(float x, float factor) {
  constexpr bool native = kNibbles ? kNativeE2m1 : kNativeE4m3;
  constexpr float largest = kLargestElement<kNibbles ? 4 : 8>;
  float y = __fmul_rn(x, factor);
  if constexpr (kCareful && !native) y = fmaxf(fminf(y, largest), -largest);
  return y;
}

// Codes of eight such products: a word of e2m1, or two of e4m3.
template <bool kNibbles, bool kCareful>
WS_DEVICE void encode_scaled(const float (&y)[8], float factor, u32 (&codes)[kNibbles ? 1 : 2]) {
  if constexpr (kNibbles) {
    codes[0] = encode_e2m1x8(y);
  } else {
    codes[0] = encode_e4m3x4(y[0], y[1], y[2], y[3]);
    codes[1] = encode_e4m3x4(y[4], y[5], y[6], y[7]);
  }
  if constexpr (kCareful) {
#pragma unroll
    for (u32& word : codes) word = factor != factor ? 0u : word;
  }
}

}  // namespace ws
