// SPDX-License-Identifier: Apache-2.0
// ws_moe_packed_up: what ws_moe_decode_up does, with 4-bit weights in the order for few rows:
//
//   act[t · top_k + j] = activation(x[t] · w13[e]ᵀ + bias[e]) for choice j of token t, expert e
//
// Macros as in fused_moe/packed_decode.cuh. Grid: any number of blocks, one a multiprocessor. Each of them routes all
// tokens and has an equal part of the rows of w13 of all experts that were hit, by 16 gate rows and 16 up rows; its 16
// warps divide K, in tiles of 64. `inner` is a multiple of 32, `hidden` of 64.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
#error "ws_moe_packed_up needs an architecture of 9.0 or later"
#endif

#include "common/dependent_launch.cuh"
#include "common/record.cuh"
#include "fused_moe/activation.cuh"
#include "fused_moe/packed_decode.cuh"

namespace ws {

constexpr u32 kMaxHidden = kTokens == 2 ? 7168 : 4096;
constexpr u32 kAhead = kTokens == 2 ? 4 : 6;  // tiles that a warp has under way

// A warp's tiles of gate and up rows.
struct Slot {
  static constexpr u32 kUp = kPreparedTileBytes, kScales = 2 * kPreparedTileBytes, kBytes = kScales + 2 * kScaleBytes;
};
using Sums = WarpSums<2>;

struct Shared {
  static constexpr u32 kRing = 0;  // [kWarps][kAhead]; logits before
  static constexpr u32 kSums = kRing + kWarps * kAhead * Slot::kBytes;
  static constexpr u32 kSumBytes = kWarps * Sums::kFloats * 4;  // two of them
  static constexpr u32 kX = kSums + 2 * kSumBytes;
  static constexpr u32 kBytes = kX + kTokens * (2 * kMaxHidden + 16);
  static_assert(kTokens * kMaxExperts * 4 <= kSums, "room for logits");
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

// 16 gate rows and 16 up rows of an expert.
struct Unit {
  u32 hit, row;
  u64 gate;  // among the rows of all experts

  WS_DEVICE Unit(const Layer& l, const Choices& c, u32 number) {
    const u32 each = l.inner / 16;
    hit = number / each;
    row = 16 * (number - hit * each);
    gate = 2ull * (c.hit[hit] & 0xFFFFu) * l.inner + row;
  }
};

// The tiles of K that a warp multiplies, every 16th; where they start differs from unit to unit, so that all warps have
// as many.
struct Walk {
  u32 unit, tile;
  u32 begin, end, tiles;

  WS_DEVICE Walk(u32 begin_, u32 end_, u32 tiles_) : unit(begin_), begin(begin_), end(end_), tiles(tiles_) {
    tile = first();
  }
  WS_DEVICE u32 first() const { return (threadIdx.x / 32 + (unit - begin) * (kWarps - tiles % kWarps)) % kWarps; }
  WS_DEVICE bool at_tile() const { return tile < tiles; }
  WS_DEVICE void next_unit() {
    ++unit;
    tile = first();
  }
};

// Copies a warp's tiles to its ring.
class Stream {
 public:
  WS_DEVICE Stream(const Layer& l, const Choices& c, const Walk& walk, u32 ring)
      : l_(l), c_(c), walk_(walk), to_(ring + threadIdx.x % 32 * 16) {
    between_codes_ = static_cast<u64>(l.inner / kPreparedTileRows) * l.w13.tiles * kPreparedTileBytes;
    find();
#pragma unroll 1
    for (u32 i = 0; i < kAhead; ++i) next(i);
  }

  WS_DEVICE void next(u32 slot) {
    while (walk_.unit < walk_.end && !walk_.at_tile()) {
      walk_.next_unit();
      find();
    }
    if (walk_.unit < walk_.end) {
      const u32 to = to_ + slot * Slot::kBytes;
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
    if (walk_.unit >= walk_.end) return;
    const u32 lane = threadIdx.x % 32;
    const Unit unit(l_, c_, walk_.unit);
    codes_ = l_.w13.codes_of(unit.gate) + walk_.tile * kPreparedTileBytes + lane * 16;
    scales_ = l_.w13.scales_of(unit.gate + (lane < kScaleLanes ? 0 : l_.inner)) + walk_.tile * kScaleBytes +
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

// Adds the warps' sums up and writes the rows of `act`; a warp has a token.
WS_DEVICE void finish(const Layer& l, const Choices& c, const Unit& unit, const float* sums, float factor, float bias) {
  const u32 row = threadIdx.x % 32, token = threadIdx.x / 32;
  if (token >= l.tokens || !(c.hit[unit.hit] >> 16 >> token & 1u)) return;
  const float own = Sums::total(sums, row, token) * factor + bias;
  const float up = __shfl_down_sync(kAllLanes, own, 16);
  if (row >= 16) return;
  const u64 pair = token * l.top_k + c.slots[unit.hit][token];
  store_value(l.act, pair * l.inner + unit.row + row, activate(l.activation, own, up, l.alpha, l.limit));
}

// A warp's tile of gate and up rows.
WS_DEVICE void multiply(u32 slot, u32 turn, u32 x, float (&sums)[2][4]) {
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

WS_DEVICE void compute(const Layer& l, const Choices& c, const float* factors, u8* shared) {
  const u32 address = shared_address(shared), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u32 units = c.hits * (l.inner / 16);
  const u32 begin = static_cast<u32>(static_cast<u64>(units) * blockIdx.x / gridDim.x);
  const u32 end = static_cast<u32>(static_cast<u64>(units) * (blockIdx.x + 1) / gridDim.x);
  const u32 ring = address + Shared::kRing + warp * kAhead * Slot::kBytes;
  Walk walk(begin, end, l.w13.tiles);
  Stream stream(l, c, walk, ring);
  wait_for_copies<kAhead>();  // x
  __syncthreads();
  const u32 x = address + Shared::kX + (lane % 8 < l.tokens ? lane % 8 : 0) * l.pitch() + lane / 8 * 16;
  u32 slot = 0;
#pragma unroll 1
  for (; walk.unit < end; walk.next_unit()) {
    const Unit unit(l, c, walk.unit);
    const u32 turn = unit.row / 16 % 2 * 8;
    float bias = 0.0f;
    if (warp < l.tokens) bias = load_bias(l.bias, l.flags, unit.gate + lane % 16 + lane / 16 * l.inner);
    float sums[2][4] = {};
#pragma unroll 1
    for (; walk.at_tile(); walk.tile += kWarps) {
      wait_for_copies<kAhead - 1>();
      __syncwarp();
      multiply(ring + slot * Slot::kBytes, turn, x + walk.tile * (2 * kPreparedTileK), sums);
      __syncwarp();
      stream.next(slot);
      if (++slot == kAhead) slot = 0;
    }
    float* const all = reinterpret_cast<float*>(shared + Shared::kSums + (walk.unit - begin) % 2 * Shared::kSumBytes);
    Sums::put(all + warp * Sums::kFloats, sums);
    __syncthreads();
    finish(l, c, unit, all, factors[unit.hit], bias);
  }
}

}  // namespace ws

WS_RECORD(ws::Shared::kBytes, ws::kThreads, ws::kAhead, WS_FLAG_WAITS, ws::kTokens, 0, 0)

// May be null: bias, global_scale, route_bias, num_tokens. w13 is [local_experts][2 · inner][hidden], gate rows first;
// `bias` alike.
extern "C" __global__ void __launch_bounds__(ws::kThreads, ws::kTokens == 2 ? 2 : 1)
    ws_moe_packed_up(const void* x, const void* w13, const void* scales, const float* global_scale, const void* bias,
                     const void* logits, const float* route_bias, const int* num_tokens, void* act, long long x_row,
                     long long logits_row, unsigned tokens, unsigned experts, unsigned top_k, unsigned rule,
                     unsigned n_group, unsigned topk_group, float scale, unsigned expert_offset, unsigned local_experts,
                     unsigned inner, unsigned hidden, unsigned activation, float alpha, float limit, unsigned flags) {
  using namespace ws;
  extern __shared__ __align__(128) u8 shared[];
  __shared__ Choices choices;
  __shared__ float factors[kTokens * kMaxTopK];
  const Router router{static_cast<const u8*>(logits), route_bias, num_tokens, logits_row, tokens, experts, top_k, rule,
                      n_group, topk_group, scale, expert_offset, local_experts, flags};
  const Packed packed{static_cast<const u8*>(w13), static_cast<const u8*>(scales), hidden / kPreparedTileK};
  const Layer layer{static_cast<const u8*>(x), packed, bias, act, x_row, tokens, top_k, inner, hidden, activation,
                    flags, alpha, limit};
  wait_for_predecessor();
  release_successor();
  copy_x(layer, shared_address(shared) + Shared::kX);
  choose(router, choices, reinterpret_cast<float*>(shared + Shared::kRing));
  find_factors(choices, global_scale, flags, factors);  // compute() meets before they are read
  compute(layer, choices, factors, shared);
}
