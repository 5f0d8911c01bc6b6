// SPDX-License-Identifier: Apache-2.0
// Where the scales of a row lie in each layout.
#pragma once

#include "fp4_quantization/format.cuh"
#include "fp4_quantization/tile.cuh"

namespace ws {

// The scales of one row: an index for block 0, plus a stride for each block. One-byte scales come in fours, whose other
// three follow the first.
//
//   linear   row · blocks + block
//   128x4    (row / 128 · pitch + block / 4 · 4) · 128 + row % 32 · 16 + row % 128 / 32 · 4 + block % 4
//   m_major  block · pitch + row
struct ScaleRow {
  u64 first;
  u32 stride;
  bool exists;

  // `row` counts from the slab's first; 128x4 pads rows, and its padding is written too.
  WS_DEVICE ScaleRow(u32 row, u32 slab, const SlabRows& rows, u32 pitch, u32 flags) {
    const u64 at = rows.first + row;
    exists = rows.contains(row);
    stride = 1;
    first = at * pitch;
    if (flags & kLayout128x4) {
      exists = true;
      stride = kSlab;
      first = static_cast<u64>(slab) * pitch * kSlab + (row % 32 * 16 + row / 32 * 4);
    }
    if (flags & kLayoutMMajor) {
      stride = pitch;
      first = at;
    }
  }

  // From the row's first scale, in scales.
  WS_DEVICE u64 byte_offset(u32 block) const { return static_cast<u64>(block & ~3u) * stride + (block & 3u); }
  WS_DEVICE u64 fp32_offset(u32 block) const { return static_cast<u64>(block) * stride; }
};

// m_major keeps a multiple of four rows; those that do not exist are zero.
WS_DEVICE void clear_m_major_padding(u32* scales, u32 block, u32 m, u32 pitch) {
  for (u32 row = m; row < pitch; ++row) scales[static_cast<u64>(block) * pitch + row] = 0u;
}

}  // namespace ws
