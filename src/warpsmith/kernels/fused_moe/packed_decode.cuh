// SPDX-License-Identifier: Apache-2.0
// What both kernels of a decode step share where weights are 4-bit codes in the order of common/prepared_weights.cuh.
//
//   WS_B_FORMAT           WS_NVFP4 | WS_MXFP4
//   WS_TYPE, WS_TOKENS    as in fused_moe/decode.cuh, which they come from; bf16 alone
#pragma once

#include "common/mbarrier.cuh"
#include "common/mma_bf16.cuh"
#include "common/prepared_weights.cuh"
#include "common/ptx.cuh"
#include "common/shared_load.cuh"
#include "common/types.cuh"
#include "fused_moe/decode.cuh"

#define WS_NVFP4 2
#define WS_MXFP4 3

#if !defined(WS_B_FORMAT)
#error "a decode step of packed weights needs WS_B_FORMAT"
#endif

namespace ws {

constexpr bool kNvfp4 = WS_B_FORMAT == WS_NVFP4;
static_assert(kNvfp4 || WS_B_FORMAT == WS_MXFP4, "weights are nvfp4 or mxfp4");
static_assert(WS_TYPE == WS_BF16, "the order's codes become bf16");

constexpr u32 kScaleWords = kNvfp4 ? 4 : 2;           // of a lane, for 64 of K
constexpr u32 kScaleBytes = 8 * 4 * kScaleWords;      // of 32 rows by 64 of K
constexpr u32 kScaleLanes = kScaleBytes / 16;         // that copy them
constexpr float kTooSmall = kNvfp4 ? 128.0f : 0.5f;   // what the order's scales are too small by

// Bits of `flags`: each expert has a global scale of w13, of w2.
enum : u32 { kOwnScales13 = 1u << 4, kOwnScales2 = 1u << 5 };

// Where codes and scales of a matrix of 4-bit weights of all experts lie, in tiles of K.
struct Packed {
  const u8 *codes, *scales;
  u32 tiles;  // of K

  WS_DEVICE const u8* codes_of(u64 row) const { return codes + row / kPreparedTileRows * tiles * kPreparedTileBytes; }
  WS_DEVICE const u8* scales_of(u64 row) const { return scales + row / (2 * kPreparedTileRows) * tiles * kScaleBytes; }
};

// What products of each expert that was hit are multiplied by, for both matrices. Threads must meet afterwards.
WS_DEVICE void find_factors(const Choices& c, const float* global_scale, bool own, float* factors) {
  if (threadIdx.x >= c.hits) return;
  const float scale = global_scale ? global_scale[own ? c.hit[threadIdx.x] & 0xFFFFu : 0] : 1.0f;
  factors[threadIdx.x] = scale > 0.0f && is_finite(scale) ? kTooSmall / scale : float_of(kQuietNan);
}

// Operands of 64 of K of all tokens: `row` is where a lane reads for ldmatrix.
WS_DEVICE void load_tokens(u32 row, u32 (&right)[8]) {
  ldmatrix_x4(row, right[0], right[1], right[2], right[3]);
  ldmatrix_x4(row + 64, right[4], right[5], right[6], right[7]);
}

// Adds the products of 16 rows by 64 of K. Scale words are rotated left by `turn`.
WS_DEVICE void multiply_tile(float (&sums)[4], const u32 (&words)[4], const u32 (&scales)[kScaleWords], u32 turn,
                             const u32 (&right)[8]) {
#pragma unroll
  for (u32 k = 0; k < 4; ++k) {
    const u32 word = scales[k * kScaleWords / 4];
    u32 left[4];
    prepared_operand(words[k], prepared_scales<kNvfp4>(__funnelshift_l(word, word, turn)), left);
    mma_bf16(sums, left, {right[2 * k], right[2 * k + 1]});
  }
}

}  // namespace ws
