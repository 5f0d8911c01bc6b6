// SPDX-License-Identifier: Apache-2.0
// Which rows and columns a thread works on.
//
// A CTA's tile is 8 · 2^row_shift columns wide. With one pass, its 256 >> row_shift rows are consecutive. With four,
// pass p takes the same few rows of each quarter of a 128-row slab:
//
//        slab   row 0 ┌────────────┐
//                     │ sub-tile i │ pass 0      so that the four bytes which the 128x4 layout keeps side by side,
//                  32 ├────────────┤             rows r, r + 32, r + 64, r + 96, belong to one thread, and a whole
//                     │ sub-tile i │ pass 1      512-byte scale atom to one CTA when row_shift is 3.
//                  64 ├────────────┤
//                     │     …      │
#pragma once

#include "fp4_quantization/format.cuh"

namespace ws {

template <u32 kPasses>
struct TilePosition {
  enum : u32 { row_step = kSlab / 4 };  // between the passes of a thread
  u32 slab;
  u32 row;  // of pass 0 in the slab

  WS_DEVICE TilePosition(u32 tile, u32 row_shift) {
    static_assert(kPasses == 1 || kPasses == 4, "passes are the quarters of a slab");
    constexpr u32 rows_log2 = kPasses == 4 ? 5 : 7;  // rows that the sub-tiles of a slab share out
    const u32 sub_shift = rows_log2 + row_shift - 8;
    const u32 sub_tile = tile & ((1u << sub_shift) - 1u);
    slab = tile >> sub_shift;
    row = (sub_tile << (8 - row_shift)) + (threadIdx.x >> row_shift);
  }
};

// A thread's column / 8 in a column tile.
WS_DEVICE u32 unit_of(u32 column_tile, u32 row_shift) {
  return (column_tile << row_shift) + (threadIdx.x & ((1u << row_shift) - 1u));
}

// The rows behind a slab: row `first + i` (modulo 2^32) of the tensor is row i of the slab where low ≤ i < high.
struct SlabRows {
  u32 first, low, high;

  WS_DEVICE bool contains(u32 row) const { return row - low < high - low; }
};

WS_DEVICE u32 clamp_to_slab(i64 row) { return static_cast<u32>(min(max(row, 0ll), static_cast<i64>(kSlab))); }

// Group offsets on the device. Values outside [0, m] are clamped, so that bad ones cannot cause an access outside.
struct Offsets {
  const void* values;
  u32 m;
  bool wide;

  WS_DEVICE u32 operator[](u32 index) const {
    const i64 value = wide ? static_cast<const i64*>(values)[index] : static_cast<const int*>(values)[index];
    return static_cast<u32>(min(max(value, 0ll), static_cast<i64>(m)));
  }

  // The slab of padded rows in which a group's scales start.
  WS_DEVICE u32 first_slab(u32 group) const { return ((*this)[group] + (kSlab - 1) * group) / kSlab; }
};

// The last group that starts at or before the slab; a whole warp searches, 32 candidates at a time.
WS_DEVICE u32 group_of_slab(const Offsets& offsets, u32 groups, u32 slab) {
  const u32 lane = threadIdx.x % 32;
  u32 low = 0, count = groups;
  while (count > 1) {
    const u32 step = (count + 31) / 32;
    const u32 candidate = lane * step;
    const bool starts = lane == 0 || (candidate < count && offsets.first_slab(low + candidate) <= slab);
    const u32 last = 31 - __clz(__ballot_sync(kAllLanes, starts));
    low += last * step;
    count = min(step, count - last * step);
  }
  return low;
}

// Finds the rows of a slab, and its group where the grid runs over the groups' padded rows.
WS_DEVICE SlabRows locate_slab(u32 slab, u32 m, const void* offset_values, u32 groups, u32 flags, u32& group) {
  group = 0;
  const u32 first = slab * kSlab;
  if (offset_values == nullptr) return {first, 0u, min(m - first, kSlab)};
  const Offsets offsets{offset_values, m, (flags & kOffsets64) != 0};
  if (!(flags & kPaddedGroups)) {
    const u32 low = clamp_to_slab(static_cast<i64>(offsets[0]) - first);
    return {first, low, max(low, clamp_to_slab(static_cast<i64>(offsets[groups]) - first))};
  }
  group = group_of_slab(offsets, groups, slab);
  const u32 begin = offsets[group];
  const i64 inside = (static_cast<i64>(slab) - offsets.first_slab(group)) * kSlab;  // negative before the first group
  const u32 low = clamp_to_slab(-inside);
  const u32 high = clamp_to_slab(static_cast<i64>(offsets[group + 1]) - begin - inside);
  return {begin + static_cast<u32>(inside), low, max(low, high)};
}

// The global scale that applies to a group; 1 where there is none.
WS_DEVICE float load_global_scale(const float* global_scale, u32 group, u32 flags) {
  if (global_scale == nullptr) return 1.0f;
  return global_scale[(flags & kScalePerGroup) ? group : 0u];
}

WS_DEVICE bool is_valid_global_scale(float value) { return value > 0.0f && is_finite(value); }

}  // namespace ws
