// SPDX-License-Identifier: Apache-2.0
// fp8_tensor and fp8_row: sums over all of K, times the fp32 scales of a row of A and a row of B; an operand has one
// for each of its rows, or one for all.
#pragma once

#include "gemm/sm90_config.cuh"
#include "gemm/sm90_schedule.cuh"

namespace ws {

// The scales of an operand's rows from the first one of a tile on.
struct SumScales {
  const float* first;
  bool one;   // for all rows
  u32 rows;  // that there are

  WS_DEVICE SumScales(const u8* scales, bool one_, u32 row, u32 rows_)
      : first(reinterpret_cast<const float*>(scales) + (one_ ? 0 : row)), one(one_), rows(rows_) {}

  WS_DEVICE float at(u32 row) const { return row < rows ? first[one ? 0 : row] : 0.0f; }

  // Of an even row and the next, which are there both or neither: rows of B come by eights.
  WS_DEVICE float2 pair(u32 row) const {
    if (row >= rows) return {};
    if (one) return {first[0], first[0]};
    return *reinterpret_cast<const float2*>(first + row);
  }
};

WS_DEVICE void scale_sums(Sums& sums, const Problem& p, const Tile& tile, const Place& place) {
  const u8* const a_scales = p.is_grouped() ? p.a_scales : p.a_scales + tile.batch * p.a_scale_batch;
  const SumScales a(a_scales, p.flags & kOneScaleA, tile.row, tile.rows);
  const SumScales b(p.b_scales + tile.batch * p.b_scale_batch, p.flags & kOneScaleB, tile.column,
                    p.n > tile.column ? p.n - tile.column : 0);
  const u32 g = place.lane / 4, t = place.lane % 4;
#pragma unroll
  for (u32 i = 0; i < kM64; ++i) {
    const u32 left = place.left() + i * 64 + place.warp * 16 + g;
    const float low = kSwap ? b.at(left) : a.at(left), high = kSwap ? b.at(left + 8) : a.at(left + 8);
#pragma unroll
    for (u32 j = 0; j < kN / 8; ++j) {
      const u32 right = place.right() + 8 * j + 2 * t;
      const float2 by = kSwap ? float2{a.at(right), a.at(right + 1)} : b.pair(right);
      float* const s = &sums[i][4 * j];
      s[0] = s[0] * low * by.x, s[1] = s[1] * low * by.y;
      s[2] = s[2] * high * by.x, s[3] = s[3] * high * by.y;
    }
  }
}

}  // namespace ws
