// SPDX-License-Identifier: Apache-2.0
// ws_dequantize: codes and block scales to contiguous rows of bf16, fp16 or fp32.
//
//   WS_FORMAT  WS_NVFP4 | WS_MXFP4 | WS_MXFP8 | WS_FP8_BLOCK (1×128, or 128×128 by a flag)
//   WS_OUTPUT  WS_BF16 | WS_FP16 | WS_FP32
//
// The value is fl(code · scale), for nvfp4 fl(code · scale / global scale), rounded once more to the output's type.
// Grid and tiles are those of ws_quantize with four passes.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800
#error "ws_dequantize needs an architecture of 8.0 or later"
#endif
#if !defined(WS_FORMAT) || !defined(WS_OUTPUT)
#error "ws_dequantize needs WS_FORMAT and WS_OUTPUT"
#endif

#include "common/arithmetic.cuh"
#include "common/convert.cuh"
#include "common/record.cuh"
#include "fp4_quantization/format.cuh"
#include "fp4_quantization/scale_row.cuh"
#include "fp4_quantization/tile.cuh"

#if WS_FORMAT < WS_NVFP4 || WS_FORMAT > WS_FP8_BLOCK || WS_OUTPUT < WS_BF16 || WS_OUTPUT > WS_FP32
#error "ws_dequantize: unknown WS_FORMAT or WS_OUTPUT"
#endif

WS_RECORD(0, ws::kThreads, 1, 0, 4, ws::kElements, 0)

namespace ws {

using Traits = Format<WS_FORMAT>;
enum : u32 { kPasses = 4 };
enum : u32 { kOutputWords = element_words(WS_OUTPUT) };

struct Parameters {
  const u8* codes;
  const u8* scales;
  const float* global_scale;
  const void* offsets;
  u8* out;
  i64 scale_batch_bytes;
  u32 m, units, groups, scale_pitch, row_shift, flags;
};

// Division by the global scale; the reciprocal serves where quotients stay far from under- and overflow.
struct GlobalScale {
  float value;
  float reciprocal;
  bool moderate;

  // |a| is 0 or in [2^−10, 2688] with at most six significant bits.
  WS_DEVICE float divide(float a) const {
    if (!moderate) return __fdiv_rn(a, value);
    return quotient(a, value, reciprocal);
  }
};

WS_DEVICE void load_codes(const u8* source, bool vector, u32 (&words)[Traits::code_words]) {
  if (vector) {
    if constexpr (Traits::nibbles) {
      words[0] = *reinterpret_cast<const u32*>(source);
    } else {
      const u64 both = *reinterpret_cast<const u64*>(source);
      words[0] = static_cast<u32>(both);
      words[1] = static_cast<u32>(both >> 32);
    }
    return;
  }
#pragma unroll
  for (u32 i = 0; i < Traits::code_words; ++i) {
    words[i] = 0;
#pragma unroll
    for (u32 j = 0; j < 4; ++j) words[i] |= static_cast<u32>(source[4 * i + j]) << (8 * j);
  }
}

// Byte or fp32 bits of the scale of (row of the slab, block); the row exists.
WS_DEVICE u32 load_scale(const Parameters& p, u32 batch, u32 slab, const SlabRows& rows, u32 row, u32 block) {
  const u8* base = p.scales + batch * p.scale_batch_bytes;
  const ScaleRow at(row, slab, rows, p.scale_pitch, p.flags);
  if constexpr (Traits::byte_scales) return base[at.first + at.byte_offset(block)];
  const u32* values = reinterpret_cast<const u32*>(base);
  if (p.flags & kSquareBlocks) return values[static_cast<u64>(slab) * p.scale_pitch + block];
  return values[at.first + at.fp32_offset(block)];
}

WS_DEVICE void decode(const u32 (&words)[Traits::code_words], float (&values)[kElements]) {
  if constexpr (Traits::nibbles) {
    decode_e2m1x8(words[0], values);
  } else {
    float low[4], high[4];
    decode_e4m3x4(words[0], low);
    decode_e4m3x4(words[1], high);
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      values[i] = low[i];
      values[4 + i] = high[i];
    }
  }
}

WS_DEVICE float decode_scale(u32 stored) {
  if constexpr (WS_FORMAT == WS_NVFP4) return decode_e4m3(stored);
  return Traits::byte_scales ? decode_ue8m0(stored) : float_of(stored);
}

WS_DEVICE void store_values(u8* target, bool vector, const float (&values)[kElements]) {
  u32 words[kOutputWords];
#pragma unroll
  for (u32 i = 0; i < kOutputWords; ++i) {
    if constexpr (WS_OUTPUT == WS_FP32) {
      words[i] = bits_of(values[i]);
    } else {
      words[i] = WS_OUTPUT == WS_BF16 ? pack_bf16x2(values[2 * i], values[2 * i + 1])
                                      : pack_f16x2(values[2 * i], values[2 * i + 1]);
    }
  }
  if (vector) {
#pragma unroll
    for (u32 i = 0; i < kOutputWords; i += 4) {
      store_vector(target + 4 * i, words[i], words[i + 1], words[i + 2], words[i + 3]);
    }
    return;
  }
#pragma unroll
  for (u32 i = 0; i < kOutputWords; ++i) {
    if constexpr (WS_OUTPUT == WS_FP32) {
      reinterpret_cast<u32*>(target)[i] = words[i];
    } else {
      reinterpret_cast<u16*>(target)[2 * i] = static_cast<u16>(words[i]);
      reinterpret_cast<u16*>(target)[2 * i + 1] = static_cast<u16>(words[i] >> 16);
    }
  }
}

WS_DEVICE void dequantize_tile(const Parameters& p, u32 batch, u32 tile) {
  constexpr u32 row_step = TilePosition<kPasses>::row_step;
  constexpr u32 code_bytes = 4 * Traits::code_words;
  constexpr u32 value_bytes = 4 * kOutputWords;
  const TilePosition<kPasses> at(tile, p.row_shift);
  const u32 unit = unit_of(blockIdx.x, p.row_shift);
  u32 group;
  const SlabRows rows = locate_slab(at.slab, p.m, p.offsets, p.groups, p.flags, group);
  const u64 position = (static_cast<u64>(batch) * p.m + (rows.first + at.row)) * p.units + unit;
  const u8* codes = opaque_global(p.codes + position * code_bytes);
  u8* out = opaque_global(p.out + position * value_bytes);
  const u64 step = static_cast<u64>(p.units) * row_step;

  bool active[kPasses];
  u32 words[kPasses][Traits::code_words], stored[kPasses];
#pragma unroll
  for (u32 i = 0; i < kPasses; ++i) {
    const u32 row = at.row + i * row_step;
    active[i] = unit < p.units && rows.contains(row);
    if (!active[i]) continue;
    load_codes(codes + i * step * code_bytes, (p.flags & kVectorCodes) != 0, words[i]);
    stored[i] = load_scale(p, batch, at.slab, rows, row, unit / Traits::lanes);
  }
  GlobalScale global_scale{1.0f, 1.0f, true};
  if constexpr (WS_FORMAT == WS_NVFP4) {
    const float loaded = load_global_scale(p.global_scale, group, p.flags);
    global_scale.value = is_valid_global_scale(loaded) ? loaded : float_of(kQuietNan);
    global_scale.reciprocal = __fdiv_rn(1.0f, global_scale.value);
    global_scale.moderate = is_moderate(global_scale.value);
  }
#pragma unroll
  for (u32 i = 0; i < kPasses; ++i) {
    if (!active[i]) continue;
    float values[kElements];
    decode(words[i], values);
    const float scale = decode_scale(stored[i]);
#pragma unroll
    for (u32 j = 0; j < kElements; ++j) {
      values[j] = __fmul_rn(values[j], scale);
      if constexpr (WS_FORMAT == WS_NVFP4) values[j] = global_scale.divide(values[j]);
    }
    store_values(out + i * step * value_bytes, (p.flags & kVectorRows) != 0, values);
  }
}

}  // namespace ws

extern "C" __global__ void __launch_bounds__(ws::kThreads, 4)
ws_dequantize(const void* codes, const void* scales, const float* global_scale, const void* offsets, void* out,
              long long scale_batch_bytes, unsigned m, unsigned units, unsigned batches, unsigned groups,
              unsigned row_tiles, unsigned scale_pitch, unsigned row_shift, unsigned flags) {
  using namespace ws;
  const Parameters p{static_cast<const u8*>(codes), static_cast<const u8*>(scales), global_scale, offsets,
                     static_cast<u8*>(out), scale_batch_bytes, m, units, groups, scale_pitch, row_shift, flags};
  for (u32 batch = blockIdx.z; batch < batches; batch += gridDim.z) {
    for (u32 tile = blockIdx.y; tile < row_tiles; tile += gridDim.y) dequantize_tile(p, batch, tile);
  }
}
