// SPDX-License-Identifier: Apache-2.0
// From a warp's sums to codes and scales: gate and up meet, are activated, and leave as blocks of A's format, which the
// next product reads as its A.
//
// Of every 32 columns of the product 16 are of the gate and 16 of up, so that a part (sm12x_epilogue.cuh) has whole
// rows of 16 activations or, in t256, 32. Four lanes have 16 activations of a row, four each.
#pragma once

#include "common/block_scale.cuh"
#include "common/gemm_problem.cuh"
#include "common/shared_load.cuh"
#include "common/shared_store.cuh"
#include "common/warpgroup.cuh"
#include "fp4_gemm/sm12x_config.cuh"
#include "fp4_gemm/sm12x_epilogue.cuh"
#include "fp4_gemm/sm12x_fragments.cuh"
#include "fp4_gemm/sm12x_schedule.cuh"
#include "fused_moe/activation.cuh"

namespace ws {

enum : u32 { kGlobalDPerBatch = 1 << 7 };  // of `flags`: D has a global scale for each group

// What becomes of the product, beside its Problem: D is codes, and the type of D is what sums are rounded to before.
struct Quantizing {
  u8* scales;                 // grouped 128x4, of the product's rows
  const float* global_scale;  // null: 1
  u32 activation;
  float alpha, limit;
};

enum : bool { kNibbles = element_bits(Format::of_a) == 4 };
template <bool kNvfp4>
struct ScaleOf : E4m3Scale {};
template <>
struct ScaleOf<false> : PowerScale<kNibbles> {};
using DScale = ScaleOf<Format::of_a == Format::nvfp4>;

struct Four {
  float v[4];
};

// To the type that the product has where it is written.
WS_DEVICE void round_to(u32 type, Four& x) {
  if (type == kOutFp32) return;
  if (type == kOutBf16) {
    unpack_bf16x2(pack_bf16x2(x.v[0], x.v[1]), x.v[0], x.v[1]);
    unpack_bf16x2(pack_bf16x2(x.v[2], x.v[3]), x.v[2], x.v[3]);
  } else {
    unpack_f16x2(pack_f16x2(x.v[0], x.v[1]), x.v[0], x.v[1]);
    unpack_f16x2(pack_f16x2(x.v[2], x.v[3]), x.v[2], x.v[3]);
  }
}

template <u32 kActivation>
WS_DEVICE void apply(const Quantizing& q, const Four& gate, Four& x) {
#pragma unroll
  for (u32 i = 0; i < 4; ++i) x.v[i] = activate(kActivation, gate.v[i], x.v[i], q.alpha, q.limit);
}

WS_DEVICE void activate_four(const Quantizing& q, const Four& gate, Four& x) {
  switch (q.activation) {
    case kSwiglu:
      return apply<kSwiglu>(q, gate, x);
    case kSwigluOai:
      return apply<kSwigluOai>(q, gate, x);
    case kGeglu:
      return apply<kGeglu>(q, gate, x);
    default:
      return apply<kGegluTanh>(q, gate, x);
  }
}

// Which activations of a part a lane has. Lanes 4 to 7 are in a row whose blocks of 8 columns lie in other banks than
// those of lanes 0 to 3.
struct PartLane {
  enum : u32 { kSlabs = kPartColumns / 32, kRows = 8 / kSlabs };  // rows at a time
  static_assert(!kSwap || kSlabs == 1, "lane 16 has the other slab of lane 0");
  u32 row, slab, quad;

  WS_DEVICE explicit PartLane(u32 lane) : quad(lane % 4) {
    const u32 unit = lane / 4;
    constexpr u32 other = kSwap ? 2 : 1;  // the bit that takes the place of the lowest, and it of that
    const u32 swapped = (unit & ~(1u | 1u << other)) | (unit & 1u) << other | (unit >> other & 1u);
    row = swapped % kRows;
    slab = swapped / kRows;
  }

  WS_DEVICE u32 column() const { return slab * 32 + quad * 4; }  // of the gate; that of up is 16 more

  WS_DEVICE Four load(u32 part, u32 row_in_part, u32 column, float alpha, const float4& bias) const {
    u32 v[4];
    load_shared(Part::address(part, row_in_part, column), v);
    return {__fmaf_rn(float_of(v[0]), alpha, bias.x), __fmaf_rn(float_of(v[1]), alpha, bias.y),
            __fmaf_rn(float_of(v[2]), alpha, bias.z), __fmaf_rn(float_of(v[3]), alpha, bias.w)};
  }
};

// fp32 bits of the largest magnitude; not below those of infinity if any value is NaN or infinite.
WS_DEVICE u32 amax_of(const Four& x) {
  const float low = max_nan(fabsf(x.v[0]), fabsf(x.v[1])), high = max_nan(fabsf(x.v[2]), fabsf(x.v[3]));
  return bits_of(max_nan(low, high));
}

// The largest of a block, in all of its lanes.
struct BlockMax {
  u32 own, other;  // shared addresses of this warp's eight words, and of its neighbour's
  u32 barrier;

  WS_DEVICE BlockMax(u32 shared, const Reader& reader) : own(0), other(0), barrier(0) {
    if constexpr (kExchanges) {
      constexpr u32 apart = kSwap ? 1 : Left::kWarps;  // numbers of neighbouring warps
      const u32 warp = reader.warp_left + reader.warp_right * Left::kWarps;
      own = shared + Shared::kExchange + warp * 32;
      other = shared + Shared::kExchange + (warp ^ apart) * 32;
      barrier = 2 + (warp & ~apart);  // numbers below 10
    }
  }

  WS_DEVICE u32 operator()(u32 amax, u32 turn, const PartLane& lane) const {
    amax = max(amax, __shfl_xor_sync(kAllLanes, amax, 1));
    amax = max(amax, __shfl_xor_sync(kAllLanes, amax, 2));
    if constexpr (kBlock == 32 && !kExchanges) amax = max(amax, __shfl_xor_sync(kAllLanes, amax, 16));  // other slab
    if constexpr (kExchanges) {
      const u32 at = turn % 2 * kMmaWarps * 32 + lane.row * 4;
      if (lane.quad == 0) store_shared(own + at, amax);
      sync_warps<64>(barrier);
      amax = max(amax, load_shared_u32(other + at));
    }
    return amax;
  }
};

// Where D's scales lie.
struct ScalePlace {
  u8* first;  // of the tile's first row of 128
  u32 blocks, atoms, row;
  u32 block;  // the lane's

  WS_DEVICE ScalePlace(const Quantizing& q, const Problem& p, const Tile& tile, u32 activation)
      : blocks(p.n / 2 / kBlock), atoms(div_up(blocks, 4)), row(tile.scale_row % 128), block(activation / kBlock) {
    first = q.scales + static_cast<i64>(tile.scale_row / 128) * atoms * kAtomBytes;
  }

  // Columns that pad the last atom are zero.
  WS_DEVICE void store(u32 row_in_tile, u32 byte) const {
    const u32 r = row + row_in_tile;
    u8* const to = first + static_cast<i64>(r / 128 * atoms + block / 4) * kAtomBytes + r % 32 * 16 + r % 128 / 32 * 4;
    to[block % 4] = static_cast<u8>(byte);
    if (block + 1 != blocks) return;
    for (u32 i = block % 4 + 1; i < 4; ++i) to[i] = 0;
  }
};

// A lane's four codes in the low bits, and its block's scale.
struct Coded {
  u32 codes, scale;

  WS_DEVICE Coded(const Four& four, u32 amax, float global_scale) {
    const float x[8] = {four.v[0], four.v[1], four.v[2], four.v[3], 0.0f, 0.0f, 0.0f, 0.0f};
    const Scaling scaling{global_scale, false};
    u32 made[kNibbles ? 1 : 2];
    bool exception;
    BlockScale found = DScale::quick(amax, scaling, exception);
    if (!__any_sync(kAllLanes, exception)) {
      encode<false>(x, found.factor, made);
    } else {
      // Without a usable global scale no block is finite.
      if (!(global_scale > 0.0f && is_finite(global_scale))) amax = kInfinity;
      found = DScale::exact(amax, scaling);
      encode<true>(x, found.factor, made);
    }
    codes = made[0];
    scale = found.stored;
  }

 private:
  template <bool kCareful>
  WS_DEVICE static void encode(const float (&x)[8], float factor, u32 (&made)[kNibbles ? 1 : 2]) {
    float y[8];
#pragma unroll
    for (u32 i = 0; i < 8; ++i) y[i] = scaled<kNibbles, kCareful>(x[i], factor);
    encode_scaled<kNibbles, kCareful>(y, factor, made);
  }
};

WS_DEVICE void store_codes(u8* to, u32 codes) {
  if constexpr (kNibbles) {
    *reinterpret_cast<u16*>(to) = static_cast<u16>(codes);
  } else {
    *reinterpret_cast<u32*>(to) = codes;
  }
}

WS_DEVICE float global_scale_of(const Quantizing& q, const Problem& p, u32 group) {
  return q.global_scale ? q.global_scale[p.flags & kGlobalDPerBatch ? group : 0] : 1.0f;
}

// Rows of groups alone are written. n is a multiple of 64.
WS_DEVICE void write_codes(const Sums& sums, const Problem& p, const Quantizing& q, const Tile& tile,
                           const Reader& reader, u32 shared, float alpha) {
  const u32 lane = reader.lane, type = p.flags >> kOutShift & kTypeMask, bias_type = p.flags >> kBiasShift & kTypeMask;
  const u32 part = shared + Shared::kParts + threadIdx.x / 32 * kPartBytes;
  const u32 warp_row = kSwap ? reader.warp_right * Right::kWarpRows : reader.warp_left * Left::kWarpRows;
  const u32 warp_column = kSwap ? reader.warp_left * Left::kWarpRows : reader.warp_right * Right::kWarpRows;
  if (tile.column + warp_column >= p.n) return;
  const PartLane at(lane);
  const BlockMax block_max(shared, reader);
  const u32 column = tile.column + warp_column + at.column(), up = at.column() + 16;
  const u8* const bias = p.bias + tile.batch * p.bias_batch;
  const float4 gate_bias = load_bias(bias, bias_type, column), up_bias = load_bias(bias, bias_type, column + 16);
  const float global_scale = global_scale_of(q, p, tile.batch);
  const u32 activation = (tile.column + warp_column) / 2 + at.slab * 16 + at.quad * 4;
  const ScalePlace place(q, p, tile, activation);
  const bool writes_scale = activation % kBlock == 0;
  u8* const first = p.d + tile.row * p.d_row + activation * element_bits(Format::of_a) / 8;
#pragma unroll 1
  for (u32 index = 0; index < Part::kCount; ++index) {
    if (warp_row + index * 8 >= tile.rows) break;
    Part::stage_any(index, sums, part, lane / 4, lane % 4);
    __syncwarp();
#pragma unroll
    for (u32 i = 0; i < 8; i += PartLane::kRows) {
      const u32 in_part = i + at.row, row = warp_row + index * 8 + in_part;
      Four gate = at.load(part, in_part, at.column(), alpha, gate_bias);
      Four x = at.load(part, in_part, up, alpha, up_bias);
      round_to(type, gate);
      round_to(type, x);
      activate_four(q, gate, x);
      const Coded made(x, block_max(amax_of(x), index, at), global_scale);
      if (row < tile.rows) {
        store_codes(first + static_cast<i64>(row) * p.d_row, made.codes);
        if (writes_scale) place.store(row, made.scale);
      }
    }
    __syncwarp();
  }
}

}  // namespace ws
