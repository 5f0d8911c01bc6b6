// SPDX-License-Identifier: Apache-2.0
// Stores of 8 x 8 matrices of 16-bit elements to shared memory by 32-bit shared address (from 9.0 on): lanes 8i to
// 8i + 7 give the addresses of the 16-byte rows of matrix i.
#pragma once

#include "common/types.cuh"

namespace ws {

// Register i of lane l holds elements 2·(l % 4) and the next of row l / 4 of matrix i.
WS_DEVICE void stmatrix_x4(u32 address, u32 m0, u32 m1, u32 m2, u32 m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(m0), "r"(m1),
               "r"(m2), "r"(m3)
               : "memory");
}

// Transposed: element e of register i of lane l goes to row 2·(l % 4) + e, column l / 4.
WS_DEVICE void stmatrix_x4_transposed(u32 address, u32 m0, u32 m1, u32 m2, u32 m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(m0),
               "r"(m1), "r"(m2), "r"(m3)
               : "memory");
}

WS_DEVICE void stmatrix_x2_transposed(u32 address, u32 m0, u32 m1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(m0), "r"(m1)
               : "memory");
}

WS_DEVICE void stmatrix_x1_transposed(u32 address, u32 m0) {
  asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address), "r"(m0) : "memory");
}

}  // namespace ws
