// SPDX-License-Identifier: Apache-2.0
// Loads from shared memory by 32-bit shared address.
#pragma once

#include "common/types.cuh"

namespace ws {

// Four 8 x 16-byte matrices: lanes 8i to 8i+7 give the rows of matrix i; register i of lane l then holds bytes
// 4·(l % 4) to 4·(l % 4) + 3 of its row l / 4.
WS_DEVICE void ldmatrix_x4(u32 address, u32& m0, u32& m1, u32& m2, u32& m3) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m0), "=r"(m1), "=r"(m2), "=r"(m3)
               : "r"(address)
               : "memory");
}

// Two of them, whose rows lanes 0 to 7 and 8 to 15 give.
WS_DEVICE void ldmatrix_x2(u32 address, u32& m0, u32& m1) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(m0), "=r"(m1)
               : "r"(address)
               : "memory");
}

// Consecutive words; the address is a multiple of their size.
WS_DEVICE void load_shared(u32 address, u32 (&words)[1]) {
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(words[0]) : "r"(address) : "memory");
}

WS_DEVICE void load_shared(u32 address, u32 (&words)[2]) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "r"(address) : "memory");
}

WS_DEVICE void load_shared(u32 address, u32 (&words)[4]) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

WS_DEVICE u32 load_shared_u32(u32 address) {
  u32 value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

WS_DEVICE u32 load_shared_u8(u32 address) {
  u32 value;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

WS_DEVICE u32 load_shared_u16(u32 address) {
  u16 value;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(address) : "memory");
  return value;
}

}  // namespace ws
