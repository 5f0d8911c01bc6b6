// SPDX-License-Identifier: Apache-2.0
// D = (A·scale A)(B·scale B) + D, block-scaled, fp32 accumulators: the instruction of 12.x, or the same product in
// software (mma_blockscaled_software.cuh). Nothing else in the project knows which of the two it is.
//
// With g = lane / 4 and t = lane % 4, elements packed low to high:
//
//   A   a[0] row g, a[1] row g+8 of the low half of K; a[2], a[3] the same rows of the high half
//   B   b[0] low half, b[1] high half of K; column g
//       a register starts at element 8t (m16n8k64, 4 bits each) or 4t (m16n8k32, 8 bits each) of its half
//   D   d[0], d[1] row g, columns 2t, 2t+1; d[2], d[3] row g+8
//
// Scales come from one word a lane. A's row m reads lane 4·(m % 8) + 2·thread_a + m / 8 (thread_a 0, 1), B's column n
// lane 4n + thread_b (thread_b 0..3), from byte byte_a or byte_b on: 4 bytes for nvfp4 (16 of K each), 2 for mxfp4
// (32 each), 1 for the 8-bit kinds. So when lane l holds the scales of row 8·(l % 4) + l / 4 of 32 rows, thread_a
// selects one of two m16 tiles and thread_b one of four n8 tiles.
#pragma once

#include "common/types.cuh"

#if defined(__CUDA_ARCH_FAMILY_SPECIFIC__) && __CUDA_ARCH_FAMILY_SPECIFIC__ / 100 == 12
#define WS_SOFTWARE_BLOCK_SCALED 0
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WS_SOFTWARE_BLOCK_SCALED 1
#include "common/mma_blockscaled_software.cuh"
#else
#error "block-scaled MMA needs sm_120a, sm_120f, sm_121a or sm_121f, or sm_90a for the software one"
#endif

namespace ws {

// Operand types as A_B. An e2m1 operand of an 8-bit kind has one element a byte, as 00ABCD00.
enum class MmaKind { nvfp4, mxfp4, e4m3_e4m3, e4m3_e2m1, e2m1_e4m3 };

WS_DEVICE constexpr bool has_packed_nibbles(MmaKind kind) { return kind == MmaKind::nvfp4 || kind == MmaKind::mxfp4; }

// Elements of K that one MMA consumes, and scales a row of A or column of B has for them.
WS_DEVICE constexpr u32 mma_k(MmaKind kind) { return has_packed_nibbles(kind) ? 64 : 32; }
WS_DEVICE constexpr u32 mma_scales(MmaKind kind) { return kind == MmaKind::nvfp4 ? 4 : kind == MmaKind::mxfp4 ? 2 : 1; }

#if !WS_SOFTWARE_BLOCK_SCALED

#define WS_BLOCK_SCALED_MMA(form, types)                                                                             \
  asm("mma.sync.aligned." form ".row.col.f32." types                                                                 \
      " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, %10, {%12, %13}, %11, {%14, %15};"           \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                               \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(scale_a), "r"(scale_b),               \
        "h"(byte_a), "h"(thread_a), "h"(byte_b), "h"(thread_b))

#define WS_FORM_NVFP4 "kind::mxf4nvf4.block_scale.scale_vec::4X.m16n8k64"
#define WS_FORM_MXFP4 "kind::mxf4nvf4.block_scale.scale_vec::2X.m16n8k64"
#define WS_FORM_8BIT "kind::mxf8f6f4.block_scale.scale_vec::1X.m16n8k32"

#endif

// The selectors must be the same in all lanes; where they are constants they cost nothing.
template <MmaKind kKind>
WS_DEVICE void block_scaled_mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], u32 scale_a, u32 scale_b,
                                u16 byte_a, u16 thread_a, u16 byte_b, u16 thread_b) {
#if WS_SOFTWARE_BLOCK_SCALED
  if constexpr (kKind == MmaKind::nvfp4) {
    software_mma_ue4m3(d, a, b, scale_a, scale_b, thread_a, thread_b);
  } else if constexpr (kKind == MmaKind::mxfp4) {
    software_mma_mxfp4(d, a, b, scale_a, scale_b, byte_a, thread_a, byte_b, thread_b);
  } else {
    constexpr bool nibble_a = kKind == MmaKind::e2m1_e4m3, nibble_b = kKind == MmaKind::e4m3_e2m1;
    software_mma_8bit<nibble_a, nibble_b>(d, a, b, scale_a, scale_b, byte_a, thread_a, byte_b, thread_b);
  }
#else
  if constexpr (kKind == MmaKind::nvfp4) {
    WS_BLOCK_SCALED_MMA(WS_FORM_NVFP4, "e2m1.e2m1.f32.ue4m3");
  } else if constexpr (kKind == MmaKind::mxfp4) {
    WS_BLOCK_SCALED_MMA(WS_FORM_MXFP4, "e2m1.e2m1.f32.ue8m0");
  } else if constexpr (kKind == MmaKind::e4m3_e4m3) {
    WS_BLOCK_SCALED_MMA(WS_FORM_8BIT, "e4m3.e4m3.f32.ue8m0");
  } else if constexpr (kKind == MmaKind::e4m3_e2m1) {
    WS_BLOCK_SCALED_MMA(WS_FORM_8BIT, "e4m3.e2m1.f32.ue8m0");
  } else {
    WS_BLOCK_SCALED_MMA(WS_FORM_8BIT, "e2m1.e4m3.f32.ue8m0");
  }
#endif
}

}  // namespace ws
