// SPDX-License-Identifier: Apache-2.0
// The problem as the kernel gets it, and the tiles of D that a block computes.
#pragma once

#include "common/gemm_problem.cuh"
#include "common/shared_load.cuh"
#include "common/shared_store.cuh"
#include "common/tma.cuh"
#include "common/types.cuh"
#include "fp4_gemm/sm12x_config.cuh"

namespace ws {

struct Problem {
  const TensorMap *a_map, *b_map;
  const u8 *a_scales, *b_scales, *bias;
  u8* d;
  const float *alphas, *a_global_scale, *b_global_scale;  // null: 1
  const void* index;
  float* workspace;
  u32* arrivals;
  i64 d_row, d_batch, a_scale_batch, b_scale_batch, bias_batch;  // bytes
  u32 m, n, k, batches, splits;
  float alpha;
  u32 flags;

  WS_DEVICE u32 kind() const { return flags & kKindMask; }
  WS_DEVICE bool is_grouped() const { return kind() == kGrouped; }
};

struct Tile {
  u32 stages;     // of K; 0: there are no more tiles
  u32 batch;      // or group
  u32 row, rows;  // first row, in its batch or, grouped, of all; rows of D
  u32 column;
  u32 scale_row;  // where the rows' scales start
  u32 index;      // of the tile, and the part of K: for the sums of splits
  u32 split;
  u32 first_stage;  // of K; the producer's alone
};

WS_DEVICE void save_tile(u32 to, const Tile& tile) {
  store_shared(to, {tile.stages, tile.batch, tile.row, tile.rows});
  store_shared(to + 16, {tile.column, tile.scale_row, tile.index, tile.split});
}

WS_DEVICE Tile load_tile(u32 from) {
  u32 low[4], high[4];
  load_shared(from, low);
  load_shared(from + 16, high);
  return {low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3], 0};
}

struct Rows {
  u32 first, count;
};

WS_DEVICE Rows rows_of(const Problem& p, u32 batch) {
  if (batch >= p.batches) return {0, 0};
  if (p.kind() == kDense) return {0, p.m};
  const u32 value = read_index(p, batch);
  if (p.kind() == kMasked) return {0, value};
  const u32 end = read_index(p, batch + 1);
  return {value, end > value ? end - value : 0};
}

// Finds tiles by their number, which may only rise. A warp looks at a window of batches (or groups) at a time, each
// lane at kPerLane of them, and keeps the window while it serves.
class TileFinder {
 public:
  // Before the first window.
  WS_DEVICE TileFinder(const Problem& p, u32 lane)
      : lane_(lane), columns_(div_up(p.n, kTileN)), base_(0u - kWindow), rows_{}, before_(0), through_(0) {}

  // Every lane gets the tile; false where there are no more.
  WS_DEVICE bool find(const Problem& p, u32 index, Tile& tile) {
    for (;;) {
      const u32 end = __shfl_sync(kAllLanes, through_, 31);
      if (index < end) break;
      if (p.batches - base_ <= kWindow) return false;
      look(p, base_ + kWindow, end);
    }
    const int source = __popc(__ballot_sync(kAllLanes, through_ <= index));
    u32 rest = index - before_, which = 0;
    Rows rows = rows_[0];
#pragma unroll
    for (u32 i = 0; i + 1 < kPerLane; ++i) {
      if (which == i && rest >= tiles(rows.count)) {
        rest -= tiles(rows.count);
        which = i + 1;
        rows = rows_[i + 1];
      }
    }
    rest = __shfl_sync(kAllLanes, rest, source);
    rows.first = __shfl_sync(kAllLanes, rows.first, source);
    rows.count = __shfl_sync(kAllLanes, rows.count, source);
    tile.batch = base_ + source * kPerLane + __shfl_sync(kAllLanes, which, source);
    // only where offsets on the device make no sense
    if (rest >= tiles(rows.count)) return false;
    place_tile(p, rows, rest, tile);
    return true;
  }

 private:
  enum : u32 { kPerLane = 4, kWindow = 32 * kPerLane };

  WS_DEVICE u32 tiles(u32 rows) const { return div_up(rows, kTileM) * columns_; }

  WS_DEVICE void look(const Problem& p, u32 base, u32 before) {
    base_ = base;
    u32 own = 0;
#pragma unroll
    for (u32 i = 0; i < kPerLane; ++i) {
      rows_[i] = rows_of(p, base + lane_ * kPerLane + i);
      own += tiles(rows_[i].count);
    }
    through_ = own;
#pragma unroll
    for (u32 distance = 1; distance < 32; distance *= 2) {
      const u32 other = __shfl_up_sync(kAllLanes, through_, distance);
      if (lane_ >= distance) through_ += other;
    }
    through_ += before;
    before_ = through_ - own;
  }

  WS_DEVICE void place_tile(const Problem& p, const Rows& rows, u32 in_matrix, Tile& tile) const {
    u32 tile_row, tile_column;
    place(in_matrix, div_up(rows.count, kTileM), columns_, tile_row, tile_column);
    const u32 row = tile_row * kTileM;
    tile.row = rows.first + row;
    tile.rows = min(kTileM, rows.count - row);
    tile.column = tile_column * kTileN;
    tile.scale_row = row + (p.is_grouped() ? (rows.first + 127 * tile.batch) / 128 * 128 : 0);
  }

  u32 lane_, columns_, base_;
  Rows rows_[kPerLane];    // of this lane's batches
  u32 before_, through_;  // tiles before them, and with them
};

}  // namespace ws
