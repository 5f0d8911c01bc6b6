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
#include "fused_moe/packed_routing.cuh"

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
};

// A place in a matrix, by 16 bytes.
WS_DEVICE const u8* at(const u8* base, u32 place) { return base + 16ull * place; }

// bf16 and fp32 numbers 2^48, and 2^-48. Codes as they lie in memory are 2^126 times too small. nvfp4's are multiplied by
// their scales before an MMA; sums of mxfp4's for 32 of K are multiplied after it, by fewer instructions: for them
// values of x and rows of `act` are 2^48 times as large, so that no sum is subnormal.
enum : u32 { kLifted = 0x57805780u, kLiftBits = 175u << 23, kLowerBits = 79u << 23 };

WS_DEVICE float lift() { return kNvfp4 ? 1.0f : float_of(kLiftBits); }
WS_DEVICE float lower() { return kNvfp4 ? 1.0f : float_of(kLowerBits); }

// Two values of x as they are multiplied.
WS_DEVICE u32 lifted(u32 pair) {
  if constexpr (kNvfp4) return pair;
  u32 result;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(pair), "r"(static_cast<u32>(kLifted)));
  return result;
}

// What products of an expert are multiplied by that has a global scale.
WS_DEVICE float factor_of(float scale) {
  return scale > 0.0f && is_finite(scale) ? kTooSmall / scale : float_of(kQuietNan);
}

// Up to two tokens have every other column, so that half of an MMA's sums are theirs in all lanes.
enum : u32 { kColumns = kTokens == 2 ? 2 : 1, kSums = kTokens == 2 ? 2 : 4 };

// The token whose values a lane reads for ldmatrix.
WS_DEVICE u32 token_of_lane(u32 tokens) {
  const u32 token = threadIdx.x % 8 / kColumns;
  return token < tokens ? token : 0;
}

// Operands of 64 of K of all tokens: `row` is where a lane reads for ldmatrix.
WS_DEVICE void load_tokens(u32 row, u32 (&right)[8]) {
  ldmatrix_x4(row, right[0], right[1], right[2], right[3]);
  ldmatrix_x4(row + 64, right[4], right[5], right[6], right[7]);
}

// Adds the products of 16 rows by 64 of K: rows g and g + 8 of a token, or of tokens 2t and 2t + 1. Scale words are
// rotated left by `turn`.
WS_DEVICE void multiply_tile(float (&sums)[kSums], const u32 (&words)[4], const u32 (&scales)[kScaleWords], u32 turn,
                             const u32 (&right)[8]) {
  if constexpr (kNvfp4) {
    float all[4] = {sums[0], kSums == 2 ? 0.0f : sums[1], sums[kSums / 2], kSums == 2 ? 0.0f : sums[kSums - 1]};
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
      const u32 word = scales[k % kScaleWords];
      u32 left[4];
      prepared_operand(words[k], prepared_scales<kNvfp4>(__funnelshift_l(word, word, turn)), left);
      mma_bf16(all, left, {right[2 * k], right[2 * k + 1]});
    }
#pragma unroll
    for (u32 i = 0; i < kSums; ++i) sums[i] = all[i * 4 / kSums];
  } else {
#pragma unroll
    for (u32 block = 0; block < 2; ++block) {
      float part[4] = {};
#pragma unroll
      for (u32 k = 2 * block; k < 2 * block + 2; ++k) {
        u32 left[4];
        expand_prepared(words[k], left);
        mma_bf16(part, left, {right[2 * k], right[2 * k + 1]});
      }
      const u32 word = __funnelshift_l(scales[block], scales[block], turn);
      const float low = float_of(word << 16 & kInfinity), high = float_of(word & kInfinity);
#pragma unroll
      for (u32 i = 0; i < kSums; ++i) sums[i] = __fmaf_rn(i < kSums / 2 ? low : high, part[i * 4 / kSums], sums[i]);
    }
  }
}

// A warp's sums of 16 rows, [token][row]: lane 4g + t has rows g and g + 8 of token t, or of tokens 2t and 2t + 1.
template <u32 kStride>
WS_DEVICE void put_rows(float* to, const float (&sums)[kSums]) {
  enum : u32 { kEach = kSums / 2 };  // tokens of a lane
  const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  if (kEach * t >= kTokens) return;
#pragma unroll
  for (u32 i = 0; i < kSums; ++i) to[(kEach * t + i % kEach) * kStride + g + i / kEach * 8] = sums[i];
}

// Quotients by a number that is known early, of numbers below 2^31.
struct Divisor {
  u32 value, reciprocal;

  WS_DEVICE void set(u32 value_) {
    value = value_;
    reciprocal = 0xFFFFFFFFu / value_;
  }
  WS_DEVICE u32 quotient(u32 number) const {
    const u32 result = __umulhi(number, reciprocal);
    return number - result * value < value ? result : result + 1;
  }
};

// Items before those of a warp, where `warps` have equal parts of them, one after the other. Only the last warps may have
// none.
WS_DEVICE u32 items_before(u32 items, u32 warp, u32 warps) {
  return items < warps ? min(items, warp) : items * warp / warps;
}

// First and last of the warps that have sums of some rows.
struct Ends {
  u8 first, last;
};

}  // namespace ws
