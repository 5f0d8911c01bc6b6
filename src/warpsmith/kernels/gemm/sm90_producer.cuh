// SPDX-License-Identifier: Apache-2.0
// The producer warp: finds the block's tiles and copies K tiles of A, B and their scales into the ring of stages.
#pragma once

#include "common/cluster.cuh"
#include "common/mbarrier.cuh"
#include "common/shared_store.cuh"
#include "common/tma.cuh"
#include "gemm/sm90_config.cuh"
#include "gemm/sm90_schedule.cuh"

namespace ws {

// One operand's fp32 scales for a tile, m_major: a row of them for every 128 of K, from a multiple of four rows on.
struct RowScaleCopy {
  const u8* source;
  u32 pitch, bytes;  // of a row of scales, of the tile's part

  WS_DEVICE RowScaleCopy(const u8* scales, u32 row, u32 tile_rows, u32 all_rows) {
    const u32 start = row / 4 * 4, padded = (all_rows + 3) / 4 * 4;
    pitch = padded * 4;
    bytes = start < padded ? min(tile_rows + (row % 4 ? 4 : 0), padded - start) * 4 : 0;
    source = scales + start * 4ull;
  }

  WS_DEVICE void copy(u32 to, u32 k_block, u32 barrier) const {
    if (bytes != 0) load_bulk(to, source + static_cast<i64>(k_block) * pitch, bytes, barrier);
  }
};

// The 128 x 128 scales of the rows of blocks that a tile of B touches. Lanes fetch 32 at a time.
struct SquareScales {
  const float* source[Scales::kSquares];
  u32 blocks, lane;
  float window[Scales::kSquares];  // this lane's of the 32 in use

  WS_DEVICE SquareScales(const u8* scales, u32 row, u32 n, u32 k, u32 lane_) : blocks(k / 128), lane(lane_) {
#pragma unroll
    for (u32 i = 0; i < Scales::kSquares; ++i) {
      const u32 block = min(row / 128 + i, (n - 1) / 128);
      source[i] = reinterpret_cast<const float*>(scales) + static_cast<i64>(block) * blocks;
      window[i] = 0.0f;
    }
  }

  WS_DEVICE void look(u32 k_block, bool first) {
    if (!first && k_block % 32 != 0) return;
    const u32 at = k_block / 32 * 32 + lane;
#pragma unroll
    for (u32 i = 0; i < Scales::kSquares; ++i) window[i] = at < blocks ? source[i][at] : 0.0f;
  }

  WS_DEVICE float at(u32 i, u32 k_block) const {
    return __shfl_sync(kAllLanes, window[i], static_cast<int>(k_block % 32));
  }
};

// Copies of one tile.
struct TileCopy {
  const Problem& p;
  const Tile& tile;
  u32 lane, rank;

  // Elements of K tile k into a stage; `more` bytes follow.
  WS_DEVICE void copy_elements(const Ring& ring, u32 k, u32 more) const {
    const u32 a = kSwap ? ring.right() : ring.left(), b = kSwap ? ring.left() : ring.right(), full = ring.full();
    const int x = static_cast<int>(k * kRowBytes), column = static_cast<int>(tile.column);
    mbarrier_arrive_expect(full, kStageBytes + more);
    load_tensor(a, *p.a_map, x, static_cast<int>(tile.row), p.is_grouped() ? 0 : static_cast<int>(tile.batch), full);
    if constexpr (kCluster == 1) {
      load_tensor(b, *p.b_map, x, column, static_cast<int>(tile.batch), full);
    } else {
      constexpr u32 rows = kTileN / kCluster;
      load_tensor_multicast(b + rank * rows * kRowBytes, *p.b_map, x, column + static_cast<int>(rank * rows),
                            static_cast<int>(tile.batch), full, (1 << kCluster) - 1);
    }
  }

  // The description of the tile is there before its first stage is full.
  WS_DEVICE void begin_stage(const Ring& ring, const TileRing& slots, bool first) const {
    mbarrier_wait(ring.empty(), ring.parity ^ 1);
    if (first && lane == 0) save_tile(slots.slot(), tile);
  }

  WS_DEVICE void plain(Ring& ring, const TileRing& slots) const {
#pragma unroll 1
    for (u32 i = 0; i < tile.stages; ++i, ring.advance()) {
      begin_stage(ring, slots, i == 0);
      if (lane == 0) copy_elements(ring, tile.first_stage + i, 0);
    }
  }

  WS_DEVICE void with_scales(Ring& ring, const TileRing& slots) const {
    const bool by_rows = p.flags & kRowScalesB;
    const u8* const a_scales = p.is_grouped() ? p.a_scales : p.a_scales + tile.batch * p.a_scale_batch;
    const u8* const b_scales = p.b_scales + tile.batch * p.b_scale_batch;
    const RowScaleCopy a(a_scales, tile.row, kTileM, p.m);
    const RowScaleCopy b(b_scales, tile.column, kTileN, p.n);
    SquareScales square(b_scales, tile.column, p.n, p.k, lane);
#pragma unroll 1
    for (u32 i = 0; i < tile.stages; ++i, ring.advance()) {
      const u32 k = tile.first_stage + i, scales = ring.scales(), full = ring.full();
      if (!by_rows) square.look(k, i == 0);
      begin_stage(ring, slots, i == 0);
      if (!by_rows) {
#pragma unroll
        for (u32 j = 0; j < Scales::kSquares; ++j) {
          const float factor = square.at(j, k);
          if (lane == 0) store_shared(scales + Scales::kB + j * 4, bits_of(factor));
        }
      }
      if (lane != 0) continue;
      copy_elements(ring, k, a.bytes + (by_rows ? b.bytes : 0));
      a.copy(scales + Scales::kA, k, full);
      if (by_rows) b.copy(scales + Scales::kB, k, full);
    }
  }
};

// What of K a tile's split has, in stages.
WS_DEVICE void divide_k(const Problem& p, u32 splits, Tile& tile) {
  const u32 all = div_up(p.k, kTileK);
  tile.first_stage = all * tile.split / splits;
  tile.stages = all * (tile.split + 1) / splits - tile.first_stage;
}

// Consecutive blocks (or clusters) take the splits of a tile.
WS_DEVICE u32 splits_of(const Problem& p) {
  return p.kind() == kDense ? max(1u, min(p.splits, div_up(p.k, kTileK))) : 1;
}

WS_DEVICE void produce(const Problem& p, Ring ring, TileRing slots, u32 lane, u32 rank) {
  const u32 splits = splits_of(p);
  TileFinder finder(p, lane, rank);
  Tile tile;
#pragma unroll 1
  for (u32 index = blockIdx.x / kCluster;; index += gridDim.x / kCluster, slots.advance()) {
    const u32 number = index / splits;
    tile.split = index % splits;
    tile.index = number * kCluster + rank;
    if (!finder.find(p, number, tile)) break;
    divide_k(p, splits, tile);
    const TileCopy copy{p, tile, lane, rank};
    if constexpr (kPromoted) {
      copy.with_scales(ring, slots);
    } else {
      copy.plain(ring, slots);
    }
  }
  mbarrier_wait(ring.empty(), ring.parity ^ 1);
  if (lane != 0) return;
  tile = {};
  save_tile(slots.slot(), tile);
  mbarrier_arrive(ring.full());
}

}  // namespace ws
