// SPDX-License-Identifier: Apache-2.0
// Storing a thread's codes: 4 bytes (e2m1) or 8 (e4m3) of each of its rows.
#pragma once

#include "common/ptx.cuh"
#include "fp4_quantization/format.cuh"

namespace ws {

// Rows are `step` bytes apart. `vector` says that every address is a multiple of the bytes stored.
template <u32 kPasses, u32 kWords>
WS_DEVICE void store_codes(u8* target, i64 step, bool vector, const bool (&active)[kPasses],
                           const u32 (&codes)[kPasses][kWords]) {
  if (vector) {
#pragma unroll
    for (u32 i = 0; i < kPasses; ++i) {
      if (!active[i]) continue;
      if constexpr (kWords == 1) {
        store_streaming(reinterpret_cast<u32*>(target + i * step), codes[i][0]);
      } else {
        store_streaming(reinterpret_cast<u64*>(target + i * step), codes[i][0] | (static_cast<u64>(codes[i][1]) << 32));
      }
    }
    return;
  }
#pragma unroll
  for (u32 i = 0; i < kPasses; ++i) {
    if (!active[i]) continue;
#pragma unroll
    for (u32 j = 0; j < 4 * kWords; ++j) {
      target[i * step + j] = static_cast<u8>(codes[i][j / 4] >> (8 * (j % 4)));
    }
  }
}

}  // namespace ws
