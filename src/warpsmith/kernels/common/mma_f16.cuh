// SPDX-License-Identifier: Apache-2.0
// D = A·B + D for fp16 operands, m16n8k16. With g = lane / 4 and t = lane % 4: a[0], a[1] hold columns 2t, 2t+1 of
// rows g and g+8, a[2], a[3] columns 2t+8, 2t+9; b[0], b[1] rows 2t, 2t+1 and 2t+8, 2t+9 of column g; d[0], d[1]
// columns 2t, 2t+1 of row g, d[2], d[3] of row g+8.
#pragma once

#include "common/types.cuh"

namespace ws {

WS_DEVICE void mma_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace ws
