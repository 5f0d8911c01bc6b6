// SPDX-License-Identifier: Apache-2.0
// The values that are added to the columns of the product.
#pragma once

#include "common/convert.cuh"
#include "common/shared_load.cuh"
#include "common/shared_store.cuh"
#include "gemm/sm90_schedule.cuh"

namespace ws {

struct Bias {
  const u8* values;  // of the batch
  u32 type, n;

  // Columns i (even) and i + 1, which are both in D or neither.
  WS_DEVICE float2 pair(u32 i) const {
    float2 result{};
    if (type == kNoBias || i >= n) return result;
    if (type == kBiasFp32) return *reinterpret_cast<const float2*>(values + 4ull * i);
    const u32 two = *reinterpret_cast<const u32*>(values + 2ull * i);
    if (type == kBiasBf16) {
      unpack_bf16x2(two, result.x, result.y);
    } else {
      unpack_f16x2(two, result.x, result.y);
    }
    return result;
  }

  // Each lane's pair of columns, as floats for all lanes.
  WS_DEVICE void stage(u32 to, u32 i, u32 lane) const {
    if (type == kNoBias) return;
    const float2 two = pair(i);
    store_shared(to + lane * 8, {bits_of(two.x), bits_of(two.y)});
    __syncwarp();
  }

  // Without any, -0: then a sum of -0 stays what it is where it is written as it is.
  WS_DEVICE float2 staged(u32 from, u32 i) const {
    u32 words[2] = {1u << 31, 1u << 31};
    if (type != kNoBias) load_shared(from + i * 4, words);
    return {float_of(words[0]), float_of(words[1])};
  }

  WS_DEVICE float one(u32 i) const {
    const float2 two = pair(i & ~1u);
    return i % 2 ? two.y : two.x;
  }
};

}  // namespace ws
