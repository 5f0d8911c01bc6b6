// SPDX-License-Identifier: Apache-2.0
// Asynchronous copies from global to shared memory, in groups that a thread waits for in order. From 8.0 on.
#pragma once

#include "common/types.cuh"

namespace ws {

// Copies `bytes` (0 or 16) around L1 and fills the rest of the 16 with zeros; with 0 nothing is read.
WS_DEVICE void copy_async_16(u32 destination, const void* source, u32 bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(destination), "l"(source), "r"(bytes)
               : "memory");
}

// Copies `bytes` (0 to 4) and fills the rest of the 4 with zeros.
WS_DEVICE void copy_async_4(u32 destination, const void* source, u32 bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(destination), "l"(source), "r"(bytes) : "memory");
}

// Ends a group, which may be empty.
WS_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Returns when at most kPending of this thread's groups are not complete.
template <u32 kPending>
WS_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// One arrival at a barrier, once this thread's copies so far are complete. From 9.0 on.
WS_DEVICE void arrive_after_copies(u32 barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

}  // namespace ws
