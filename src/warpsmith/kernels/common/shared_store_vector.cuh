// SPDX-License-Identifier: Apache-2.0
// Stores of several words to shared memory by 32-bit shared address, a multiple of their size.
#pragma once

#include "common/types.cuh"

namespace ws {

WS_DEVICE void store_shared(u32 address, const u32 (&words)[2]) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(words[0]), "r"(words[1]) : "memory");
}

WS_DEVICE void store_shared(u32 address, const u32 (&words)[4]) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(words[0]), "r"(words[1]), "r"(words[2]),
               "r"(words[3])
               : "memory");
}

}  // namespace ws
