// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/types.cuh"

namespace ws {

// The smaller of two, or NaN if either is one.
WS_DEVICE float min_nan(float a, float b) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

}  // namespace ws
