// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/ptx.cuh"
#include "common/types.cuh"
namespace ws {
inline u32 bf16(float f) { u32 u = bits_of(f); return f != f ? 0x7FFFu : (u + 0x7FFF + (u >> 16 & 1)) >> 16; }
inline u32 f16(float f) { _Float16 h = static_cast<_Float16>(f); uint16_t u; memcpy(&u, &h, 2); return u; }
inline float of16(u32 b) { uint16_t u = b; _Float16 h; memcpy(&h, &u, 2); return h; }
inline u32 pack_bf16x2(float l, float h) { return bf16(l) | bf16(h) << 16; }
inline u32 pack_f16x2(float l, float h) { return f16(l) | f16(h) << 16; }
inline void unpack_bf16x2(u32 p, float& l, float& h) { l = float_of(p << 16); h = float_of(p & 0xFFFF0000u); }
inline void unpack_f16x2(u32 p, float& l, float& h) { l = of16(p & 0xFFFF); h = of16(p >> 16); }
enum : bool { kNativeE2m1 = true, kNativeE4m3 = true };  // saturating, to nearest even
template <u32 kBits> constexpr float kLargestElement = kBits == 4 ? 6.0f : 448.0f;
inline float decode_e4m3(u32 c) { u32 e = c >> 3 & 15, m = c & 7; float v = (c & 127) == 127 ? NAN : e ? ldexpf(8 + m, int(e) - 10) : ldexpf(m, -9); return c & 128 ? -v : v; }
// The code whose value is nearest, of two the even one; `top` is the last.
template <class Decode> inline u32 nearest(float y, u32 top, Decode decode) {
  float a = fabsf(y); u32 low = 0;
  while (low < top && decode(low + 1) <= a) ++low;
  if (low == top) return low;
  float below = a - decode(low), above = decode(low + 1) - a;
  return below < above || (below == above && low % 2 == 0) ? low : low + 1;
}
inline u32 encode_e4m3(float y) { return y != y ? 0x7Fu : nearest(y, 0x7E, decode_e4m3); }
inline u32 encode_e4m3x4(float a, float b, float c, float d) {
  const float y[4] = {a, b, c, d}; u32 r = 0;
  for (int i = 0; i < 4; ++i) r |= (encode_e4m3(y[i]) | bits_of(y[i]) >> 31 << 7) << 8 * i;
  return r;
}
inline u32 encode_e2m1x8(const float (&y)[8]) {
  constexpr float values[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6}; u32 r = 0;
  for (int i = 0; i < 8; ++i) r |= ((y[i] != y[i] ? 7 : nearest(y[i], 7, [&](u32 c) { return values[c]; })) | bits_of(y[i]) >> 31 << 3) << 4 * i;
  return r;
}
}
