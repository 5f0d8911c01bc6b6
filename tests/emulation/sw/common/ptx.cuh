// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/packed_arithmetic.cuh"
namespace ws {
inline u32 permute(u32 a, u32 b, u32 s) { u64 v = static_cast<u64>(b) << 32 | a; u32 r = 0; for (int i = 0; i < 4; ++i) r |= static_cast<u32>(v >> 8 * (s >> 4 * i & 7) & 255) << 8 * i; return r; }
inline float e4(u32 c) { u32 e = c >> 3 & 15, m = c & 7; float v = (c & 127) == 127 ? NAN : e ? ldexpf(8 + m, int(e) - 10) : ldexpf(m, -9); return c & 128 ? -v : v; }
inline void convert_e4m3x4_to_f16(u32 c, u32& lo, u32& hi) { lo = f2h(e4(c & 255)) | f2h(e4(c >> 8 & 255)) << 16; hi = f2h(e4(c >> 16 & 255)) | f2h(e4(c >> 24)) << 16; }
}
