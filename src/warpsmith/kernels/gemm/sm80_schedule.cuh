// SPDX-License-Identifier: Apache-2.0
// The problem as the kernel gets it, and which tile of D a block computes.
#pragma once

#include "common/gemm_problem.cuh"
#include "common/shared_load.cuh"
#include "common/shared_store.cuh"
#include "common/types.cuh"
#include "gemm/sm80_config.cuh"

namespace ws {

// Bits of `flags` beside those of every GEMM.
enum : u32 {
  kTiledScalesA = 1 << 7,  // 128x4 (bytes) or m_major (fp32), not linear
  kTiledScalesB = 1 << 8,
  kOneScaleA = 1 << 14,  // fp8_tensor: not one scale for each row
  kOneScaleB = 1 << 15,
};

struct Problem {
  const u8 *a, *b, *a_scales, *b_scales, *bias;
  u8* d;
  const float *alphas, *a_global_scale, *b_global_scale;
  const void* index;
  float* workspace;
  u32* arrivals;
  i64 a_row, b_row, d_row, a_batch, b_batch, d_batch, a_scale_batch, b_scale_batch, bias_batch;  // bytes
  u32 m, n, k, batches;
  float alpha;
  u32 flags;
  WS_DEVICE bool is_grouped() const { return (flags & kKindMask) == kGrouped; }
};

struct Tile {
  u32 batch;             // or group
  u32 row, rows;         // first row within its batch (grouped: of all rows), rows from there to the end of the group
  u32 column, columns;
  u32 scale_row;         // of `row` in 128x4 scales
};

WS_DEVICE void save_tile(u32 to, const Tile& tile) {
  const u32 words[6] = {tile.batch, tile.row, tile.rows, tile.column, tile.columns, tile.scale_row};
#pragma unroll
  for (u32 i = 0; i < 6; ++i) store_shared(to + 4 * i, words[i]);
}

WS_DEVICE Tile load_tile(u32 from) {
  u32 words[6][1];
#pragma unroll
  for (u32 i = 0; i < 6; ++i) load_shared(from + 4 * i, words[i]);
  return {words[0][0], words[1][0], words[2][0], words[3][0], words[4][0], words[5][0]};
}

// Which part of the tile's rows, columns and K a warp has.
struct WarpPlace {
  u32 left, right, k;

  WS_DEVICE WarpPlace() {
    const u32 warp = __shfl_sync(kAllLanes, threadIdx.x / 32, 0);
    constexpr u32 left_warps = Left::kRows / Left::kWarpRows;
    left = warp % left_warps;
    right = warp / left_warps % (kWarpsMN / left_warps);
    k = warp / kWarpsMN;
  }
};

// Tiles of K that this block has: those of its split.
struct KRange {
  u32 begin, end;
};

WS_DEVICE KRange k_range(const Problem& p) {
  const u32 tiles = div_up(p.k, kTileK);
  return {static_cast<u32>(static_cast<u64>(tiles) * blockIdx.y / gridDim.y),
          static_cast<u32>(static_cast<u64>(tiles) * (blockIdx.y + 1) / gridDim.y)};
}

// Finds the group of the `target`-th tile row. Every thread looks at one group: prefix sums over a warp, then over the
// warps. Returns false where there are fewer tile rows.
WS_DEVICE bool find_group(const Problem& p, u32 target, u32* words, u32& group, u32& tile_row) {
  constexpr u32 warps = kThreads / 32;
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  u32 before = 0;  // tile rows of the groups already seen
#pragma unroll 1
  for (u32 base = 0; base < p.batches; base += kThreads) {
    const u32 g = base + threadIdx.x;
    u32 count = 0;
    if (g < p.batches) {
      const u32 first = read_index(p, g), end = read_index(p, g + 1);
      count = end > first ? div_up(end - first, kTileM) : 0;
    }
    u32 through = count;
#pragma unroll
    for (u32 distance = 1; distance < 32; distance *= 2) {
      const u32 other = __shfl_up_sync(kAllLanes, through, distance);
      if (lane >= distance) through += other;
    }
    if (lane == 31) words[2 + warp] = through;
    if (threadIdx.x == 0) words[0] = ~0u;
    __syncthreads();
    u32 total = 0;
#pragma unroll
    for (u32 w = 0; w < warps; ++w) {
      if (w == warp) through += before + total;
      total += words[2 + w];
    }
    if (target < through && target >= through - count) {
      words[0] = g;
      words[1] = target - (through - count);
    }
    __syncthreads();
    group = words[0];
    tile_row = words[1];
    if (group != ~0u) return true;
    before += total;
    __syncthreads();
  }
  return false;
}

// The tile of block `index`, or false where it has none.
WS_DEVICE bool find_tile(const Problem& p, u32 index, u32* shared_words, Tile& tile) {
  const u32 tile_columns = div_up(p.n, kTileN), kind = p.flags & kKindMask;
  u32 first = 0, rows = p.m, in_matrix;
  if (kind == kGrouped) {
    u32 tile_row;
    if (!find_group(p, index / tile_columns, shared_words, tile.batch, tile_row)) return false;
    first = read_index(p, tile.batch);
    rows = read_index(p, tile.batch + 1) - first;
    in_matrix = tile_row * tile_columns + index % tile_columns;
  } else {
    const u32 per_matrix = div_up(p.m, kTileM) * tile_columns;
    tile.batch = index / per_matrix;
    in_matrix = index % per_matrix;
    if (kind == kMasked) rows = read_index(p, tile.batch);
    if (in_matrix >= div_up(rows, kTileM) * tile_columns) return false;
  }
  u32 tile_row, tile_column;
  place(in_matrix, div_up(rows, kTileM), tile_columns, tile_row, tile_column);
  tile.row = first + tile_row * kTileM;
  tile.rows = rows - tile_row * kTileM;
  tile.column = tile_column * kTileN;
  tile.columns = p.n - tile.column;
  // Group g's 128x4 scales start at row ⌊(index[g] + 127·g) / 128⌋ · 128.
  const u32 start = kind == kGrouped ? (first + 127 * tile.batch) / 128 * 128 : 0;
  tile.scale_row = start + tile_row * kTileM;
  return true;
}

}  // namespace ws
