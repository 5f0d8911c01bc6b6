// SPDX-License-Identifier: Apache-2.0
// ws_quantize: rows of bf16, fp16 or fp32 (or silu(gate)·up of them) to codes and block scales.
//
//   WS_FORMAT  WS_NVFP4 | WS_MXFP4 | WS_MXFP8 | WS_FP8_BLOCK (1×128)
//   WS_INPUT   WS_BF16 | WS_FP16 | WS_FP32
//   WS_SILU    1: x has 2k columns, gate then up
//   WS_PASSES  1: as many CTAs as possible, for few rows; 4: as many loads in flight as possible
//
// Grid: (column tiles, row tiles, batches), or fewer of each: a CTA then takes every so many. No shared memory, no
// order between CTAs.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800
#error "ws_quantize needs an architecture of 8.0 or later"
#endif
#if !defined(WS_FORMAT) || !defined(WS_INPUT) || !defined(WS_SILU) || !defined(WS_PASSES)
#error "ws_quantize needs WS_FORMAT, WS_INPUT, WS_SILU and WS_PASSES"
#endif

#include "common/record.cuh"
#include "fp4_quantization/block_lanes.cuh"
#include "fp4_quantization/code_store.cuh"
#include "fp4_quantization/elements.cuh"
#include "fp4_quantization/format.cuh"
#include "fp4_quantization/scale.cuh"
#include "fp4_quantization/scale_row.cuh"
#include "fp4_quantization/tile.cuh"

#if WS_FORMAT < WS_NVFP4 || WS_FORMAT > WS_FP8_BLOCK || WS_INPUT < WS_BF16 || WS_INPUT > WS_FP32
#error "ws_quantize: unknown WS_FORMAT or WS_INPUT"
#endif
#if (WS_SILU != 0 && WS_SILU != 1) || (WS_PASSES != 1 && WS_PASSES != 4)
#error "ws_quantize: WS_SILU is 0 or 1, WS_PASSES is 1 or 4"
#endif

WS_RECORD(0, ws::kThreads, 1, 0, WS_PASSES, ws::kElements, 0)

namespace ws {

using Traits = Format<WS_FORMAT>;
using Lanes = Share<Traits::lanes, WS_PASSES>;
using ScaleWriter = Writer<Traits::lanes, WS_PASSES, WS_PASSES == 4 && Traits::byte_scales>;
using Source = Elements<WS_INPUT>;
using Values = Elements<WS_SILU ? WS_FP32 : WS_INPUT>;  // what is quantized

// CTAs on an SM that the register budget must allow: the more a thread loads at once, the fewer are needed.
enum : bool { kWideInput = WS_INPUT == WS_FP32 };
enum : u32 { kResident = WS_PASSES == 1 ? 5 : WS_SILU && kWideInput ? 2 : WS_SILU || kWideInput ? 3 : 4 };

struct Parameters {
  const u8* x;
  u8* codes;
  u8* scales;
  const float* global_scale;
  const void* offsets;
  i64 row_stride, batch_stride, scale_batch_bytes;
  u32 m, units, groups, scale_pitch, row_shift, flags;
};

WS_DEVICE void load_tile(const u8* source, i64 row_step, u64 up_offset, bool vector, const bool (&active)[WS_PASSES],
                         Values (&values)[WS_PASSES]) {
#if WS_SILU
  Source gate[WS_PASSES], up[WS_PASSES];
  load_rows(gate, source, row_step, active, vector);
  load_rows(up, source + up_offset, row_step, active, vector);
#pragma unroll
  for (u32 i = 0; i < WS_PASSES; ++i) silu_and_multiply(gate[i], up[i], values[i]);
#else
  load_rows(values, source, row_step, active, vector);
#endif
}

template <bool kCareful>
WS_DEVICE void encode_tile(const Values (&values)[WS_PASSES], const BlockScale (&scales)[Lanes::owned],
                           u32 (&codes)[WS_PASSES][Traits::code_words]) {
#pragma unroll
  for (u32 i = 0; i < WS_PASSES; ++i) {
    encode<WS_FORMAT, kCareful>(values[i], Lanes::factor_of_pass(scales, i), codes[i]);
  }
}

// The scales of the blocks whose passes the thread owns, and the codes of all its passes.
WS_DEVICE void quantize_values(const Values (&values)[WS_PASSES], const Scaling& scaling,
                               const bool (&own_active)[Lanes::owned], BlockScale (&scales)[Lanes::owned],
                               u32 (&codes)[WS_PASSES][Traits::code_words]) {
  u32 amax[WS_PASSES], own[Lanes::owned];
#pragma unroll
  for (u32 i = 0; i < WS_PASSES; ++i) amax[i] = values[i].amax();
  Lanes::reduce(amax, own);
  bool exception = false;
#pragma unroll
  for (u32 i = 0; i < Lanes::owned; ++i) {
    bool own_exception;
    scales[i] = Scale<WS_FORMAT>::quick(own[i], scaling, own_exception);
    exception |= own_exception;
  }
  if (!__any_sync(kAllLanes, exception)) {
    encode_tile<false>(values, scales, codes);
    return;
  }
#pragma unroll
  for (u32 i = 0; i < Lanes::owned; ++i) {
    // Without a usable global scale no block is finite; padding stays zero.
    if (!is_valid_global_scale(scaling.global_scale)) own[i] = own_active[i] ? kInfinity : 0u;
    scales[i] = Scale<WS_FORMAT>::exact(own[i], scaling);
  }
  encode_tile<true>(values, scales, codes);
}

// `target` is where the thread's row has its first scale.
WS_DEVICE void store_scales(u8* target, const ScaleRow& row, u32 block, const Parameters& p,
                            const BlockScale (&scales)[Lanes::owned]) {
  if constexpr (!Traits::byte_scales) {
    if (!ScaleWriter::writes() || !row.exists || block >= p.units / Traits::lanes) return;
    reinterpret_cast<u32*>(target)[row.fp32_offset(block)] = scales[0].stored;
    return;
  }
#if WS_PASSES == 4
  block &= ~3u;
  const u32 bytes = gather_quad<Traits::lanes>(scales);
  if (!ScaleWriter::writes() || !row.exists || block >= p.scale_pitch) return;
  target += row.byte_offset(block);
  if (p.flags & kVectorScales) {
    *reinterpret_cast<u32*>(target) = bytes;
    return;
  }
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    if (block + i < p.scale_pitch) target[i] = static_cast<u8>(bytes >> (8 * i));
  }
#else
  if (!ScaleWriter::writes() || !row.exists || block >= p.scale_pitch) return;
  target[row.byte_offset(block)] = static_cast<u8>(scales[0].stored);
#endif
}

WS_DEVICE void quantize_rows(const Parameters& p, u32 batch, u32 tile) {
  constexpr u32 row_step = TilePosition<WS_PASSES>::row_step;
  constexpr u32 unit_bytes = kElements * element_bytes(WS_INPUT);
  constexpr u32 code_bytes = 4 * Traits::code_words;
  const TilePosition<WS_PASSES> at(tile, p.row_shift);
  u32 group;
  const SlabRows rows = locate_slab(at.slab, p.m, p.offsets, p.groups, p.flags, group);
  const u32 row = rows.first + at.row;
  const i64 x_row = batch * p.batch_stride + row * p.row_stride;
  const u8* source = opaque_global(p.x + x_row * element_bytes(WS_INPUT));
  u8* codes = opaque_global(p.codes + (static_cast<u64>(batch) * p.m + row) * p.units * code_bytes);
  const i64 x_step = opaque(row_step * element_bytes(WS_INPUT) * p.row_stride);
  const i64 code_step = opaque(static_cast<i64>(p.units) * (row_step * code_bytes));
  u8* batch_scales = p.scales + batch * p.scale_batch_bytes;
  const ScaleRow scale_row(at.row + ScaleWriter::pass() * row_step, at.slab, rows, p.scale_pitch, p.flags);
  u8* row_scales = opaque_global(batch_scales + scale_row.first * (Traits::byte_scales ? 1 : 4));
  Scaling scaling{1.0f, (p.flags & kFloor) != 0};
  if constexpr (WS_FORMAT == WS_NVFP4) scaling.global_scale = load_global_scale(p.global_scale, group, p.flags);

  const u32 col_tiles = (p.units + (1u << p.row_shift) - 1u) >> p.row_shift;
  for (u32 col_tile = blockIdx.x; col_tile < col_tiles; col_tile += gridDim.x) {
    const u32 unit = unit_of(col_tile, p.row_shift);
    bool active[WS_PASSES], own_active[Lanes::owned];
#pragma unroll
    for (u32 i = 0; i < WS_PASSES; ++i) active[i] = unit < p.units && rows.contains(at.row + i * row_step);
#pragma unroll
    for (u32 i = 0; i < Lanes::owned; ++i) {
      own_active[i] = unit < p.units && rows.contains(at.row + (Lanes::first_owned() + i) * row_step);
    }
    Values values[WS_PASSES];
    load_tile(source + static_cast<u64>(unit) * unit_bytes, x_step, static_cast<u64>(p.units) * unit_bytes,
              (p.flags & kVectorRows) != 0, active, values);
    BlockScale scales[Lanes::owned];
    u32 words[WS_PASSES][Traits::code_words];
    quantize_values(values, scaling, own_active, scales, words);
    store_codes(codes + static_cast<u64>(unit) * code_bytes, code_step, (p.flags & kVectorCodes) != 0, active, words);
    const u32 block = unit / Traits::lanes;
    store_scales(row_scales, scale_row, block, p, scales);
    if constexpr (!Traits::byte_scales) {
      const bool first_row = threadIdx.x >> p.row_shift == 0 && ScaleWriter::lane() == 0;
      if ((p.flags & kLayoutMMajor) && tile == 0 && first_row && unit < p.units) {
        clear_m_major_padding(reinterpret_cast<u32*>(batch_scales), block, p.m, p.scale_pitch);
      }
    }
  }
}

}  // namespace ws

extern "C" __global__ void __launch_bounds__(ws::kThreads, ws::kResident)
ws_quantize(const void* x, void* codes, void* scales, const float* global_scale, const void* offsets,
            long long row_stride, long long batch_stride, long long scale_batch_bytes, unsigned m, unsigned units,
            unsigned batches, unsigned groups, unsigned row_tiles, unsigned scale_pitch, unsigned row_shift,
            unsigned flags) {
  using namespace ws;
  const Parameters p{static_cast<const u8*>(x), static_cast<u8*>(codes), static_cast<u8*>(scales), global_scale,
                     offsets, row_stride, batch_stride, scale_batch_bytes, m, units, groups, scale_pitch, row_shift,
                     flags};
  u32 batch = blockIdx.z;
  do {
    u32 tile = blockIdx.y;
    do {
      quantize_rows(p, batch, tile);
      tile += gridDim.y;
    } while (tile < row_tiles);
    batch += gridDim.z;
  } while (batch < batches);
}
