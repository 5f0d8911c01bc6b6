// SPDX-License-Identifier: Apache-2.0
// ws_moe_packed_down: second product of a MoE layer for a few tokens, with 4-bit weights in the order for few rows:
//
//   out[t] = Σ act[t · top_k + j] · w2[e]ᵀ + weight[t, j] · bias[e] over the experts e that are here, in fp32
//
// Rows of `act` come with all factors from ws_moe_packed_up, which runs directly before: routing is repeated and first
// tiles of w2 are copied while that is at work. Macros as in fused_moe/packed_decode.cuh, and WS_CLUSTER, 1 or 2 blocks
// that divide rows, experts and K. Grid: one block a multiprocessor, and enough that no cluster has more than kMostTiles tiles
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

enum : u32 { kCluster = WS_CLUSTER, kAllWarps = kCluster * kWarps, kMostTiles = 4 };
#if defined(WS_AHEAD)
enum : u32 { kAhead = WS_AHEAD };
#else
enum : u32 { kAhead = kTokens == 2 && !kNvfp4 ? 4 : 3 };  // spans that a warp has under way
#endif

// What a warp multiplies at a time: two tiles of w2, next to each other along K, and as much of a row of `act` for each
// token, 16 bytes off a multiple of 128. Where K has an odd number of tiles, the last one has zeros beside it.
struct Slot {
  enum : u32 {
    kScales = 2 * kPreparedTileBytes,
    kAct = kScales + 2 * kScaleBytes,
    kActRow = 4 * kPreparedTileK + 16,
    kBytes = kAct + kTokens * kActRow
  };
};

// A warp's sums of a tile's 16 rows, [token][row]. Warp w has those of tile i at w + i: no other one has that place.
enum : u32 { kPart = kTokens * kTokenStride, kParts = kWarps + kMostTiles - 1 };

struct Shared {
  enum : u32 {
    kRing = 0,  // [kWarps][kAhead]
    kSumsAt = kRing + kWarps * kAhead * Slot::kBytes,
    kOther = kSumsAt + kParts * kPart * 4,  // what the other block has of the tile that both have
    kFinish = kOther + 16 * kTokens * 4,
    kEnds = kFinish + 16 * kMostTiles * kTokens * 16,  // [kMostTiles]
    kBarrier = kEnds + 2 * kMostTiles,
    kBytes = kBarrier + 16
  };
  static_assert(kBytes + sizeof(Hits) + sizeof(Divisor) + 1024 <= 227 * 1024, "room on a multiprocessor");
};

struct Layer {
  const u8* act;
  Packed w2;
  const void* bias;
  void* out;
  u32 tokens, top_k, inner, hidden, flags;
  u32 first, tiles;  // the cluster's tiles of 16 rows of w2
};

// The cluster's items: a span of K of an expert of a tile of rows, the last one running fastest. Warps of all its
// blocks have equal parts of them, one after the other.
struct Items {
  u32 spans, each, all;  // of an expert, of a tile, in all
  u32 begin, end;        // of the block

  WS_DEVICE Items(const Layer& l, u32 hits, u32 rank) {
    spans = (l.w2.tiles + 1) / 2;
    each = spans * hits;
    all = each * l.tiles;
    begin = before(rank * kWarps);
    end = before(rank * kWarps + kWarps);
  }
  WS_DEVICE u32 before(u32 warp) const { return items_before(all, warp, kAllWarps); }
  WS_DEVICE u32 tile_of(u32 item) const {
    static_assert(kMostTiles == 4, "three comparisons");
    return (item >= each ? 1u : 0u) + (item >= 2 * each ? 1u : 0u) + (item >= 3 * each ? 1u : 0u);
  }
};

// Copies a warp's items to its ring: of each the weights, which can come early, and the tokens' parts of `act`.
class Stream {
 public:
  u32 left;

  WS_DEVICE Stream(const Layer& l, const Route& route, const Divisor& spans, const Items& items, u32 rank, u32 ring)
      : l_(l), route_(route), items_(items), to_(ring + threadIdx.x % 32 * 16) {
    const u32 warp = rank * kWarps + threadIdx.x / 32, begin = items.before(warp);
    left = items.before(warp + 1) - begin;
    if (left == 0) return;
    tile_ = items.tile_of(begin);
    hit_ = spans.quotient(begin - tile_ * items.each);
    span_ = begin - tile_ * items.each - hit_ * items.spans;
    find();
  }

  WS_DEVICE void advance() {
    --left;
    codes_ += 2 * kPreparedTileBytes / 16;
    scales_ += 2 * kScaleBytes / 16;
#pragma unroll
    for (u32 i = 0; i < kTokens / 2; ++i) rows_[i] += 4 * kPreparedTileK;
    if (++span_ < items_.spans) return;
    span_ = 0;
    if (++hit_ == route_.hits) hit_ = 0, ++tile_;
    if (left) find();
  }

  // Where there is no second tile, the first one again, which meets zeros.
  WS_DEVICE void copy_weights(u32 slot) const {
    const u32 lane = threadIdx.x % 32, to = to_ + slot;
    const bool whole = is_whole();
    copy_async_16(to, at(l_.w2.codes, codes_), 16);
    copy_async_16(to + kPreparedTileBytes, at(l_.w2.codes, codes_ + (whole ? kPreparedTileBytes / 16 : 0)), 16);
    if (lane >= 2 * kScaleLanes) return;
    copy_async_16(to + Slot::kScales, at(l_.w2.scales, scales_ - (whole || lane < kScaleLanes ? 0 : kScaleLanes)), 16);
  }

  // 16 lanes a token; zeros for tokens that do not have the expert.
  WS_DEVICE void copy_rows(u32 slot) const {
    const u32 lane = threadIdx.x % 32, to = to_ + slot + Slot::kAct + lane / 16 * (Slot::kActRow - 256);
    const bool is_here = lane % 16 < 8 || is_whole();
#pragma unroll
    for (u32 i = 0; i < kTokens / 2; ++i) {
      if (2 * i + lane / 16 >= l_.tokens) break;
      const bool has = is_here && rows_[i] < kNone;
      copy_async_16(to + 2 * i * Slot::kActRow, l_.act + (has ? rows_[i] : 0u), has ? 16 : 0);
    }
  }

 private:
  enum : u32 { kNone = 1u << 31 };  // or more: a token does not have the expert

  // Whether a span has its second tile.
  WS_DEVICE bool is_whole() const { return 2 * span_ + 1 < l_.w2.tiles; }

  WS_DEVICE void find() {
    const u32 lane = threadIdx.x % 32, hit = route_.hit(hit_);
    const u32 tile = (hit & 0xFFFFu) * (l_.hidden / kPreparedTileRows) + l_.first + tile_;
    codes_ = (tile * l_.w2.tiles + 2 * span_) * (kPreparedTileBytes / 16) + lane;
    scales_ = (tile / 2 * l_.w2.tiles + 2 * span_) * (kScaleBytes / 16) + lane;
#pragma unroll
    for (u32 i = 0; i < kTokens / 2; ++i) {
      const u32 token = 2 * i + lane / 16;
      rows_[i] = kNone;
      if (!(hit >> 16 >> token & 1u)) continue;
      const u32 row = token * l_.top_k + route_.slot(hit_, token);
      rows_[i] = 2 * row * l_.inner + span_ * (4 * kPreparedTileK) + lane % 16 * 16;
    }
  }

  const Layer& l_;
  const Route& route_;
  const Items& items_;
  u32 to_, tile_ = 0, hit_ = 0, span_ = 0, rows_[kTokens / 2];
  u32 codes_ = 0, scales_ = 0;  // where the lane reads, by 16 bytes
};

// The value of `out` that a thread finishes: a row of the cluster's for a token. What it needs for that is kept in
// shared memory: biases are added up before rows of `act` are there, and registers are few.
struct alignas(16) Finish {
  u32 what;    // how much of the tile the block has, or 0
  float bias;  // Σ weight · bias
  u32 place;   // in `out`

  enum : u32 { kThreadsUsed = 16 * kMostTiles * kTokens, kHas = 1, kStarts = 2, kEnds = 4, kNothing = 8 };
  static_assert(kThreadsUsed <= kThreads, "a value a thread");

  WS_DEVICE static u32 tile() { return threadIdx.x / 16 % kMostTiles; }
  WS_DEVICE static u32 token() { return threadIdx.x / (16 * kMostTiles); }

  WS_DEVICE void plan(const Layer& l, const Route& route, const Items& items, u32 rank) {
    what = 0;
    if (token() >= l.tokens || tile() >= l.tiles) return;
    const u32 from = tile() * items.each, to = from + items.each;
    const u32 begin = max(from, items.begin), end = min(to, items.end);
    if (begin >= end && (items.all || rank)) return;
    what = kHas | (begin == from ? kStarts : 0u) | (end == to ? kEnds : 0u) | (items.all ? 0u : kNothing);
    const u32 row = 16 * (l.first + tile()) + threadIdx.x % 16;
    place = token() * l.hidden + row;
    bias = 0.0f;
    if (begin != from || (l.flags >> kBiasShift & kBiasMask) == kNoBias) return;
#pragma unroll 4
    for (u32 j = 0; j < l.top_k; ++j) {
      const u32 hit = route.all.places[token()][j];
      if (hit == kNoPlace) continue;
      const u64 expert = route.hit(hit) & 0xFFFFu;
      bias = __fmaf_rn(route.all.factors[hit][token()], load_bias(l.bias, l.flags, expert * l.hidden + row), bias);
    }
  }

  // Adds the warps' sums up, in their order. A tile that two blocks have is finished by the one that has its start.
  WS_DEVICE void write(void* out, u32 address, const u8* shared) const {
    if (what == 0) return;
    const u32 row = threadIdx.x % 16;
    const Ends warps = reinterpret_cast<const Ends*>(shared + Shared::kEnds)[tile()];
    const float* at = reinterpret_cast<const float*>(shared + Shared::kSumsAt);
    at += tile() * kPart + token() * kTokenStride + row;
    float sum = 0.0f;
#pragma unroll 4
    for (u32 w = warps.first; w <= warps.last && !(what & kNothing); ++w) sum += at[w * kPart];
    if (kCluster > 1 && !(what & kStarts)) {
      store_to_block(address_at(address + Shared::kOther + 4 * (16 * token() + row), 0), bits_of(sum),
                     address_at(address + Shared::kBarrier, 0));
      return;
    }
    if (kCluster > 1 && !(what & kEnds)) {
      mbarrier_wait(address + Shared::kBarrier, 0);
      sum += reinterpret_cast<const float*>(shared + Shared::kOther)[16 * token() + row];
    }
    store_value(out, place, __fmaf_rn(sum, lower(), bias));
  }
};

WS_DEVICE void add_products(const Layer& l, const Items& items, u32 rank, u32 ring, Stream& stream, u8* shared) {
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float* const all = reinterpret_cast<float*>(shared + Shared::kSumsAt);
  const u32 right_at = ring + Slot::kAct + token_of_lane(l.tokens) * Slot::kActRow + lane / 8 * 16;
  const u32 begin = items.before(rank * kWarps + warp);
  u32 left = items.before(rank * kWarps + warp + 1) - begin, slot = 0;
  if (left == 0) return;
  u32 tile = items.tile_of(begin), from = begin - tile * items.each;
  Ends* const ends = reinterpret_cast<Ends*>(shared + Shared::kEnds);
#pragma unroll 1
  for (; left; ++tile) {
    const u32 turn = (l.first + tile) % 2 * 8;
    u32 count = min(left, items.each - from);
    left -= count;
    if (from == 0 || warp == 0) ends[tile].first = static_cast<u8>(warp);
    if (from + count == items.each || items.before(rank * kWarps + warp + 1) == items.end) {
      ends[tile].last = static_cast<u8>(warp);
    }
    from = 0;
    float sums[kSums] = {};
#pragma unroll 1
    for (; count; --count) {
      wait_for_copies<kAhead - 1>();
      __syncwarp();
#pragma unroll
      for (u32 i = 0; i < 2; ++i) {
        u32 words[4], scales[kScaleWords], right[8];
        load_shared(ring + slot + i * kPreparedTileBytes + lane * 16, words);
        load_shared(ring + slot + Slot::kScales + i * kScaleBytes + lane / 4 * (4 * kScaleWords), scales);
        load_tokens(right_at + slot + i * (2 * kPreparedTileK), right);
        multiply_tile(sums, words, scales, turn, right);
      }
      __syncwarp();
      if (stream.left) {
        stream.copy_weights(slot);
        stream.copy_rows(slot);
        stream.advance();
      }
      commit_copies();
      slot += Slot::kBytes;
      if (slot == kAhead * Slot::kBytes) slot = 0;
    }
    put_rows<kTokenStride>(all + (tile + warp) * kPart, sums);
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
  __shared__ Hits hits;
  __shared__ Divisor spans;
  const Router router{static_cast<const u8*>(logits), route_bias, num_tokens, logits_row, tokens, experts, top_k, rule,
                      n_group, topk_group, scale, expert_offset, local_experts, flags};
  const u32 rank = kCluster > 1 ? cluster_rank() : 0, number = blockIdx.x / kCluster, clusters = gridDim.x / kCluster;
  const u32 tiles = hidden / kPreparedTileRows, first = static_cast<u32>(static_cast<u64>(tiles) * number / clusters);
  const u32 end = static_cast<u32>(static_cast<u64>(tiles) * (number + 1) / clusters);
  const Packed packed{static_cast<const u8*>(w2), static_cast<const u8*>(scales), inner / kPreparedTileK};
  const Layer layer{static_cast<const u8*>(act), packed, bias, out, tokens, top_k, inner, hidden, flags, first,
                    end - first};
  const u32 address = shared_address(shared);
  Route route(hits);
  if constexpr (kCluster > 1) {
    if (threadIdx.x == 0 && rank == 0) {
      mbarrier_init(address + Shared::kBarrier, 1);
      fence_mbarrier_init();
      mbarrier_arrive_expect(address + Shared::kBarrier, 16 * tokens * 4);
    }
    __syncwarp();
    arrive_cluster();
  }
  if (threadIdx.x == 0) spans.set((layer.w2.tiles + 1) / 2);
  route.clear();
  route.find(router);
  // Biases are asked for before the tiles, behind which they would wait.
  const Items items(layer, route.hits, rank);
  route.weigh(router);
  __syncthreads();
  Finish* const finish = reinterpret_cast<Finish*>(shared + Shared::kFinish) + threadIdx.x;
  if (threadIdx.x < Finish::kThreadsUsed) finish->plan(layer, route, items, rank);
  const u32 ring = address + Shared::kRing + threadIdx.x / 32 * kAhead * Slot::kBytes;
  Stream stream(layer, route, spans, items, rank, ring);
  Stream weights = stream;
#pragma unroll 1
  for (u32 i = 0; i < kAhead; ++i) {
    if (weights.left) weights.copy_weights(i * Slot::kBytes), weights.advance();
  }
  wait_for_predecessor();
  release_successor();
#pragma unroll 1
  for (u32 i = 0; i < kAhead; ++i) {
    if (stream.left) stream.copy_rows(i * Slot::kBytes), stream.advance();
    commit_copies();
  }
  add_products(layer, items, rank, ring, stream, shared);
  if constexpr (kCluster > 1) wait_cluster();  // the other block is there
  __syncthreads();
  if (threadIdx.x < Finish::kThreadsUsed) finish->write(out, address, shared);
}
