// SPDX-License-Identifier: Apache-2.0
// Arithmetic on pairs of 16-bit floats in one word; subnormals are kept.
#pragma once

#include "common/types.cuh"

namespace ws {

WS_DEVICE u32 fma_bf16x2(u32 a, u32 b, u32 c) {
  u32 result;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

WS_DEVICE u32 fma_f16x2(u32 a, u32 b, u32 c) {
  u32 result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

// From 9.0 on.
WS_DEVICE u32 multiply_bf16x2(u32 a, u32 b) {
  u32 result;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

}  // namespace ws
