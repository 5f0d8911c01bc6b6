// SPDX-License-Identifier: Apache-2.0
// ws_moe_combine: out[t] = Σ weights[t, j] · y[positions[t·k + j]] in fp32, j ascending; eight columns a thread.
//
//   WS_TYPE  WS_BF16 | WS_FP16, of y and of out
//
// Grid: (tokens, column blocks). Pairs at position −1 are left out; a token without any gets zeros.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800
#error "ws_moe_combine needs an architecture of 8.0 or later"
#endif
#ifndef WS_TYPE
#error "ws_moe_combine needs WS_TYPE"
#endif

#include "common/dependent_launch.cuh"
#include "common/record.cuh"
#include "fused_moe/packed.cuh"

#if WS_TYPE != WS_BF16 && WS_TYPE != WS_FP16
#error "ws_moe_combine: unknown WS_TYPE"
#endif

namespace ws {

constexpr u32 kCombineThreads = 128;
constexpr u32 kRowsAhead = 4;  // rows of y that a thread loads at once

// Rows `first` to `first` + kRowsAhead − 1 of a token, added in order.
WS_DEVICE void add_rows(const uint4* y, const float* weights, const int* positions, u32 first, u32 top_k, u32 rows,
                        u32 units, u32 unit, float (&sum)[8]) {
  u32 place[kRowsAhead];
  float weight[kRowsAhead];
  uint4 words[kRowsAhead];
#pragma unroll
  for (u32 i = 0; i < kRowsAhead; ++i) {
    const bool exists = first + i < top_k;
    place[i] = exists ? static_cast<u32>(positions[first + i]) : ~0u;
    weight[i] = exists && weights ? weights[first + i] : 1.0f;
  }
#pragma unroll
  for (u32 i = 0; i < kRowsAhead; ++i) {
    if (place[i] < rows) words[i] = __ldg(y + static_cast<u64>(place[i]) * units + unit);
  }
#pragma unroll
  for (u32 i = 0; i < kRowsAhead; ++i) {
    if (place[i] >= rows) continue;
    float values[8];
    unpack8<WS_TYPE>(words[i], values);
#pragma unroll
    for (u32 j = 0; j < 8; ++j) sum[j] = __fmaf_rn(weight[i], values[j], sum[j]);
  }
}

}  // namespace ws

WS_RECORD(0, ws::kCombineThreads, 1, ws::kWaitsWherePossible, 8, 0, 0)

// `weights` may be null: each counts 1. `rows` is how many rows y has; positions beyond are left out.
extern "C" __global__ void __launch_bounds__(ws::kCombineThreads)
ws_moe_combine(const void* y, const float* weights, const int* positions, void* out, long long out_row, unsigned rows,
               unsigned top_k, unsigned units) {
  using namespace ws;
  wait_for_predecessor();
  release_successor();
  const u32 unit = blockIdx.y * kCombineThreads + threadIdx.x;
  if (unit >= units) return;
  const u64 pair = static_cast<u64>(blockIdx.x) * top_k;
  float sum[8] = {};
#pragma unroll 1
  for (u32 first = 0; first < top_k; first += kRowsAhead) {
    add_rows(static_cast<const uint4*>(y), weights ? weights + pair : nullptr, positions + pair, first, top_k, rows,
             units, unit, sum);
  }
  store8<WS_TYPE>(static_cast<u8*>(out) + blockIdx.x * out_row + 16ull * unit, sum);
}
