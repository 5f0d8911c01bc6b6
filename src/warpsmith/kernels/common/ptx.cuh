// SPDX-License-Identifier: Apache-2.0
// Instructions that C++ cannot name, each wrapped once. Some do not exist on every architecture: convert.cuh chooses.
#pragma once

#include "common/types.cuh"

namespace ws {

// Streaming 16-byte load through the read-only path; the line is used once, so it does not enter L1.
WS_DEVICE void load_streaming(const void* source, u32& a, u32& b, u32& c, u32& d) {
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "l"(source));
}

WS_DEVICE void store_vector(void* target, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(target), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

// Stores that the L2 cache need not keep: results that the kernel does not read again.
WS_DEVICE void store_streaming(u32* target, u32 value) {
  asm volatile("st.global.cs.u32 [%0], %1;" ::"l"(target), "r"(value) : "memory");
}

WS_DEVICE void store_streaming(u64* target, u64 value) {
  asm volatile("st.global.cs.u64 [%0], %1;" ::"l"(target), "l"(value) : "memory");
}

// Picks four bytes out of {b, a}; selector nibble i names result byte i (0-3 in a, 4-7 in b).
WS_DEVICE u32 permute(u32 a, u32 b, u32 selector) {
  u32 result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
  return result;
}

// Both halves of a word.
WS_DEVICE u32 join(u16 low, u16 high) {
  u32 result;
  asm("mov.b32 %0, {%1, %2};" : "=r"(result) : "h"(low), "h"(high));
  return result;
}

// Hides how a pointer to global memory came about. Without it the compiler computes long addresses at each use again.
template <class T>
WS_DEVICE T* opaque_global(T* pointer) {
  asm volatile("" : "+l"(pointer));
  __builtin_assume(__isGlobal(pointer));
  return pointer;
}

// Hides how a number came about, likewise.
WS_DEVICE u32 opaque(u32 value) {
  asm volatile("" : "+r"(value));
  return value;
}

WS_DEVICE i64 opaque(i64 value) {
  asm volatile("" : "+l"(value));
  return value;
}

// 1 / value to within one ulp; zero and subnormal values give infinity.
WS_DEVICE float reciprocal_approx(float value) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

// 2^value within 2 ulp; subnormals are 0.
WS_DEVICE float exp2_approx(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

WS_DEVICE float max_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

// The larger magnitude; its sign is the product's. From 8.6 on, as the next two.
WS_DEVICE float max_xorsign(float a, float b) {
  float result;
  asm("max.xorsign.abs.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

WS_DEVICE u32 max_nan_xorsign_bf16x2(u32 a, u32 b) {
  u32 result;
  asm("max.NaN.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

WS_DEVICE u32 max_nan_xorsign_f16x2(u32 a, u32 b) {
  u32 result;
  asm("max.NaN.xorsign.abs.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

WS_DEVICE u32 max_nan_bf16x2(u32 a, u32 b) {
  u32 result;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

WS_DEVICE u32 max_nan_f16x2(u32 a, u32 b) {
  u32 result;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

// ---- conversions; of a pair, `low` is in the lower half -----------------------------------------------------------

WS_DEVICE void unpack_f16x2(u32 pair, float& low, float& high) {
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
      : "=f"(low), "=f"(high)
      : "r"(pair));
}

WS_DEVICE u32 pack_bf16x2(float low, float high) {
  u32 result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

WS_DEVICE u32 pack_f16x2(float low, float high) {
  u32 result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

// Two values to e4m3, saturating. From 8.9 on.
WS_DEVICE u16 convert_e4m3x2(float low, float high) {
  u16 result;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(result) : "f"(high), "f"(low));
  return result;
}

// Four e4m3 codes to two pairs of fp16, exactly. From 8.9 on.
WS_DEVICE void convert_e4m3x4_to_f16(u32 codes, u32& low, u32& high) {
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h;}"
      : "=r"(low), "=r"(high)
      : "r"(codes));
}

// Eight values to e2m1, saturating, y[0] in the lowest nibble. Architecture-specific and family targets from 10.0 on.
WS_DEVICE u32 convert_e2m1x8(const float (&y)[8]) {
  u32 result;
  asm("{.reg .b8 p, q, r, s;\n\t"
      "cvt.rn.satfinite.e2m1x2.f32 p, %2, %1;\n\t"
      "cvt.rn.satfinite.e2m1x2.f32 q, %4, %3;\n\t"
      "cvt.rn.satfinite.e2m1x2.f32 r, %6, %5;\n\t"
      "cvt.rn.satfinite.e2m1x2.f32 s, %8, %7;\n\t"
      "mov.b32 %0, {p, q, r, s};}"
      : "=r"(result)
      : "f"(y[0]), "f"(y[1]), "f"(y[2]), "f"(y[3]), "f"(y[4]), "f"(y[5]), "f"(y[6]), "f"(y[7]));
  return result;
}

}  // namespace ws
