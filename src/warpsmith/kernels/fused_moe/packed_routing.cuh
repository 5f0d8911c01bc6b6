// SPDX-License-Identifier: Apache-2.0
// How a block of a decode step of packed weights routes: ids and weights are those of route_token, bit for bit, but ids
// come first, since what a block copies depends on them. A warp has a token, and the block meets once for one token, twice
// for more.
#pragma once

#include "common/types.cuh"
#include "fused_moe/decode.cuh"
#include "fused_moe/routing.cuh"

namespace ws {

enum : u32 { kPairs = kTokens * kMaxTopK };
enum : u32 { kNowhere = 0xFFFFu };  // the expert of a choice that is not here
enum : u32 { kNoPlace = 0xFFu };

WS_DEVICE float load_logit_of(const Router& r, const u8* row, u32 expert) {
  const u32 type = r.flags & kLogitsMask;
  if (type == WS_FP32) return load_logit<WS_FP32>(row, expert);
  const u32 bits = reinterpret_cast<const u16*>(row)[expert];
  if (type == WS_BF16) return float_of(bits << 16);
  float low, high;
  unpack_f16x2(bits, low, high);
  return low;
}

// As Candidates::rank, for logits of any type.
template <u32 kCount>
WS_DEVICE bool rank_experts(const Router& r, const u8* row, u32 lane, Candidates<kCount>& all) {
  const bool grouped = r.rule == kSigmoidGrouped;
#pragma unroll
  for (u32 i = 0; i < kCount; ++i) {
    all.key[i] = 32 * i + lane < r.experts ? bits_of(load_logit_of(r, row, 32 * i + lane)) : 0u;
  }
  bool nan = false;
#pragma unroll
  for (u32 i = 0; i < kCount; ++i) {
    const u32 expert = 32 * i + lane;
    float choice = float_of(all.key[i]);
    all.key[i] = kExcludedKey;
    if (expert >= r.experts) continue;
    if (grouped) choice = sigmoid_defined(choice);
    if (grouped && r.bias) choice = __fadd_rn(choice, r.bias[expert]);
    all.key[i] = key_of(choice);
    nan |= all.key[i] == kNanKey;
  }
  return nan;
}

// What a token chose: lane j has the id of choice j.
struct Choice {
  u32 id;
  bool nan;  // a logit is
};

template <u32 kCount>
WS_DEVICE Choice choose_for(const Router& r, u32 token) {
  const u32 lane = threadIdx.x % 32;
  const Routing p{nullptr, r.bias, nullptr, nullptr, 0, r.experts, r.top_k, r.rule, r.n_group, r.topk_group, r.scale};
  Candidates<kCount> all;
  const bool nan = rank_experts(r, r.logits + token * r.row_bytes, lane, all);
  if (r.rule == kSigmoidGrouped && r.n_group > 1) all.keep_groups(p, lane);
  u32 id = 0;
#pragma unroll 1
  for (u32 j = 0; j < r.top_k; ++j) {
    const u32 expert = all.take_best(lane);
    if (lane == j) id = expert;
  }
  return {id, static_cast<bool>(__any_sync(kAllLanes, nan))};
}

WS_DEVICE Choice choose_experts(const Router& r, u32 token) {
  if (r.experts <= 128) return choose_for<4>(r, token);
  if (r.experts <= 256) return choose_for<8>(r, token);
  return choose_for<16>(r, token);
}

// The weight of lane j's choice.
WS_DEVICE float weight_of(const Router& r, u32 token, const Choice& choice) {
  const u32 lane = threadIdx.x % 32;
  const u8* const row = r.logits + token * r.row_bytes;
  const bool mine = lane < r.top_k;
  const float chosen = mine ? load_logit_of(r, row, choice.id) : 0.0f;
  float weight;
  if (r.rule <= kTopkSoftmax) {
    const float largest = __shfl_sync(kAllLanes, chosen, 0);
    weight = mine ? expf(chosen - largest) : 0.0f;
    float sum;
    if (r.rule == kSoftmaxTopk) {
      sum = 0.0f;
#pragma unroll 4
      for (u32 expert = lane; expert < r.experts; expert += 32) sum += __expf(load_logit_of(r, row, expert) - largest);
      sum = warp_sum(sum);
    } else {
      sum = warp_sum(weight);
    }
    weight = __fdividef(weight, sum);
  } else {
    weight = mine ? __fdividef(1.0f, 1.0f + expf(-chosen)) : 0.0f;
    if (r.rule == kSigmoidGrouped) weight = __fdividef(weight, warp_sum(weight) + 1e-20f);
  }
  return choice.nan ? float_of(kQuietNan) : weight * r.scale;
}

WS_DEVICE u32 counted_tokens(const Router& r) {
  return r.num_tokens ? min(static_cast<u32>(max(*r.num_tokens, 0)), r.tokens) : r.tokens;
}

// What a block knows of its tokens' experts, in ascending order.
struct Hits {
  u32 hit[kPairs];                // local expert, and the tokens' bits above 16
  float factors[kPairs][kTokens];  // weights of tokens that have the expert
  u8 slots[kPairs][kTokens];      // which choice of such a token it is
  u8 places[kTokens][kMaxTopK];   // of a choice: its expert's number among those that were hit, or kNoPlace
  u32 tokens_of[kMaxExperts];     // bits
  u8 place_of[kMaxExperts];
  u32 hits;
};

class Route {
 public:
  Hits& all;
  u32 hits = 0;

  WS_DEVICE explicit Route(Hits& all_) : all(all_) {}

  WS_DEVICE u32 hit(u32 i) const { return all.hit[i]; }
  WS_DEVICE u32 slot(u32 i, u32 token) const { return all.slots[i][token]; }

  // Before the predecessor has ended. All threads; ends with a barrier.
  WS_DEVICE void clear() {
    all.tokens_of[threadIdx.x] = 0;
    __syncthreads();
  }

  // All threads; ends with a barrier.
  WS_DEVICE void find(const Router& r) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 expert = kNowhere;
    if (warp < r.tokens) {
      const u32 counted = counted_tokens(r);
      choice_ = choose_experts(r, warp);
      expert = choice_.id - r.expert_offset;
      if (lane >= r.top_k || expert >= r.local_experts || warp >= counted) expert = kNowhere;
    }
    here_ = expert != kNowhere;
    if (r.tokens == 1) {
      if (warp == 0) list_one(expert);
      __syncthreads();
      hits = all.hits;
    } else {
      if (here_) atomicOr(&all.tokens_of[expert], 1u << warp);
      __syncthreads();
      list(r);
      __syncthreads();
      if (here_) place_ = all.place_of[expert];
    }
    if (here_) all.slots[place_][warp] = static_cast<u8>(lane);
    if (warp < r.tokens && lane < kMaxTopK) all.places[warp][lane] = static_cast<u8>(here_ ? place_ : kNoPlace);
  }

  // Weights of each warp's token. Threads must meet before they, slots and places are read.
  WS_DEVICE void weigh(const Router& r) {
    const u32 token = threadIdx.x / 32;
    if (token >= r.tokens || !__any_sync(kAllLanes, here_)) return;
    const float weight = weight_of(r, token, choice_);
    if (here_) all.factors[place_][token] = weight;
  }

 private:
  WS_DEVICE void list_one(u32 expert) {
    const u32 here = __ballot_sync(kAllLanes, here_);
    for (u32 left = here; left; left &= left - 1u) {
      place_ += __shfl_sync(kAllLanes, expert, __ffs(left) - 1) < expert ? 1u : 0u;
    }
    if (here_) all.hit[place_] = expert | 1u << 16;
    if (threadIdx.x == 0) all.hits = __popc(here);
  }

  WS_DEVICE void list(const Router& r) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, words = (r.local_experts + 31) / 32;
#pragma unroll 4
    for (u32 i = 0; i < words; ++i) {
      const u32 tokens = all.tokens_of[32 * i + lane], peers = __ballot_sync(kAllLanes, tokens != 0);
      if (i == warp && tokens) {
        const u32 place = hits + __popc(peers & ((1u << lane) - 1u));
        all.hit[place] = 32 * i + lane | tokens << 16;
        all.place_of[32 * i + lane] = static_cast<u8>(place);
      }
      hits += __popc(peers);
    }
  }

  Choice choice_{};     // of the token of the warp's number, if there is one that counts
  u32 place_ = 0;       // that choice's number among hits
  bool here_ = false;   // whether it is among them
};

}  // namespace ws
