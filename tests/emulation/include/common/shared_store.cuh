// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/types.cuh"
namespace ws {
inline void store_shared(u32 a, u32 w) { memcpy(emu::at(a, 4, 4), &w, 4); }
inline void store_shared(u32 a, const u32 (&w)[2]) { memcpy(emu::at(a, 8, 8), w, 8); }
inline void store_shared(u32 a, const u32 (&w)[4]) { memcpy(emu::at(a, 16, 16), w, 16); }
}
