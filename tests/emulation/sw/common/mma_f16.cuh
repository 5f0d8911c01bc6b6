// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/packed_arithmetic.cuh"
namespace ws {
inline void mma_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  u32 w[6]; memcpy(w, a, 16); memcpy(w + 4, b, 8); auto t = emu::exchange(w, 6); u32 l = emu::tid.x % 32, g = l / 4, q = l % 4;
  for (int c = 0; c < 4; ++c) {
    u32 row = g + 8 * (c / 2), col = 2 * q + c % 2; double sum = 0;
    for (u32 k = 0; k < 16; ++k) { u32 h = k / 8, x = k % 8 / 2, i = k % 2; sum += double(h2f(t[row % 8 * 4 + x][2 * h + row / 8] >> 16 * i & 65535)) * h2f(t[col * 4 + x][4 + h] >> 16 * i & 65535); }
    d[c] = float(d[c] + sum);
  }
}
}
