// SPDX-License-Identifier: Apache-2.0
// The producer warp: finds the block's tiles and copies K tiles of A, B and their scales into the ring of stages.
#pragma once

#include "common/mbarrier.cuh"
#include "common/shared_store.cuh"
#include "common/tma.cuh"
#include "fp4_gemm/sm12x_config.cuh"
#include "fp4_gemm/sm12x_schedule.cuh"

namespace ws {

// One operand's one-byte scales for a tile. Rows and K beyond the tensor get the last atom there is: their elements
// arrive as zero or are not written, so that any finite scale serves, and a NaN in it has spoilt those rows already.
template <class Op>
struct AtomCopy {
  const u8* source;  // the tile's first atom
  u32 atoms;         // along K, in the tensor
  u32 last_block;    // of 128 rows, that has rows of the tensor

  WS_DEVICE AtomCopy(const u8* scales, u32 row, u32 rows, u32 k)
      : atoms(div_up(k, kScaleK)), last_block((rows - 1) / 128) {
    source = scales + static_cast<i64>(row / 128) * atoms * kAtomBytes;
  }

  WS_DEVICE static constexpr u32 bytes() { return Op::kScaleBytes; }

  WS_DEVICE void copy(u32 to, u32 k_block, u32 barrier) const {
    const u32 first = k_block * kAtoms, valid = min(kAtoms, atoms - first);
#pragma unroll
    for (u32 block = 0; block < Op::kBlocks; ++block) {
      const u8* const from = source + (static_cast<i64>(min(block, last_block)) * atoms + first) * kAtomBytes;
      const u32 at = to + block * kAtoms * kAtomBytes;
      load_bulk(at, from, valid * kAtomBytes, barrier);
      for (u32 i = valid; i < kAtoms; ++i) {
        load_bulk(at + i * kAtomBytes, from + (valid - 1) * kAtomBytes, kAtomBytes, barrier);
      }
    }
  }
};

// A's fp32 scales for a tile, m_major: a row of them for every 128 of K, from a multiple of four rows on.
struct RowScaleCopy {
  const u8* source;
  u32 pitch, size;  // bytes: of a row of scales, of the tile's part

  WS_DEVICE RowScaleCopy(const u8* scales, u32 row, u32 all_rows) {
    const u32 start = row / 4 * 4, padded = (all_rows + 3) / 4 * 4;
    pitch = padded * 4;
    size = min(kTileM + (row % 4 ? 4 : 0), padded - start) * 4;
    source = scales + start * 4ull;
  }

  WS_DEVICE u32 bytes() const { return size; }
  WS_DEVICE void copy(u32 to, u32 k_block, u32 barrier) const {
    load_bulk(to, source + static_cast<i64>(k_block) * pitch, size, barrier);
  }
};

// The 128 x 128 scales of a row of blocks of B. Lanes fetch 32 at a time.
struct SquareScales {
  const float* source;
  u32 blocks, lane;
  float window;  // this lane's of the 32 in use

  WS_DEVICE SquareScales(const u8* scales, u32 row, u32 k, u32 lane_)
      : blocks(k / 128), lane(lane_), window(0.0f) {
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

// Copies of one tile.
struct TileCopy {
  using A = Operand<true, 1>;
  using B = Operand<false, 1>;
  enum : u32 { kA = kSwap ? Stage::kRight : Stage::kLeft, kB = kSwap ? Stage::kLeft : Stage::kRight };
  enum : u32 { kAScales = kSwap ? Stage::kRightScales : Stage::kLeftScales };
  enum : u32 { kBScales = kSwap ? Stage::kLeftScales : Stage::kRightScales };

  const Problem& p;
  const Tile& tile;
  u32 lane;

  // Elements of K tile k into a stage; `more` bytes follow.
  WS_DEVICE void copy_elements(u32 stage, u32 k, u32 more, u32 full) const {
    mbarrier_arrive_expect(full, A::kTileBytes + B::kTileBytes + more);
    load_tensor(stage + kA, *p.a_map, k * A::kRowBytes, tile.row, p.is_grouped() ? 0 : tile.batch, full);
    load_tensor(stage + kB, *p.b_map, k * B::kRowBytes, tile.column, tile.batch, full);
  }

  WS_DEVICE const u8* a_scales() const {
    return p.is_grouped() ? p.a_scales : p.a_scales + tile.batch * p.a_scale_batch;
  }
  WS_DEVICE const u8* b_scales() const { return p.b_scales + tile.batch * p.b_scale_batch; }

  // The description of the tile is there before its first stage is full.
  WS_DEVICE void begin_stage(const Ring& ring, const TileRing& slots, bool first) const {
    mbarrier_wait(ring.empty(), ring.parity ^ 1);
    if (first && lane == 0) save_tile(slots.slot(), tile);
  }

  // An atom that stages share comes with the first of them.
  WS_DEVICE void with_atoms(Ring& ring, const TileRing& slots) const {
    const AtomCopy<A> a(a_scales(), tile.scale_row, tile.rows, p.k);
    const AtomCopy<B> b(b_scales(), tile.column, p.n - tile.column, p.k);
#pragma unroll 1
    for (u32 i = 0; i < tile.stages; ++i, ring.advance()) {
      const u32 stage = ring.stage, full = ring.full, k = tile.first_stage + i;
      begin_stage(ring, slots, i == 0);
      if (lane != 0) continue;
      const bool scales = k % kScaleStages == 0;
      copy_elements(stage, k, scales ? a.bytes() + b.bytes() : 0, full);
      if (!scales) continue;
      a.copy(stage + kAScales, k / kScaleStages, full);
      b.copy(stage + kBScales, k / kScaleStages, full);
    }
  }

  // A stage is what a scale covers.
  WS_DEVICE void with_floats(Ring& ring, const TileRing& slots) const {
    const RowScaleCopy a(a_scales(), tile.row, p.m);
    SquareScales b(b_scales(), tile.column, p.k, lane);
#pragma unroll 1
    for (u32 i = 0; i < tile.stages; ++i, ring.advance()) {
      const u32 stage = ring.stage, full = ring.full, k = tile.first_stage + i;
      const float factor = b.at(k, i == 0);
      begin_stage(ring, slots, i == 0);
      if (lane != 0) continue;
      store_shared(stage + kBScales, bits_of(factor));
      copy_elements(stage, k, a.bytes(), full);
      a.copy(stage + kAScales, k, full);
    }
  }
};

// What of K a tile's split has, in stages; splits meet where scales do.
WS_DEVICE void divide_k(const Problem& p, u32 splits, Tile& tile) {
  const u32 blocks = div_up(p.k, kTileK * kScaleStages);
  const u32 begin = blocks * tile.split / splits * kScaleStages;
  const u32 end = blocks * (tile.split + 1) / splits * kScaleStages;
  tile.first_stage = begin;
  tile.stages = min(end, div_up(p.k, kTileK)) - begin;
}

// Consecutive blocks take the splits of a tile.
WS_DEVICE u32 splits_of(const Problem& p) {
  return p.kind() == kDense ? max(1u, min(p.splits, div_up(p.k, kTileK * kScaleStages))) : 1;
}

WS_DEVICE void produce(const Problem& p, Ring ring, TileRing slots, u32 lane) {
  const u32 splits = splits_of(p);
  TileFinder finder(p, lane);
  Tile tile;
#pragma unroll 1
  for (u32 index = blockIdx.x;; index += gridDim.x, slots.advance()) {
    tile.index = index / splits;
    tile.split = index % splits;
    if (!finder.find(p, tile.index, tile)) break;
    divide_k(p, splits, tile);
    const TileCopy copy{p, tile, lane};
    if constexpr (kPromoted) {
      copy.with_floats(ring, slots);
    } else {
      copy.with_atoms(ring, slots);
    }
  }
  mbarrier_wait(ring.empty(), ring.parity ^ 1);
  if (lane != 0) return;
  tile = {};
  save_tile(slots.slot(), tile);
  mbarrier_arrive(ring.full);
}

}  // namespace ws
