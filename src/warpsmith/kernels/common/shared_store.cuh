// SPDX-License-Identifier: Apache-2.0
// Stores to shared memory by 32-bit shared address.
#pragma once

#include "common/types.cuh"

namespace ws {

WS_DEVICE void store_shared(u32 address, u32 word) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}

}  // namespace ws
