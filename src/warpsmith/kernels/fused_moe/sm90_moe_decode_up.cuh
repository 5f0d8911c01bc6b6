// SPDX-License-Identifier: Apache-2.0
// ws_moe_decode_up: routing and first product of a MoE layer for a few tokens, with its activation:
//
//   act[t · top_k + j] = activation(x[t] · w13[e]ᵀ + bias[e]) for choice j of token t, expert e
//
// Macros as in fused_moe/decode.cuh. Grid: any number of blocks, one a multiprocessor. Each of them routes all tokens and
// has an equal part of the rows of w13 of all experts that were hit, by eights of gate and of up rows; its 16 warps divide
// K. All tokens go through the MMA with each expert, so that nothing is gathered. Rows of pairs without an expert here are
// not written.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
#error "ws_moe_decode_up needs an architecture of 9.0 or later"
#endif

#include "common/dependent_launch.cuh"
#include "common/mbarrier.cuh"
#include "common/record.cuh"
#include "common/shared_load.cuh"
#include "fused_moe/activation.cuh"
#include "fused_moe/decode.cuh"

namespace ws {

constexpr u32 kMaxHidden = 7168;
// Columns that a warp has under way. With two tokens, blocks of both kernels share a multiprocessor.
constexpr u32 kAhead = kTokens == 2 ? 4 : 5;

struct Shared {
  static constexpr u32 kRing = 0;  // [kWarps][kAhead]; logits before
  static constexpr u32 kSums = kRing + kWarps * kAhead * kSlot;
  static constexpr u32 kSumBytes = kWarps * kWarpSums * 4;  // two of them
  static constexpr u32 kX = kSums + 2 * kSumBytes;
  static constexpr u32 kBytes = kX + kTokens * (2 * kMaxHidden + 64);
  static_assert(kTokens * kMaxExperts * 4 <= kSums, "room for logits");
};

struct Layer {
  const u8 *x, *w13;
  const void* bias;
  void* act;
  i64 x_row;
  u32 tokens, top_k, inner, hidden, activation, flags;
  float alpha, limit;

  WS_DEVICE u32 columns() const { return (hidden + kColumn - 1) / kColumn; }
  // Rows start 64 bytes behind a multiple of 128, so that two of them share no bank.
  WS_DEVICE u32 pitch() const { return (2 * hidden + 127) / 128 * 128 + 64; }
};

// Eight gate rows and eight up rows of an expert.
struct Unit {
  u32 hit, expert, row;

  WS_DEVICE Unit(const Layer& l, const Choices& c, u32 number) {
    const u32 each = l.inner / 8;
    hit = number / each;
    row = 8 * (number - hit * each);
    expert = c.hit[hit] & 0xFFFFu;
  }
};

// The columns of its units that a warp multiplies, every 16th; where they start differs from unit to unit, so that all
// warps have as many.
struct Walk {
  u32 unit, column;
  u32 begin, end, columns;

  WS_DEVICE Walk(u32 begin_, u32 end_, u32 columns_) : unit(begin_), begin(begin_), end(end_), columns(columns_) {
    column = first();
  }
  WS_DEVICE u32 first() const { return (threadIdx.x / 32 + (unit - begin) * (kWarps - columns % kWarps)) % kWarps; }
  WS_DEVICE bool at_column() const { return column < columns; }
  WS_DEVICE void next_unit() {
    ++unit;
    column = first();
  }
};

// Copies a warp's columns to its ring, each lane what it reads itself.
class Stream {
 public:
  WS_DEVICE Stream(const Layer& l, const Choices& c, const Walk& walk, u32 ring) : l_(l), c_(c), walk_(walk), to_(ring) {
    find();
#pragma unroll 1
    for (u32 i = 0; i < kAhead; ++i) next(i);
  }

  WS_DEVICE void next(u32 slot) {
    while (walk_.unit < walk_.end && !walk_.at_column()) {
      walk_.next_unit();
      find();
    }
    if (walk_.unit < walk_.end) {
      const u32 element = walk_.column * kColumn + threadIdx.x % 4 * 8, bytes = element < l_.hidden ? 16 : 0;
      const u8* const from = gate_ + (bytes ? 2ull * element : 0);
      copy_async_16(to_ + slot * kSlot, from, bytes);
      copy_async_16(to_ + slot * kSlot + kSlot / 2, from + 2ull * l_.inner * l_.hidden, bytes);
      walk_.column += kWarps;
    }
    commit_copies();
  }

 private:
  WS_DEVICE void find() {
    if (walk_.unit >= walk_.end) return;
    const Unit unit(l_, c_, walk_.unit);
    const u64 row = 2ull * unit.expert * l_.inner + unit.row + threadIdx.x % 32 / 4;
    gate_ = l_.w13 + 2ull * row * l_.hidden;
  }

  const Layer& l_;
  const Choices& c_;
  Walk walk_;
  u32 to_;
  const u8* gate_ = nullptr;
};

WS_DEVICE void copy_x(const Layer& l, u32 to) {
  const u32 chunks = 4 * l.columns(), all = l.tokens * chunks, pitch = l.pitch();
  for (u32 i = threadIdx.x; i < all; i += kThreads) {
    const u32 token = i / chunks, chunk = i - token * chunks, bytes = 8 * chunk < l.hidden ? 16 : 0;
    copy_async_16(to + token * pitch + 16 * chunk, l.x + token * l.x_row + (bytes ? 16 * chunk : 0), bytes);
  }
  commit_copies();
}

// Adds the warps' sums up and writes the rows of `act`.
WS_DEVICE void finish(const Layer& l, const Choices& c, const Unit& unit, const float* sums, float bias) {
  const u32 row = threadIdx.x % 16, token = threadIdx.x / 16;
  if (threadIdx.x / 32 * 2 >= l.tokens) return;
  const float own = token < l.tokens ? total(sums, row, token) + bias : 0.0f;
  const float up = __shfl_down_sync(kAllLanes, own, 8);
  const bool has = token < l.tokens && c.hit[unit.hit] >> 16 >> token & 1u;
  if (row >= 8 || !has) return;
  const u64 pair = token * l.top_k + c.slots[unit.hit][token];
  store_value(l.act, pair * l.inner + unit.row + row, activate(l.activation, own, up, l.alpha, l.limit));
}

WS_DEVICE void compute(const Layer& l, const Choices& c, u8* shared) {
  const u32 address = shared_address(shared), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u32 units = c.hits * (l.inner / 8);
  const u32 begin = static_cast<u32>(static_cast<u64>(units) * blockIdx.x / gridDim.x);
  const u32 end = static_cast<u32>(static_cast<u64>(units) * (blockIdx.x + 1) / gridDim.x);
  const u32 ring = address + Shared::kRing + warp * kAhead * kSlot + lane * 16;
  Walk walk(begin, end, l.columns());
  Stream stream(l, c, walk, ring);
  wait_for_copies<kAhead>();  // x
  __syncthreads();
  const bool has_token = lane / 4 < l.tokens;
  const u32 x = address + Shared::kX + (has_token ? lane / 4 : 0) * l.pitch() + lane % 4 * 16;
  u32 slot = 0;
#pragma unroll 1
  for (; walk.unit < end; walk.next_unit()) {
    const Unit unit(l, c, walk.unit);
    const u32 bias_row = unit.row + threadIdx.x % 8 + threadIdx.x % 16 / 8 * l.inner;
    float bias = 0.0f;
    if (threadIdx.x < 16 * l.tokens) bias = load_bias(l.bias, l.flags, 2ull * unit.expert * l.inner + bias_row);
    float sums[4] = {};
#pragma unroll 1
    for (; walk.at_column(); walk.column += kWarps) {
      wait_for_copies<kAhead - 1>();
      u32 gate[4], up[4], right[4] = {};
      load_shared(ring + slot * kSlot, gate);
      load_shared(ring + slot * kSlot + kSlot / 2, up);
      if (has_token) load_shared(x + walk.column * (2 * kColumn), right);
      multiply(sums, gate, up, right);
      stream.next(slot);
      slot = (slot + 1) % kAhead;
    }
    float* const all = reinterpret_cast<float*>(shared + Shared::kSums + (walk.unit - begin) % 2 * Shared::kSumBytes);
    put_sums(all + warp * kWarpSums, sums);
    __syncthreads();
    finish(l, c, unit, all, bias);
  }
}

}  // namespace ws

WS_RECORD(ws::Shared::kBytes, ws::kThreads, ws::kAhead, WS_FLAG_WAITS, ws::kTokens, 0, 0)

// May be null: bias, route_bias, num_tokens. w13 is [local_experts][2 · inner][hidden], gate rows first; `bias` alike.
extern "C" __global__ void __launch_bounds__(ws::kThreads, ws::kTokens == 2 ? 2 : 1)
    ws_moe_decode_up(const void* x, const void* w13, const void* bias, const void* logits, const float* route_bias,
                     const int* num_tokens, void* act, long long x_row, long long logits_row, unsigned tokens,
                     unsigned experts, unsigned top_k, unsigned rule, unsigned n_group, unsigned topk_group, float scale,
                     unsigned expert_offset, unsigned local_experts, unsigned inner, unsigned hidden,
                     unsigned activation, float alpha, float limit, unsigned flags) {
  using namespace ws;
  extern __shared__ __align__(128) u8 shared[];
  __shared__ Choices choices;
  const Router router{static_cast<const u8*>(logits), route_bias, num_tokens, logits_row, tokens, experts, top_k, rule,
                      n_group, topk_group, scale, expert_offset, local_experts, flags};
  const Layer layer{static_cast<const u8*>(x), static_cast<const u8*>(w13), bias, act, x_row, tokens, top_k, inner,
                    hidden, activation, flags, alpha, limit};
  wait_for_predecessor();
  release_successor();
  copy_x(layer, shared_address(shared) + Shared::kX);
  choose(router, choices, reinterpret_cast<float*>(shared + Shared::kRing));
  compute(layer, choices, shared);
}
