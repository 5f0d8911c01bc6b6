// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/types.cuh"
namespace ws {
template <u32 n> inline void shrink_registers() {}
template <u32 n> inline void grow_registers() {}
template <u32 b, u32 n> inline void sync_warps() { emu::barrier(emu::bars[b], n); }
template <u32 n> inline void sync_warps(u32 b) { emu::barrier(emu::bars[b], n); }
}
