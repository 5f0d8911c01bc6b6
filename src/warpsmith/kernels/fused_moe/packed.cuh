// SPDX-License-Identifier: Apache-2.0
// Eight 16-bit values in 16 bytes, to and from fp32.
#pragma once

#include "common/convert.cuh"
#include "common/ptx.cuh"
#include "common/types.cuh"

#define WS_BF16 0
#define WS_FP16 1

namespace ws {

template <int kType>
WS_DEVICE void unpack8(const uint4& words, float (&values)[8]) {
  const u32 pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    if constexpr (kType == WS_BF16) {
      unpack_bf16x2(pairs[i], values[2 * i], values[2 * i + 1]);
    } else {
      unpack_f16x2(pairs[i], values[2 * i], values[2 * i + 1]);
    }
  }
}

template <int kType>
WS_DEVICE void store8(u8* to, const float (&values)[8]) {
  u32 pairs[4];
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    pairs[i] = kType == WS_BF16 ? pack_bf16x2(values[2 * i], values[2 * i + 1])
                                : pack_f16x2(values[2 * i], values[2 * i + 1]);
  }
  store_vector(to, pairs[0], pairs[1], pairs[2], pairs[3]);
}

}  // namespace ws
