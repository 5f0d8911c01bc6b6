// SPDX-License-Identifier: Apache-2.0
// ws_moe_route: router logits to the experts of each token and their weights; one warp a token.
//
//   WS_INPUT  WS_BF16 | WS_FP16 | WS_FP32, the logits
//
// Grid: blocks of 16 tokens, or a single one. A single one may go on to sort the pairs by expert (`offsets` is then not
// null; tokens · top_k ≤ 512), so that a decode step needs no second launch for it.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800
#error "ws_moe_route needs an architecture of 8.0 or later"
#endif
#ifndef WS_INPUT
#error "ws_moe_route needs WS_INPUT"
#endif

#include "common/dependent_launch.cuh"
#include "common/record.cuh"
#include "fused_moe/routing.cuh"
#include "fused_moe/sorting.cuh"

#if WS_INPUT < WS_BF16 || WS_INPUT > WS_FP32
#error "ws_moe_route: unknown WS_INPUT"
#endif

WS_RECORD(0, ws::kChunk, 1, ws::kWaitsWherePossible, ws::kSortWarps, 0, 0)

namespace ws {

WS_DEVICE void route_tokens(const Routing& p, u32 tokens, u32 counted) {
  const u32 lane = threadIdx.x % 32;
  for (u32 token = blockIdx.x * kSortWarps + threadIdx.x / 32; token < tokens; token += gridDim.x * kSortWarps) {
    if (token >= counted) {
      if (lane < p.top_k) {
        p.ids[static_cast<u64>(token) * p.top_k + lane] = -1;
        p.weights[static_cast<u64>(token) * p.top_k + lane] = 0.0f;
      }
    } else if (p.experts <= 128) {
      route_token<WS_INPUT, 4>(p, token);
    } else if (p.experts <= 256) {
      route_token<WS_INPUT, 8>(p, token);
    } else {
      route_token<WS_INPUT, 16>(p, token);
    }
  }
}

}  // namespace ws

// `num_tokens` may be null: all tokens count. Tokens beyond it get experts −1 and weights 0.
extern "C" __global__ void __launch_bounds__(ws::kChunk)
ws_moe_route(const void* logits, const float* bias, const int* num_tokens, int* ids, float* weights, int* offsets,
             int* rows, int* positions, long long row_bytes, unsigned tokens, unsigned experts, unsigned top_k,
             unsigned rule, unsigned n_group, unsigned topk_group, float scale, unsigned expert_offset,
             unsigned local_experts) {
  using namespace ws;
  __shared__ SortShared shared;
  wait_for_predecessor();
  release_successor();
  const Routing p{static_cast<const u8*>(logits), bias, ids, weights, row_bytes, experts, top_k, rule, n_group,
                  topk_group, scale};
  const u32 counted = num_tokens ? static_cast<u32>(max(*num_tokens, 0)) : tokens;
  route_tokens(p, tokens, counted);
  if (!offsets) return;
  __syncthreads();
  const Pairs pairs{ids, tokens * top_k, expert_offset, local_experts};
  const u32 row = place_pair(shared, pairs, nullptr, 1, 0);
  store_offsets(shared, offsets, local_experts);
  if (threadIdx.x < pairs.count) store_place(rows, positions, threadIdx.x, row);
}
