// SPDX-License-Identifier: Apache-2.0
// Activations of a warp's sums, in fp32. NaN stays NaN.
//
// Gated, rows of B come by turns: eight of the gate, the eight of what it gates, the next eight of the gate. Both
// values of a pair are then in one lane: eight columns of the sums apart, or, swapped, eight rows.
#pragma once

#include "common/min_nan.cuh"
#include "common/ptx.cuh"
#include "gemm/sm90_bias.cuh"
#include "gemm/sm90_config.cuh"
#include "gemm/sm90_schedule.cuh"

namespace ws {

// g · sigmoid(z).
WS_DEVICE float times_sigmoid(float g, float z) { return g * reciprocal_approx(1.0f + exp2_approx(z * -1.4426950f)); }

template <u32 kKind>
WS_DEVICE float gated(const Gate& by, float gate, float up) {
  if constexpr (kKind == kSwiglu) return times_sigmoid(gate, gate) * up;
  const float g = min_nan(gate, by.limit), u = max_nan(min_nan(up, by.limit), -by.limit);
  const float z = g * __fmaf_rn(by.cube, fminf(g * g, 1e30f), by.slope);  // no 0 · infinity
  return times_sigmoid(g, z) * (u + by.offset);
}

WS_DEVICE float squared_relu(float x) {
  const float up = max_nan(x, 0.0f);
  return up * up;
}

// 16 rows by kN columns of sums, times alpha, plus bias, activated. Pairs leave the front half of the sums.
template <u32 kKind>
WS_DEVICE void activate_rows(float (&sums)[kN / 2], const Gate& gate, const Bias& bias, float alpha, u32 addends,
                             u32 first_column, u32 lane) {
  const u32 t = lane % 4;
#pragma unroll
  for (u32 start = 0; start < kN; start += 64) {
    const u32 column = first_column + start;
    if constexpr (kKind != kSquaredRelu) {
      bias.stage(addends, column / 2 + lane % 16 * 2 + lane / 16 * (bias.n / 2), lane);
#pragma unroll
      for (u32 q = 0; q < 4; ++q) {
        const float2 add_gate = bias.staged(addends, q * 8 + 2 * t), add_up = bias.staged(addends, 32 + q * 8 + 2 * t);
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {  // rows g and g + 8
          const float* const from = &sums[(start / 8 + 2 * q) * 4 + h * 2];
          float* const to = &sums[(start / 16 + q) * 4 + h * 2];
          const float x = gated<kKind>(gate, __fmaf_rn(from[0], alpha, add_gate.x), __fmaf_rn(from[4], alpha, add_up.x));
          const float y = gated<kKind>(gate, __fmaf_rn(from[1], alpha, add_gate.y), __fmaf_rn(from[5], alpha, add_up.y));
          to[0] = x, to[1] = y;
        }
      }
    } else {
      bias.stage(addends, column + 2 * lane, lane);
#pragma unroll
      for (u32 i = 0; i < 16; ++i) {
        const float2 add = bias.staged(addends, i / 2 * 8 + 2 * t);
        float* const at = &sums[start / 2 + i * 2];
        at[0] = squared_relu(__fmaf_rn(at[0], alpha, add.x));
        at[1] = squared_relu(__fmaf_rn(at[1], alpha, add.y));
      }
    }
    __syncwarp();
  }
}

// The same with rows of the sums along N.
template <u32 kKind>
WS_DEVICE void activate_swapped(float (&sums)[kN / 2], const Gate& gate, const Bias& bias, float alpha,
                                u32 first_column, u32 lane) {
  constexpr bool gates = kKind != kSquaredRelu;
  const u32 low = gates ? first_column / 2 + lane / 4 : first_column + lane / 4;
  const float add[2] = {bias.one(low), bias.one(gates ? low + bias.n / 2 : low + 8)};
#pragma unroll
  for (u32 j = 0; j < kN / 8; ++j) {
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
      const float x = __fmaf_rn(sums[4 * j + e], alpha, add[0]), y = __fmaf_rn(sums[4 * j + 2 + e], alpha, add[1]);
      if constexpr (gates) {
        sums[2 * j + e] = gated<kKind>(gate, x, y);
      } else {
        sums[4 * j + e] = squared_relu(x), sums[4 * j + 2 + e] = squared_relu(y);
      }
    }
  }
}

template <u32 kKind>
WS_DEVICE void activate_as(float (&sums)[kN / 2], const Gate& gate, const Bias& bias, float alpha, u32 addends,
                           u32 first_column, u32 lane) {
  if constexpr (kSwap) {
    activate_swapped<kKind>(sums, gate, bias, alpha, first_column, lane);
  } else {
    activate_rows<kKind>(sums, gate, bias, alpha, addends, first_column, lane);
  }
}

WS_DEVICE void activate_sums(float (&sums)[kN / 2], const Gate& gate, const Bias& bias, float alpha, u32 addends,
                             u32 kind, u32 first_column, u32 lane) {
  if (kind == kSwiglu) {
    activate_as<kSwiglu>(sums, gate, bias, alpha, addends, first_column, lane);
  } else if (kind == kGated) {
    activate_as<kGated>(sums, gate, bias, alpha, addends, first_column, lane);
  } else {
    activate_as<kSquaredRelu>(sums, gate, bias, alpha, addends, first_column, lane);
  }
}

}  // namespace ws
