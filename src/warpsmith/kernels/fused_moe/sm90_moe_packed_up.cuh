// SPDX-License-Identifier: Apache-2.0
// ws_moe_packed_up: what ws_moe_decode_up does, with 4-bit weights in the order for few rows, and with all factors:
//
//   act[t · top_k + j] = weight[t, j] · activation(x[t] · w13[e]ᵀ + bias[e]) / global_scale2[e] for choice j of token t,
//
// expert e, so that ws_moe_packed_down has only to add products up. Macros as in fused_moe/packed_decode.cuh. Grid: any
// number of blocks, one a multiprocessor. Each of them routes all tokens and has an equal part of the rows of w13 of all
// experts that were hit, by 16 gate rows and 16 up rows; its 16 warps divide K, in tiles of 64. `inner` is a multiple of
// 32, `hidden` of 64.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
#error "ws_moe_packed_up needs an architecture of 9.0 or later"
#endif

#include "common/dependent_launch.cuh"
#include "common/record.cuh"
#include "fused_moe/activation.cuh"
#include "fused_moe/packed_decode.cuh"

namespace ws {

constexpr u32 kMaxHidden = 4096;
#if defined(WS_AHEAD)
constexpr u32 kAhead = WS_AHEAD;
#else
constexpr u32 kAhead = kTokens == 2 ? 4 : kNvfp4 ? 5 : 6;  // tiles that a warp has under way
#endif

// A warp's tiles of gate and up rows.
struct Slot {
  static constexpr u32 kUp = kPreparedTileBytes, kScales = 2 * kPreparedTileBytes, kBytes = kScales + 2 * kScaleBytes;
};

// A warp's sums of 32 rows, [token][row]; tokens start four banks apart.
constexpr u32 kStride = 36, kUnitSums = kTokens * kStride;

struct Shared {
  static constexpr u32 kRing = 0;  // [kWarps][kAhead]; logits before
  static constexpr u32 kSums = kRing + kWarps * kAhead * Slot::kBytes;
  static constexpr u32 kSumBytes = kWarps * kUnitSums * 4;  // two of them
  static constexpr u32 kX = kSums + 2 * kSumBytes;
  static constexpr u32 kBytes = kX + kTokens * (2 * kMaxHidden + 16);
  static_assert(kTokens * kMaxExperts * 4 <= kSums, "room for logits");
  static_assert(kBytes + sizeof(Choices) + 1024 <= 227 * 1024, "room on a multiprocessor");
};

struct Layer {
  const u8* x;
  Packed w13;
  const void* bias;
  void* act;
  i64 x_row;
  u32 tokens, top_k, inner, hidden, activation, flags;
  float alpha, limit;

  WS_DEVICE u32 pitch() const { return 2 * hidden + 16; }  // lanes of an ldmatrix read different banks
};

struct Factors {
  float first[kTokens * kMaxTopK], second[kTokens * kMaxTopK];
};

// The tiles of K that a warp multiplies of its block's units, 16 gate rows and 16 up rows each: every 16th. Where they
// start differs from unit to unit, so that all warps have as many.
struct Walk {
  u32 left, hit, row, start, tile;
  u32 inner, tiles;

  WS_DEVICE Walk(const Layer& l, u32 begin, u32 end)
      : left(end - begin), start(threadIdx.x / 32), inner(l.inner), tiles(l.w13.tiles) {
    const u32 each = inner / 16;
    hit = begin / each;
    row = 16 * (begin - hit * each);
    tile = start;
  }
  WS_DEVICE bool at_tile() const { return tile < tiles; }
  WS_DEVICE void next_unit() {
    --left;
    row += 16;
    if (row == inner) row = 0, ++hit;
    start = (start + kWarps - tiles % kWarps) % kWarps;
    tile = start;
  }
  // The unit's first gate row among those of all experts.
  WS_DEVICE u64 gate(const Choices& c) const { return 2ull * (c.hit[hit] & 0xFFFFu) * inner + row; }
};

// Copies a warp's tiles to its ring.
class Stream {
 public:
  WS_DEVICE Stream(const Layer& l, const Choices& c, const Walk& walk, u32 ring)
      : l_(l), c_(c), walk_(walk), to_(ring + threadIdx.x % 32 * 16) {
    between_codes_ = static_cast<u64>(l.inner / kPreparedTileRows) * l.w13.tiles * kPreparedTileBytes;
    find();
#pragma unroll 1
    for (u32 i = 0; i < kAhead; ++i) next(i * Slot::kBytes);
  }

  WS_DEVICE void next(u32 slot) {
    while (walk_.left && !walk_.at_tile()) {
      walk_.next_unit();
      find();
    }
    if (walk_.left) {
      const u32 to = to_ + slot;
      copy_async_16(to, codes_, 16);
      copy_async_16(to + Slot::kUp, codes_ + between_codes_, 16);
      if (threadIdx.x % 32 < 2 * kScaleLanes) copy_async_16(to + Slot::kScales, scales_, 16);
      codes_ += kWarps * kPreparedTileBytes;
      scales_ += kWarps * kScaleBytes;
      walk_.tile += kWarps;
    }
    commit_copies();
  }

 private:
  WS_DEVICE void find() {
    if (!walk_.left) return;
    const u32 lane = threadIdx.x % 32;
    const u64 gate = walk_.gate(c_);
    codes_ = l_.w13.codes_of(gate) + walk_.tile * kPreparedTileBytes + lane * 16;
    scales_ = l_.w13.scales_of(gate + (lane < kScaleLanes ? 0 : l_.inner)) + walk_.tile * kScaleBytes +
              lane % kScaleLanes * 16;
  }

  const Layer& l_;
  const Choices& c_;
  Walk walk_;
  u32 to_;
  u64 between_codes_;
  const u8 *codes_ = nullptr, *scales_ = nullptr;
};

WS_DEVICE void copy_x(const Layer& l, u32 to) {
  const u32 chunks = l.hidden / 8, all = l.tokens * chunks;
  for (u32 i = threadIdx.x; i < all; i += kThreads) {
    const u32 token = i / chunks, chunk = i - token * chunks;
    copy_async_16(to + token * l.pitch() + 16 * chunk, l.x + token * l.x_row + 16 * chunk, 16);
  }
  commit_copies();
}

// A warp's sums of gate and up rows: lane 4g + t has rows g and g + 8 of tokens 2t and 2t + 1.
WS_DEVICE void put_unit(float* to, const float (&sums)[2][4]) {
  const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  if (2 * t >= kTokens) return;
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
#pragma unroll
    for (u32 e = 0; e < 4; ++e) to[(2 * t + e % 2) * kStride + 16 * i + g + e / 2 * 8] = sums[i][e];
  }
}

// Adds the warps' sums up and writes the rows of `act`; a warp has a token.
WS_DEVICE void finish(const Layer& l, const Choices& c, const Factors& f, u32 hit, u32 first, const float* sums,
                      float bias) {
  const u32 row = threadIdx.x % 32, token = threadIdx.x / 32;
  if (token >= l.tokens || !(c.hit[hit] >> 16 >> token & 1u)) return;
  float sum = 0.0f;
#pragma unroll
  for (u32 w = 0; w < kWarps; ++w) sum += sums[w * kUnitSums + token * kStride + row];
  const float own = __fmaf_rn(sum, f.first[hit], bias), up = __shfl_down_sync(kAllLanes, own, 16);
  if (row >= 16) return;
  const u64 pair = token * l.top_k + c.slots[hit][token];
  const float factor = c.factors[hit][token] * f.second[hit];
  store_value(l.act, pair * l.inner + first + row, factor * activate(l.activation, own, up, l.alpha, l.limit));
}

// A warp's tile of gate and up rows.
WS_DEVICE void multiply_unit(u32 slot, u32 turn, u32 x, float (&sums)[2][4]) {
  const u32 lane = threadIdx.x % 32;
  u32 right[8];
  load_tokens(x, right);
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    u32 words[4], scales[kScaleWords];
    load_shared(slot + i * Slot::kUp + lane * 16, words);
    load_shared(slot + Slot::kScales + i * kScaleBytes + lane / 4 * (4 * kScaleWords), scales);
    multiply_tile(sums[i], words, scales, turn, right);
  }
}

WS_DEVICE void compute(const Layer& l, const Choices& c, const Factors& factors, u8* shared) {
  const u32 address = shared_address(shared), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u32 units = c.hits * (l.inner / 16);
  const u32 begin = static_cast<u32>(static_cast<u64>(units) * blockIdx.x / gridDim.x);
  const u32 end = static_cast<u32>(static_cast<u64>(units) * (blockIdx.x + 1) / gridDim.x);
  const u32 ring = address + Shared::kRing + warp * kAhead * Slot::kBytes;
  Walk walk(l, begin, end);
  Stream stream(l, c, walk, ring);
  wait_for_copies<kAhead>();  // x
  __syncthreads();
  const u32 x = address + Shared::kX + (lane % 8 < l.tokens ? lane % 8 : 0) * l.pitch() + lane / 8 * 16;
  u32 slot = 0, sums_at = Shared::kSums;
#pragma unroll 1
  for (; walk.left; walk.next_unit()) {
    const u32 turn = walk.row / 16 % 2 * 8;
    float bias = 0.0f;
    if (warp < l.tokens) bias = load_bias(l.bias, l.flags, walk.gate(c) + lane % 16 + lane / 16 * l.inner);
    float sums[2][4] = {};
#pragma unroll 1
    for (; walk.at_tile(); walk.tile += kWarps) {
      wait_for_copies<kAhead - 1>();
      __syncwarp();
      multiply_unit(ring + slot, turn, x + walk.tile * (2 * kPreparedTileK), sums);
      __syncwarp();
      stream.next(slot);
      slot += Slot::kBytes;
      if (slot == kAhead * Slot::kBytes) slot = 0;
    }
    float* const all = reinterpret_cast<float*>(shared + sums_at);
    sums_at = 2 * Shared::kSums + Shared::kSumBytes - sums_at;
    put_unit(all + warp * kUnitSums, sums);
    __syncthreads();
    finish(l, c, factors, walk.hit, walk.row, all, bias);
  }
}

}  // namespace ws

WS_RECORD(ws::Shared::kBytes, ws::kThreads, ws::kAhead, WS_FLAG_WAITS, ws::kTokens, ws::kMaxHidden, 0)

// May be null: bias, global_scale, global_scale2, route_bias, num_tokens. w13 is [local_experts][2 · inner][hidden], gate
// rows first; `bias` alike.
extern "C" __global__ void __launch_bounds__(ws::kThreads, ws::kTokens == 2 ? 2 : 1)
    ws_moe_packed_up(const void* x, const void* w13, const void* scales, const float* global_scale,
                     const float* global_scale2, const void* bias, const void* logits, const float* route_bias,
                     const int* num_tokens, void* act, long long x_row, long long logits_row, unsigned tokens,
                     unsigned experts, unsigned top_k, unsigned rule, unsigned n_group, unsigned topk_group, float scale,
                     unsigned expert_offset, unsigned local_experts, unsigned inner, unsigned hidden,
                     unsigned activation, float alpha, float limit, unsigned flags) {
  using namespace ws;
  extern __shared__ __align__(128) u8 shared[];
  __shared__ Choices choices;
  __shared__ Factors factors;
  const Router router{static_cast<const u8*>(logits), route_bias, num_tokens, logits_row, tokens, experts, top_k, rule,
                      n_group, topk_group, scale, expert_offset, local_experts, flags};
  const Packed packed{static_cast<const u8*>(w13), static_cast<const u8*>(scales), hidden / kPreparedTileK};
  const Layer layer{static_cast<const u8*>(x), packed, bias, act, x_row, tokens, top_k, inner, hidden, activation,
                    flags, alpha, limit};
  wait_for_predecessor();
  release_successor();
  copy_x(layer, shared_address(shared) + Shared::kX);
  choose(router, choices, reinterpret_cast<float*>(shared + Shared::kRing));
  find_factors(choices, global_scale, flags & kOwnScales13, factors.first);  // compute() meets before they are read
  find_factors(choices, global_scale2, flags & kOwnScales2, factors.second);
  compute(layer, choices, factors, shared);
}
