// SPDX-License-Identifier: Apache-2.0
// A warp chooses the experts of a token. Which ones is decided by integers made of fp32 values that a NumPy reference
// repeats bit for bit (reference/moe.py); their weights are ordinary fp32 arithmetic.
#pragma once

#include "common/arithmetic.cuh"
#include "common/convert.cuh"
#include "common/types.cuh"
#include "fused_moe/order.cuh"

#define WS_BF16 0
#define WS_FP16 1
#define WS_FP32 2

namespace ws {

// The host has the same numbers: catalog/fused_moe.py.
enum : u32 { kSoftmaxTopk = 0, kTopkSoftmax = 1, kSigmoidGrouped = 2, kSigmoidInput = 3 };

constexpr u32 kMaxTopK = 16;

struct Routing {
  const u8* logits;
  const float* bias;
  int* ids;
  float* weights;
  i64 row_bytes;
  u32 experts, top_k, rule, n_group, topk_group;
  float scale;
};

template <int kType>
WS_DEVICE float load_logit(const u8* row, u32 expert) {
  if constexpr (kType == WS_FP32) {
    return reinterpret_cast<const float*>(row)[expert];
  } else {
    float low, high;
    const u32 bits = reinterpret_cast<const u16*>(row)[expert];
    if constexpr (kType == WS_BF16) {
      unpack_bf16x2(bits, low, high);
    } else {
      unpack_f16x2(bits, low, high);
    }
    return low;
  }
}

// fl(1 / fl(1 + exp(−v))) for v within ±80, the exponential that of common/arithmetic.cuh.
WS_DEVICE float sigmoid_defined(float v) {
  const float divisor = __fadd_rn(1.0f, exp_of_negative(fminf(fmaxf(v, -80.0f), 80.0f)));
  const float result = quotient(1.0f, divisor, reciprocal(divisor));
  return v != v ? v : result;
}

// Experts of a token as a lane holds them: 32·i + lane. Beyond the last, keys are kExcludedKey.
template <u32 kCount>
struct Candidates {
  u32 key[kCount];

  // Makes keys of what experts are chosen by; whether one of the lane's is NaN.
  template <int kType>
  WS_DEVICE bool rank(const Routing& p, const u8* row, u32 lane) {
    const bool grouped = p.rule == kSigmoidGrouped;
    bool nan = false;
#pragma unroll
    for (u32 i = 0; i < kCount; ++i) {
      const u32 expert = 32 * i + lane;
      key[i] = kExcludedKey;
      if (expert >= p.experts) continue;
      float choice = load_logit<kType>(row, expert);
      if (grouped) choice = sigmoid_defined(choice);
      if (grouped && p.bias) choice = __fadd_rn(choice, p.bias[expert]);
      key[i] = key_of(choice);
      nan |= key[i] == kNanKey;
    }
    return nan;
  }

  // Shuts out all experts but those of the best groups; a group counts fl(best + second best).
  WS_DEVICE void keep_groups(const Routing& p, u32 lane) {
    const u32 size = p.experts / p.n_group;
    u32 group_key = kExcludedKey;
#pragma unroll 1
    for (u32 group = 0; group < p.n_group; ++group) {
      u32 first = 0, second = 0;
#pragma unroll
      for (u32 i = 0; i < kCount; ++i) {
        const u32 candidate = 32 * i + lane - group * size < size ? key[i] : 0u;
        second = max(second, min(first, candidate));
        first = max(first, candidate);
      }
      const u32 best = warp_max(first);
      const bool has_best = lane == __ffs(__ballot_sync(kAllLanes, first == best)) - 1u;
      const u32 next = warp_max(has_best ? second : first);
      const float score = __fadd_rn(value_of(best), value_of(next));
      if (lane == group) group_key = key_of(score);
    }
    u32 kept = 0;
#pragma unroll 1
    for (u32 i = 0; i < p.topk_group; ++i) {
      const u32 best = warp_max(group_key);
      const u32 group = __ffs(__ballot_sync(kAllLanes, group_key == best)) - 1u;
      kept |= 1u << group;
      if (lane == group) group_key = kExcludedKey;
    }
#pragma unroll 1
    for (u32 group = 0; group < p.n_group; ++group) {
      if (kept >> group & 1u) continue;
#pragma unroll
      for (u32 i = 0; i < kCount; ++i) {
        if (32 * i + lane - group * size < size) key[i] = kExcludedKey;
      }
    }
  }

  // The best expert, the lowest of equal ones, which is then shut out.
  WS_DEVICE u32 take_best(u32 lane) {
    u32 local = key[0];
#pragma unroll
    for (u32 i = 1; i < kCount; ++i) local = max(local, key[i]);
    const u32 best = warp_max(local);
    u32 lowest = kCount;
#pragma unroll
    for (u32 i = kCount; i-- > 0;) {
      if (key[i] == best) lowest = i;
    }
    const u32 expert = warp_min(32 * lowest + lane);
#pragma unroll
    for (u32 i = 0; i < kCount; ++i) {
      if (32 * i + lane == expert) key[i] = kExcludedKey;
    }
    return expert;
  }
};

// exp(logit − largest) summed over all experts.
template <int kType>
WS_DEVICE float sum_of_all(const Routing& p, const u8* row, float largest, u32 lane) {
  float sum = 0.0f;
#pragma unroll 4
  for (u32 expert = lane; expert < p.experts; expert += 32) sum += __expf(load_logit<kType>(row, expert) - largest);
  return warp_sum(sum);
}

template <int kType, u32 kCount>
WS_DEVICE void route_token(const Routing& p, u32 token) {
  const u32 lane = threadIdx.x % 32;
  const u8* const row = p.logits + token * p.row_bytes;
  Candidates<kCount> all;
  const bool nan = __any_sync(kAllLanes, all.template rank<kType>(p, row, lane));
  if (p.rule == kSigmoidGrouped && p.n_group > 1) all.keep_groups(p, lane);
  u32 id = 0;
#pragma unroll 1
  for (u32 j = 0; j < p.top_k; ++j) {
    const u32 expert = all.take_best(lane);
    if (lane == j) id = expert;
  }
  const bool mine = lane < p.top_k;
  const float chosen = mine ? load_logit<kType>(row, id) : 0.0f;
  float weight;
  if (p.rule <= kTopkSoftmax) {
    const float largest = __shfl_sync(kAllLanes, chosen, 0);
    weight = mine ? expf(chosen - largest) : 0.0f;
    const float sum = p.rule == kSoftmaxTopk ? sum_of_all<kType>(p, row, largest, lane) : warp_sum(weight);
    weight = __fdividef(weight, sum);
  } else {
    weight = mine ? __fdividef(1.0f, 1.0f + expf(-chosen)) : 0.0f;
    if (p.rule == kSigmoidGrouped) weight = __fdividef(weight, warp_sum(weight) + 1e-20f);
  }
  weight = nan ? float_of(kQuietNan) : weight * p.scale;
  if (mine) {
    p.ids[static_cast<u64>(token) * p.top_k + lane] = static_cast<int>(id);
    p.weights[static_cast<u64>(token) * p.top_k + lane] = weight;
  }
}

}  // namespace ws
