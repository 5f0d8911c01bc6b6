// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/types.cuh"
namespace ws {
inline float h2f(u32 b) { uint16_t u = b; _Float16 h; memcpy(&h, &u, 2); return h; }
inline u32 f2h(double f) { _Float16 h = static_cast<_Float16>(f); uint16_t u; memcpy(&u, &h, 2); return u; }
inline u32 fma_f16x2(u32 a, u32 b, u32 c) { return f2h(double(h2f(a & 65535)) * h2f(b & 65535) + h2f(c & 65535)) | f2h(double(h2f(a >> 16)) * h2f(b >> 16) + h2f(c >> 16)) << 16; }
}
