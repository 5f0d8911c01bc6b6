// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/types.cuh"
namespace ws {
inline u32 permute(u32 a, u32 b, u32 s) { u64 v = static_cast<u64>(b) << 32 | a; u32 r = 0; for (int i = 0; i < 4; ++i) r |= static_cast<u32>(v >> 8 * (s >> 4 * i & 7) & 255) << 8 * i; return r; }
inline float reciprocal_approx(float value) { return 1.0f / value; }
inline float max_nan(float a, float b) { return a != a || b != b ? float_of(0x7FFFFFFFu) : a > b ? a : b; }
}
