// SPDX-License-Identifier: Apache-2.0
// The scale of a block of each format, and codes of a thread's elements.
#pragma once

#include "common/arithmetic.cuh"
#include "common/block_scale.cuh"
#include "common/convert.cuh"
#include "fp4_quantization/elements.cuh"
#include "fp4_quantization/format.cuh"

namespace ws {

template <int kFormat>
struct Scale : PowerScale<Format<kFormat>::nibbles> {};  // mxfp4 and mxfp8

template <>
struct Scale<WS_NVFP4> : E4m3Scale {};

template <>
struct Scale<WS_FP8_BLOCK> {
  WS_DEVICE static BlockScale quick(u32 amax, const Scaling&, bool& exception) {
    exception = (amax == 0u) | (amax >= kInfinity);
    constexpr float largest = kLargestElement<8>;
    return {bits_of(__fdiv_rn(float_of(amax), largest)), bounded_quotient(largest, float_of(amax))};
  }

  WS_DEVICE static BlockScale exact(u32 amax, const Scaling& scaling) {
    if (amax >= kInfinity) return {kQuietNan, float_of(kQuietNan)};
    if (amax == 0u) return {bits_of(1.0f), 0.0f};
    bool exception;
    return quick(amax, scaling, exception);
  }
};

// Codes of x·factor; `kCareful` is that of `scaled`.
template <int kFormat, bool kCareful, int kType>
WS_DEVICE void encode(const Elements<kType>& elements, float factor, u32 (&codes)[Format<kFormat>::code_words]) {
  constexpr bool nibbles = Format<kFormat>::nibbles;
  float y[kElements];
  elements.unpack(y);
#pragma unroll
  for (u32 i = 0; i < kElements; ++i) y[i] = scaled<nibbles, kCareful>(y[i], factor);
  encode_scaled<nibbles, kCareful>(y, factor, codes);
}

}  // namespace ws
