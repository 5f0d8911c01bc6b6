// SPDX-License-Identifier: Apache-2.0
// What parts of a block do among themselves. Registers move between warpgroups: 128 threads starting at a multiple of
// 128, all of which must execute these.
#pragma once

#include "common/types.cuh"

namespace ws {

template <u32 kRegisters>
WS_DEVICE void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Waits until other warpgroups of the block have given up enough.
template <u32 kRegisters>
WS_DEVICE void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Barrier number kBarrier (1..15; 0 is __syncthreads) of kThreads threads, whole warps.
template <u32 kBarrier, u32 kThreads>
WS_DEVICE void sync_warps() {
  asm volatile("barrier.sync.aligned %0, %1;" ::"n"(kBarrier), "n"(kThreads) : "memory");
}

template <u32 kThreads>
WS_DEVICE void sync_warps(u32 barrier) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

}  // namespace ws
