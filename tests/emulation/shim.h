// SPDX-License-Identifier: Apache-2.0
// Host stand-ins for what the device sources use: one block at a time, every CUDA thread a fiber.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cmath>
#include <algorithm>
#include <vector>
#define __CUDA_ARCH__ 900
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#define __device__
#define __global__
#define __constant__
#define __shared__
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __forceinline__ inline
struct Dim { unsigned x, y = 0, z = 0; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct uint2 { unsigned x, y; };
using std::min; using std::max;
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return expf(a); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

namespace emu {
struct Warp { unsigned arrived = 0; unsigned generation = 0; uint32_t slot[2][32][12]; };
extern Dim tid, bid, gdim;
extern unsigned threads;
extern uint8_t* shared_base;
void yield();
[[noreturn]] void fail(const char* what);
extern Warp warps[64];
struct Bar { unsigned arrived = 0, generation = 0; };
extern Bar bars[16];
inline void barrier(Bar& b, unsigned count) {
  unsigned g = b.generation;
  if (++b.arrived == count) { b.arrived = 0; ++b.generation; } else while (b.generation == g) yield();
}
// All lanes deposit words; returns the table, valid until the lane's next-but-one exchange.
inline uint32_t (*exchange(const uint32_t* words, int n))[12] {
  Warp& w = warps[tid.x / 32];
  unsigned g = w.generation;
  auto* t = w.slot[g & 1];
  memcpy(t[tid.x % 32], words, n * 4);
  if (++w.arrived == 32) { w.arrived = 0; ++w.generation; } else while (w.generation == g) yield();
  return t;
}
inline uint8_t* at(uint32_t address, unsigned bytes, unsigned align) {
  if (address % align) fail("misaligned shared access");
  if (address < 1024 || address + bytes > 1024 + 101376) fail("shared access out of range");
  return shared_base + address;
}
}
#define threadIdx emu::tid
#define blockIdx emu::bid
#define gridDim emu::gdim
inline void __syncwarp() { uint32_t z = 0; emu::exchange(&z, 1); }
inline void __syncthreads() { emu::barrier(emu::bars[0], emu::threads); }
inline void __threadfence() {}
[[noreturn]] inline void __trap() { emu::fail("trap"); }
template <class T> inline T __shfl_sync(unsigned, T v, int lane) { uint32_t w; memcpy(&w, &v, 4); w = emu::exchange(&w, 1)[lane & 31][0]; memcpy(&v, &w, 4); return v; }
template <class T> inline T __shfl_up_sync(unsigned, T v, int d) { uint32_t w; memcpy(&w, &v, 4); int l = emu::tid.x % 32; w = emu::exchange(&w, 1)[l >= d ? l - d : l][0]; memcpy(&v, &w, 4); return v; }
inline unsigned __ballot_sync(unsigned, bool p) { uint32_t w = p; auto t = emu::exchange(&w, 1); unsigned r = 0; for (int i = 0; i < 32; ++i) r |= t[i][0] << i; return r; }
template <class T> inline T __shfl_xor_sync(unsigned, T v, int d) { return __shfl_sync(0, v, emu::tid.x % 32 ^ d); }
inline bool __any_sync(unsigned, bool p) { return __ballot_sync(0, p) != 0; }
inline unsigned atomicAdd(unsigned* p, unsigned v) { unsigned o = *p; *p += v; return o; }
template <class T> inline T __ldcg(const T* p) { return *p; }
