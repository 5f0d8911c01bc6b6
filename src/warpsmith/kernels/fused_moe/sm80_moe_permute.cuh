// SPDX-License-Identifier: Apache-2.0
// ws_moe_permute: pairs sorted by expert, and their tokens' rows gathered in that order.
//
//   WS_COUNT  1: only count the pairs of each expert in each chunk, for many chunks (grid: chunks)
//
// Grid: (chunks of 512 pairs, blocks that share a chunk's rows). Each block finds its chunk's places by itself, from all
// ids or from counts that a launch before this one has left.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800
#error "ws_moe_permute needs an architecture of 8.0 or later"
#endif
#ifndef WS_COUNT
#error "ws_moe_permute needs WS_COUNT"
#endif

#include "common/dependent_launch.cuh"
#include "common/record.cuh"
#include "fused_moe/gathering.cuh"
#include "fused_moe/sorting.cuh"

WS_RECORD(0, ws::kChunk, 1, ws::kWaitsWherePossible, ws::kChunk, 0, 0)

namespace ws {

WS_DEVICE void count_own_chunk(SortShared& s, const Pairs& pairs, u32* counts) {
  clear(s);
  count_chunks(s.others, pairs, blockIdx.x, blockIdx.x + 1);
  __syncthreads();
  const u64 first = static_cast<u64>(blockIdx.x) * pairs.local_experts;
  if (threadIdx.x < pairs.local_experts) counts[first + threadIdx.x] = s.others[threadIdx.x];
}

}  // namespace ws

// May be null: num_tokens, counts, zeros (words set to 0 for who comes next), x and a (nothing is gathered), x_scales
// and a_scales, weights (which multiply the rows of x). With a `scale_pitch` a_scales is m_major.
extern "C" __global__ void __launch_bounds__(ws::kChunk)
ws_moe_permute(const int* ids, const int* num_tokens, int* offsets, int* rows, int* positions, unsigned* counts,
               unsigned* zeros, const void* x, void* a, const void* x_scales, void* a_scales, const float* weights,
               long long x_row, unsigned row_bytes, unsigned scale_bytes, unsigned scale_pitch, unsigned pairs,
               unsigned top_k, unsigned expert_offset, unsigned local_experts, unsigned zero_words, unsigned flags) {
  using namespace ws;
  __shared__ SortShared shared;
  wait_for_predecessor();
  release_successor();
  const u32 counted = num_tokens ? min(pairs, static_cast<u32>(max(*num_tokens, 0)) * top_k) : pairs;
  const Pairs all{ids, counted, expert_offset, local_experts};
#if WS_COUNT
  count_own_chunk(shared, all, counts);
#else
  __shared__ u32 places[kChunk];
  const u32 chunk = blockIdx.x, row = place_pair(shared, all, counts, gridDim.x, chunk);
  if (blockIdx.y == 0) {
    if (chunk == 0) {
      store_offsets(shared, offsets, local_experts);
      for (u32 i = threadIdx.x; i < zero_words; i += kChunk) zeros[i] = 0;
    }
    const u32 pair = chunk * kChunk + threadIdx.x;
    if (pair < pairs) store_place(rows, positions, pair, row);
  }
  if (!x) return;
  places[threadIdx.x] = row;
  __syncthreads();
  const Gathering g{static_cast<const u8*>(x), static_cast<u8*>(a), static_cast<const u8*>(x_scales),
                    static_cast<u8*>(a_scales), weights, x_row, row_bytes, scale_bytes, scale_pitch, top_k,
                    flags};
  g.run(places, chunk * kChunk, min(kChunk, pairs - chunk * kChunk));
#endif
}
