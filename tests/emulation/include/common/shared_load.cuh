// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/types.cuh"
namespace ws {
inline void ldm(u32 address, int n, u32* out) {
  auto t = emu::exchange(&address, 1); u32 l = emu::tid.x % 32;
  for (int m = 0; m < n; ++m) memcpy(out + m, emu::at(t[8 * m + l / 4][0], 16, 16) + l % 4 * 4, 4);
}
inline void ldmatrix_x4(u32 a, u32& m0, u32& m1, u32& m2, u32& m3) { u32 o[4]; ldm(a, 4, o); m0 = o[0]; m1 = o[1]; m2 = o[2]; m3 = o[3]; }
inline void ldmatrix_x2(u32 a, u32& m0, u32& m1) { u32 o[2]; ldm(a, 2, o); m0 = o[0]; m1 = o[1]; }
template <int n> inline void load_shared(u32 a, u32 (&w)[n]) { memcpy(w, emu::at(a, 4 * n, 4 * n), 4 * n); }
inline u32 load_shared_u32(u32 a) { u32 w[1]; load_shared(a, w); return w[0]; }
}
