// SPDX-License-Identifier: Apache-2.0
// ws_moe_quantize: the sorted rows of a layer as codes, with scales in the grouped layout 128x4. Rows are tokens', each
// quantized once and written to all of its places, or the activations of the first product's rows.
//
//   WS_FORMAT  WS_NVFP4 | WS_MXFP4 | WS_MXFP8
//   WS_INPUT   WS_BF16 | WS_FP16
//
// Grid: any number of blocks; a warp takes 256 columns of a row, and how many sorted rows there are is read on the device.
// Columns that pad the scales are zero. Rows that pad them are not written: what a row of a product becomes depends on
// no scale but its own, and few tokens of many experts have far more such rows than others.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800
#error "ws_moe_quantize needs an architecture of 8.0 or later"
#endif
#if !defined(WS_FORMAT) || !defined(WS_INPUT)
#error "ws_moe_quantize needs WS_FORMAT and WS_INPUT"
#endif

#include "common/dependent_launch.cuh"
#include "common/record.cuh"
#include "fp4_quantization/block_lanes.cuh"
#include "fp4_quantization/elements.cuh"
#include "fp4_quantization/format.cuh"
#include "fp4_quantization/scale.cuh"
#include "fp4_quantization/tile.cuh"
#include "fused_moe/activation.cuh"
#include "fused_moe/sorted_rows.cuh"

#if WS_FORMAT < WS_NVFP4 || WS_FORMAT > WS_MXFP8 || (WS_INPUT != WS_BF16 && WS_INPUT != WS_FP16)
#error "ws_moe_quantize: unknown WS_FORMAT or WS_INPUT"
#endif

WS_RECORD(0, ws::kThreads, 1, ws::kWaitsWherePossible, 32 * ws::kElements, 0, 0)

namespace ws {

using Traits = Format<WS_FORMAT>;
using Lanes = Share<Traits::lanes, 1>;
using Source = Elements<WS_INPUT>;
using Values = Elements<WS_FP32>;

constexpr u32 kResident = 5;  // blocks of a multiprocessor

enum : u32 { kGather = 5 };  // behind the activations: none, rows are tokens'
enum : u32 { kMixedColumns = 1 << 10 };  // of `flags`: 16 columns of the gate and 16 of up in turn (ops/gated_order.py)

struct Parameters {
  const u8* x;
  u8* codes;
  u8* scales;
  const float* global_scale;
  const int* offsets;
  const int* ids;
  const int* positions;
  const float* weights;
  i64 x_row;
  u32 units, groups, pitch, most_rows, top_k, expert_offset, activation;
  float alpha, limit;
  u32 flags;
};

// What a warp has of a row: the lane's unit, and whether the row has one there.
struct Segment {
  u32 unit;
  bool active;

  WS_DEVICE Segment(u32 number, u32 units) : unit(number * 32 + threadIdx.x % 32), active(unit < units) {}
};

// Times the token's weight, rounded to its type.
WS_DEVICE void weigh(float weight, float (&values)[kElements]) {
#pragma unroll
  for (u32 i = 0; i < kElements; i += 2) {
    const float low = values[i] * weight, high = values[i + 1] * weight;
    if constexpr (WS_INPUT == WS_BF16) {
      unpack_bf16x2(pack_bf16x2(low, high), values[i], values[i + 1]);
    } else {
      unpack_f16x2(pack_f16x2(low, high), values[i], values[i + 1]);
    }
  }
}

template <u32 kActivation>
WS_DEVICE void apply(const Parameters& p, const float (&gate)[kElements], float (&values)[kElements]) {
#pragma unroll
  for (u32 i = 0; i < kElements; ++i) values[i] = activate(kActivation, gate[i], values[i], p.alpha, p.limit);
}

// Rows of the first product have the gate's columns, then up's, unless they are mixed; relu2 has no gate.
WS_DEVICE void load_activated(const Parameters& p, u32 row, const Segment& at, float (&values)[kElements]) {
  const bool mixed = p.flags & kMixedColumns;
  const u8* const source = p.x + row * p.x_row + (mixed ? at.unit + (at.unit & ~1u) : at.unit) * sizeof(Source);
  Source first, second;
  first.fill(0u);
  second.fill(0u);
  if (at.active) first.load_vectors(source);
  if (at.active && p.activation != kRelu2) second.load_vectors(source + (mixed ? 2 : p.units) * sizeof(Source));
  float gate[kElements];
  first.unpack(gate);
  second.unpack(values);
  switch (p.activation) {
    case kSwiglu:
      return apply<kSwiglu>(p, gate, values);
    case kSwigluOai:
      return apply<kSwigluOai>(p, gate, values);
    case kGeglu:
      return apply<kGeglu>(p, gate, values);
    case kGegluTanh:
      return apply<kGegluTanh>(p, gate, values);
    default:
      first.unpack(values);
      return apply<kRelu2>(p, gate, values);
  }
}

// The bytes of four blocks that follow each other, on every lane of them, the first lowest.
WS_DEVICE u32 join_quad(u32 stored) {
  u32 word = stored << (threadIdx.x / Traits::lanes % 4 * 8);
  word |= __shfl_xor_sync(kAllLanes, word, Traits::lanes);
  return word | __shfl_xor_sync(kAllLanes, word, 2 * Traits::lanes);
}

// A lane's codes, and the scales of the four blocks of which one is its own.
struct Quantized {
  u32 codes[Traits::code_words];
  u32 scales;

  WS_DEVICE void make(const Parameters& p, const float (&exact)[kElements], u32 group, bool active) {
    Values values;
#pragma unroll
    for (u32 i = 0; i < kElements; ++i) values.word[i] = active ? bits_of(exact[i]) : 0u;
    Scaling scaling{1.0f, false};
    if constexpr (WS_FORMAT == WS_NVFP4) scaling.global_scale = load_global_scale(p.global_scale, group, p.flags);
    const u32 amax[1] = {values.amax()};
    u32 own[1];
    Lanes::reduce(amax, own);
    bool exception;
    BlockScale scale = Scale<WS_FORMAT>::quick(own[0], scaling, exception);
    if (!__any_sync(kAllLanes, exception)) {
      encode<WS_FORMAT, false>(values, scale.factor, codes);
    } else {
      // Without a usable global scale no block is finite; padding stays zero.
      if (!is_valid_global_scale(scaling.global_scale)) own[0] = active ? kInfinity : 0u;
      scale = Scale<WS_FORMAT>::exact(own[0], scaling);
      encode<WS_FORMAT, true>(values, scale.factor, codes);
    }
    scales = join_quad(scale.stored);
  }
};

// Where a lane writes in any row.
struct Targets {
  u8* codes;
  u32* scales;
  u32 row_bytes;
  bool writes_codes, writes_scales;

  WS_DEVICE Targets(const Parameters& p, const Segment& at) {
    constexpr u32 unit_bytes = sizeof(Quantized::codes);
    const u32 block = at.unit / Traits::lanes;
    codes = opaque_global(p.codes + at.unit * unit_bytes);
    scales = opaque_global(reinterpret_cast<u32*>(p.scales) + block * (kGroupRows / 4));
    row_bytes = p.units * unit_bytes;
    writes_codes = at.active;
    writes_scales = at.unit % (4 * Traits::lanes) == 0 && block < p.pitch;
  }

  WS_DEVICE void store(const Quantized& made, u32 row, u32 word) const {
    u8* const target = codes + static_cast<u64>(row) * row_bytes;
    if (writes_codes) {
      if constexpr (Traits::code_words == 1) {
        *reinterpret_cast<u32*>(target) = made.codes[0];
      } else {
        *reinterpret_cast<u64*>(target) = made.codes[0] | (static_cast<u64>(made.codes[1]) << 32);
      }
    }
    if (writes_scales) scales[word] = made.scales;
  }
};

WS_DEVICE void quantize_activated(const Parameters& p, u32 row, const Segment& at) {
  float values[kElements];
  load_activated(p, row, at, values);
  const u32 group = group_of_row(p.offsets, p.groups, row);
  Quantized made;
  made.make(p, values, group, at.active);
  Targets(p, at).store(made, row, scale_word(p.offsets, group, row, p.pitch));
}

// A token's values are the same in all its places, unless its weights or the experts' global scales make them others.
WS_DEVICE void quantize_token(const Parameters& p, u32 token, const Segment& at) {
  Source source;
  source.fill(0u);
  if (at.active) source.load_vectors(p.x + token * p.x_row + at.unit * sizeof(Source));
  const u32 lane = threadIdx.x % 32;
  u32 row = ~0u, group = 0, word = 0;
  float weight = 1.0f;
  if (lane < p.top_k) {
    const u64 pair = static_cast<u64>(token) * p.top_k + lane;
    row = static_cast<u32>(p.positions[pair]);
    if (row != ~0u) {
      group = static_cast<u32>(p.ids[pair]) - p.expert_offset;
      word = scale_word(p.offsets, group, row, p.pitch);
      if (p.weights) weight = p.weights[pair];
    }
  }
  const Targets to(p, at);
  Quantized made;
  bool stale = true;
#pragma unroll 1
  for (u32 rest = __ballot_sync(kAllLanes, row != ~0u); rest != 0u; rest &= rest - 1u) {
    const u32 j = __ffs(rest) - 1u;
    if (stale) {
      float values[kElements];
      source.unpack(values);
      if (p.weights) weigh(__shfl_sync(kAllLanes, weight, j), values);
      made.make(p, values, __shfl_sync(kAllLanes, group, j), at.active);
      stale = p.weights || (p.flags & kScalePerGroup);
    }
    to.store(made, __shfl_sync(kAllLanes, row, j), __shfl_sync(kAllLanes, word, j));
  }
}

}  // namespace ws

// May be null: global_scale, weights; ids and positions where rows are activated. `x_row` is in bytes, `pitch` the scales
// of a row with their padding. `most_rows` is tokens, or the most sorted rows.
extern "C" __global__ void __launch_bounds__(ws::kThreads, ws::kResident)
ws_moe_quantize(const void* x, void* codes, void* scales, const float* global_scale, const int* offsets,
                const int* ids, const int* positions, const float* weights, long long x_row, unsigned units,
                unsigned groups, unsigned pitch, unsigned most_rows, unsigned top_k, unsigned expert_offset,
                unsigned activation, float alpha, float limit, unsigned flags) {
  using namespace ws;
  wait_for_predecessor();
  release_successor();
  const Parameters p{static_cast<const u8*>(x), static_cast<u8*>(codes), static_cast<u8*>(scales), global_scale,
                     offsets, ids, positions, weights, x_row, units, groups, pitch, most_rows, top_k, expert_offset,
                     activation, alpha, limit, flags};
  const bool tokens = activation == kGather;
  const u32 rows = tokens ? most_rows : min(static_cast<u32>(max(offsets[groups], 0)), most_rows);
  const u32 segments = (units + 31) / 32, end = rows * segments, step = gridDim.x * (kThreads / 32);
  for (u32 i = blockIdx.x * (kThreads / 32) + threadIdx.x / 32; i < end; i += step) {
    const u32 row = i / segments;
    const Segment at(i - row * segments, units);
    if (tokens) {
      quantize_token(p, row, at);
    } else {
      quantize_activated(p, row, at);
    }
  }
}
