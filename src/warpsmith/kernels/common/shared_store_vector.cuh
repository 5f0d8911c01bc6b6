// SPDX-License-Identifier: Apache-2.0
// Stores of two words to shared memory by 32-bit shared address, a multiple of 8; shared_store.cuh has one and four.
#pragma once

#include "common/types.cuh"

namespace ws {

WS_DEVICE void store_shared(u32 address, const u32 (&words)[2]) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(words[0]), "r"(words[1]) : "memory");
}

}  // namespace ws
