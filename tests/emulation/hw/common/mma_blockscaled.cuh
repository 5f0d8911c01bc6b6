// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/types.cuh"
#define WS_SOFTWARE_BLOCK_SCALED 1
namespace ws {
enum class MmaKind { nvfp4, mxfp4, e4m3_e4m3, e4m3_e2m1, e2m1_e4m3 };
constexpr bool has_packed_nibbles(MmaKind kind) { return kind == MmaKind::nvfp4 || kind == MmaKind::mxfp4; }
constexpr u32 mma_k(MmaKind kind) { return has_packed_nibbles(kind) ? 64 : 32; }
constexpr u32 mma_scales(MmaKind kind) { return kind == MmaKind::nvfp4 ? 4 : kind == MmaKind::mxfp4 ? 2 : 1; }
inline float e2m1(u32 c) { static const float v[8] = {0, .5, 1, 1.5, 2, 3, 4, 6}; return c & 8 ? -v[c & 7] : v[c & 7]; }
inline float e4m3(u32 c) { u32 e = c >> 3 & 15, m = c & 7; float v = (c & 127) == 127 ? NAN : e ? ldexpf(8 + m, int(e) - 10) : ldexpf(m, -9); return c & 128 ? -v : v; }
inline float ue8m0(u32 c) { return c == 255 ? NAN : ldexpf(1, int(c) - 127); }
template <MmaKind kKind>
inline void block_scaled_mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], u32 sa, u32 sb, u16 byte_a, u16 thread_a, u16 byte_b, u16 thread_b) {
  u32 w[12]; memcpy(w, a, 16); memcpy(w + 4, b, 8); w[6] = sa; w[7] = sb; 
  auto t = emu::exchange(w, 8);
  constexpr u32 K = mma_k(kKind), V = mma_scales(kKind), W = K / 8;
  static const float* e2 = [] { static float x[16]; for (int i = 0; i < 16; ++i) x[i] = e2m1(i); return x; }();
  static const float* e4 = [] { static float x[256]; for (int i = 0; i < 256; ++i) x[i] = e4m3(i); return x; }();
  static const float* u8t = [] { static float x[256]; for (int i = 0; i < 256; ++i) x[i] = ue8m0(i); return x; }();
  const float* st = kKind == MmaKind::nvfp4 ? e4 : u8t;
  constexpr bool na = kKind == MmaKind::e2m1_e4m3, nb = kKind == MmaKind::e4m3_e2m1;
  u32 l = emu::tid.x % 32, g = l / 4, q = l % 4;
  auto elem = [&](u32 word, u32 i, bool nib) -> float {
    if (K == 64) return e2[word >> 4 * i & 15];
    u32 c = word >> 8 * i & 255;
    if (nib) { if (c & 0xC3) emu::fail("e2m1 container bits"); return e2[c >> 2]; }
    return e4[c];
  };
  for (int c = 0; c < 4; ++c) {
    u32 row = g + 8 * (c / 2), col = 2 * q + c % 2; double sum = 0;
    u32 la = 4 * (row % 8) + 2 * thread_a + row / 8, lb = 4 * col + thread_b;
    for (u32 v = 0; v < V; ++v) {
      double fa = st[t[la][6] >> 8 * (byte_a + v) & 255], fb = st[t[lb][7] >> 8 * (byte_b + v) & 255], part = 0;
      for (u32 k = v * (K / V); k < (v + 1) * (K / V); ++k) {
        u32 h = k / (K / 2), x = k % (K / 2) / W, i = k % W;
        part += double(elem(t[(row % 8) * 4 + x][2 * h + row / 8], i, na)) * elem(t[col * 4 + x][4 + h], i, nb);
      }
      sum += part * fa * fb;
    }
    d[c] = float(d[c] + sum);
  }
}
}
