// SPDX-License-Identifier: Apache-2.0
// Tiles of elements and scales on their way to shared memory, several stages ahead, for the loops that all warps of a
// block share.
#pragma once

#include "common/cp_async.cuh"
#include "common/types.cuh"
#include "gemm/sm80_config.cuh"
#include "gemm/sm80_scales.cuh"
#include "gemm/sm80_schedule.cuh"
#include "gemm/sm80_tile_copy.cuh"

namespace ws {

// The copies of one block, for a range of tiles along K.
struct Producer {
  TileCopy<Left> left;
  TileCopy<Right> right;
  ScaleCopyOf<Left>::Type left_scales;
  ScaleCopyOf<Right>::Type right_scales;
  u32 shared, next, end;  // next: the tile of K to copy next

  WS_DEVICE u32 left_raw(u32 slot) const { return shared + Shared::kLeftRaw + slot * Left::kUnits * Left::kUnitBytes; }
  WS_DEVICE u32 right_raw(u32 slot) const {
    return shared + Shared::kRightRaw + slot * Right::kUnits * Right::kUnitBytes;
  }
  WS_DEVICE u32 left_decoded(u32 k_tile) const {
    return shared + Shared::kLeftScales + k_tile % 2 * Left::kDecodedBytes;
  }
  WS_DEVICE u32 right_decoded(u32 k_tile) const {
    return shared + Shared::kRightScales + k_tile % 2 * Right::kDecodedBytes;
  }

  // One group: the elements of tile `next`, and the scales of the one after it.
  WS_DEVICE void copy_stage(u32 slot) {
    if (next < end) {
      left.copy(shared + slot * Shared::kStage);
      right.copy(shared + slot * Shared::kStage + Left::kTileBytes);
    }
    if (next + 1 < end) {
      const u32 next_slot = slot + 1 == kStages ? 0 : slot + 1;
      left_scales.copy(left_raw(next_slot), next + 1);
      right_scales.copy(right_raw(next_slot), next + 1);
    }
    commit_copies();
    ++next;
  }

  WS_DEVICE void decode_scales(u32 k_tile, u32 slot) const {
    if (k_tile >= end) return;
    left_scales.decode(left_raw(slot), left_decoded(k_tile), k_tile);
    right_scales.decode(right_raw(slot), right_decoded(k_tile), k_tile);
  }

  // Copies for all stages. The first scales have no group before theirs, nor a place in the ring that is not needed:
  // they come to where the second will be decoded.
  WS_DEVICE void start() {
    const u32 first = next;
    if (first < end) {
      left_scales.copy(left_decoded(first + 1), first);
      right_scales.copy(right_decoded(first + 1), first);
    }
#pragma unroll
    for (u32 slot = 0; slot < kStages; ++slot) copy_stage(slot);
    wait_for_copies<kStages - 1>();
    if (first < end) {
      left_scales.decode(left_decoded(first + 1), left_decoded(first), first);
      right_scales.decode(right_decoded(first + 1), right_decoded(first), first);
    }
    __syncthreads();
  }
};

WS_DEVICE ScaleSource scales_of_a(const Problem& p, const Tile& tile) {
  const bool tiled = p.flags & kTiledScalesA, padded = tiled && Format::of_a != Format::fp8_block;
  return {p.is_grouped() ? p.a_scales : p.a_scales + tile.batch * p.a_scale_batch,
          padded ? tile.scale_row : tile.row, tile.rows, p.m, p.k, tiled};
}

WS_DEVICE ScaleSource scales_of_b(const Problem& p, const Tile& tile) {
  return {p.b_scales + tile.batch * p.b_scale_batch, tile.column, tile.columns, p.n, p.k,
          (p.flags & kTiledScalesB) != 0};
}

// For this block's part of K.
WS_DEVICE Producer make_producer(const Problem& p, const Tile& tile, u32 shared) {
  const u8* const a = (p.is_grouped() ? p.a : p.a + tile.batch * p.a_batch) + tile.row * p.a_row;
  const u8* const b = p.b + tile.batch * p.b_batch + tile.column * p.b_row;
  const auto [begin, end] = k_range(p);
  const ScaleSource a_scales = scales_of_a(p, tile), b_scales = scales_of_b(p, tile);
  return {
      {kSwap ? b : a, kSwap ? p.b_row : p.a_row, kSwap ? tile.columns : tile.rows, p.k, begin},
      {kSwap ? a : b, kSwap ? p.a_row : p.b_row, kSwap ? tile.rows : tile.columns, p.k, begin},
      ScaleCopyOf<Left>::Type(kSwap ? b_scales : a_scales),
      ScaleCopyOf<Right>::Type(kSwap ? a_scales : b_scales),
      shared,
      begin,
      end};
}

}  // namespace ws
