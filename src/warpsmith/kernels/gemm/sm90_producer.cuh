// SPDX-License-Identifier: Apache-2.0
// The producer warp: finds the block's tiles and copies K tiles of A, B and their scales into the ring of stages.
#pragma once

#include "common/cluster.cuh"
#include "common/dependent_launch.cuh"
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

// The 128 x 128 scales of a row of blocks of B. Lanes fetch 32 at a time.
struct SquareScales {
  const float* source;
  u32 blocks, lane;
  float window;  // this lane's of the 32 in use

  WS_DEVICE SquareScales(const u8* scales, u32 row, u32 k, u32 lane_) : blocks(k / 128), lane(lane_), window(0.0f) {
    source = reinterpret_cast<const float*>(scales) + static_cast<i64>(row / 128) * blocks;
  }

  WS_DEVICE float at(u32 k_block, bool first) {
    if (first || k_block % 32 == 0) {
      const u32 i = k_block / 32 * 32 + lane;
      window = i < blocks ? source[i] : 0.0f;
    }
    return __shfl_sync(kAllLanes, window, static_cast<int>(k_block % 32));
  }
};

// Copies of one tile's elements, by one lane.
struct TileCopy {
  const Problem& p;
  const Tile& tile;
  u32 rank;

  // B of the first stages, all of which are empty; how many.
  WS_DEVICE u32 begin_with_b(Ring ring, const TileRing& slots) const {
    save_tile(slots.slot(), tile);
    const u32 stages = min(tile.stages, Shared::kStages);
#pragma unroll 1
    for (u32 i = 0; i < stages; ++i, ring.advance()) copy_b(ring, i);
    return stages;
  }

  // All stages; of the first `begun`, B is on its way. The description of the tile is there before an arrival at the
  // first stage's barrier.
  WS_DEVICE void copy(Ring& ring, const TileRing& slots, u32 begun) const {
#pragma unroll 1
    for (u32 i = 0; i < tile.stages; ++i, ring.advance()) {
      mbarrier_wait(ring.empty(), ring.parity ^ 1);
      if (i == 0 && begun == 0) save_tile(slots.slot(), tile);
      if (i >= begun) copy_b(ring, i);
      const int batch = p.is_grouped() ? 0 : static_cast<int>(tile.batch);
#pragma unroll
      for (u32 part = 0; part < kBoxesA; ++part) {
        load_tensor((kSwap ? ring.right() : ring.left()) + part * kRightRows * kRowBytes, *p.a_map,
                    k_of(i) * static_cast<int>(kBoxesA) + static_cast<int>(part * kRowBytes), static_cast<int>(tile.row),
                    batch, ring.full());
      }
    }
  }

 private:
  // In bytes.
  WS_DEVICE int k_of(u32 i) const { return static_cast<int>((tile.first_stage + i) * kRowBytes); }

  // Announces A too. Packed rows of B are another warp's.
  WS_DEVICE void copy_b(const Ring& ring, u32 i) const {
    if constexpr (kPacked) return mbarrier_arrive_expect(ring.full(), kRightBytes - p.missing_rows() * kRowBytes);
    const u32 to = kSwap ? ring.left() : ring.right(), full = ring.full();
    const int row = static_cast<int>(tile.column), batch = static_cast<int>(tile.batch);
    mbarrier_arrive_expect(full, kStageBytes - p.missing_rows() * kRowBytes);
    if (p.is_gated()) {
      const int first = row / 16;
      if constexpr (kCluster == 1) {
        load_tensor_interleaved(to, *p.b_map, k_of(i), first, batch, full);
      } else {
        const u32 part = rank * kPartB;
        load_tensor_interleaved_multicast(to + part * kRowBytes, *p.b_map, k_of(i), first + static_cast<int>(part / 16),
                                          batch, full, (1 << kCluster) - 1);
      }
      return;
    }
    if constexpr (kCluster == 1) {
      load_tensor(to, *p.b_map, k_of(i) / static_cast<int>(kRowBytes / kRowBytesB), row, batch, full);
    } else {
      const u32 part = rank * kPartB;
      load_tensor_multicast(to + part * kRowBytes, *p.b_map, k_of(i), row + static_cast<int>(part), batch, full,
                            (1 << kCluster) - 1);
    }
  }
};

// What of which tile a unit of work is: the first tiles are whole, of the others consecutive units take the parts of K.
// Returns the tile's number.
WS_DEVICE u32 divide(const Problem& p, u32 unit, u32 rank, Tile& tile) {
  const u32 all = div_up(p.k, kTileK);
  if constexpr (kPartsK > 1) {
    tile.splits = min(kPartsK, all);
    tile.split = rank;
    tile.index = 0;
    tile.first_stage = all * rank / tile.splits;
    tile.stages = rank < tile.splits ? all * (rank + 1) / tile.splits - tile.first_stage : 0;
    return unit;
  }
  const u32 parts = p.kind() == kDense ? min(p.splits & 255, all) : 1, whole = parts > 1 ? p.splits >> 8 : 0;
  if (parts <= 1 || unit < whole) {
    tile.splits = 1;
    tile.split = tile.index = tile.first_stage = 0;
    tile.stages = all;
    return unit;
  }
  const u32 among = (unit - whole) / parts;
  tile.splits = parts;
  tile.split = (unit - whole) % parts;
  tile.first_stage = all * tile.split / parts;
  tile.stages = all * (tile.split + 1) / parts - tile.first_stage;
  tile.index = among * kCluster + rank;
  return whole + among;
}

// The warp that copies elements. The predecessor may still be running: if it does not write B, copies of B do not wait
// for it.
WS_DEVICE void produce(const Problem& p, Ring ring, TileRing slots, u32 lane, u32 rank) {
  bool ahead = !kPacked && p.flags & kConstantB && p.kind() == kDense;
  if (!ahead) wait_for_predecessor();
  TileFinder finder(p, lane, kCluster > 1 ? rank : 0);
  Tile tile;
#pragma unroll 1
  for (u32 unit = blockIdx.x / kClusterBlocks;; unit += gridDim.x / kClusterBlocks, slots.advance()) {
    const u32 number = divide(p, unit, rank, tile);
    if ((kPartsK > 1 && tile.stages == 0) || !finder.find(p, number, tile)) break;
    if (lane == 0) {
      const TileCopy copy{p, tile, rank};
      u32 begun = 0;
      if (ahead) {
        begun = copy.begin_with_b(ring, slots);
        wait_for_predecessor();
      }
      copy.copy(ring, slots, begun);
    }
    ahead = false;
    __syncwarp();
  }
  if (lane != 0) return;
  mbarrier_wait(ring.empty(), ring.parity ^ 1);
  tile = {};
  save_tile(slots.slot(), tile);
  mbarrier_arrive(ring.full());
}

// The warp that copies fp32 scales of the same tiles.
WS_DEVICE void produce_scales(const Problem& p, Ring ring, u32 lane, u32 rank) {
  wait_for_predecessor();
  const bool by_rows = p.flags & kRowScalesB;
  TileFinder finder(p, lane, kCluster > 1 ? rank : 0);
  Tile tile;
#pragma unroll 1
  for (u32 unit = blockIdx.x / kClusterBlocks;; unit += gridDim.x / kClusterBlocks) {
    const u32 number = divide(p, unit, rank, tile);
    if ((kPartsK > 1 && tile.stages == 0) || !finder.find(p, number, tile)) break;
    const u8* const b_scales = p.b_scales + tile.batch * p.b_scale_batch;
    const u8* const a_scales = p.is_grouped() ? p.a_scales : p.a_scales + tile.batch * p.a_scale_batch;
    const RowScaleCopy a(a_scales, tile.row, kTileM, p.m), b(b_scales, tile.column, kTileN, p.n);
    SquareScales square(b_scales, tile.column, p.k, lane);
#pragma unroll 1
    for (u32 i = 0; i < tile.stages; ++i, ring.advance()) {
      const u32 k = tile.first_stage + i, to = ring.scales();
      const float factor = by_rows ? 0.0f : square.at(k, i == 0);
      mbarrier_wait(ring.empty(), ring.parity ^ 1);
      if (lane != 0) continue;
      if (!by_rows) store_shared(to + Scales::kB, bits_of(factor));
      mbarrier_arrive_expect(ring.full(), a.bytes + (by_rows ? b.bytes : 0));
      a.copy(to + Scales::kA, k, ring.full());
      if (by_rows) b.copy(to + Scales::kB, k, ring.full());
    }
  }
  mbarrier_wait(ring.empty(), ring.parity ^ 1);
  if (lane == 0) mbarrier_arrive(ring.full());
}

}  // namespace ws
