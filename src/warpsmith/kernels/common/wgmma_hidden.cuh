// SPDX-License-Identifier: Apache-2.0
// Two products of 64 by 64 or 128 by 128 bytes of K in registers that PTX names and CUDA C++ does not see.
//
// As arrays of C++, what outlives a turn of a loop is copied at its edges, and long turns spill; a copy of what an MMA
// has made, or may be making, costs instructions or makes ptxas wait for every MMA. Registers that PTX declares are in
// one place by construction, and ptxas alone assigns them.
#pragma once

#include "common/types.cuh"
#include "common/wgmma.cuh"

namespace ws {

// Once in a kernel, where every path comes by before the first use.
WS_DEVICE void declare_hidden_products() {
  asm volatile(
      ".reg .f32 ws_x0_<16>, ws_x1_<16>, ws_x2_<16>, ws_x3_<16>;\n\t"
      ".reg .f32 ws_y0_<16>, ws_y1_<16>, ws_y2_<16>, ws_y3_<16>;");
}

#define WS_HIDDEN_16(v)                                                                                             \
  v "0, " v "1, " v "2, " v "3, " v "4, " v "5, " v "6, " v "7, " v "8, " v "9, " v "10, " v "11, " v "12, " v "13, " v \
    "14, " v "15"
#define WS_HIDDEN_32(v) WS_HIDDEN_16(v "0_") ", " WS_HIDDEN_16(v "1_")
#define WS_HIDDEN_64(v) WS_HIDDEN_32(v) ", " WS_HIDDEN_16(v "2_") ", " WS_HIDDEN_16(v "3_")
#define WS_HIDDEN_ADD(v, i, factor) "fma.rn.f32 %" #i ", " v #i ", %" #factor ", %" #i ";\n\t"
#define WS_HIDDEN_ADD_4(v, a, b, c, d) \
  WS_HIDDEN_ADD(v, a, 16) WS_HIDDEN_ADD(v, b, 16) WS_HIDDEN_ADD(v, c, 17) WS_HIDDEN_ADD(v, d, 17)
#define WS_HIDDEN_ADD_16(v, i)                                                                           \
  asm volatile(WS_HIDDEN_ADD_4(v, 0, 1, 2, 3) WS_HIDDEN_ADD_4(v, 4, 5, 6, 7)                             \
                 WS_HIDDEN_ADD_4(v, 8, 9, 10, 11) WS_HIDDEN_ADD_4(v, 12, 13, 14, 15) : WS_WGMMA_F16(i) \
               : "f"(low), "f"(high))

// Number kWhich, 0 or 1, of 64 or 128 columns. MMAs and additions of one are ordered by waits as those of an array are.
template <u32 kWhich, u32 kColumns>
struct HiddenProduct;

// start_e4m3(a, b) starts the MMAs. add_to(d, low, high) adds the product to the sums d, times `low` in row g of a lane and
// `high` in row g + 8.
#define WS_DEFINE_HIDDEN_PRODUCTS(which, v)                                                                        \
  template <>                                                                                                      \
  struct HiddenProduct<which, 64> {                                                                                \
    WS_DEVICE static void start_e4m3(u64 a, u64 b) {                                                               \
      asm volatile(WS_WGMMA_PRODUCT("m64n64k32.f32.e4m3.e4m3", WS_HIDDEN_32(v), 0, 1)::"l"(a), "l"(b) : "memory");  \
    }                                                                                                              \
    WS_DEVICE static void add_to(float* d, float low, float high) {                                                \
      WS_HIDDEN_ADD_16(v "0_", 0);                                                                                 \
      WS_HIDDEN_ADD_16(v "1_", 16);                                                                                \
    }                                                                                                              \
  };                                                                                                               \
  template <>                                                                                                      \
  struct HiddenProduct<which, 128> {                                                                               \
    WS_DEVICE static void start_e4m3(u64 a, u64 b) {                                                               \
      asm volatile(WS_WGMMA_PRODUCT("m64n128k32.f32.e4m3.e4m3", WS_HIDDEN_64(v), 0, 1)::"l"(a), "l"(b) : "memory"); \
    }                                                                                                              \
    WS_DEVICE static void add_to(float* d, float low, float high) {                                                \
      WS_HIDDEN_ADD_16(v "0_", 0);                                                                                 \
      WS_HIDDEN_ADD_16(v "1_", 16);                                                                                \
      WS_HIDDEN_ADD_16(v "2_", 32);                                                                                \
      WS_HIDDEN_ADD_16(v "3_", 48);                                                                                \
    }                                                                                                              \
  };
WS_DEFINE_HIDDEN_PRODUCTS(0, "ws_x")
WS_DEFINE_HIDDEN_PRODUCTS(1, "ws_y")

}  // namespace ws
