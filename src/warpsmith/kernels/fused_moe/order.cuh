// SPDX-License-Identifier: Apache-2.0
// Floats as integers in the order that experts are chosen in, and maxima over a warp.
#pragma once

#include "common/types.cuh"

namespace ws {

constexpr u32 kExcludedKey = 0;  // never chosen
constexpr u32 kNanKey = 1;       // behind −infinity

// Larger values have larger keys; zeros of both signs have the same.
WS_DEVICE u32 key_of(float value) {
  if (value != value) return kNanKey;
  const u32 bits = bits_of(__fadd_rn(value, 0.0f));
  return bits & ~kAbs ? ~bits : bits | ~kAbs;
}

WS_DEVICE float value_of(u32 key) {
  if (key == kNanKey) return float_of(kQuietNan);
  return float_of(key & ~kAbs ? key & kAbs : ~key);
}

WS_DEVICE u32 warp_max(u32 value) {
  u32 result;
  asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(result) : "r"(value));
  return result;
}

WS_DEVICE u32 warp_min(u32 value) {
  u32 result;
  asm volatile("redux.sync.min.u32 %0, %1, 0xffffffff;" : "=r"(result) : "r"(value));
  return result;
}

// The same on every lane, and in the same order each time.
WS_DEVICE float warp_sum(float value) {
#pragma unroll
  for (u32 distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

}  // namespace ws
