// SPDX-License-Identifier: Apache-2.0
// From a warp's sums to D. Every addition has its fixed place, so that a result does not depend on which block comes
// first.
#pragma once

#include "common/gemm_problem.cuh"
#include "common/shared_store.cuh"
#include "common/warpgroup.cuh"
#include "fp4_gemm/sm12x_config.cuh"
#include "fp4_gemm/sm12x_fragments.cuh"
#include "fp4_gemm/sm12x_schedule.cuh"

namespace ws {

// Leaves a split's sums in the workspace. The block that comes last adds those of all splits in their order, sets the
// tile's arrivals back to 0 and returns true; the others return false.
WS_DEVICE bool add_splits(Sums& sums, const Problem& p, const Tile& tile, u32 splits, u32 shared) {
  if (splits == 1) return true;
  constexpr u32 quads = kM16 * kN8 * kMmaThreads;
  const u32 last_word = shared + Shared::kLast;
  float4* const all =
      reinterpret_cast<float4*>(p.workspace) + static_cast<i64>(tile.index) * splits * quads + threadIdx.x;
#pragma unroll
  for (u32 i = 0; i < kM16 * kN8; ++i) {
    const float(&s)[4] = sums[i / kN8][i % kN8];
    all[tile.split * quads + i * kMmaThreads] = {s[0], s[1], s[2], s[3]};
  }
  __threadfence();
  sync_warps<1, kMmaThreads>();
  if (threadIdx.x == 0) store_shared(last_word, atomicAdd(p.arrivals + tile.index, 1u) == splits - 1 ? 1u : 0u);
  sync_warps<1, kMmaThreads>();
  u32 last[1];
  load_shared(last_word, last);
  if (last[0] == 0) return false;
  __threadfence();
  if (threadIdx.x == 0) p.arrivals[tile.index] = 0;
#pragma unroll
  for (u32 i = 0; i < kM16 * kN8; ++i) {
    float(&s)[4] = sums[i / kN8][i % kN8];
    s[0] = s[1] = s[2] = s[3] = 0.0f;
  }
#pragma unroll 1
  for (u32 split = 0; split < splits; ++split) {
#pragma unroll
    for (u32 i = 0; i < kM16 * kN8; ++i) {
      const float4 part = __ldcg(all + split * quads + i * kMmaThreads);
      float(&s)[4] = sums[i / kN8][i % kN8];
      s[0] += part.x, s[1] += part.y, s[2] += part.z, s[3] += part.w;
    }
  }
  return true;
}

// A part is 8 rows of D by kPartColumns, as floats. From there one short loop serves all parts and all types. Rows of a
// part follow each other without padding; which 8 columns lie where depends on the row, so that neither the writes of a
// half warp nor the reads of a quarter meet in a bank.
struct Part {
  enum : u32 { kCount = kSwap ? kN8 : 2 * kM16 };

  WS_DEVICE static u32 address(u32 part, u32 row, u32 column) {
    const u32 block = column / 8 ^ (kSwap ? row / 2 : row) % 4;
    return part + ((row * kPartColumns + block * 8 + column % 8) * 4);
  }

  // Rows of D are rows of the sums or, swapped, their columns.
  template <u32 kPart>
  WS_DEVICE static void stage(const Sums& sums, u32 part, u32 g, u32 t) {
    if constexpr (kSwap) {
      const u32 row = in_group(kPart, 2 * t);
#pragma unroll
      for (u32 i = 0; i < 2 * kM16; ++i) {
        const float* const s = sums[i / 2][kPart] + i % 2 * 2;
        const u32 column = slab_row(i, g);
        store_shared(address(part, row, column), bits_of(s[0]));
        store_shared(address(part, row + 1, column), bits_of(s[1]));
      }
    } else {
      const u32 row = in_group(kPart, g);
#pragma unroll
      for (u32 j = 0; j < kN8; ++j) {
        const float* const s = sums[kPart / 2][j] + kPart % 2 * 2;
        store_shared(address(part, row, slab_row(j, 2 * t)), {bits_of(s[0]), bits_of(s[1])});
      }
    }
  }

  // `index` is the same in all lanes.
  template <u32 kPart = 0>
  WS_DEVICE static void stage_any(u32 index, const Sums& sums, u32 part, u32 g, u32 t) {
    if constexpr (kPart < kCount) {
      if (index == kPart) {
        stage<kPart>(sums, part, g, t);
      } else {
        stage_any<kPart + 1>(index, sums, part, g, t);
      }
    }
  }
};

WS_DEVICE void write_d(const Sums& sums, const Problem& p, const Tile& tile, const Reader& reader, u32 shared,
                       float alpha) {
  constexpr u32 quads = kPartColumns / 4, rows_at_once = 32 / quads;
  const u32 lane = reader.lane, type = p.flags >> kOutShift & kTypeMask;
  const u32 part = shared + Shared::kParts + threadIdx.x / 32 * kPartBytes;
  const u32 warp_row = kSwap ? reader.warp_right * Right::kWarpRows : reader.warp_left * Left::kWarpRows;
  const u32 warp_column = kSwap ? reader.warp_left * Left::kWarpRows : reader.warp_right * Right::kWarpRows;
  const u32 column = tile.column + warp_column + lane % quads * 4;
  if (tile.column + warp_column >= p.n) return;
  const bool in_d = column < p.n;
  float4 bias{};
  if (in_d) bias = load_bias(p.bias + tile.batch * p.bias_batch, p.flags >> kBiasShift & kTypeMask, column);
  u32 row = warp_row + lane / quads;  // in the tile
  u8* to = p.d + (p.is_grouped() ? 0 : tile.batch * p.d_batch) + (tile.row + static_cast<i64>(row)) * p.d_row +
           static_cast<i64>(column) * (type == kOutFp32 ? 4 : 2);
#pragma unroll 1
  for (u32 index = 0; index < Part::kCount; ++index) {
    Part::stage_any(index, sums, part, lane / 4, lane % 4);
    __syncwarp();
#pragma unroll
    for (u32 i = 0; i < 8; i += rows_at_once, row += rows_at_once, to += rows_at_once * p.d_row) {
      u32 v[4];
      load_shared(Part::address(part, lane / quads + i, lane % quads * 4), v);
      const float4 values = {__fmaf_rn(float_of(v[0]), alpha, bias.x), __fmaf_rn(float_of(v[1]), alpha, bias.y),
                             __fmaf_rn(float_of(v[2]), alpha, bias.z), __fmaf_rn(float_of(v[3]), alpha, bias.w)};
      if (row < tile.rows && in_d) store_values(to, type, values);
    }
    __syncwarp();
  }
}

}  // namespace ws
