// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/mbarrier.cuh"
namespace ws {
struct alignas(64) TensorMap { u64 opaque[16]; };  // base, dims 3, strides 2, box 2, swizzle
inline void prefetch_tensor_map(const TensorMap&) {}
inline void load_tensor(u32 to, const TensorMap& m, int x, int y, int z, u32 barrier) {
  const u64* o = m.opaque; const u8* base = reinterpret_cast<const u8*>(o[0]); const u32 bx = o[6], by = o[7];
  if (to % std::min<u64>(1024, bx * 8)) emu::fail("tensor destination");
  if (base == nullptr) emu::fail("tensor map");
  for (u32 r = 0; r < by; ++r) for (u32 c = 0; c < bx; c += 16) {
    u8 v[16] = {};
    for (u32 i = 0; i < 16; ++i) if (x + c + i < o[1] && u64(y + r) < o[2] && u64(z) < o[3]) v[i] = base[z * o[5] + (y + r) * o[4] + x + c + i];
    u32 off = to + r * bx + c; off ^= (off >> 7 & (bx / 16 - 1)) << 4;
    memcpy(emu::at(off, 16, 16), v, 16);
  }
  complete_tx(barrier, bx * by);
}
void check_global(const void* p, u32 bytes);
inline void load_bulk(u32 to, const void* from, u32 bytes, u32 barrier) {
  if (reinterpret_cast<u64>(from) % 16 || bytes % 16 || !bytes) emu::fail("bulk copy alignment");
  check_global(from, bytes);
  memcpy(emu::at(to, bytes, 16), from, bytes); complete_tx(barrier, bytes);
}
