// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/types.cuh"
namespace ws {
inline u32 bf16(float f) { u32 u = bits_of(f); return f != f ? 0x7FFFu : (u + 0x7FFF + (u >> 16 & 1)) >> 16; }
inline u32 f16(float f) { _Float16 h = static_cast<_Float16>(f); uint16_t u; memcpy(&u, &h, 2); return u; }
inline float of16(u32 b) { uint16_t u = b; _Float16 h; memcpy(&h, &u, 2); return h; }
inline u32 pack_bf16x2(float l, float h) { return bf16(l) | bf16(h) << 16; }
inline u32 pack_f16x2(float l, float h) { return f16(l) | f16(h) << 16; }
inline void unpack_bf16x2(u32 p, float& l, float& h) { l = float_of(p << 16); h = float_of(p & 0xFFFF0000u); }
inline void unpack_f16x2(u32 p, float& l, float& h) { l = of16(p & 0xFFFF); h = of16(p >> 16); }
}
