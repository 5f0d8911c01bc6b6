// SPDX-License-Identifier: Apache-2.0
// ws_moe_decode_down: second product and weighted sum of a MoE layer for a few tokens:
//
//   out[t] = Σ weight[t, j] · (act[t · top_k + j] · w2[e]ᵀ + bias[e]) over the experts e that are here, ascending, in fp32
//
// Macros as in fused_moe/decode.cuh. Comes directly after ws_moe_decode_up, whose routing it repeats while that runs: it
// reads logits, bias and num_tokens, and begins to copy w2, before its predecessor has ended. Grid: one block a
// multiprocessor, and enough that none has more than kMostRows rows of w2. Each has its rows for all experts, so that
// nothing but `out` is left to write; its 16 warps divide experts and K.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
#error "ws_moe_decode_down needs an architecture of 9.0 or later"
#endif

#include "common/dependent_launch.cuh"
#include "common/mbarrier.cuh"
#include "common/record.cuh"
#include "common/shared_load.cuh"
#include "fused_moe/decode.cuh"

namespace ws {

constexpr u32 kMostRows = 64, kMostTiles = kMostRows / 16;
constexpr u32 kAhead = kTokens == 2 ? 6 : 7;  // columns that a warp has under way
constexpr u32 kActSlot = 64 * kTokens;  // a row of 64 bytes a token

struct Shared {
  static constexpr u32 kRing = 0;  // [kWarps][kAhead]; logits before
  static constexpr u32 kActRing = kRing + kWarps * kAhead * kSlot;
  static constexpr u32 kSums = kActRing + kWarps * kAhead * kActSlot;  // [kMostTiles][kWarps]
  static constexpr u32 kBytes = kSums + kMostTiles * kWarps * kWarpSums * 4;
  static_assert(kTokens * kMaxExperts * 4 <= kActRing, "room for logits");
};

struct Layer {
  const u8 *act, *w2;
  const void* bias;
  void* out;
  u32 tokens, top_k, inner, hidden, flags;
  u32 first, rows, tiles, tile_rows;  // the block's rows of w2, in tiles of at most 16 that are as large as each other

  WS_DEVICE u32 columns() const { return (inner + kColumn - 1) / kColumn; }
};

// A warp's share of (tile, expert, column), every 16th, in that order.
struct Walk {
  u32 tile, hit, column;
  u32 tiles, hits, columns;

  WS_DEVICE Walk(u32 tiles_, u32 hits_, u32 columns_)
      : tile(hits_ ? 0 : tiles_), hit(0), column(threadIdx.x / 32), tiles(tiles_), hits(hits_), columns(columns_) {
    wrap();
  }
  WS_DEVICE bool has_next() const { return tile < tiles; }
  WS_DEVICE void advance() {
    column += kWarps;
    wrap();
  }

 private:
  WS_DEVICE void wrap() {
    while (column >= columns && tile < tiles) {
      column -= columns;
      if (++hit == hits) hit = 0, ++tile;
    }
  }
};

// Each lane copies what it reads itself: rows g and g + 8 of w2, row g of act.
struct Copies {
  const Layer& l;
  const Choices& c;
  u32 weights, rows;  // shared addresses of slot 0

  WS_DEVICE u32 element(const Walk& walk) const { return walk.column * kColumn + threadIdx.x % 4 * 8; }

  WS_DEVICE void copy_weights(const Walk& walk, u32 slot) const {
    const u32 i = element(walk), g = threadIdx.x % 32 / 4;
    const u32 row = walk.tile * l.tile_rows + g, end = min(walk.tile * l.tile_rows + l.tile_rows, l.rows);
    const u64 first = static_cast<u64>(c.hit[walk.hit] & 0xFFFFu) * l.hidden + l.first;
    const u8* const from = l.w2 + 2 * (first * l.inner + (i < l.inner ? i : 0));
    const u64 low = row < end ? row : 0, high = row + 8 < end ? row + 8 : 0;
    copy_async_16(weights + slot * kSlot, from + 2 * low * l.inner, i < l.inner && row < end ? 16 : 0);
    copy_async_16(weights + slot * kSlot + kSlot / 2, from + 2 * high * l.inner, i < l.inner && row + 8 < end ? 16 : 0);
  }

  WS_DEVICE void copy_rows(const Walk& walk, u32 slot) const {
    const u32 token = threadIdx.x % 32 / 4;
    if (token >= l.tokens) return;
    const u32 i = element(walk);
    const bool has = c.hit[walk.hit] >> 16 >> token & 1u && i < l.inner;
    const u64 pair = token * l.top_k + (has ? c.slots[walk.hit][token] : 0u);
    copy_async_16(rows + slot * kActSlot, l.act + 2 * (pair * l.inner + (has ? i : 0)), has ? 16 : 0);
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

// Adds a product, times the weights of the tokens that have the expert.
WS_DEVICE void add_weighted(float (&sums)[4], const float (&product)[4], const Choices& c, u32 hit) {
  const u32 t = threadIdx.x % 4, tokens = c.hit[hit] >> 16;
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    const u32 token = 2 * t + i;
    if (token >= kTokens || !(tokens >> token & 1u)) continue;
    const float factor = c.factors[hit][token];
    sums[i] = __fmaf_rn(factor, product[i], sums[i]);
    sums[i + 2] = __fmaf_rn(factor, product[i + 2], sums[i + 2]);
  }
}

WS_DEVICE void add_experts(const Layer& l, const Choices& c, u32 address, float* all) {
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Copies copies{l, c, address + Shared::kRing + warp * kAhead * kSlot + lane * 16,
                      address + Shared::kActRing + warp * kAhead * kActSlot + lane * 16};
  Walk walk(l.tiles, c.hits, l.columns()), ahead = walk;
#pragma unroll 1
  for (u32 i = 0; i < kAhead; ++i) {
    if (ahead.has_next()) copies.copy_weights(ahead, i), ahead.advance();
  }
  wait_for_predecessor();
  release_successor();
  Walk rows = walk;
#pragma unroll 1
  for (u32 i = 0; i < kAhead; ++i) {
    if (rows.has_next()) copies.copy_rows(rows, i), rows.advance();
  }
  commit_copies();
  wait_for_copies<0>();
  const bool has_token = lane / 4 < l.tokens;
  float sums[4] = {};
  u32 slot = 0;
#pragma unroll 1
  while (walk.has_next()) {
    wait_for_copies<kAhead - 1>();
    u32 low[4], high[4], right[4] = {};
    load_shared(copies.weights + slot * kSlot, low);
    load_shared(copies.weights + slot * kSlot + kSlot / 2, high);
    if (has_token) load_shared(copies.rows + slot * kActSlot, right);
    float product[4] = {};
    multiply(product, low, high, right);
    add_weighted(sums, product, c, walk.hit);
    if (ahead.has_next()) {
      copies.copy_weights(ahead, slot);
      copies.copy_rows(ahead, slot);
      ahead.advance();
    }
    commit_copies();
    slot = (slot + 1) % kAhead;
    const u32 tile = walk.tile;
    walk.advance();
    if (walk.tile == tile) continue;
    put_sums(all + (tile * kWarps + warp) * kWarpSums, sums);
    sums[0] = sums[1] = sums[2] = sums[3] = 0.0f;
  }
}

}  // namespace ws

WS_RECORD(ws::Shared::kBytes, ws::kThreads, ws::kAhead, WS_FLAG_WAITS, ws::kTokens, ws::kMostRows, 0)

// May be null: bias, route_bias, num_tokens. w2 is [local_experts][hidden][inner], out [tokens][hidden].
extern "C" __global__ void __launch_bounds__(ws::kThreads, ws::kTokens == 2 ? 2 : 1)
    ws_moe_decode_down(const void* act, const void* w2, const void* bias, const void* logits, const float* route_bias,
                       const int* num_tokens, void* out, long long logits_row, unsigned tokens, unsigned experts,
                       unsigned top_k, unsigned rule, unsigned n_group, unsigned topk_group, float scale,
                       unsigned expert_offset, unsigned local_experts, unsigned inner, unsigned hidden,
                       unsigned flags) {
  using namespace ws;
  extern __shared__ __align__(128) u8 shared[];
  __shared__ Choices choices;
  const Router router{static_cast<const u8*>(logits), route_bias, num_tokens, logits_row, tokens, experts, top_k, rule,
                      n_group, topk_group, scale, expert_offset, local_experts, flags};
  const u32 first = static_cast<u32>(static_cast<u64>(hidden) * blockIdx.x / gridDim.x);
  const u32 rows = static_cast<u32>(static_cast<u64>(hidden) * (blockIdx.x + 1) / gridDim.x) - first;
  const u32 tiles = (rows + 15) / 16, tile_rows = tiles ? (rows + tiles - 1) / tiles : 16;
  const Layer layer{static_cast<const u8*>(act), static_cast<const u8*>(w2), bias, out, tokens, top_k, inner, hidden,
                    flags, first, rows, tiles, tile_rows};
  float* const all = reinterpret_cast<float*>(shared + Shared::kSums);
  for (u32 i = threadIdx.x; i < kMostTiles * kWarps * kWarpSums; i += kThreads) all[i] = 0.0f;
  choose(router, choices, reinterpret_cast<float*>(shared + Shared::kRing));
  const u32 token = rows ? threadIdx.x / rows : tokens, row = threadIdx.x - token * rows;
  const float from_bias = token < tokens ? bias_of(layer, choices, first + row, token) : 0.0f;
  add_experts(layer, choices, shared_address(shared), all);
  __syncthreads();
  if (token >= tokens) return;
  const u32 tile = row / tile_rows;
  const float value = total(all + tile * kWarps * kWarpSums, row - tile * tile_rows, token) + from_bias;
  store_value(out, static_cast<u64>(token) * hidden + first + row, value);
}
