// SPDX-License-Identifier: Apache-2.0
// Stores to shared memory by 32-bit shared address.
#pragma once

#include "common/types.cuh"

namespace ws {

WS_DEVICE void store_shared(u32 address, u32 word) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}

// Two consecutive words; the address is a multiple of 8.
WS_DEVICE void store_shared(u32 address, const u32 (&words)[2]) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(words[0]), "r"(words[1]) : "memory");
}

// Four consecutive words; the address is a multiple of 16.
WS_DEVICE void store_shared(u32 address, const u32 (&words)[4]) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(words[0]), "r"(words[1]), "r"(words[2]),
               "r"(words[3])
               : "memory");
}

}  // namespace ws
