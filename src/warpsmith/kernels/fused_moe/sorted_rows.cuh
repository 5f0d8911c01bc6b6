// SPDX-License-Identifier: Apache-2.0
// Which expert a sorted row belongs to, and where the grouped layout 128x4 has its scales.
#pragma once

#include "common/types.cuh"

namespace ws {

constexpr u32 kGroupRows = 128;  // each group's scales start at a multiple of this

// The last group that starts at or before a row; a whole warp searches, 32 candidates at a time.
WS_DEVICE u32 group_of_row(const int* offsets, u32 groups, u32 row) {
  u32 low = 0, count = groups;
  while (count > 1) {
    const u32 step = (count + 31) / 32, candidate = threadIdx.x % 32 * step;
    const bool starts = candidate == 0 || (candidate < count && static_cast<u32>(offsets[low + candidate]) <= row);
    const u32 last = 31 - __clz(__ballot_sync(kAllLanes, starts));
    low += last * step;
    count = min(step, count - last * step);
  }
  return low;
}

// Where the scales of a row of a group start, in words of four blocks' scales. Those of the next four are 128 words on.
WS_DEVICE u32 scale_word(const int* offsets, u32 group, u32 row, u32 pitch) {
  const u32 first = static_cast<u32>(offsets[group]);
  const u32 slab = (first + (kGroupRows - 1) * group) / kGroupRows + (row - first) / kGroupRows;
  const u32 in_slab = (row - first) % kGroupRows;
  return slab * pitch * (kGroupRows / 4) + in_slab % 32 * 4 + in_slab / 32;
}

}  // namespace ws
