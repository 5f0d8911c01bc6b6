// SPDX-License-Identifier: Apache-2.0
// From the sums of warps and of splits along K to D. Every addition has its fixed place, so that a result does not
// depend on which warp or block comes first.
#pragma once

#include "common/gemm_problem.cuh"
#include "common/types.cuh"
#include "gemm/sm80_config.cuh"
#include "gemm/sm80_schedule.cuh"

namespace ws {

enum : u32 { kWriters = 32 * kWarpsMN };  // threads that hold D after the warps' sums are added

// Adds the sums of the warps that divide a tile's K, in their order, into those of the first. `shared` is free, before
// and after.
WS_DEVICE void add_warps(Sums& sums, float4* shared) {
  if constexpr (kWarpsK == 1) return;
  const u32 warp_k = threadIdx.x / kWriters, place = threadIdx.x % kWriters;
#pragma unroll
  for (u32 m = 0; m < kM16; ++m) {
#pragma unroll
    for (u32 n = 0; n < kN8; ++n) {
      const float(&s)[4] = sums[m][n];
      if (warp_k) shared[((warp_k - 1) * kM16 * kN8 + m * kN8 + n) * kWriters + place] = {s[0], s[1], s[2], s[3]};
    }
  }
  __syncthreads();
#pragma unroll
  for (u32 w = 1; w < kWarpsK; ++w) {
#pragma unroll
    for (u32 m = 0; m < kM16; ++m) {
#pragma unroll
      for (u32 n = 0; n < kN8; ++n) {
        const float4 other = shared[((w - 1) * kM16 * kN8 + m * kN8 + n) * kWriters + place];
        float(&s)[4] = sums[m][n];
        s[0] += other.x, s[1] += other.y, s[2] += other.z, s[3] += other.w;
      }
    }
  }
  __syncthreads();
}

// Leaves a split's sums in the workspace. The block that comes last adds those of all splits in their order, sets the
// tile's arrivals back to 0 and returns true; the others return false.
WS_DEVICE bool add_splits(Sums& sums, const Problem& p) {
  if (gridDim.y == 1) return true;
  constexpr u32 kQuads = kM16 * kN8 * kWriters;
  const u32 place = threadIdx.x % kWriters;
  float4* const tile = reinterpret_cast<float4*>(p.workspace) + static_cast<i64>(blockIdx.x) * gridDim.y * kQuads;
#pragma unroll
  for (u32 m = 0; m < kM16; ++m) {
#pragma unroll
    for (u32 n = 0; n < kN8; ++n) {
      const float(&s)[4] = sums[m][n];
      float4* const to = tile + blockIdx.y * kQuads + (m * kN8 + n) * kWriters + place;
      if (threadIdx.x < kWriters) *to = {s[0], s[1], s[2], s[3]};
    }
  }
  __threadfence();
  __syncthreads();
  const bool last = threadIdx.x == 0 && atomicAdd(p.arrivals + blockIdx.x, 1u) == gridDim.y - 1;
  if (!__syncthreads_or(last)) return false;
  __threadfence();
  if (threadIdx.x == 0) p.arrivals[blockIdx.x] = 0;
  // as many loads at a time as there are registers for
  constexpr u32 kRows = kN8 >= 8 ? 1 : kM16 * kN8 <= 8 ? kM16 : 8 / kN8, kAhead = kRows * kN8 >= 16 ? 1 : 16 / (kRows * kN8);
#pragma unroll
  for (u32 first = 0; first < kM16; first += kRows) {
#pragma unroll
    for (u32 m = first; m < first + kRows; ++m) {
#pragma unroll
      for (u32 n = 0; n < kN8; ++n) sums[m][n][0] = sums[m][n][1] = sums[m][n][2] = sums[m][n][3] = 0.0f;
    }
#pragma unroll kAhead
    for (u32 split = 0; split < gridDim.y; ++split) {
#pragma unroll
      for (u32 m = first; m < first + kRows; ++m) {
#pragma unroll
        for (u32 n = 0; n < kN8; ++n) {
          const float4 part = __ldcg(tile + split * kQuads + (m * kN8 + n) * kWriters + place);
          float(&s)[4] = sums[m][n];
          s[0] += part.x, s[1] += part.y, s[2] += part.z, s[3] += part.w;
        }
      }
    }
  }
  return true;
}

// A warp's sums go through shared memory of its own in kPasses parts, so that few instructions, in a loop, serve all
// types, and rows of D are written in whole sectors. Rows of D are rows of the sums or, swapped, their columns.
struct Part {
  enum : u32 { kM16s = kM16 / kEpiloguePasses };  // MMA tiles of the left operand in a part
  enum : u32 { kRows = kSwap ? 8 * kN8 : 16 * kM16s };
  enum : u32 { kColumns = kSwap ? 16 * kM16s : 8 * kN8 };
  enum : u32 { kStride = epilogue_stride(kEpiloguePasses) };  // words
};
static_assert(kM16 % kEpiloguePasses == 0 && epilogue_bytes(kEpiloguePasses) <= Shared::kTile, "the parts fit");

template <u32 kPass>
WS_DEVICE void stage_part(const Sums& sums, float* part) {
  const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (u32 m = 0; m < Part::kM16s; ++m) {
#pragma unroll
    for (u32 n = 0; n < kN8; ++n) {
      const float(&s)[4] = sums[kPass * Part::kM16s + m][n];
      if constexpr (kSwap) {
        float* const at = part + (8 * n + 2 * t) * Part::kStride + 16 * m + g;
        at[0] = s[0], at[Part::kStride] = s[1], at[8] = s[2], at[Part::kStride + 8] = s[3];
      } else {
        float* const at = part + (16 * m + g) * Part::kStride + 8 * n + 2 * t;
        *reinterpret_cast<float2*>(at) = {s[0], s[1]};
        *reinterpret_cast<float2*>(at + 8 * Part::kStride) = {s[2], s[3]};
      }
    }
  }
}

// fp8_tensor, fp8_row: times the scales of a row of A and of four rows of B.
WS_DEVICE float4 scale_values(const float4& v, const Problem& p, const Tile& tile, u32 row, u32 column) {
  const u8* const of_a = p.is_grouped() ? p.a_scales : p.a_scales + tile.batch * p.a_scale_batch;
  const float* const a = reinterpret_cast<const float*>(of_a);
  const float* const b = reinterpret_cast<const float*>(p.b_scales + tile.batch * p.b_scale_batch);
  const float by = a[p.flags & kOneScaleA ? 0 : row];
  if (p.flags & kOneScaleB) return {v.x * by * b[0], v.y * by * b[0], v.z * by * b[0], v.w * by * b[0]};
  const float4 c = *reinterpret_cast<const float4*>(b + column);
  return {v.x * by * c.x, v.y * by * c.y, v.z * by * c.z, v.w * by * c.w};
}

// `d` is that of the tile's batch, `row` and `column` the part's place in the tile.
WS_DEVICE void write_part(const float* part, const Problem& p, u8* d, const Tile& tile, float alpha, u32 row, u32 column) {
  // what elements were too small by
  constexpr float deficit = static_cast<float>(1ull << (Left::kDeficit + Right::kDeficit));
  const u32 type = p.flags >> kOutShift & kTypeMask, bias_type = p.flags >> kBiasShift & kTypeMask;
  const u8* const bias = p.bias + tile.batch * p.bias_batch;
  constexpr u32 quads = Part::kColumns / 4;
#pragma unroll 2
  for (u32 i = threadIdx.x % 32; i < Part::kRows * quads; i += 32) {
    const u32 in_row = i / quads, in_column = i % quads * 4;
    if (row + in_row >= tile.rows || column + in_column >= tile.columns) continue;
    float4 v = *reinterpret_cast<const float4*>(part + in_row * Part::kStride + in_column);
    const u32 d_column = tile.column + column + in_column;
    if constexpr (kRowScaled) v = scale_values(v, p, tile, tile.row + row + in_row, d_column);
    const float4 b = load_bias(bias, bias_type, d_column);
    v = {v.x * deficit * alpha + b.x, v.y * deficit * alpha + b.y, v.z * deficit * alpha + b.z,
         v.w * deficit * alpha + b.w};
    u8* const to = d + (tile.row + row + in_row) * p.d_row;
    store_values(to + static_cast<i64>(d_column) * (type == kOutFp32 ? 4 : 2), type, v);
  }
}

// `shared` is free.
template <u32 kPass = 0>
WS_DEVICE void write_d(const Sums& sums, const Problem& p, const Tile& tile, const WarpPlace& warp, float* shared) {
  float* const part = shared + (warp.left * (Right::kRows / Right::kWarpRows) + warp.right) * Part::kRows * Part::kStride;
  stage_part<kPass>(sums, part);
  __syncwarp();
  const u32 left = warp.left * Left::kWarpRows + kPass * Part::kM16s * 16, right = warp.right * Right::kWarpRows;
  u8* const d = p.is_grouped() ? p.d : p.d + tile.batch * p.d_batch;
  write_part(part, p, d, tile, alpha_of(p, tile.batch), kSwap ? right : left, kSwap ? left : right);
  if constexpr (kPass + 1 < kEpiloguePasses) {
    __syncwarp();
    write_d<kPass + 1>(sums, p, tile, warp, shared);
  }
}

}  // namespace ws
