// SPDX-License-Identifier: Apache-2.0
// Bulk copies from global to shared memory that complete on an mbarrier.
#pragma once

#include "common/types.cuh"

namespace ws {

// What cuTensorMapEncodeTiled writes. Kernels take it as a __grid_constant__ parameter.
struct alignas(64) TensorMap {
  u64 opaque[16];
};

WS_DEVICE void prefetch_tensor_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Copies the box at (x, y, z), x innermost; what lies outside the tensor arrives as zero and counts as bytes too.
WS_DEVICE void load_tensor(u32 destination, const TensorMap& map, int x, int y, int z, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];"
      ::"r"(destination), "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}

// The same of five dimensions; the middle ones start at 0.
WS_DEVICE void load_tensor_interleaved(u32 destination, const TensorMap& map, int x, int y, int z, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %6, %6, %3, %4}], "
      "[%5];" ::"r"(destination),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier), "r"(0)
      : "memory");
}

// Copies contiguous bytes; both addresses and the size are multiples of 16.
WS_DEVICE void load_bulk(u32 destination, const void* source, u32 bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   destination),
               "l"(source), "r"(bytes), "r"(barrier)
               : "memory");
}

// Writes the box at (x, y, z) from shared memory, but for what lies outside the tensor; a part of the thread's group of
// such stores. What other threads wrote to shared memory has to be visible: fence_async_shared, then a barrier.
WS_DEVICE void store_tensor(const TensorMap& map, int x, int y, int z, u32 source) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(&map), "r"(x),
               "r"(y), "r"(z), "r"(source)
               : "memory");
}

// The same without a branch, or nothing where `wanted` is false.
WS_DEVICE void store_tensor_if(bool wanted, const TensorMap& map, int x, int y, int z, u32 source) {
  asm volatile(
      "{.reg .pred p;\n\tsetp.ne.b32 p, %5, 0;\n\t"
      "@p cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];}" ::"l"(&map),
      "r"(x), "r"(y), "r"(z), "r"(source), "r"(static_cast<u32>(wanted))
      : "memory");
}

WS_DEVICE void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until all but the last kGroups groups of this thread's stores have read their source.
template <u32 kGroups>
WS_DEVICE void wait_for_stores_to_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kGroups) : "memory");
}

// Makes this thread's writes to shared memory visible to the copy engine.
WS_DEVICE void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Byte offset of a 16-byte chunk in a tile that was copied with the tensor map's swizzle as wide as its rows
// (32, 64 or 128 bytes). The tile must be aligned to 1024 bytes. Eight consecutive rows of one chunk lie in
// different banks.
template <u32 kRowBytes>
WS_DEVICE u32 swizzled_offset(u32 row, u32 chunk) {
  static_assert(kRowBytes == 32 || kRowBytes == 64 || kRowBytes == 128, "no swizzle is that wide");
  return row * kRowBytes + ((chunk ^ ((row * kRowBytes >> 7) & (kRowBytes / 16 - 1))) << 4);
}

}  // namespace ws
