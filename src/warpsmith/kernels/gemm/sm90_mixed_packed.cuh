// SPDX-License-Identifier: Apache-2.0
// 4-bit rows of B in the order of common/prepared_weights.cuh, beside bf16 A: 16 rows are pieces of contiguous bytes,
// which come by bulk copies, and of which each lane has 16 bytes for 64 of K, its own registers of the left operand.
#pragma once

#include "common/dependent_launch.cuh"
#include "common/mbarrier.cuh"
#include "common/prepared_weights.cuh"
#include "common/ptx.cuh"
#include "common/shared_load.cuh"
#include "common/tma.cuh"
#include "common/wgmma.cuh"
#include "gemm/sm90_config.cuh"
#include "gemm/sm90_main_loop.cuh"
#include "gemm/sm90_mixed_loop.cuh"
#include "gemm/sm90_producer.cuh"
#include "gemm/sm90_schedule.cuh"

namespace ws {

constexpr u32 kUnpackedTiles = kTileK / kPreparedTileK;    // along K, in a stage
constexpr u32 kScaleTileRows = 2 * kPreparedTileRows;      // that share words of scales
constexpr u32 kScaleTileWords = kNvfp4 ? 4 : 2;            // of a lane, for 64 of K
constexpr u32 kScaleTileBytes = 8 * 4 * kScaleTileWords;
constexpr u32 kPieceBytes = kUnpackedTiles * kPreparedTileBytes, kScalePieceBytes = kUnpackedTiles * kScaleTileBytes;
static_assert(kUnpackedTiles <= 2 && kTileN / kPreparedTileRows <= 16, "a lane's copies");

// What a lane copies of a tile: a piece of codes, or, from lane 16 on, of scales, or nothing.
struct PieceCopy {
  const u8* source;
  u32 bytes, tiles, to;  // of a tile of 64 of K; tiles along K; place in a stage's codes or scales
  u32 stage_bytes;       // of all lanes
  bool copies, of_scales;

  WS_DEVICE PieceCopy(const Problem& p, const Tile& tile, u32 lane) : tiles(p.k / kPreparedTileK) {
    const u32 rows = min(kTileN, p.n - tile.column);
    stage_bytes = rows / kPreparedTileRows * kPieceBytes + rows / kScaleTileRows * kScalePieceBytes;
    of_scales = lane >= 16;
    const u32 height = of_scales ? kScaleTileRows : kPreparedTileRows, piece = lane % 16;
    bytes = of_scales ? kScaleTileBytes : kPreparedTileBytes;
    copies = piece * height < rows;
    to = piece * bytes * kUnpackedTiles;
    const u8* const matrix = of_scales ? p.b_scales + tile.batch * p.b_scale_batch
                                       : p.a_scales + tile.batch * p.a_scale_batch;  // A has none: codes of B
    source = matrix + static_cast<i64>(tile.column / height + piece) * tiles * bytes;
  }

  // Of a last stage that K ends in, what is there comes twice: rows of A are zeros from there on, and the rest of a row
  // could make NaN of them only where the row has a NaN.
  WS_DEVICE void copy(u32 stage, const Ring& ring, u32 lane) const {
    const u32 first = stage * kUnpackedTiles, there = min(kUnpackedTiles, tiles - first);
    const u32 place = (of_scales ? ring.scales() : ring.left()) + to;
    if (lane == 0) mbarrier_arrive_expect(ring.full(), stage_bytes);
    __syncwarp();
    if (!copies) return;
    const u8* const from = source + static_cast<i64>(first) * bytes;
    load_bulk(place, from, there * bytes, ring.full());
    if (there < kUnpackedTiles) load_bulk(place + bytes, from, bytes, ring.full());
  }
};

// The warp that copies rows of B of the tiles whose rows of A the other producer warp copies. If the predecessor does not
// write B, it does not wait for it.
WS_DEVICE void produce_packed(const Problem& p, Ring ring, u32 lane, u32 rank) {
  if (!(p.flags & kConstantB && p.kind() == kDense)) wait_for_predecessor();
  TileFinder finder(p, lane, kCluster > 1 ? rank : 0);
  Tile tile;
#pragma unroll 1
  for (u32 unit = blockIdx.x / kClusterBlocks;; unit += gridDim.x / kClusterBlocks) {
    const u32 number = divide(p, unit, rank, tile);
    if ((kPartsK > 1 && tile.stages == 0) || !finder.find(p, number, tile)) break;
    const PieceCopy piece(p, tile, lane);
#pragma unroll 1
    for (u32 i = 0; i < tile.stages; ++i, ring.advance()) {
      mbarrier_wait(ring.empty(), ring.parity ^ 1);
      piece.copy(tile.first_stage + i, ring, lane);
      __syncwarp();
    }
  }
  mbarrier_wait(ring.empty(), ring.parity ^ 1);
  if (lane == 0) mbarrier_arrive(ring.full());
}

// A lane's codes and scales of 64 of K.
struct PackedCodes {
  u32 words[kM64][4], scales[kM64][kScaleTileWords];

  // Of words of scales, which 32 rows share, a warp with the second 16 of them has the other bytes.
  WS_DEVICE void load(u32 codes, u32 of_scales, u32 turn) {
#pragma unroll
    for (u32 i = 0; i < kM64; ++i) {
      load_shared(codes + i * 4 * kPieceBytes, words[i]);
      load_shared(of_scales + i * 2 * kScalePieceBytes, scales[i]);
#pragma unroll
      for (u32 w = 0; w < kScaleTileWords; ++w) scales[i][w] = __funnelshift_l(scales[i][w], scales[i][w], turn);
    }
  }

  // The left operands of 16 columns.
  WS_DEVICE void convert(u32 step, Fragments& to) const {
#pragma unroll
    for (u32 i = 0; i < kM64; ++i) {
      const u32 word = scales[i][step * kScaleTileWords / 4];
      prepared_operand(words[i][step], prepared_scales<kNvfp4>(word), to.words[step % 2][i]);
    }
  }
};

// Where a lane's are in a stage.
struct PackedPlace {
  u32 codes, scales, turn;

  WS_DEVICE explicit PackedPlace(const Place& place) {
    const u32 piece = place.left() / kPreparedTileRows + place.warp;
    codes = opaque(piece * kPieceBytes + place.lane * 16);
    scales = opaque(piece / 2 * kScalePieceBytes + place.lane / 4 * (4 * kScaleTileWords));
    turn = opaque(piece % 2 * 8);
  }

  WS_DEVICE void read(const Ring& ring, u32 tile, PackedCodes& to) const {
    to.load(ring.left() + codes + tile * kPreparedTileBytes, ring.scales() + scales + tile * kScaleTileBytes, turn);
  }
};

// Releases the stage before once its MMAs have ended.
WS_DEVICE void add_packed_stage(Sums& sums, Fragments (&fragments)[2], const PackedPlace& from, const Ring& ring,
                                const Place& place, u32 before) {
  const u64 right = wgmma_operand(ring.right() + place.right() * kRowBytes);
  PackedCodes codes[kUnpackedTiles];
  from.read(ring, 0, codes[0]);
#pragma unroll
  for (u32 tile = 0; tile < kUnpackedTiles; ++tile) {
    if (tile + 1 < kUnpackedTiles) from.read(ring, tile + 1, codes[tile + 1]);
#pragma unroll
    for (u32 step = 0; step < 4; ++step) {
      const u32 at = tile * kRightRows * kRowBytes + step * kStepBytes, next = (step + 1) % 4;
      codes[tile].convert(step, fragments[step / 2]);
      multiply_step(sums, fragments[step / 2], step % 2, right + at / 16);
      fragments[next / 2].hold(next % 2);
      if (tile == 0 && step == 2 && before != 0) release_stage(before, place.lane);
    }
  }
}

WS_DEVICE void add_packed_stages(Sums& sums, Ring& ring, const Place& place, const Tile& tile) {
  const PackedPlace from(place);
  Fragments fragments[2] = {};
  u32 before = 0;
  zero_sums(sums);
#pragma unroll 1
  for (u32 i = 0; i < tile.stages; ++i, ring.advance()) {
    if (kGroupsK > 1 && i % kGroupsK != place.turn) continue;
    mbarrier_wait(ring.full(), ring.parity);
    add_packed_stage(sums, fragments, from, ring, place, before);
    before = ring.empty();
    if constexpr (kDrains) end_stages(sums, fragments, place, before), before = 0;
  }
  end_stages(sums, fragments, place, before);
}

}  // namespace ws
