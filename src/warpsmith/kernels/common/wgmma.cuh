// SPDX-License-Identifier: Apache-2.0
// Asynchronous MMAs of a warpgroup (9.0a): D[64, N] += A[64, K] · B[N, K]ᵀ with both operands in shared memory, rows of
// 128 bytes of K in the 128-byte swizzle, and fp32 sums in registers.
//
// Warp w of the warpgroup holds rows 16w to 16w + 15. Of a lane, g = lane / 4, t = lane % 4, d[4j] and d[4j + 1] are
// columns 8j + 2t and 8j + 2t + 1 of row g, d[4j + 2] and d[4j + 3] those of row g + 8.
#pragma once

#include "common/types.cuh"

namespace ws {

enum class WgmmaType { bf16, fp16, e4m3 };

// An operand: `address` is that of its first row, a multiple of 1024, plus 32 bytes for each step along K. Groups of 8
// rows are 1024 bytes apart.
WS_DEVICE u64 wgmma_operand(u32 address) {
  constexpr u64 swizzle_128 = 1ull << 62, group_stride = static_cast<u64>(1024 >> 4) << 32, leading = 1ull << 16;
  return swizzle_128 | group_stride | leading | (address & 0x3FFFFu) >> 4;
}

// Before the first MMA on registers that other instructions have written.
WS_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

WS_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kGroups committed groups are under way.
template <u32 kGroups>
WS_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

// Keeps what reads sums behind a wait, and what writes them before the fence: to the compiler, they change here.
template <u32 kCount>
WS_DEVICE void hold_sums(float (&sums)[kCount]) {
#pragma unroll
  for (u32 i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// Wgmma<N>::multiply_add<type>(d, a, b, keep) starts one MMA of 32 bytes of K; with keep = 0, D is the product alone.
// Wgmma<N>::multiply_add_bf16(d, a, b, keep) does with rows of A in registers: of a lane, a[0] is columns 2t and 2t + 1 of
// row g, a[1] of row g + 8, a[2] columns 2t + 8 and 2t + 9 of row g, a[3] of row g + 8.
// Wgmma<N>::product_e4m3(d, a, b) starts those of 128 bytes of K, D is their product.
template <u32 kN>
struct Wgmma;

#define WS_WGMMA_R0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define WS_WGMMA_R1 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WS_WGMMA_R2 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WS_WGMMA_R3 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WS_WGMMA_R4 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define WS_WGMMA_R5 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WS_WGMMA_R6 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define WS_WGMMA_R7 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WS_WGMMA_W4(i) "=f"(d[i]), "=f"(d[i + 1]), "=f"(d[i + 2]), "=f"(d[i + 3])
#define WS_WGMMA_W16(i) WS_WGMMA_W4(i), WS_WGMMA_W4(i + 4), WS_WGMMA_W4(i + 8), WS_WGMMA_W4(i + 12)
#define WS_WGMMA_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WS_WGMMA_F16(i) WS_WGMMA_F4(i), WS_WGMMA_F4(i + 4), WS_WGMMA_F4(i + 8), WS_WGMMA_F4(i + 12)
#define WS_WGMMA_ASM(shape, registers, tail, a, b, keep)                                                         \
  "{.reg .pred p;\n\tsetp.ne.b32 p, %" #keep ", 0;\n\twgmma.mma_async.sync.aligned." shape " {" registers "}, %" #a \
  ", %" #b ", p, 1, 1" tail ";}"
#define WS_WGMMA_ASM_REGISTERS(shape, registers, a0, b, keep, a1, a2, a3)                                       \
  "{.reg .pred p;\n\tsetp.ne.b32 p, %" #keep ", 0;\n\twgmma.mma_async.sync.aligned." shape " {" registers "}, {%" #a0 \
  ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", p, 1, 1, 0;}"
#define WS_WGMMA_STEP(shape, registers, a, b, keep) \
  "wgmma.mma_async.sync.aligned." shape " {" registers "}, " a ", " b ", " keep ", 1, 1;\n\t"
#define WS_WGMMA_PRODUCT(shape, registers, a, b)                                                              \
  "{.reg .b64 x1, y1, x2, y2, x3, y3;\n\tadd.s64 x1, %" #a ", 2;\n\tadd.s64 y1, %" #b ", 2;\n\tadd.s64 x2, %" #a \
  ", 4;\n\tadd.s64 y2, %" #b ", 4;\n\tadd.s64 x3, %" #a ", 6;\n\tadd.s64 y3, %" #b ", 6;\n\t"                \
  WS_WGMMA_STEP(shape, registers, "%" #a, "%" #b, "0") WS_WGMMA_STEP(shape, registers, "x1", "y1", "1")       \
  WS_WGMMA_STEP(shape, registers, "x2", "y2", "1") WS_WGMMA_STEP(shape, registers, "x3", "y3", "1") "}"
// n columns; the strings of the registers and the operands; the numbers of the operands a, b, keep and, of four registers of
// A in place of a, the others.
#define WS_DEFINE_WGMMA(n, registers, operands, results, a_, b_, keep_, a1_, a2_, a3_)                                    \
  template <>                                                                                                    \
  struct Wgmma<n> {                                                                                              \
    template <WgmmaType kType>                                                                                   \
    WS_DEVICE static void multiply_add(float (&d)[n / 2], u64 a, u64 b, u32 keep) {                              \
      if constexpr (kType == WgmmaType::bf16) {                                                                  \
        asm volatile(WS_WGMMA_ASM("m64n" #n "k16.f32.bf16.bf16", registers, ", 0, 0", a_, b_, keep_)             \
                     : operands                                                                                  \
                     : "l"(a), "l"(b), "r"(keep));                                                               \
      } else if constexpr (kType == WgmmaType::fp16) {                                                           \
        asm volatile(WS_WGMMA_ASM("m64n" #n "k16.f32.f16.f16", registers, ", 0, 0", a_, b_, keep_)               \
                     : operands                                                                                  \
                     : "l"(a), "l"(b), "r"(keep));                                                               \
      } else {                                                                                                   \
        asm volatile(WS_WGMMA_ASM("m64n" #n "k32.f32.e4m3.e4m3", registers, "", a_, b_, keep_)                   \
                     : operands                                                                                  \
                     : "l"(a), "l"(b), "r"(keep));                                                               \
      }                                                                                                          \
    }                                                                                                            \
    WS_DEVICE static void multiply_add_bf16(float (&d)[n / 2], const u32 (&a)[4], u64 b, u32 keep) {             \
      asm volatile(WS_WGMMA_ASM_REGISTERS("m64n" #n "k16.f32.bf16.bf16", registers, a_, b_, keep_, a1_, a2_, a3_) \
                   : operands                                                                                    \
                   : "r"(a[0]), "l"(b), "r"(keep), "r"(a[1]), "r"(a[2]), "r"(a[3]));                             \
    }                                                                                                            \
    WS_DEVICE static void product_e4m3(float (&d)[n / 2], u64 a, u64 b) {                                        \
      asm volatile(WS_WGMMA_PRODUCT("m64n" #n "k32.f32.e4m3.e4m3", registers, a_, b_) : results : "l"(a), "l"(b)); \
    }                                                                                                            \
  };
#define WS_WGMMA_S16 WS_WGMMA_R0
#define WS_WGMMA_O16 WS_WGMMA_F16(0)
#define WS_WGMMA_P16 WS_WGMMA_W16(0)
#define WS_WGMMA_S32 WS_WGMMA_S16 ", " WS_WGMMA_R1
#define WS_WGMMA_O32 WS_WGMMA_O16, WS_WGMMA_F16(16)
#define WS_WGMMA_P32 WS_WGMMA_P16, WS_WGMMA_W16(16)
#define WS_WGMMA_S48 WS_WGMMA_S32 ", " WS_WGMMA_R2
#define WS_WGMMA_O48 WS_WGMMA_O32, WS_WGMMA_F16(32)
#define WS_WGMMA_P48 WS_WGMMA_P32, WS_WGMMA_W16(32)
#define WS_WGMMA_S64 WS_WGMMA_S48 ", " WS_WGMMA_R3
#define WS_WGMMA_O64 WS_WGMMA_O48, WS_WGMMA_F16(48)
#define WS_WGMMA_P64 WS_WGMMA_P48, WS_WGMMA_W16(48)
#define WS_WGMMA_S80 WS_WGMMA_S64 ", " WS_WGMMA_R4
#define WS_WGMMA_O80 WS_WGMMA_O64, WS_WGMMA_F16(64)
#define WS_WGMMA_P80 WS_WGMMA_P64, WS_WGMMA_W16(64)
#define WS_WGMMA_S96 WS_WGMMA_S80 ", " WS_WGMMA_R5
#define WS_WGMMA_O96 WS_WGMMA_O80, WS_WGMMA_F16(80)
#define WS_WGMMA_P96 WS_WGMMA_P80, WS_WGMMA_W16(80)
#define WS_WGMMA_S112 WS_WGMMA_S96 ", " WS_WGMMA_R6
#define WS_WGMMA_O112 WS_WGMMA_O96, WS_WGMMA_F16(96)
#define WS_WGMMA_P112 WS_WGMMA_P96, WS_WGMMA_W16(96)
#define WS_WGMMA_S128 WS_WGMMA_S112 ", " WS_WGMMA_R7
#define WS_WGMMA_O128 WS_WGMMA_O112, WS_WGMMA_F16(112)
#define WS_WGMMA_P128 WS_WGMMA_P112, WS_WGMMA_W16(112)

#define WS_WGMMA_LIST(...) __VA_ARGS__
WS_DEFINE_WGMMA(8, "%0, %1, %2, %3", WS_WGMMA_LIST(WS_WGMMA_F4(0)), WS_WGMMA_LIST(WS_WGMMA_W4(0)), 4, 5, 6, 7, 8, 9)
WS_DEFINE_WGMMA(16, "%0, %1, %2, %3, %4, %5, %6, %7", WS_WGMMA_LIST(WS_WGMMA_F4(0), WS_WGMMA_F4(4)), WS_WGMMA_LIST(WS_WGMMA_W4(0), WS_WGMMA_W4(4)), 8, 9, 10, 11, 12, 13)
WS_DEFINE_WGMMA(32, WS_WGMMA_S16, WS_WGMMA_LIST(WS_WGMMA_O16), WS_WGMMA_LIST(WS_WGMMA_P16), 16, 17, 18, 19, 20, 21)
WS_DEFINE_WGMMA(64, WS_WGMMA_S32, WS_WGMMA_LIST(WS_WGMMA_O32), WS_WGMMA_LIST(WS_WGMMA_P32), 32, 33, 34, 35, 36, 37)
WS_DEFINE_WGMMA(96, WS_WGMMA_S48, WS_WGMMA_LIST(WS_WGMMA_O48), WS_WGMMA_LIST(WS_WGMMA_P48), 48, 49, 50, 51, 52, 53)
WS_DEFINE_WGMMA(128, WS_WGMMA_S64, WS_WGMMA_LIST(WS_WGMMA_O64), WS_WGMMA_LIST(WS_WGMMA_P64), 64, 65, 66, 67, 68, 69)
WS_DEFINE_WGMMA(136, WS_WGMMA_S64 ", %64, %65, %66, %67", WS_WGMMA_LIST(WS_WGMMA_O64, WS_WGMMA_F4(64)), WS_WGMMA_LIST(WS_WGMMA_P64, WS_WGMMA_W4(64)), 68, 69, 70, 71, 72, 73)
WS_DEFINE_WGMMA(160, WS_WGMMA_S80, WS_WGMMA_LIST(WS_WGMMA_O80), WS_WGMMA_LIST(WS_WGMMA_P80), 80, 81, 82, 83, 84, 85)
WS_DEFINE_WGMMA(192, WS_WGMMA_S96, WS_WGMMA_LIST(WS_WGMMA_O96), WS_WGMMA_LIST(WS_WGMMA_P96), 96, 97, 98, 99, 100, 101)
WS_DEFINE_WGMMA(224, WS_WGMMA_S112, WS_WGMMA_LIST(WS_WGMMA_O112), WS_WGMMA_LIST(WS_WGMMA_P112), 112, 113, 114, 115, 116, 117)
WS_DEFINE_WGMMA(256, WS_WGMMA_S128, WS_WGMMA_LIST(WS_WGMMA_O128), WS_WGMMA_LIST(WS_WGMMA_P128), 128, 129, 130, 131, 132, 133)

}  // namespace ws
