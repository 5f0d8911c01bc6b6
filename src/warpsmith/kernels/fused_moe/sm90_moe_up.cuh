// SPDX-License-Identifier: Apache-2.0
// The first product of a MoE layer for few tokens on Hopper, with its gather and its activation:
//
//   act[r] = activation(x[rows[r] / top_k] · w13[e]ᵀ + bias[e]) for the sorted rows r of expert e
//
// The stream of gemm/sm90_stream_gemm.cuh, whose macros these are, with WS_GATED=1: gate and up rows of w13 [E, 2I, H],
// gate rows first, go through the MMA by eights in turn, so that both sums of a value of `act` end in one block.
// Experts without rows cost nothing; those with more than WS_ROWS rows are read again, from L2.
#ifndef __CUDA_ARCH__
#error "device code only: __CUDA_ARCH__ is not set"
#elif __CUDA_ARCH__ < 900
#error "sm90_moe_up needs sm_90 or newer"
#elif !defined(WS_GATED) || !WS_GATED
#error "WS_GATED must be 1"
#endif

#include "common/record.cuh"
#include "common/types.cuh"
#include "fused_moe/activation.cuh"
#include "gemm/sm90_stream_config.cuh"
#include "gemm/sm90_stream_main.cuh"
#include "gemm/sm90_stream_problem.cuh"

namespace ws {

// The token of a sorted row.
struct GatheredRow {
  const int* rows;
  u32 top_k;

  WS_DEVICE const u8* operator()(const Problem& p, const Rows& of, u32 i) const {
    return p.a + static_cast<i64>(static_cast<u32>(rows[of.first + i]) / top_k) * p.a_row;
  }
};

struct Activate {
  u32 activation;
  float alpha, limit;

  WS_DEVICE float operator()(float gate, float up) const { return activate(activation, gate, up, alpha, limit); }
};

// Bytes of a matrix's scales.
WS_DEVICE i64 scale_bytes(u32 rows, u32 k, bool tiled) {
  if constexpr (kPlain) return 0;
  constexpr u32 block = kPlain ? 1 : kBlock;
  if (kFp8Block) return 4ll * div_up(rows, 128) * (k / block);
  const u32 blocks = k / block;
  return tiled ? static_cast<i64>(div_up(rows, 128)) * 128 * (div_up(blocks, 4) * 4) : static_cast<i64>(rows) * blocks;
}

}  // namespace ws

WS_RECORD(ws::Shared::kBytes, ws::kThreads, WS_AHEAD, WS_FLAG_WAITS, WS_ROWS, WS_CLUSTER, 0)

// x rows are `x_row` bytes apart; w13 [experts][2·units][hidden] and act [pairs][units] are tight. `offsets` and `rows`
// are those of the sorting stage; offsets beyond `pairs` are cut to it. Flags: type of act (bits 2, 3) and of the bias
// (4, 5), 128x4 scales (8), one global scale an expert (11), early weights (12), log2 of the warps that divide K (16 to
// 18).
extern "C" __global__ void WS_CLUSTER_ATTRIBUTE __launch_bounds__(ws::kThreads, 1)
    ws_sm90_moe_up(const void* x, const void* w13, const void* w13_scales, const float* w13_global_scale,
                   const void* bias, const int* offsets, const int* rows, void* act, long long x_row, unsigned top_k,
                   unsigned pairs, unsigned units, unsigned hidden, unsigned experts, unsigned activation,
                   float activation_alpha, float activation_limit, unsigned flags) {
  extern __shared__ __align__(1024) ws::u8 shared[];
  using ws::u8;
  using ws::i64;
  const unsigned n = 2 * units;
  const i64 b_row = static_cast<i64>(hidden) * ws::kBits / 8;
  const bool wide_bias = (flags >> ws::kBiasShift & ws::kTypeMask) == ws::kBiasFp32;
  const ws::Problem p{static_cast<const u8*>(x), static_cast<const u8*>(w13), static_cast<const u8*>(w13_scales),
                static_cast<const u8*>(bias), static_cast<u8*>(act), nullptr, nullptr, w13_global_scale, offsets, x_row,
                b_row, static_cast<i64>(units) * 2, 0, n * b_row, 0,
                ws::scale_bytes(n, hidden, flags & ws::kTiledScales), static_cast<i64>(n) * (wide_bias ? 4 : 2), pairs,
                n, hidden, experts, 1.0f, (flags & ~ws::kKindMask) | ws::kGrouped};
  ws::compute(p, shared, ws::GatheredRow{rows, top_k}, ws::Activate{activation, activation_alpha, activation_limit});
}
