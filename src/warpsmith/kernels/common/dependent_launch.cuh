// SPDX-License-Identifier: Apache-2.0
// Programmatic dependent launch. A kernel that waits sets WS_FLAG_WAITS in its record; without the launch attribute
// both are no-ops. Before 9.0 there are none of these instructions: a kernel for all targets sets kWaitsWherePossible.
#pragma once

#include "common/types.cuh"

namespace ws {

enum : bool { kDependentLaunch = __CUDA_ARCH__ >= 900 };
enum : u32 { kWaitsWherePossible = kDependentLaunch ? 1u : 0u };  // WS_FLAG_WAITS, or nothing

// Returns when the grids before this one have ended and their writes are visible.
WS_DEVICE void wait_for_predecessor() {
  if constexpr (kDependentLaunch) asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Lets the next grid start its prologue once every block has said so or ended.
WS_DEVICE void release_successor() {
  if constexpr (kDependentLaunch) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace ws
