// SPDX-License-Identifier: Apache-2.0
// Pairs (token, choice) sorted by expert, equal ones in their order: every pair's place follows from counts alone, so
// that no order of execution matters. A block places a chunk of kChunk pairs, one a thread.
#pragma once

#include "common/types.cuh"

namespace ws {

constexpr u32 kChunk = 512;  // pairs, and threads of a block
constexpr u32 kSortWarps = kChunk / 32;
constexpr u32 kMaxExperts = 512;

struct Pairs {
  const int* ids;
  u32 count, expert_offset, local_experts;

  // The local expert of a pair; local_experts if it has none here.
  WS_DEVICE u32 expert(u32 pair) const {
    const int id = pair < count ? ids[pair] : -1;
    return id >= 0 ? min(static_cast<u32>(id) - expert_offset, local_experts) : local_experts;
  }
};

struct SortShared {
  u32 before[kMaxExperts + 1];  // pairs of an expert in earlier chunks; the last is for those without one
  u32 others[kMaxExperts + 1];  // in this chunk and later ones; then the expert's first row
  u32 warp_sums[kSortWarps];
  u32 rows;                 // of all local experts
  u8 in_warp[kSortWarps][kMaxExperts];  // pairs of an expert in a warp of this chunk
};

WS_DEVICE void clear(SortShared& s) {
  s.others[threadIdx.x] = s.before[threadIdx.x] = 0;
  u32* const words = reinterpret_cast<u32*>(s.in_warp);
#pragma unroll
  for (u32 i = threadIdx.x; i < sizeof(s.in_warp) / 4; i += kChunk) words[i] = 0;
  __syncthreads();
}

// The lanes of the warp that have the same expert.
WS_DEVICE u32 peers_of(u32 expert) { return __match_any_sync(kAllLanes, expert); }

WS_DEVICE bool leads(u32 peers) { return threadIdx.x % 32 == __ffs(peers) - 1u; }

// Counts the pairs of some chunks. Lanes of one expert are added up by the instruction.
WS_DEVICE void count_chunks(u32* counts, const Pairs& pairs, u32 first, u32 end) {
#pragma unroll 4
  for (u32 c = first; c < end; ++c) atomicAdd(counts + pairs.expert(c * kChunk + threadIdx.x), 1u);
}

// The same from counts [chunks][experts] in memory.
WS_DEVICE void count_from(SortShared& s, const u32* counts, u32 chunks, u32 chunk, u32 experts) {
  const u32 width = (experts + 31) / 32 * 32, parts = kChunk / width;
  const u32 part = threadIdx.x / width, expert = threadIdx.x % width;
  if (expert >= experts || part >= parts) return;
  u32 before = 0, others = 0;
#pragma unroll 8
  for (u32 c = part; c < chunks; c += parts) {
    const u32 count = counts[static_cast<u64>(c) * experts + expert];
    before += c < chunk ? count : 0u;
    others += c < chunk ? 0u : count;
  }
  atomicAdd(&s.before[expert], before);
  atomicAdd(&s.others[expert], others);
}

// Turns counts into first rows. Starts and ends with a barrier.
WS_DEVICE void scan_counts(SortShared& s, u32 experts) {
  __syncthreads();
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u32 own = threadIdx.x < experts ? s.before[threadIdx.x] + s.others[threadIdx.x] : 0u;
  u32 through = own;
#pragma unroll
  for (u32 distance = 1; distance < 32; distance *= 2) {
    const u32 other = __shfl_up_sync(kAllLanes, through, distance);
    if (lane >= distance) through += other;
  }
  if (lane == 31) s.warp_sums[warp] = through;
  __syncthreads();
#pragma unroll
  for (u32 w = 0; w < kSortWarps; ++w) through += w < warp ? s.warp_sums[w] : 0u;
  s.others[threadIdx.x] = through - own;
  if (threadIdx.x == kChunk - 1) s.rows = through;
  __syncthreads();
}

// The sorted row of the thread's pair, ~0 if it has no expert here, given everything counted and scanned.
WS_DEVICE u32 row_of(const SortShared& s, u32 expert, u32 experts, u32 peers) {
  if (expert >= experts) return ~0u;
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  u32 row = s.others[expert] + s.before[expert] + __popc(peers & ((1u << lane) - 1u));
#pragma unroll
  for (u32 w = 0; w < kSortWarps; ++w) row += w < warp ? s.in_warp[w][expert] : 0u;
  return row;
}

// Places the thread's pair of chunk `chunk`. `counts` may be null: every block then counts all pairs itself.
WS_DEVICE u32 place_pair(SortShared& s, const Pairs& pairs, const u32* counts, u32 chunks, u32 chunk) {
  clear(s);
  const u32 experts = pairs.local_experts;
  const u32 own = pairs.expert(chunk * kChunk + threadIdx.x), own_peers = peers_of(own);
  if (counts) {
    count_from(s, counts, chunks, chunk, experts);
  } else {
    count_chunks(s.before, pairs, 0, chunk);
    count_chunks(s.others, pairs, chunk, chunks);
  }
  if (own < experts && leads(own_peers)) s.in_warp[threadIdx.x / 32][own] = static_cast<u8>(__popc(own_peers));
  scan_counts(s, experts);
  return row_of(s, own, experts, own_peers);
}

WS_DEVICE void store_offsets(const SortShared& s, int* offsets, u32 experts) {
  if (threadIdx.x < experts) offsets[threadIdx.x] = static_cast<int>(s.others[threadIdx.x]);
  if (threadIdx.x == 0) offsets[experts] = static_cast<int>(s.rows);
}

WS_DEVICE void store_place(int* rows, int* positions, u32 pair, u32 row) {
  positions[pair] = static_cast<int>(row);
  if (row != ~0u) rows[row] = static_cast<int>(pair);
}

}  // namespace ws
