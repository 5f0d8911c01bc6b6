// SPDX-License-Identifier: Apache-2.0
// The problem as the kernel gets it, and the tiles of D that a block computes.
#pragma once

#include "common/shared_load.cuh"
#include "common/shared_store.cuh"
#include "common/tma.cuh"
#include "common/types.cuh"
#include "gemm/sm90_config.cuh"

namespace ws {

// Bits of `flags`, from the lowest: 2 kind, 2 type of D, 2 type of bias, then single ones.
enum : u32 {
  kDense = 0,    // `batches` matrices of m rows
  kGrouped = 1,  // m rows in all; group g is rows index[g] to index[g + 1]
  kMasked = 2,   // `batches` matrices of m rows, of which the first index[g] count
  kKindMask = 3,
  kOutShift = 2,
  kBiasShift = 4,  // 0: no bias
  kTypeMask = 3,
  kIndex64 = 1 << 6,        // index is i64, not i32
  kConstantB = 1 << 7,      // the kernel before this one in the stream writes neither B nor its scales
  kRowScalesB = 1 << 8,     // fp8_block: B's scales are 1 x 128, m_major, not 128 x 128
  kTiledScalesB = 1 << 8,   // mixed: B's scales are tiled, 128 x 4, not linear
  kAlphaPerBatch = 1 << 9,  // one value for each batch or group, not one
  kGlobalAPerBatch = 1 << 10,
  kGlobalBPerBatch = 1 << 11,
  kActivationShift = 12,    // of two bits: 0: none
  kStoresByMap = 1 << 16,   // D has a tensor map: 16-bit elements, rows aligned to 16 bytes
  kOneScaleA = 1 << 14,     // fp8_tensor: not one scale for each row
  kOneScaleB = 1 << 15,
};
enum : u32 { kGated = 1, kSquaredRelu = 2, kSwiglu = 3 };  // swiglu: gated, without a look at the numbers of `Gate`
enum : u32 { kOutBf16 = 0, kOutFp16 = 1, kOutFp32 = 2 };
enum : u32 { kNoBias = 0, kBiasBf16 = 1, kBiasFp16 = 2, kBiasFp32 = 3 };

// gated: g · sigmoid(g · (slope + cube · g²)) · (u + offset), g at most `limit` and u within ±limit.
struct Gate {
  float slope, cube, limit, offset;
};

struct Problem {
  const TensorMap *a_map, *b_map, *d_map;
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
  Gate gate;

  WS_DEVICE u32 kind() const { return flags & kKindMask; }
  WS_DEVICE u32 activation() const { return kActivates ? flags >> kActivationShift & kTypeMask : 0; }
  WS_DEVICE bool is_gated() const { return activation() % 2 != 0; }
  WS_DEVICE bool is_grouped() const { return kind() == kGrouped; }
  // Rows outside a tensor take longer to copy than those inside. So boxes have no more rows than the tensor; what a stage
  // then lacks of both operands. Boxes of quantized rows of B are always whole.
  WS_DEVICE u32 missing_rows() const {
    const u32 of_a = kTileM - min(kTileM, m);
    if constexpr (kMixed) return kFits ? of_a * kBoxesA : 0;
    return of_a + (kCluster == 1 ? kTileN - min(kTileN, n) : 0);
  }
  // And last tiles begin where they end with the matrix, if all add their products in the same order: what they have in
  // common with others gets the same value from each.
  WS_DEVICE bool may_overlap() const { return kPartsK > 1 || (splits & 255) <= 1; }
  WS_DEVICE u32 last_row() const { return may_overlap() && !is_grouped() && m >= kTileM ? m - kTileM : ~0u; }
  // One scale serves all columns of a tile of fp8_block; block scales of quantized rows come by 128 rows.
  WS_DEVICE u32 last_column() const {
    return may_overlap() && !kPromoted && !kMixed && n >= kTileN ? n - kTileN : ~0u;
  }
};

struct Tile {
  u32 stages;     // of K; 0: there are no more tiles
  u32 batch;      // or group
  u32 row, rows;  // first row, in its batch or, grouped, of all; rows of D, which a cluster's last tile may lack
  u32 column;
  u32 index;      // among the split tiles, and the part of K
  u32 split, splits;
  u32 first_stage;  // of K; the producer's alone
};

WS_DEVICE void save_tile(u32 to, const Tile& tile) {
  store_shared(to, {tile.stages, tile.batch, tile.row, tile.rows});
  store_shared(to + 16, {tile.column, tile.index, tile.split, tile.splits});
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

// index[i] within 0..m, so that no value of it leads outside the operands.
WS_DEVICE u32 read_index(const Problem& p, u32 i) {
  const i64 value = p.flags & kIndex64 ? static_cast<const i64*>(p.index)[i] : static_cast<const int*>(p.index)[i];
  return static_cast<u32>(max(0ll, min(value, static_cast<i64>(p.m))));
}

WS_DEVICE Rows rows_of(const Problem& p, u32 batch) {
  if (batch >= p.batches) return {0, 0};
  if (p.kind() == kDense) return {0, p.m};
  const u32 value = read_index(p, batch);
  if (p.kind() == kMasked) return {0, value};
  const u32 end = read_index(p, batch + 1);
  return {value, end > value ? end - value : 0};
}

// Finds tiles (of a cluster together) by their number, which may only rise. A warp looks at a window of batches (or groups) at a time, each
// lane at kPerLane of them, and keeps the window while it serves.
class TileFinder {
 public:
  // Before the first window.
  WS_DEVICE TileFinder(const Problem& p, u32 lane, u32 rank)
      : lane_(lane), rank_(rank), columns_(div_up(p.n, kTileN)), base_(0u - kWindow), rows_{}, before_(0), through_(0) {}

  // Every lane gets the tile; false where there are no more.
  WS_DEVICE bool find(const Problem& p, u32 index, Tile& tile) {
    if (p.kind() == kDense) {
      const u32 each = tiles(p.m);
      tile.batch = index < each ? 0 : index / each;
      if (tile.batch >= p.batches) return false;
      place(p, {0, p.m}, index - tile.batch * each, tile);
      return true;
    }
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
    place(p, rows, rest, tile);
    return true;
  }

 private:
  static constexpr u32 kPerLane = 4, kWindow = 32 * kPerLane;
  static constexpr u32 kBand = WS_BAND;

  WS_DEVICE u32 tiles(u32 rows) const { return div_up(rows, kClusterM) * columns_; }

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

  // Bands of kBand rows of tiles are walked column by column, so that blocks that run at the same time share rows of A
  // and of B in L2.
  WS_DEVICE void place(const Problem& p, const Rows& rows, u32 in_matrix, Tile& tile) const {
    const u32 band = in_matrix / (kBand * columns_), in_band = in_matrix % (kBand * columns_);
    const u32 height = min(kBand, div_up(rows.count, kClusterM) - band * kBand);
    const u32 row = min((band * kBand + in_band % height) * kClusterM + rank_ * kTileM, p.last_row());
    tile.row = rows.first + row;
    tile.rows = rows.count > row ? min(kTileM, rows.count - row) : 0;
    tile.column = min(in_band / height * kTileN, p.last_column());
  }

  u32 lane_, rank_, columns_, base_;
  Rows rows_[kPerLane];    // of this lane's batches
  u32 before_, through_;  // tiles before them, and with them
};

}  // namespace ws
