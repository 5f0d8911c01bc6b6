// SPDX-License-Identifier: Apache-2.0
// ws_moe_packed_down: second product of a MoE layer for a few tokens, with 4-bit weights in the order for few rows:
//
//   out[t] = Σ act[t · top_k + j] · w2[e]ᵀ + weight[t, j] · bias[e] over the experts e that are here, in fp32
//
// Rows of `act` come with all factors from ws_moe_packed_up, which runs directly before: routing is repeated and first
// tiles of w2 are copied while that is at work. Macros as in fused_moe/packed_decode.cuh, and WS_CLUSTER, 1 or 2 blocks
// that divide experts and K. Grid: one block a multiprocessor, and enough that no cluster has more than kMostTiles tiles
// of 16 rows of w2. `inner` is a multiple of 64, `hidden` of 32.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
#error "ws_moe_packed_down needs an architecture of 9.0 or later"
#elif !defined(WS_CLUSTER) || (WS_CLUSTER != 1 && WS_CLUSTER != 2)
#error "ws_moe_packed_down needs WS_CLUSTER, 1 or 2"
#endif

#include "common/cluster.cuh"
#include "common/dependent_launch.cuh"
#include "common/record.cuh"
#include "fused_moe/packed_decode.cuh"

#if WS_CLUSTER > 1
#define WS_CLUSTER_ATTRIBUTE __cluster_dims__(WS_CLUSTER, 1, 1)
#else
#define WS_CLUSTER_ATTRIBUTE
#endif

namespace ws {

constexpr u32 kCluster = WS_CLUSTER, kAllWarps = kCluster * kWarps;
constexpr u32 kMostTiles = 4;
#if defined(WS_AHEAD)
constexpr u32 kAhead = WS_AHEAD;
#else
constexpr u32 kAhead = kTokens == 2 && !kNvfp4 ? 4 : 3;  // spans that a warp has under way
#endif

// What a warp multiplies at a time: two tiles of w2, next to each other along K, and as much of a row of `act` for each
// token, 16 bytes off a multiple of 128. Where K has an odd number of tiles, the last one has zeros beside it.
struct Slot {
  static constexpr u32 kScales = 2 * kPreparedTileBytes, kAct = kScales + 2 * kScaleBytes,
                       kActRow = 4 * kPreparedTileK + 16, kBytes = kAct + kTokens * kActRow;
};

struct Shared {
  static constexpr u32 kRing = 0;  // [kWarps][kAhead]; logits before
  static constexpr u32 kSums = kRing + kWarps * kAhead * Slot::kBytes;  // [kMostTiles][kWarps]
  static constexpr u32 kBytes = kSums + kMostTiles * kWarps * kWarpSums * 4;
  static_assert(kTokens * kMaxExperts * 4 <= kSums, "room for logits");
  static_assert(kBytes + sizeof(Choices) + 1024 <= 227 * 1024, "room on a multiprocessor");
};

struct Layer {
  const u8* act;
  Packed w2;
  const void* bias;
  void* out;
  u32 tokens, top_k, inner, hidden, flags;
  u32 first, tiles;  // the cluster's tiles of 16 rows of w2
};

// A warp's share of (tile of rows, expert, span of K), in that order.
struct Walk {
  u32 tile, hit, span;
  u32 tiles, hits, spans;

  WS_DEVICE Walk(const Layer& l, u32 hits_, u32 rank)
      : tile(hits_ ? 0 : l.tiles), hit(0), span(rank * kWarps + threadIdx.x / 32), tiles(l.tiles), hits(hits_),
        spans((l.w2.tiles + 1) / 2) {
    wrap();
  }
  WS_DEVICE bool has_next() const { return tile < tiles; }
  WS_DEVICE void advance() {
    span += kAllWarps;
    wrap();
  }

 private:
  WS_DEVICE void wrap() {
    while (span >= spans && tile < tiles) {
      span -= spans;
      if (++hit == hits) hit = 0, ++tile;
    }
  }
};

struct Copies {
  const Layer& l;
  const Choices& c;
  u32 ring;

  // Whether a span has its second tile.
  WS_DEVICE bool is_whole(const Walk& walk) const { return 2 * walk.span + 1 < l.w2.tiles; }

  WS_DEVICE void copy_weights(const Walk& walk, u32 slot) const {
    const u32 lane = threadIdx.x % 32, to = ring + slot + lane * 16;
    const u64 tile = static_cast<u64>(c.hit[walk.hit] & 0xFFFFu) * (l.hidden / kPreparedTileRows) + l.first + walk.tile;
    const u8* const codes = l.w2.codes + (tile * l.w2.tiles + 2 * walk.span) * kPreparedTileBytes + lane * 16;
    const u8* const scales = l.w2.scales + (tile / 2 * l.w2.tiles + 2 * walk.span) * kScaleBytes + lane * 16;
    const bool whole = is_whole(walk);
    copy_async_16(to, codes, 16);
    copy_async_16(to + kPreparedTileBytes, whole ? codes + kPreparedTileBytes : codes, whole ? 16 : 0);
    if (lane >= 2 * kScaleLanes) return;
    const bool has = whole || lane < kScaleLanes;
    copy_async_16(to + Slot::kScales, has ? scales : l.w2.scales, has ? 16 : 0);
  }

  // 16 lanes a token; zeros for tokens that do not have the expert.
  WS_DEVICE void copy_rows(const Walk& walk, u32 slot) const {
    const u32 chunk = threadIdx.x % 16 * 16, tokens = c.hit[walk.hit] >> 16;
    const bool is_here = chunk < 2 * kPreparedTileK || is_whole(walk);
#pragma unroll
    for (u32 i = 0; i < kTokens / 2; ++i) {
      const u32 token = 2 * i + threadIdx.x % 32 / 16;
      if (token >= l.tokens) break;
      const bool has = tokens >> token & 1u && is_here;
      const u64 pair = token * l.top_k + (has ? c.slots[walk.hit][token] : 0u);
      const u8* const from = l.act + 2 * (pair * l.inner + (has ? walk.span * (2 * kPreparedTileK) + chunk / 2 : 0));
      copy_async_16(ring + slot + Slot::kAct + token * Slot::kActRow + chunk, from, has ? 16 : 0);
    }
  }
};

// Σ weight · bias of a value of `out`.
WS_DEVICE float bias_of(const Layer& l, const Choices& c, u32 row, u32 token) {
  float sum = 0.0f;
  if ((l.flags >> kBiasShift & kBiasMask) == kNoBias) return sum;
  for (u32 i = 0; i < c.hits; ++i) {
    if (!(c.hit[i] >> 16 >> token & 1u)) continue;
    const u64 expert = c.hit[i] & 0xFFFFu;
    sum = __fmaf_rn(c.factors[i][token], load_bias(l.bias, l.flags, expert * l.hidden + row), sum);
  }
  return sum;
}

WS_DEVICE u32 next_slot(u32 slot) { return slot + Slot::kBytes == kAhead * Slot::kBytes ? 0 : slot + Slot::kBytes; }

WS_DEVICE void add_products(const Layer& l, const Choices& c, u32 rank, u32 address, float* all) {
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Copies copies{l, c, address + Shared::kRing + warp * kAhead * Slot::kBytes};
  Walk walk(l, c.hits, rank), ahead = walk;
#pragma unroll 1
  for (u32 i = 0; i < kAhead; ++i) {
    if (ahead.has_next()) copies.copy_weights(ahead, i * Slot::kBytes), ahead.advance();
  }
  wait_for_predecessor();
  release_successor();
  Walk rows = walk;
#pragma unroll 1
  for (u32 i = 0; i < kAhead; ++i) {
    if (rows.has_next()) copies.copy_rows(rows, i * Slot::kBytes), rows.advance();
    commit_copies();
  }
  const u32 right_at = copies.ring + Slot::kAct + (lane % 8 < l.tokens ? lane % 8 : 0) * Slot::kActRow + lane / 8 * 16;
  float sums[4] = {};
  u32 slot = 0;
#pragma unroll 1
  while (walk.has_next()) {
    wait_for_copies<kAhead - 1>();
    __syncwarp();
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      u32 words[4], scales[kScaleWords], right[8];
      load_shared(copies.ring + slot + i * kPreparedTileBytes + lane * 16, words);
      load_shared(copies.ring + slot + Slot::kScales + i * kScaleBytes + lane / 4 * (4 * kScaleWords), scales);
      load_tokens(right_at + slot + i * (2 * kPreparedTileK), right);
      multiply_tile(sums, words, scales, (l.first + walk.tile) % 2 * 8, right);
    }
    __syncwarp();
    if (ahead.has_next()) {
      copies.copy_weights(ahead, slot);
      copies.copy_rows(ahead, slot);
      ahead.advance();
    }
    commit_copies();
    slot = next_slot(slot);
    const u32 tile = walk.tile;
    walk.advance();
    if (walk.tile == tile) continue;
    put_sums(all + (tile * kWarps + warp) * kWarpSums, sums);
    sums[0] = sums[1] = sums[2] = sums[3] = 0.0f;
  }
}

// A sum that block `rank` of the cluster has at an address.
WS_DEVICE float load_from(u32 address, u32 rank) {
  float value;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address_at(address, rank)) : "memory");
  return value;
}

// Adds the sums of all warps, in their order, and writes the values of `out`, which threads of all blocks divide.
WS_DEVICE void finish(const Layer& l, const Choices& c, u32 rank, u32 address, const float* all) {
  const u32 rows = 16 * l.tiles;
  for (u32 i = rank * kThreads + threadIdx.x; i < rows * l.tokens; i += kCluster * kThreads) {
    const u32 token = i / rows, row = i - token * rows;
    const u32 at = row / 16 * kWarps * kWarpSums + token * kTokenStride + row % 16;
    float sum = bias_of(l, c, 16 * l.first + row, token);
#pragma unroll
    for (u32 r = 0; r < kCluster; ++r) {
#pragma unroll
      for (u32 w = 0; w < kWarps; ++w) {
        const u32 place = at + w * kWarpSums;
        sum += kCluster == 1 ? all[place] : load_from(address + Shared::kSums + 4 * place, r);
      }
    }
    store_value(l.out, static_cast<u64>(token) * l.hidden + 16 * l.first + row, sum);
  }
}

}  // namespace ws

WS_RECORD(ws::Shared::kBytes, ws::kThreads, ws::kAhead, WS_FLAG_WAITS, ws::kTokens, ws::kMostTiles, ws::kCluster)

// May be null: bias, route_bias, num_tokens. w2 is [local_experts][hidden][inner], out [tokens][hidden].
extern "C" __global__ void WS_CLUSTER_ATTRIBUTE __launch_bounds__(ws::kThreads, ws::kTokens == 2 ? 2 : 1)
    ws_moe_packed_down(const void* act, const void* w2, const void* scales, const void* bias, const void* logits,
                       const float* route_bias, const int* num_tokens, void* out, long long logits_row, unsigned tokens,
                       unsigned experts, unsigned top_k, unsigned rule, unsigned n_group, unsigned topk_group,
                       float scale, unsigned expert_offset, unsigned local_experts, unsigned inner, unsigned hidden,
                       unsigned flags) {
  using namespace ws;
  extern __shared__ __align__(128) u8 shared[];
  __shared__ Choices choices;
  const Router router{static_cast<const u8*>(logits), route_bias, num_tokens, logits_row, tokens, experts, top_k, rule,
                      n_group, topk_group, scale, expert_offset, local_experts, flags};
  const u32 rank = kCluster > 1 ? cluster_rank() : 0, number = blockIdx.x / kCluster, clusters = gridDim.x / kCluster;
  const u32 tiles = hidden / kPreparedTileRows, first = static_cast<u32>(static_cast<u64>(tiles) * number / clusters);
  const u32 end = static_cast<u32>(static_cast<u64>(tiles) * (number + 1) / clusters);
  const Packed packed{static_cast<const u8*>(w2), static_cast<const u8*>(scales), inner / kPreparedTileK};
  const Layer layer{static_cast<const u8*>(act), packed, bias, out, tokens, top_k, inner, hidden, flags, first,
                    end - first};
  float* const all = reinterpret_cast<float*>(shared + Shared::kSums);
  for (u32 i = threadIdx.x; i < kMostTiles * kWarps * kWarpSums; i += kThreads) all[i] = 0.0f;
  choose(router, choices, reinterpret_cast<float*>(shared + Shared::kRing));
  add_products(layer, choices, rank, shared_address(shared), all);
  if constexpr (kCluster > 1) {
    sync_cluster();
  } else {
    __syncthreads();
  }
  finish(layer, choices, rank, shared_address(shared), all);
  if constexpr (kCluster > 1) sync_cluster();  // no block ends while another reads its sums
}
