// SPDX-License-Identifier: Apache-2.0
// Block scales of quantized rows of B: from either layout to a stage, and from there to registers.
#pragma once

#include "common/cp_async.cuh"
#include "common/dependent_launch.cuh"
#include "common/mbarrier.cuh"
#include "common/shared_load.cuh"
#include "common/tma.cuh"
#include "gemm/sm90_config.cuh"
#include "gemm/sm90_mixed_fragments.cuh"
#include "gemm/sm90_producer.cuh"
#include "gemm/sm90_schedule.cuh"

namespace ws {

constexpr u32 kScaleK = kNvfp4 ? 16 : 32, kStageScales = Scales::kOfRow;  // K of a scale; a row's in a stage

// Arrivals at a stage's barrier that its scales take: of one lane, or each.
WS_DEVICE u32 scale_arrivals(const Problem& p) { return kSquares || p.flags & kTiledScalesB ? 1 : 32; }

// Tiled, 128 rows by four scales are 512 bytes, and those behind each other the next four scales.
struct TiledScaleCopy {
  const u8* source;
  u32 words, tiles, pitch;  // of a row; tiles of 128 rows; bytes from one to the next

  WS_DEVICE TiledScaleCopy(const Problem& p, const Tile& tile) {
    words = div_up(p.k / kScaleK, 4);
    pitch = words * 512;
    tiles = min(Scales::kTiles, div_up(p.n, 128) - tile.column / 128);
    source = p.b_scales + tile.batch * p.b_scale_batch + static_cast<i64>(tile.column / 128) * pitch;
  }

  WS_DEVICE void copy(u32 stage, u32 to, u32 full) const {
    const u32 first = stage * kStageScales / 4, bytes = min(Scales::kWords, words - first) * 512;
    mbarrier_arrive_expect(full, tiles * bytes);
#pragma unroll 1
    for (u32 i = 0; i < tiles; ++i) {
      load_bulk(to + i * Scales::kWords * 512, source + static_cast<i64>(i) * pitch + first * 512, bytes, full);
    }
  }
};

// Linear: a row's scales of a stage by whole words, from the one that the first scale is in on. A lane has every 32nd row.
struct LinearScaleCopy {
  static constexpr u32 kRows = div_up(kTileN, 32), kBytes = kStageScales;  // of a lane; of a row in a stage
  const u8 *from[kRows], *end;
  u32 pitch, rows;

  WS_DEVICE LinearScaleCopy(const Problem& p, const Tile& tile, u32 lane) : pitch(p.k / kScaleK) {
    const u8* const matrix = p.b_scales + tile.batch * p.b_scale_batch;
    const u32 count = min(kTileN, p.n - tile.column);
    end = matrix + static_cast<i64>(p.n) * pitch;
    rows = count > lane ? (count - lane + 31) / 32 : 0;
#pragma unroll
    for (u32 i = 0; i < kRows; ++i) {
      const u8* const first = matrix + static_cast<i64>(tile.column + lane + i * 32) * pitch;
      from[i] = first - (reinterpret_cast<u64>(first) & 3);
    }
  }

  // `to`: the lane's word of a stage.
  WS_DEVICE void copy(u32 stage, u32 to, u32 full) const {
    const u32 offset = stage * kBytes & ~3u;
    if (offset + 4 * Scales::kWords + 4 <= pitch) {
#pragma unroll
      for (u32 i = 0; i < kRows; ++i) {
        if (i >= rows) break;
        const u8* const words = from[i] + offset;
#pragma unroll
        for (u32 w = 0; w <= Scales::kWords; ++w) copy_async_4(to + (w * kTileN + i * 32) * 4, words + 4 * w, 4);
      }
    } else {
      copy_last(offset, to);
    }
    arrive_after_copies(full);
  }

 private:
  // Where words may end behind the matrix.
  WS_DEVICE void copy_last(u32 offset, u32 to) const {
#pragma unroll
    for (u32 i = 0; i < kRows; ++i) {
      if (i >= rows) break;
#pragma unroll
      for (u32 w = 0; w <= Scales::kWords; ++w) {
        const i64 rest = end - (from[i] + offset + 4 * w);
        const u32 bytes = static_cast<u32>(max(0ll, min(rest, 4ll)));
        copy_async_4(to + (w * kTileN + i * 32) * 4, bytes != 0 ? from[i] + offset + 4 * w : from[i], bytes);
      }
    }
  }
};

// The warp that copies block scales of the tiles that the other producer warp walks.
WS_DEVICE void produce_mixed_scales(const Problem& p, Ring ring, u32 lane, u32 rank) {
  wait_for_predecessor();
  const bool tiled = p.flags & kTiledScalesB;
  TileFinder finder(p, lane, kCluster > 1 ? rank : 0);
  Tile tile;
#pragma unroll 1
  for (u32 unit = blockIdx.x / kClusterBlocks;; unit += gridDim.x / kClusterBlocks) {
    const u32 number = divide(p, unit, rank, tile);
    if ((kPartsK > 1 && tile.stages == 0) || !finder.find(p, number, tile)) break;
    const TiledScaleCopy by_tiles(p, tile);
    const LinearScaleCopy by_words(p, tile, lane);
#pragma unroll 1
    for (u32 i = 0; i < tile.stages; ++i, ring.advance()) {
      mbarrier_wait(ring.empty(), ring.parity ^ 1);
      if (!tiled) {
        by_words.copy(tile.first_stage + i, ring.scales() + lane * 4, ring.full());
      } else if (lane == 0) {
        by_tiles.copy(tile.first_stage + i, ring.scales(), ring.full());
      }
    }
  }
  mbarrier_wait(ring.empty(), ring.parity ^ 1);
  if (lane == 0 || !tiled) mbarrier_arrive(ring.full());
}

// Where a lane's rows g and g + 8 of 16 have their scales in a stage.
struct ScalePlace {
  u32 rows[kM64][2], step;  // bytes to the first word; from word to word
  u32 before[kM64][2];      // scales of a row's first word that are of the row before
  u32 blocks;               // scales of a row

  WS_DEVICE ScalePlace(const Problem& p, const Tile& tile, const Place& place) {
    const bool tiled = p.flags & kTiledScalesB;
    const u32 pitch = blocks = p.k / kScaleK;
    step = tiled ? 512 : kTileN * 4;
#pragma unroll
    for (u32 i = 0; i < kM64; ++i) {
#pragma unroll
      for (u32 h = 0; h < 2; ++h) {
        const u32 row = place.left() + i * 64 + place.warp * 16 + place.lane / 4 + h * 8;
        const u32 r = row + tile.column % 128;  // a tile of 64 rows may be the second half of 128
        rows[i][h] = tiled ? r / 128 * Scales::kWords * 512 + r % 32 * 16 + r % 128 / 32 * 4 : row * 4;
        before[i][h] = tiled ? 0 : (tile.column + row) * pitch % 4;
      }
    }
  }

  // Returns the unit of sums.
  WS_DEVICE float read(u32 scales, u32 stage, RowScales (&of)[kM64][2]) const {
    const u32 first = stage * kStageScales;
#pragma unroll
    for (u32 i = 0; i < kM64; ++i) {
#pragma unroll
      for (u32 h = 0; h < 2; ++h) {
        u32 words[Scales::kWords + 1];
#pragma unroll
        for (u32 w = 0; w < Scales::kWords + 1; ++w) words[w] = load_shared_u32(scales + rows[i][h] + w * step);
        const u32 at = before[i][h] + first % 4;
        if (kStageScales < 4 && at >= 4) words[0] = words[1];  // half a word, all in the second one
#pragma unroll
        for (u32 w = 0; w < Scales::kWords; ++w) {
          of[i][h].codes[w] = __funnelshift_r(words[w], words[w + 1], at * 8);
        }
      }
    }
    if (first + kStageScales > blocks) mask(of, blocks - first);
#pragma unroll
    for (u32 i = 0; i < kM64 * 2; ++i) of[i / 2][i % 2].prepare();
    return 1.0f;
  }

 private:
  // Beyond K scales can be anything, and codes are 0.
  WS_DEVICE static void mask(RowScales (&of)[kM64][2], u32 scales) {
#pragma unroll
    for (u32 w = 0; w < Scales::kWords; ++w) {
      const u32 bits = scales >= 4 * w + 4 ? ~0u : scales <= 4 * w ? 0u : (1u << (scales - 4 * w) * 8) - 1;
#pragma unroll
      for (u32 i = 0; i < kM64 * 2; ++i) of[i / 2][i % 2].codes[w] &= bits;
    }
  }
};

}  // namespace ws
