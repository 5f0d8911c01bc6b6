// SPDX-License-Identifier: Apache-2.0
// What both kernels of a decode step share: each block routes all tokens by itself, and lists the experts that were hit.
//
//   WS_TYPE    WS_BF16 | WS_FP16, of x, the weights and what is computed
//   WS_TOKENS  2 or 8: the most tokens
#pragma once

#include "common/cp_async.cuh"
#include "common/mma_bf16.cuh"
#include "common/mma_f16.cuh"
#include "common/types.cuh"
#include "fused_moe/routing.cuh"

#if !defined(WS_TYPE) || !defined(WS_TOKENS)
#error "a decode step needs WS_TYPE and WS_TOKENS"
#elif WS_TYPE != WS_BF16 && WS_TYPE != WS_FP16
#error "a decode step: unknown WS_TYPE"
#endif

namespace ws {

constexpr u32 kTokens = WS_TOKENS;
static_assert(kTokens == 2 || kTokens == 8, "columns of an MMA");
constexpr u32 kWarps = 16, kThreads = 32 * kWarps;
constexpr u32 kMaxExperts = 512;
static_assert(kMaxExperts == kThreads, "one thread an expert");
constexpr u32 kColumn = 32;             // elements of a row that four lanes read, 16 bytes each
constexpr u32 kSlot = 1024;             // a warp's place for a column of 16 rows, half of them behind the other half
constexpr u32 kTokenStride = 20;        // floats from token to token of a warp's sums of 16 rows: other banks
constexpr u32 kWarpSums = kTokens * kTokenStride;

// Bits of `flags`.
enum : u32 { kLogitsMask = 3, kBiasShift = 2, kBiasMask = 3 };
enum : u32 { kNoBias = 0, kBiasBf16 = 1, kBiasFp16 = 2, kBiasFp32 = 3 };

// How tokens are routed, and which experts are here.
struct Router {
  const u8* logits;
  const float* bias;
  const int* num_tokens;
  i64 row_bytes;
  u32 tokens, experts, top_k, rule, n_group, topk_group;
  float scale;
  u32 expert_offset, local_experts, flags;
};

struct Choices {
  int ids[kTokens * kMaxTopK];
  float weights[kTokens * kMaxTopK];
  u32 tokens_of[kMaxExperts];             // bits; then the expert's number among those that were hit
  u32 hit[kTokens * kMaxTopK];            // local expert, and the tokens' bits above 16
  float factors[kTokens * kMaxTopK][kTokens];  // of tokens that an expert has
  u8 slots[kTokens * kMaxTopK][kTokens];       // which choice of such a token it is
  u32 warp_hits[kWarps];
  u32 hits;
};

template <int kType>
WS_DEVICE void load_logits(const Router& r, float* to) {
  for (u32 i = threadIdx.x; i < r.tokens * r.experts; i += kThreads) {
    const u32 token = i / r.experts;
    to[i] = load_logit<kType>(r.logits + token * r.row_bytes, i - token * r.experts);
  }
}

WS_DEVICE void route_own_token(const Router& r, Choices& c, const float* logits) {
  const u32 token = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (token >= r.tokens) return;
  const u32 counted = r.num_tokens ? static_cast<u32>(max(*r.num_tokens, 0)) : r.tokens;
  if (token >= counted) {
    if (lane < r.top_k) c.ids[token * r.top_k + lane] = -1;
    return;
  }
  const Routing routing{reinterpret_cast<const u8*>(logits), r.bias, c.ids, c.weights, 4ll * r.experts, r.experts,
                        r.top_k, r.rule, r.n_group, r.topk_group, r.scale};
  if (r.experts <= 128) {
    route_token<WS_FP32, 4>(routing, token);
  } else if (r.experts <= 256) {
    route_token<WS_FP32, 8>(routing, token);
  } else {
    route_token<WS_FP32, 16>(routing, token);
  }
}

// The experts that were hit, in ascending order, one thread an expert.
WS_DEVICE void list_hits(Choices& c) {
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, tokens = c.tokens_of[threadIdx.x];
  const u32 peers = __ballot_sync(kAllLanes, tokens != 0);
  if (lane == 0) c.warp_hits[warp] = __popc(peers);
  __syncthreads();
  u32 place = __popc(peers & ((1u << lane) - 1u)), all = 0;
#pragma unroll
  for (u32 w = 0; w < kWarps; ++w) {
    place += w < warp ? c.warp_hits[w] : 0u;
    all += c.warp_hits[w];
  }
  if (tokens) c.hit[place] = threadIdx.x | tokens << 16;
  c.tokens_of[threadIdx.x] = place;
  if (threadIdx.x == 0) c.hits = all;
  __syncthreads();
}

// Routes all tokens. `logits` is room for those of all of them. All threads; ends with a barrier.
WS_DEVICE void choose(const Router& r, Choices& c, float* logits) {
  c.tokens_of[threadIdx.x] = 0;
  const u32 type = r.flags & kLogitsMask;
  if (type == WS_BF16) {
    load_logits<WS_BF16>(r, logits);
  } else if (type == WS_FP16) {
    load_logits<WS_FP16>(r, logits);
  } else {
    load_logits<WS_FP32>(r, logits);
  }
  __syncthreads();
  route_own_token(r, c, logits);
  __syncthreads();
  const u32 pair = threadIdx.x, token = pair / r.top_k;
  u32 expert = kMaxExperts;
  if (pair < r.tokens * r.top_k && c.ids[pair] >= 0) expert = static_cast<u32>(c.ids[pair]) - r.expert_offset;
  const bool here = expert < r.local_experts;
  if (here) atomicOr(&c.tokens_of[expert], 1u << token);
  __syncthreads();
  list_hits(c);
  if (here) {
    const u32 place = c.tokens_of[expert];
    c.slots[place][token] = static_cast<u8>(pair - token * r.top_k);
    c.factors[place][token] = c.weights[pair];
  }
  __syncthreads();
}

WS_DEVICE void multiply(float (&sums)[4], const u32 (&low)[4], const u32 (&high)[4], const u32 (&right)[4]) {
#pragma unroll
  for (u32 i = 0; i < 4; i += 2) {
    const u32 left[4] = {low[i], high[i], low[i + 1], high[i + 1]}, columns[2] = {right[i], right[i + 1]};
    if constexpr (WS_TYPE == WS_BF16) {
      mma_bf16(sums, left, columns);
    } else {
      mma_f16(sums, left, columns);
    }
  }
}

// A warp's sums: lane 4g + t has rows g and g + 8 of tokens 2t and 2t + 1.
WS_DEVICE void put_sums(float* to, const float (&sums)[4]) {
  const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  if (2 * t >= kTokens) return;
#pragma unroll
  for (u32 i = 0; i < 4; ++i) to[(2 * t + i % 2) * kTokenStride + g + i / 2 * 8] = sums[i];
}

// Of all warps, in their order.
WS_DEVICE float total(const float* sums, u32 row, u32 token) {
  float result = 0.0f;
#pragma unroll
  for (u32 w = 0; w < kWarps; ++w) result += sums[w * kWarpSums + token * kTokenStride + row];
  return result;
}

WS_DEVICE float load_bias(const void* bias, u32 flags, u64 i) {
  const u32 type = flags >> kBiasShift & kBiasMask;
  if (type == kNoBias) return 0.0f;
  if (type == kBiasFp32) return static_cast<const float*>(bias)[i];
  const u32 bits = static_cast<const u16*>(bias)[i];
  if (type == kBiasBf16) return float_of(bits << 16);
  float low, high;
  unpack_f16x2(bits, low, high);
  return low;
}

WS_DEVICE void store_value(void* to, u64 i, float value) {
  const u32 pair = WS_TYPE == WS_BF16 ? pack_bf16x2(value, value) : pack_f16x2(value, value);
  static_cast<u16*>(to)[i] = static_cast<u16>(pair);
}

}  // namespace ws
