// SPDX-License-Identifier: Apache-2.0
// Programmatic dependent launch. A kernel that waits sets WS_FLAG_WAITS in its record; without the launch attribute
// both are no-ops.
#pragma once

#include "common/types.cuh"

namespace ws {

// Returns when the grids before this one have ended and their writes are visible.
WS_DEVICE void wait_for_predecessor() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets the next grid start its prologue once every block has said so or ended.
WS_DEVICE void release_successor() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

}  // namespace ws
