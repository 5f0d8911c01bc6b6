// SPDX-License-Identifier: Apache-2.0
// ws_moe_packed_up: what ws_moe_decode_up does, with 4-bit weights in the order for few rows, and with all factors:
//
//   act[t · top_k + j] = weight[t, j] · activation(x[t] · w13[e]ᵀ + bias[e]) / global_scale2[e] for choice j of token t,
//
// expert e, so that ws_moe_packed_down has only to add products up. Macros as in fused_moe/packed_decode.cuh. Grid: any
// number of blocks, one a multiprocessor. Each of them routes all tokens and has an equal part of the rows of w13 of all
// experts that were hit, in units of 16 gate rows and 16 up rows. Its 16 warps have equal parts of the tiles of eight units,
// one after the other, and meet when those are done. `inner` is a multiple of 32, `hidden` of 64.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
#error "ws_moe_packed_up needs an architecture of 9.0 or later"
#endif

#include "common/dependent_launch.cuh"
#include "common/record.cuh"
#include "fused_moe/activation.cuh"
#include "fused_moe/packed_decode.cuh"

namespace ws {

enum : u32 { kMaxHidden = 4096, kRowBytes = 2 * kMaxHidden + 16 };  // lanes of an ldmatrix read different banks
#if defined(WS_AHEAD)
enum : u32 { kAhead = WS_AHEAD };
#else
enum : u32 { kAhead = kTokens == 2 ? 4 : 5 };  // tiles that a warp has under way
#endif
enum : u32 { kUnits = 8, kBuffers = kTokens == 2 ? 1 : 2 };  // units of a round, and how many rounds' sums there are

// A warp's tiles of gate and up rows.
struct Slot {
  enum : u32 { kUp = kPreparedTileBytes, kScales = 2 * kPreparedTileBytes, kBytes = kScales + 2 * kScaleBytes };
};

// A warp's sums of a unit's 32 rows, [token][row]; tokens start four banks apart. In a round warp w has those of unit u
// at w + u: no other warp and unit have that place.
enum : u32 { kStride = 36, kPart = kTokens * kStride, kParts = kWarps + kUnits - 1 };

struct Layer {
  const u8* x;
  Packed w13;
  const void* bias;
  const float *scale13, *scale2;
  void* act;
  i64 x_row;
  u32 tokens, top_k, inner, hidden, activation, flags;
  float alpha, limit;
};

// What is divided by, in shared memory.
struct Divisors {
  Divisor grid, tiles, each;  // blocks, tiles of K, units of an expert

  WS_DEVICE void find(const Layer& l) {
    if (threadIdx.x != 0) return;
    grid.set(gridDim.x);
    tiles.set(l.w13.tiles);
    each.set(l.inner / 16);
  }
};

struct Shared {
  enum : u32 {
    kRing = 0,  // [kWarps][kAhead]
    kSumsAt = kRing + kWarps * kAhead * Slot::kBytes,
    kSumBytes = kParts * kPart * 4,
    kX = kSumsAt + kBuffers * kSumBytes,
    kEnds = kX + kTokens * kRowBytes,  // [kBuffers][kUnits]
    kValues = kEnds + 2 * kBuffers * kUnits,
    kBytes = kValues + (kTokens == 2 ? 16 * kUnits * kTokens * 16 : 0)
  };
  static_assert(kBytes + sizeof(Hits) + sizeof(Divisors) + 8 * kPairs + 1024 <= 227 * 1024, "room on a multiprocessor");
};

// Units of 16 gate rows and 16 up rows of the experts that were hit, by number.
struct Units {
  u32 begin, end;  // of the block

  WS_DEVICE Units(const Divisors& d, u32 hits) {
    const u32 all = hits * d.each.value;
    begin = d.grid.quotient(all * blockIdx.x);
    end = d.grid.quotient(all * (blockIdx.x + 1));
  }
};

// A warp's part of a round's tiles, which lie one after the other: all of a unit's along K, then those of the next one.
struct Part {
  u32 units, items, begin, end;

  WS_DEVICE Part(const Layer& l, const Units& u, u32 round) {
    const u32 warp = threadIdx.x / 32;
    units = min(u.end - round, static_cast<u32>(kUnits));
    items = units * l.w13.tiles;
    begin = items_before(items, warp, kWarps);
    end = items_before(items, warp + 1, kWarps);
  }
};

// Copies a warp's tiles to its ring.
class Stream {
 public:
  WS_DEVICE Stream(const Layer& l, const Route& route, const Divisors& d, const Units& units, u32 ring)
      : l_(l), route_(route), d_(d), units_(units), round_(units.begin), to_(ring + threadIdx.x % 32 * 16) {
    if (round_ < units_.end) start();
#pragma unroll 1
    for (u32 i = 0; i < kAhead; ++i) next(i * Slot::kBytes);
  }

  WS_DEVICE void next(u32 slot) {
    if (left_ == 0) next_round();
    if (left_) {
      const u32 to = to_ + slot;
      copy_async_16(to, at(l_.w13.codes, codes_), 16);
      copy_async_16(to + Slot::kUp, at(l_.w13.codes, codes_ + to_up()), 16);
      if (threadIdx.x % 32 < 2 * kScaleLanes) copy_async_16(to + Slot::kScales, at(l_.w13.scales, scales_), 16);
      codes_ += kPreparedTileBytes / 16;
      scales_ += kScaleBytes / 16;
      --left_;
      if (++tile_ == l_.w13.tiles) {
        tile_ = 0;
        ++unit_;
        if (left_) find();
      }
    }
    commit_copies();
  }

 private:
  WS_DEVICE void start() {
    const Part part(l_, units_, round_);
    left_ = part.end - part.begin;
    const u32 unit = d_.tiles.quotient(part.begin);
    unit_ = round_ + unit;
    tile_ = part.begin - unit * l_.w13.tiles;
    if (left_) find();
  }
  WS_DEVICE void next_round() {
    while (left_ == 0 && round_ + kUnits < units_.end) {
      round_ += kUnits;
      start();
    }
  }
  // From codes of gate rows to those of up rows, by 16 bytes.
  WS_DEVICE u32 to_up() const { return l_.inner / kPreparedTileRows * l_.w13.tiles * (kPreparedTileBytes / 16); }

  WS_DEVICE void find() {
    const u32 lane = threadIdx.x % 32, hit = d_.each.quotient(unit_), row = 16 * (unit_ - hit * d_.each.value);
    const u32 tile = (2 * (route_.hit(hit) & 0xFFFFu) * l_.inner + row) / kPreparedTileRows;
    const u32 scale_tile = tile + (lane < kScaleLanes ? 0 : l_.inner / kPreparedTileRows);
    codes_ = (tile * l_.w13.tiles + tile_) * (kPreparedTileBytes / 16) + lane;
    scales_ = (scale_tile / 2 * l_.w13.tiles + tile_) * (kScaleBytes / 16) + lane % kScaleLanes;
  }

  const Layer& l_;
  const Route& route_;
  const Divisors& d_;
  const Units& units_;
  u32 round_, to_, unit_ = 0, tile_ = 0, left_ = 0;
  u32 codes_ = 0, scales_ = 0;  // where the lane reads, by 16 bytes
};

// What a thread has of x: 16 bytes of each token.
struct OwnX {
  uint4 chunks[kTokens];

  WS_DEVICE explicit OwnX(const Layer& l) {
#pragma unroll
    for (u32 t = 0; t < kTokens; ++t) {
      if (t < l.tokens && threadIdx.x < l.hidden / 8) {
        chunks[t] = *reinterpret_cast<const uint4*>(l.x + t * l.x_row + 16 * threadIdx.x);
      }
    }
  }
  WS_DEVICE void put(const Layer& l, u8* to) const {
    if (threadIdx.x >= l.hidden / 8) return;
#pragma unroll
    for (u32 t = 0; t < kTokens; ++t) {
      if (t >= l.tokens) break;
      const uint4& c = chunks[t];
      *reinterpret_cast<uint4*>(to + t * kRowBytes + 16 * threadIdx.x) = {lifted(c.x), lifted(c.y), lifted(c.z),
                                                                         lifted(c.w)};
    }
  }
};

// What products of each expert that was hit are multiplied by.
struct Factors {
  float first[kPairs], second[kPairs];
};

// Global scales of an expert that was hit, which a thread asks for early, if possible not one of those that weigh.
struct OwnScales {
  u32 hit;
  float first = 1.0f, second = 1.0f;

  WS_DEVICE OwnScales(const Layer& l, const Route& route) : hit(kThreads - 1 - threadIdx.x) {
    if (hit >= route.hits) return;
    const u32 expert = route.hit(hit) & 0xFFFFu;
    if (l.scale13) first = l.scale13[l.flags & kOwnScales13 ? expert : 0];
    if (l.scale2) second = l.scale2[l.flags & kOwnScales2 ? expert : 0];
  }
  WS_DEVICE void put(const Route& route, Factors& f) const {
    if (hit >= route.hits) return;
    f.first[hit] = lower() * factor_of(first);
    f.second[hit] = lift() * factor_of(second);
  }
};

// A value of a round that a thread finishes: a row of a unit for a token.
struct alignas(16) Finish {
  u32 what;        // one more than the hit's number, or 0
  float gate, up;  // biases
  u32 row;

  WS_DEVICE void plan(const Layer& l, const Route& route, const Divisors& d, const Units& units, u32 round,
                      u32 number) {
    const u32 unit = round + number / 16 % kUnits, token = number / (16 * kUnits);
    what = 0;
    if (token >= l.tokens || unit >= units.end) return;
    const u32 hit = d.each.quotient(unit), word = route.hit(hit);
    if (!(word >> 16 >> token & 1u)) return;
    row = 16 * (unit - hit * d.each.value) + number % 16;
    const u64 from = 2ull * (word & 0xFFFFu) * l.inner + row;
    gate = load_bias(l.bias, l.flags, from);
    up = load_bias(l.bias, l.flags, from + l.inner);
    what = hit + 1;
  }

  // Adds the warps' sums up in their order and writes a value of `act`.
  WS_DEVICE void write(const Layer& l, const Route& route, const Factors& f, const float* sums, const Ends* ends,
                       u32 number) const {
    if (what == 0) return;
    const u32 unit = number / 16 % kUnits, token = number / (16 * kUnits), hit = what - 1;
    const float* const at = sums + unit * kPart + token * kStride + number % 16;
    const Ends warps = ends[unit];
    float first = 0.0f, second = 0.0f;
#pragma unroll 4
    for (u32 w = warps.first; w <= warps.last; ++w) {
      first += at[w * kPart];
      second += at[w * kPart + 16];
    }
    first = __fmaf_rn(first, f.first[hit], gate);
    second = __fmaf_rn(second, f.first[hit], up);
    const float factor = route.all.factors[hit][token] * f.second[hit];
    const u64 pair = token * l.top_k + route.slot(hit, token);
    store_value(l.act, pair * l.inner + row, factor * activate(l.activation, first, second, l.alpha, l.limit));
  }
};

// A thread's values of a round. Biases are asked for a round ahead. Where registers are few they wait in shared memory.
struct Values {
  enum : u32 { kCount = 16 * kUnits * kTokens, kEach = (kCount + kThreads - 1) / kThreads };
  enum : bool { kPutAside = kTokens == 2 };
  static_assert(!kPutAside || kEach == 1, "one a thread");

  Finish each[kEach];

  WS_DEVICE void plan(const Layer& l, const Route& route, const Divisors& d, const Units& units, u32 round) {
#pragma unroll
    for (u32 i = 0; i < kEach; ++i) each[i].plan(l, route, d, units, round, threadIdx.x + i * kThreads);
  }
  WS_DEVICE void put_aside(u8* shared) {
    if constexpr (kPutAside) {
      if (threadIdx.x < kCount) reinterpret_cast<Finish*>(shared + Shared::kValues)[threadIdx.x] = each[0];
    }
  }
  WS_DEVICE void write(const Layer& l, const Route& route, const Factors& f, const u8* shared, u32 buffer) {
    if constexpr (kPutAside) {
      if (threadIdx.x >= kCount) return;
      each[0] = reinterpret_cast<const Finish*>(shared + Shared::kValues)[threadIdx.x];
    }
    const float* const sums = reinterpret_cast<const float*>(shared + Shared::kSumsAt + buffer * Shared::kSumBytes);
    const Ends* const ends = reinterpret_cast<const Ends*>(shared + Shared::kEnds) + buffer * kUnits;
#pragma unroll
    for (u32 i = 0; i < kEach; ++i) each[i].write(l, route, f, sums, ends, threadIdx.x + i * kThreads);
  }
};

// A warp's tile of gate and up rows.
WS_DEVICE void multiply_unit(u32 slot, u32 turn, u32 x, float (&sums)[2][kSums]) {
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

WS_DEVICE void compute(const Layer& l, const Router& router, Route& route, const Divisors& d, Factors& factors,
                       const OwnX& own, u8* shared) {
  const u32 address = shared_address(shared), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Units units(d, route.hits);
  const u32 ring = address + Shared::kRing + warp * kAhead * Slot::kBytes;
  // What else comes from memory is asked for before the tiles, behind which it would wait.
  route.weigh(router);
  Values values;
  values.plan(l, route, d, units, units.begin);
  const OwnScales scales(l, route);
  Stream stream(l, route, d, units, ring);
  release_successor();
  own.put(l, shared + Shared::kX);
  values.put_aside(shared);
  scales.put(route, factors);
  __syncthreads();
  const u32 x = address + Shared::kX + token_of_lane(l.tokens) * kRowBytes + lane / 8 * 16;
  u32 slot = 0;
#pragma unroll 1
  for (u32 round = units.begin; round < units.end; round += kUnits) {
    const Part part(l, units, round);
    const u32 buffer = kBuffers == 1 ? 0 : (round - units.begin) / kUnits % kBuffers;
    float* const all = reinterpret_cast<float*>(shared + Shared::kSumsAt + buffer * Shared::kSumBytes);
    Ends* const ends = reinterpret_cast<Ends*>(shared + Shared::kEnds) + buffer * kUnits;
    u32 unit = d.tiles.quotient(part.begin), tile = part.begin - unit * l.w13.tiles, left = part.end - part.begin;
#pragma unroll 1
    for (; left; ++unit) {
      const u32 turn = (round + unit) % 2 * 8;
      u32 count = min(left, l.w13.tiles - tile);
      if (tile == 0) ends[unit].first = static_cast<u8>(warp);
      if (tile + count == l.w13.tiles) ends[unit].last = static_cast<u8>(warp);
      left -= count;
      u32 x_at = x + tile * (2 * kPreparedTileK);
      float sums[2][kSums] = {};
#pragma unroll 1
      for (; count; --count) {
        wait_for_copies<kAhead - 1>();
        __syncwarp();
        multiply_unit(ring + slot, turn, x_at, sums);
        x_at += 2 * kPreparedTileK;
        __syncwarp();
        stream.next(slot);
        slot += Slot::kBytes;
        if (slot == kAhead * Slot::kBytes) slot = 0;
      }
      tile = 0;
      float* const to = all + (warp + unit) * kPart;
      put_rows<kStride>(to, sums[0]);
      put_rows<kStride>(to + 16, sums[1]);
    }
    __syncthreads();
    values.write(l, route, factors, shared, buffer);
    if (round + kUnits >= units.end) break;
    values.plan(l, route, d, units, round + kUnits);
    values.put_aside(shared);
    if (kBuffers == 1) __syncthreads();
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
  __shared__ Hits hits;
  __shared__ Factors factors;
  __shared__ Divisors divisors;
  const Router router{static_cast<const u8*>(logits), route_bias, num_tokens, logits_row, tokens, experts, top_k, rule,
                      n_group, topk_group, scale, expert_offset, local_experts, flags};
  const Packed packed{static_cast<const u8*>(w13), static_cast<const u8*>(scales), hidden / kPreparedTileK};
  const Layer layer{static_cast<const u8*>(x), packed, bias, global_scale, global_scale2, act, x_row, tokens, top_k,
                    inner, hidden, activation, flags, alpha, limit};
  divisors.find(layer);
  Route route(hits);
  route.clear();
  wait_for_predecessor();
  const OwnX own(layer);
  route.find(router);
  compute(layer, router, route, divisors, factors, own, shared);
}
