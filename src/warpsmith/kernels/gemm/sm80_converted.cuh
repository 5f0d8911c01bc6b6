// SPDX-License-Identifier: Apache-2.0
// The main loop for large tiles of quantized operands: every element is converted once for the block, not once for each
// warp that multiplies it.
//
// A thread converts the chunks that it copied itself, one tile of K ahead of the MMAs, to a 16-bit tile that ldmatrix
// reads. One barrier a tile stands between them. Groups of 8 elements keep the order that the conversion leaves them in,
// if both operands share it.
#pragma once

#include "common/cp_async.cuh"
#include "common/shared_load.cuh"
#include "common/shared_store.cuh"
#include "common/types.cuh"
#include "gemm/sm80_config.cuh"
#include "gemm/sm80_fragments.cuh"
#include "gemm/sm80_producer.cuh"
#include "gemm/sm80_schedule.cuh"
#include "gemm/sm80_tile_copy.cuh"

namespace ws {

constexpr u32 kWideChunks = kTileK / 8;  // 16-byte chunks of a row of a 16-bit tile

// Eight elements in the order of K.
WS_DEVICE void to_natural(u32 (&pairs)[4]) {
  constexpr u32 a = kBf16 ? 1 : 2, b = kBf16 ? 2 : 1;  // pairs 0 and a interleave, b and 3 do
  const u32 first_low = permute(pairs[0], pairs[a], 0x5410), first_high = permute(pairs[0], pairs[a], 0x7632);
  const u32 second_low = permute(pairs[b], pairs[3], 0x5410), second_high = permute(pairs[b], pairs[3], 0x7632);
  pairs[0] = first_low, pairs[1] = kBf16 ? second_low : first_high;
  pairs[2] = kBf16 ? first_high : second_low, pairs[3] = second_high;
}

// Converts this thread's chunks of a tile, those that TileCopy<Op> copied.
template <class Op>
struct Converter {
  static constexpr u32 kChunksInTile = Op::kRows * Op::kChunks;
  static constexpr u32 kCopies = kChunksInTile <= kThreads ? 1 : kChunksInTile / kThreads;
  static constexpr u32 kRowStep = kThreads / Op::kChunks;
  static constexpr u32 kWide = 16 / Op::kBits;  // chunks that one becomes
  static constexpr bool kNatural = Op::kBits == 4 && (Left::kBits == 16 || Right::kBits == 16);

  WS_DEVICE static void convert(u32 packed, u32 decoded, u32 wide) {
    if (kChunksInTile < kThreads && threadIdx.x >= kChunksInTile) return;
    const u32 first_row = threadIdx.x / Op::kChunks, chunk = threadIdx.x % Op::kChunks;
#pragma unroll
    for (u32 i = 0; i < kCopies; ++i) {
      const u32 row = first_row + i * kRowStep;
      u32 words[4];
      load_shared(packed + row * Op::kRowBytes + ((chunk ^ chunk_swizzle<Op::kChunks>(row)) << 4), words);
      u32 scales[2] = {};
      if constexpr (Op::kScalesElements) {
#pragma unroll
        for (u32 j = 0; j < 2; ++j) {
          u32 word[1];
          load_shared(decoded + ((2 * chunk + j) * Op::kScaleStride + row) * 4, word);
          scales[j] = word[0];
        }
      }
#pragma unroll
      for (u32 j = 0; j < kWide; ++j) {
        u32 source[Op::kWords], pairs[4];
#pragma unroll
        for (u32 w = 0; w < Op::kWords; ++w) source[w] = words[j * Op::kWords + w];
        to_pairs<Op>(source, scales[j / 2 % 2], pairs);
        if constexpr (kNatural) to_natural(pairs);
        const u32 to = (chunk * kWide + j) ^ chunk_swizzle<kWideChunks>(row);
        store_shared(wide + row * kTileK * 2 + (to << 4), pairs);
      }
    }
  }
};

// Reads 16-bit tiles with ldmatrix: for two groups of 8 rows, both chunks of a step of 16.
template <class Op, bool kIsLeft>
struct WideReader {
  u32 offset;

  WS_DEVICE explicit WideReader(u32 warp) {
    const u32 lane = threadIdx.x % 32;
    const u32 row = (kIsLeft ? lane / 8 % 2 : lane / 16) * 8 + lane % 8, chunk = kIsLeft ? lane / 16 : lane / 8 % 2;
    offset = (warp * Op::kWarpRows + row) * kTileK * 2 + ((chunk ^ chunk_swizzle<kWideChunks>(row)) << 4);
  }
  WS_DEVICE void read(u32 tile, u32 step, u32 pair, u32 (&words)[4]) const {
    ldmatrix_x4(tile + (offset ^ step << 5) + pair * 16 * kTileK * 2, words[0], words[1], words[2], words[3]);
  }
};

struct ConvertedLoop {
  Producer& producer;
  WarpPlace place;
  WideReader<Left, true> left;
  WideReader<Right, false> right;
  u32 k_tile, slot;

  // K that one factor covers within a tile, in steps of 32.
  static constexpr u32 kLeftBlock = Left::kScalesSums ? Left::kBlock : kTileK;
  static constexpr u32 kRightBlock = Right::kScalesSums ? Right::kBlock : kTileK;
  static constexpr u32 kBlock = kLeftBlock < kRightBlock ? kLeftBlock : kRightBlock;
  static constexpr u32 kSpan = (kBlock < kTileK ? kBlock : kTileK) / 32;

  WS_DEVICE explicit ConvertedLoop(Producer& source)
      : producer(source), left(place.left), right(place.right), k_tile(source.next), slot(0) {}

  WS_DEVICE u32 wide(u32 tile) const { return producer.shared + Shared::kWide + tile % 2 * Shared::kWideStage; }
  WS_DEVICE u32 packed(u32 in_slot) const { return producer.shared + in_slot * Shared::kStage; }

  WS_DEVICE void convert(u32 tile, u32 from_slot) const {
    if (tile >= producer.end) return;
    if constexpr (Left::kBits < 16) {
      Converter<Left>::convert(packed(from_slot), producer.left_decoded(tile), wide(tile));
    }
    if constexpr (Right::kBits < 16) {
      Converter<Right>::convert(packed(from_slot) + Left::kTileBytes, producer.right_decoded(tile),
                                wide(tile) + Shared::kWideLeft);
    }
  }

  // into += one step of 32.
  WS_DEVICE void multiply(Sums& into, u32 left_tile, u32 right_tile, u32 step) const {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      u32 columns[kN8 / 2][4], rows[kM16][4];
#pragma unroll
      for (u32 n = 0; n < kN8 / 2; ++n) right.read(right_tile, 2 * step + half, n, columns[n]);
#pragma unroll
      for (u32 m = 0; m < kM16; ++m) left.read(left_tile, 2 * step + half, m, rows[m]);
#pragma unroll
      for (u32 m = 0; m < kM16; ++m) {
#pragma unroll
        for (u32 n = 0; n < kN8; ++n) mma(into[m][n], rows[m], {columns[n / 2][n % 2 * 2], columns[n / 2][n % 2 * 2 + 1]});
      }
    }
  }

  WS_DEVICE void multiply_stage(Sums& sums) const {
    const u32 left_tile = Left::kBits < 16 ? wide(k_tile) : packed(slot);
    const u32 right_tile = Right::kBits < 16 ? wide(k_tile) + Shared::kWideLeft : packed(slot) + Left::kTileBytes;
#pragma unroll
    for (u32 first = 0; first < kTileK / 32; first += kSpan) {
      if constexpr (!kScaledSums) {
#pragma unroll
        for (u32 step = first; step < first + kSpan; ++step) multiply(sums, left_tile, right_tile, step);
      } else {
        Sums block = {};
#pragma unroll
        for (u32 step = first; step < first + kSpan; ++step) multiply(block, left_tile, right_tile, step);
        StepScales<Left, true> left_scales;
        StepScales<Right, false> right_scales;
        left_scales.read(producer.left_decoded(k_tile), place.left, first);
        right_scales.read(producer.right_decoded(k_tile), place.right, first);
#pragma unroll
        for (u32 m = 0; m < kM16; ++m) {
#pragma unroll
          for (u32 n = 0; n < kN8; ++n) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
              const float factor = sum_factor(left_scales, right_scales, m, n, i / 2, i % 2);
              sums[m][n][i] = __fmaf_rn(block[m][n][i], factor, sums[m][n][i]);
            }
          }
        }
      }
    }
  }

  WS_DEVICE void run(Sums& sums) {
    producer.start();
    producer.decode_scales(k_tile + 1, 1);
    convert(k_tile, 0);
    __syncthreads();
#pragma unroll 1
    while (k_tile < producer.end) {
      const u32 second = slot + 1 == kStages ? 0 : slot + 1, third = second + 1 == kStages ? 0 : second + 1;
      wait_for_copies<kStages - 2>();
      producer.decode_scales(k_tile + 2, third);
      convert(k_tile + 1, second);
      multiply_stage(sums);
      __syncthreads();
      producer.copy_stage(slot);
      slot = second;
      ++k_tile;
    }
    wait_for_copies<0>();
    __syncthreads();
  }
};

// Sums of this block's part of K.
WS_DEVICE void multiply_tile(Sums& sums, const Problem& p, const Tile& tile, u32 shared) {
  Producer producer = make_producer(p, tile, shared);
  ConvertedLoop(producer).run(sums);
}

}  // namespace ws
