// SPDX-License-Identifier: Apache-2.0
// The main loop for few rows of A and quantized weights: a stream of weights that each warp runs for itself.
//
// A warp owns whole rows of the tile of B and every kWarpsK-th segment of 128 along K. It copies a segment's weights and
// scales to a ring of its own, kStages segments ahead, and is the only one to read them: no block barrier stands in the
// loop, and warps drift apart so that copies never stop. Rows of A are few and shared by all: they come straight from L1
// or L2 into registers, a segment ahead.
//
// In shared memory lane l's 16 bytes of a group of 8 rows lie at 16·l. nvfp4: lane 4g+t has chunk t of row g, 32
// elements of two blocks, and reads back what it copied. All others: lane 8c+g has chunk c of row g, and ldmatrix gives
// lane 4g+t word t of each chunk, so that the elements of a step of K lie in one block and share the factor of their sum.
#pragma once

#include "common/convert.cuh"
#include "common/cp_async.cuh"
#include "common/ptx.cuh"
#include "common/shared_load.cuh"
#include "common/types.cuh"
#include "gemm/sm80_config.cuh"
#include "gemm/sm80_fragments.cuh"
#include "gemm/sm80_scales.cuh"
#include "gemm/sm80_schedule.cuh"

namespace ws {

struct alignas(16) Quad {
  u32 words[4];
};
struct alignas(8) Duo {
  u32 words[2];
};

class Stream {
  using Ring = StreamRing;
  static constexpr u32 kGroups = Left::kGroups;
  static constexpr u32 kPieces = Left::kBits / 4;  // 64 bytes of a row each
  static constexpr bool kOwn = Left::kScalesElements;
  static constexpr u32 kSegmentSteps = Ring::kSegment / 32;
  static constexpr u32 kBlocksOfSegment = Ring::kSegment / Left::kBlock;

 public:
  WS_DEVICE Stream(const Problem& p, const Tile& tile, const WarpPlace& place, u32 shared)
      : ring_(shared + threadIdx.x / 32 * kStages * Ring::kSlot), k_(p.k), b_row_(static_cast<u32>(8 * p.b_row)) {
    const u32 lane = threadIdx.x % 32, g = kOwn ? lane / 4 : lane % 8, chunk = kOwn ? lane % 4 : lane / 8;
    const u32 first = place.left * Left::kWarpRows;
    groups_ = tile.columns > first ? min((tile.columns - first) / 8, kGroups) : 0;
    chunk_ = chunk * (128 / Left::kBits);
    weights_ = p.b + tile.batch * p.b_batch + (tile.column + first + g) * p.b_row + chunk * 16;
    start_scales(p, tile, tile.column + first);
    const u32 t = lane % 4, rows = tile.rows;
    const u8* const a = (p.is_grouped() ? p.a : p.a + tile.batch * p.a_batch) + tile.row * p.a_row;
#pragma unroll
    for (u32 n = 0; n < kN8; ++n) {
      const u8* const row = a + min(8 * n + lane / 4, rows - 1) * p.a_row + (kOwn ? 64 * t : kPieces == 1 ? 16 * t : 8 * t);
      if (n == 0) rows_ = row;
      row_offsets_[n] = static_cast<u32>(row - rows_);
    }
  }

  // Segments [begin, end) of K, of which this warp has every kWarpsK-th.
  WS_DEVICE void run(Sums& sums, u32 begin, u32 end) {
    u32 next = begin;
#pragma unroll
    for (u32 slot = 0; slot < kStages; ++slot, next += kWarpsK) copy(slot, next, end);
    if (begin < end) {
#pragma unroll
      for (u32 step = 0; step < kSegmentSteps; ++step) read_rows(begin, step);
    }
    u32 slot = 0;
#pragma unroll 1
    for (u32 segment = begin; segment < end; segment += kWarpsK, next += kWarpsK) {
      wait_for_copies<kStages - 1>();
      __syncwarp();
      read_weights(slot);
      __syncwarp();
      multiply_segment(sums, segment + kWarpsK < end ? segment + kWarpsK : segment, slot, next, end);
      slot = slot + 1 == kStages ? 0 : slot + 1;
    }
    wait_for_copies<0>();
    __syncthreads();
  }

 private:
  WS_DEVICE void start_scales(const Problem& p, const Tile& tile, u32 row) {
    const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const u8* const data = p.b_scales + tile.batch * p.b_scale_batch;
    const u32 blocks = p.k / Left::kBlock;
    if constexpr (Left::kFloatScales) {
      scales_ = data + static_cast<i64>(row / 128) * blocks * 4;
      segment_step_ = 4;
      return;
    }
    const bool tiled = p.flags & kTiledScalesB;
    const u32 first_block = kOwn ? 2 * t : 0;
    const auto offset = [&](u32 r) {
      return tiled ? r / 128 * div_up(blocks, 4) * 512 + r % 32 * 16 + r % 128 / 32 * 4 : r * blocks;
    };
    // 8 rows on, a linear row is a multiple of 8 bytes away: all groups are misaligned alike.
    const u32 start = row / 128 * 128;
    const u8* const from = data + static_cast<i64>(start) * (tiled ? div_up(blocks, 4) * 4 : blocks) +
                           (tiled ? first_block / 4 * 512 + first_block % 4 : first_block);
    const u32 in_start = row - start + g;
    const u32 misaligned = static_cast<u32>(reinterpret_cast<u64>(from) + offset(in_start)) & 3;
    shift_ = 8 * misaligned;
    scales_ = from - misaligned + (kOwn ? 0 : 4 * t);
    segment_step_ = tiled ? kBlocksOfSegment / 4 * 512 : kBlocksOfSegment;
#pragma unroll
    for (u32 i = 0; i < kGroups; ++i) scale_offsets_[i] = offset(in_start + 8 * i);
  }

  // One group of copies, empty beyond the end. Rows and K beyond the operand become zeros.
  WS_DEVICE void copy(u32 slot, u32 segment, u32 end) {
    if (segment < end) {
      const u32 lane = threadIdx.x % 32, to = ring_ + slot * Ring::kSlot + lane * 16;
      const u32 left = k_ - segment * Ring::kSegment;  // elements of the row from the segment on
      const u8* from = weights_ + static_cast<i64>(segment) * (Ring::kSegment * Left::kBits / 8);
#pragma unroll
      for (u32 i = 0; i < kGroups; ++i, from += b_row_) {
#pragma unroll
        for (u32 piece = 0; piece < kPieces; ++piece) {
          const bool inside = i < groups_ && chunk_ + piece * (512 / Left::kBits) < left;
          copy_async_16(to + (i * kPieces + piece) * 512, from + piece * 64, inside ? 16 : 0);
        }
      }
      copy_scales(ring_ + slot * Ring::kSlot + Ring::kWeightBytes, segment);
    }
    commit_copies();
  }

  WS_DEVICE void copy_scales(u32 to, u32 segment) const {
    const u32 lane = threadIdx.x % 32, t = lane % 4;
    const u8* const from = scales_ + static_cast<i64>(segment) * segment_step_;
    if constexpr (Left::kFloatScales) {
      if (lane == 0) copy_async_4(to, from, groups_ ? 4 : 0);
    } else if constexpr (kOwn) {
      const u32 bytes = segment * Ring::kSegment + chunk_ < k_ ? 4 : 0;
#pragma unroll
      for (u32 i = 0; i < kGroups; ++i) {
        copy_async_4(to + i * 128 + lane * 4, from + scale_offsets_[i], i < groups_ ? bytes : 0);
      }
    } else if (t < 2) {
      const u32 valid = min(k_ / Left::kBlock - segment * kBlocksOfSegment, kBlocksOfSegment) + shift_ / 8;
      const u32 bytes = t == 0 ? min(valid, 4u) : valid > 4 ? valid - 4 : 0;
#pragma unroll
      for (u32 i = 0; i < kGroups; ++i) {
        copy_async_4(to + i * 64 + lane / 4 * 8 + t * 4, from + scale_offsets_[i], i < groups_ ? bytes : 0);
      }
    }
  }

  WS_DEVICE void read_weights(u32 slot) {
    const u32 from = ring_ + slot * Ring::kSlot, lane = threadIdx.x % 32;
#pragma unroll
    for (u32 i = 0; i < kGroups * kPieces; ++i) {
      Quad& q = weight_words_[i];
      if constexpr (kOwn) {
        load_shared(from + i * 512 + lane * 16, q.words);
      } else {
        ldmatrix_x4(from + i * 512 + lane * 16, q.words[0], q.words[1], q.words[2], q.words[3]);
      }
    }
    const u32 scales = from + Ring::kWeightBytes;
    if constexpr (Left::kFloatScales) {
      u32 word[1];
      load_shared(scales, word);
      codes_[0] = word[0];
    } else if constexpr (kOwn) {
#pragma unroll
      for (u32 i = 0; i < kGroups; ++i) {
        u32 word[1];
        load_shared(scales + i * 128 + lane * 4, word);
        codes_[i] = word[0] >> shift_;
      }
    } else {
#pragma unroll
      for (u32 i = 0; i < kGroups; ++i) {
        u32 words[2];
        load_shared(scales + i * 64 + lane / 4 * 8, words);
        codes_[i] = __funnelshift_r(words[0], words[1], shift_);
      }
    }
  }

  // This lane's elements of A for a step. The last segment may be cut short, by whole steps or a lane's whole chunk.
  WS_DEVICE void read_rows(u32 segment, u32 step) {
    const i64 from = static_cast<i64>(segment) * (Ring::kSegment * 2) + step * (kOwn ? 16 : 64);
    const u32 left = k_ - segment * Ring::kSegment;
    const bool inside = left >= Ring::kSegment || (kOwn ? threadIdx.x % 4 * 32 : step * 32) < left;
#pragma unroll
    for (u32 n = 0; n < kN8; ++n) {
      u32(&words)[4] = row_words_[step][n];
      if (!inside) {
        words[0] = words[1] = words[2] = words[3] = 0;
      } else if constexpr (kPieces == 1) {
        const Quad quad = *reinterpret_cast<const Quad*>(rows_ + row_offsets_[n] + from);
        words[0] = quad.words[0], words[1] = quad.words[1], words[2] = quad.words[2], words[3] = quad.words[3];
      } else {
        const Duo low = *reinterpret_cast<const Duo*>(rows_ + row_offsets_[n] + from);
        const Duo high = *reinterpret_cast<const Duo*>(rows_ + row_offsets_[n] + from + 32);
        words[0] = low.words[0], words[1] = low.words[1], words[2] = high.words[0], words[3] = high.words[1];
      }
    }
  }

  // 2^(code − 127) of byte `i`: 0 is 2^−127, 255 NaN.
  WS_DEVICE static float factor(u32 codes, u32 i) {
    const u32 bits = (i < 3 ? codes << (23 - 8 * i) : codes >> 1) & kInfinity;
    const float power = fmaxf(float_of(bits), float_of(0x00400000u));
    return __fmaf_rn(power, 0.0f, power);
  }

  // Pairs of the scales of this lane's two blocks of a group.
  WS_DEVICE static void element_scales(u32 codes, u32 (&pairs)[2]) {
    float values[4];
    decode_e4m3x4(codes, values);
    constexpr float power = kBf16 ? 0x1p119f : 0x1p7f;
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      const float value = __fmul_rn(values[i], power);
      pairs[i] = kBf16 ? pack_bf16x2(value, value) : pack_f16x2(value, value);
    }
  }

  // into += weights of MMA tile m and step · rows of A.
  WS_DEVICE void multiply_step(float (&into)[kN8][4], u32 m, u32 step, const u32 (&scales)[2], const Columns& columns) const {
    u32 low[4], high[4];
    u32 words[2][Left::kWords];
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
#pragma unroll
      for (u32 i = 0; i < Left::kWords; ++i) {
        const u32 word = step * kPieces + i;  // of the group's 4 · kPieces
        words[half][i] = weight_words_[(2 * m + half) * kPieces + word / 4].words[word % 4];
      }
    }
    to_pairs<Left>(words[0], scales[0], low);
    to_pairs<Left>(words[1], scales[1], high);
#pragma unroll
    for (u32 i = 0; i < 4; i += 2) {
#pragma unroll
      for (u32 n = 0; n < kN8; ++n) {
        mma(into[n], {low[i], high[i], low[i + 1], high[i + 1]}, {columns[n][i], columns[n][i + 1]});
      }
    }
  }

  // Multiplies the segment whose weights have been read. Reads the rows of A for the one after it, and copies segment
  // `next` to the slot that is free, as soon as there are registers for the addresses.
  WS_DEVICE void multiply_segment(Sums& sums, u32 following, u32 slot, u32 next, u32 end) {
    constexpr u32 copy_step = kN8 * kM16 > 2 ? 2 : 0;
    u32 scales[kGroups][2] = {};
    if constexpr (kOwn) {
#pragma unroll
      for (u32 i = 0; i < kGroups; ++i) element_scales(codes_[i], scales[i]);
    }
    Sums block = {};
#pragma unroll
    for (u32 step = 0; step < kSegmentSteps; ++step) {
      Columns columns;
      const StepScales<Right, false> none{};
      to_columns(row_words_[step], none, columns);
      read_rows(following, step);
      if (step == copy_step) copy(slot, next, end);
#pragma unroll
      for (u32 m = 0; m < kM16; ++m) {
        const u32 pair[2] = {scales[2 * m][step / 2], scales[2 * m + 1][step / 2]};
        if constexpr (kOwn) {
          multiply_step(sums[m], m, step, pair, columns);
        } else if constexpr (Left::kFloatScales) {
          multiply_step(block[m], m, step, pair, columns);
        } else {
          float of_step[kN8][4] = {};
          multiply_step(of_step, m, step, pair, columns);
          add_scaled(sums[m], of_step, factor(codes_[2 * m], step), factor(codes_[2 * m + 1], step));
        }
      }
    }
    if constexpr (Left::kFloatScales) {
      const float scale = float_of(codes_[0]);
#pragma unroll
      for (u32 m = 0; m < kM16; ++m) add_scaled(sums[m], block[m], scale, scale);
    }
  }

  WS_DEVICE static void add_scaled(float (&sums)[kN8][4], const float (&block)[kN8][4], float low, float high) {
#pragma unroll
    for (u32 n = 0; n < kN8; ++n) {
#pragma unroll
      for (u32 i = 0; i < 4; ++i) sums[n][i] = __fmaf_rn(block[n][i], i < 2 ? low : high, sums[n][i]);
    }
  }

  u32 ring_, k_, groups_, chunk_, shift_ = 0, segment_step_;
  u32 scale_offsets_[kGroups];  // bytes from scales_ to those of each group
  u32 b_row_;  // bytes of 8 rows
  const u8 *weights_, *scales_;
  const u8* rows_;
  u32 row_offsets_[kN8];  // from the first of this lane's rows of A
  Quad weight_words_[kGroups * kPieces];
  u32 codes_[kGroups];
  RightWords row_words_[kSegmentSteps];
};

// Sums of this block's part of K.
WS_DEVICE void multiply_tile(Sums& sums, const Problem& p, const Tile& tile, u32 shared) {
  const WarpPlace place;
  const u32 segments = div_up(p.k, StreamRing::kSegment);
  const u32 begin = static_cast<u32>(static_cast<u64>(segments) * blockIdx.y / gridDim.y);
  const u32 end = static_cast<u32>(static_cast<u64>(segments) * (blockIdx.y + 1) / gridDim.y);
  Stream(p, tile, place, shared).run(sums, begin + place.k, end);
}

}  // namespace ws
