// SPDX-License-Identifier: Apache-2.0
// The portable GEMM: D[M, N] = alpha · A[M, K] · B[N, K]ᵀ + bias with mma.sync, for every target from sm_80.
//
// Operands are bf16 or fp16, or quantized and dequantized in registers. Elements reach shared memory in packed form by
// cp.async, kStages tiles ahead; every warp reads its fragments and converts them for itself. One program serves dense,
// batched, grouped and masked problems, all types of D, bias and scale layout; macros choose what shapes the inner loop:
//
//   WS_A_FORMAT, WS_B_FORMAT          WS_BF16 WS_FP16 WS_NVFP4 WS_MXFP4 WS_MXFP8 WS_FP8_BLOCK (A 1 x 128, B 128 x 128)
//   WS_TILE_M, WS_TILE_N, WS_TILE_K   tile of D, and K of a stage
//   WS_WARPS_M, WS_WARPS_N            warps along the tile
//   WS_WARPS_K                        warps that divide a stage's K
//   WS_STAGES, WS_BLOCKS              stages; blocks that an SM should hold
//   WS_SWAP                           1: rows of B are the MMA's 16-row operand (small M)
//
// grid = (tiles, splits of K, 1). With splits, `workspace` takes tiles · splits · TILE_M · TILE_N floats and `arrivals`
// one word a tile, 0 at launch and 0 again after it.
//
// How exact it is. What the MMA multiplies is exact, whatever the formats:
//   nvfp4      element · scale, at most 6 significant bits within 2^−10..2688, 2^7 times smaller: fits fp16 and bf16
//   mxfp4/8    the bare element; both scales multiply the fp32 sum over their 32 of K: powers of two, whose product is
//   fp8_block  rounded once for fp8_block and exact for the others unless it leaves fp32's range
// Products are exact in fp32. Unscaled sums grow in the tensor core's accumulator over all of K (it truncates: within
// 3e-9 · K of the norm); scaled ones are short and added by rounding fused multiply-adds. Splits and warps that divide K
// add a handful of rounded fp32 additions.
#ifndef __CUDA_ARCH__
#error "device code only: __CUDA_ARCH__ is not set"
#elif __CUDA_ARCH__ < 800
#error "sm80_gemm needs sm_80 or newer"
#endif

#include "common/cp_async.cuh"
#include "common/record.cuh"
#include "common/types.cuh"
#include "gemm/sm80_config.cuh"
#include "gemm/sm80_epilogue.cuh"
#include "gemm/sm80_fragments.cuh"
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

// The consuming side of a warp: its place in the ring of stages, and two sets of fragments in turn.
struct Consumer {
  Producer& producer;
  WarpPlace place;
  TileReader<Left, true> left;
  TileReader<Right, false> right;
  u32 slot, k_tile;
  LeftWords left_words[2];
  RightWords right_words[2];

  WS_DEVICE Consumer(Producer& source, const WarpPlace& where)
      : producer(source), place(where), left(where.left, where.k), right(where.right, where.k), slot(0),
        k_tile(source.next) {}

  WS_DEVICE void read_left(u32 stage, u32 step, u32 unit, LeftWords& words) const {
    left.read(stage, step, unit * kUnitM16 * 2, words);
  }
  WS_DEVICE void read_right(u32 stage, u32 step, RightWords& words) const {
    right.read(stage + Left::kTileBytes, step, 0, words);
  }

  // One stage. Fragments are read while those before them are multiplied; the barrier stands where the last of a stage
  // have been read, so that its place is filled again at once. kOdd: an odd number of stages has gone before.
  template <bool kOdd>
  WS_DEVICE void multiply_stage(Sums& sums) {
    const u32 next_slot = slot + 1 == kStages ? 0 : slot + 1;
    const u32 stage = producer.shared + slot * Shared::kStage, next_stage = producer.shared + next_slot * Shared::kStage;
    producer.decode_scales(k_tile + 1, next_slot);
#pragma unroll
    for (u32 step = 0; step < kSteps; ++step) {
      const u32 right_set = (kOdd * kSteps + step) % 2;
      StepScales<Left, true> left_scales;
      StepScales<Right, false> right_scales;
      const u32 k_step = step * kWarpsK + place.k;
      left_scales.read(producer.left_decoded(k_tile), place.left, k_step);
      right_scales.read(producer.right_decoded(k_tile), place.right, k_step);
      Columns columns;
#pragma unroll
      for (u32 unit = 0; unit < kUnitsM; ++unit) {
        const u32 left_set = ((kOdd * kSteps + step) * kUnitsM + unit) % 2;
        const bool last_unit = unit + 1 == kUnitsM, last = last_unit && step + 1 == kSteps;
        if (last) {
          wait_for_copies<kStages - 2>();
          __syncthreads();
        }
        read_left(last ? next_stage : stage, last ? 0 : last_unit ? step + 1 : step, last_unit ? 0 : unit + 1,
                  left_words[left_set ^ 1]);
        if (last_unit) read_right(last ? next_stage : stage, last ? 0 : step + 1, right_words[right_set ^ 1]);
        if (last) producer.copy_stage(slot);
        if (unit == 0) to_columns(right_words[right_set], right_scales, columns);
        multiply(sums, unit * kUnitM16, left_words[left_set], columns, left_scales, right_scales);
      }
    }
    slot = next_slot;
    ++k_tile;
  }

  WS_DEVICE void run(Sums& sums) {
    producer.start();
    read_left(producer.shared, 0, 0, left_words[0]);
    read_right(producer.shared, 0, right_words[0]);
#pragma unroll 1
    while (k_tile < producer.end) {
      multiply_stage<false>(sums);
      if constexpr (kSteps % 2 == 1) {
        if (k_tile == producer.end) break;
        multiply_stage<true>(sums);
      }
    }
    wait_for_copies<0>();
    __syncthreads();
  }
};

WS_DEVICE ScaleSource scales_of_a(const Problem& p, const Tile& tile) {
  const bool tiled = p.flags & kTiledScalesA, padded = tiled && kFormatA != Format::fp8_block;
  return {p.is_grouped() ? p.a_scales : p.a_scales + tile.batch * p.a_scale_batch,
          padded ? tile.scale_row : tile.row, tile.rows, p.m, p.k, tiled};
}

WS_DEVICE ScaleSource scales_of_b(const Problem& p, const Tile& tile) {
  return {p.b_scales + tile.batch * p.b_scale_batch, tile.column, tile.columns, p.n, p.k,
          (p.flags & kTiledScalesB) != 0};
}

// Sums of this block's part of K.
WS_DEVICE void multiply_tile(Sums& sums, const Problem& p, const Tile& tile, u32 shared) {
  const u8* const a = (p.is_grouped() ? p.a : p.a + tile.batch * p.a_batch) + tile.row * p.a_row;
  const u8* const b = p.b + tile.batch * p.b_batch + tile.column * p.b_row;
  const u32 k_tiles = div_up(p.k, kTileK);
  const u32 begin = static_cast<u32>(static_cast<u64>(k_tiles) * blockIdx.y / gridDim.y);
  const u32 end = static_cast<u32>(static_cast<u64>(k_tiles) * (blockIdx.y + 1) / gridDim.y);
  const ScaleSource a_scales = scales_of_a(p, tile), b_scales = scales_of_b(p, tile);
  Producer producer{
      {kSwap ? b : a, kSwap ? p.b_row : p.a_row, kSwap ? tile.columns : tile.rows, p.k, begin},
      {kSwap ? a : b, kSwap ? p.a_row : p.b_row, kSwap ? tile.rows : tile.columns, p.k, begin},
      ScaleCopyOf<Left>::Type(kSwap ? b_scales : a_scales),
      ScaleCopyOf<Right>::Type(kSwap ? a_scales : b_scales),
      shared,
      begin,
      end};
  Consumer(producer, WarpPlace()).run(sums);
}

// The main loop has no registers to spare for what only the epilogue needs: the tile waits in shared memory.
WS_DEVICE void compute(const Problem& p, u8* shared) {
  const u32 address = static_cast<u32>(__cvta_generic_to_shared(shared));
  Tile tile;
  if (!find_tile(p, blockIdx.x, reinterpret_cast<u32*>(shared), tile)) return;
  if (threadIdx.x == 0) save_tile(address + Shared::kTile, tile);
  __syncthreads();
  Sums sums = {};
  multiply_tile(sums, p, tile, address);
  add_warps(sums, reinterpret_cast<float4*>(shared));
  if (!add_splits(sums, p)) return;
  if (kWarpsK > 1 && threadIdx.x >= kWriters) return;
  write_d(sums, p, load_tile(address + Shared::kTile), WarpPlace(), reinterpret_cast<float*>(shared));
}

}  // namespace ws

WS_RECORD(ws::Shared::kBytes, ws::kThreads, ws::kStages, 0, ws::kTileM, ws::kTileN, ws::kTileK)

// Strides are in bytes. Any of bias, alphas, the global scales, index, workspace may be null where the flags or the grid
// do not ask for it.
extern "C" __global__ void __launch_bounds__(ws::kThreads, WS_BLOCKS)
    ws_sm80_gemm(const void* a, const void* b, void* d, const void* a_scales, const void* b_scales, const void* bias,
                 const float* alphas, const float* a_global_scale, const float* b_global_scale, const void* index,
                 float* workspace, unsigned* arrivals, long long a_row, long long b_row, long long d_row,
                 long long a_batch, long long b_batch, long long d_batch, long long a_scale_batch,
                 long long b_scale_batch, long long bias_batch, unsigned m, unsigned n, unsigned k, unsigned batches,
                 float alpha, unsigned flags) {
  extern __shared__ __align__(1024) ws::u8 shared[];
  using ws::u8;
  const ws::Problem p{static_cast<const u8*>(a), static_cast<const u8*>(b), static_cast<const u8*>(a_scales),
                static_cast<const u8*>(b_scales), static_cast<const u8*>(bias), static_cast<u8*>(d), alphas,
                a_global_scale, b_global_scale, index, workspace, arrivals, a_row, b_row, d_row, a_batch, b_batch,
                d_batch, a_scale_batch, b_scale_batch, bias_batch, m, n, k, batches, alpha, flags};
  ws::compute(p, shared);
}
