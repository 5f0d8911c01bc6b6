// SPDX-License-Identifier: Apache-2.0
// What GEMMs read of a problem in the same way: bits of its flags, rows of groups, the order of tiles, factors, bias,
// types of D. `Problem` is a kernel's own, with members of these names.
#pragma once

#include "common/convert.cuh"
#include "common/ptx.cuh"
#include "common/types.cuh"

namespace ws {

// Bits of `flags`, from the lowest: 2 kind, 2 type of D, 2 type of bias, then single ones; 7 and 8 are a kernel's own.
enum : u32 {
  kDense = 0,    // `batches` matrices of m rows
  kGrouped = 1,  // m rows in all; group g is rows index[g] to index[g + 1]
  kMasked = 2,   // `batches` matrices of m rows, of which the first index[g] count
  kKindMask = 3,
  kOutShift = 2,
  kBiasShift = 4,  // 0: no bias
  kTypeMask = 3,
  kIndex64 = 1 << 6,        // index is i64, not i32
  kAlphaPerBatch = 1 << 9,  // one value for each batch or group, not one
  kGlobalAPerBatch = 1 << 10,
  kGlobalBPerBatch = 1 << 11,
};
enum : u32 { kOutBf16 = 0, kOutFp16 = 1, kOutFp32 = 2 };
enum : u32 { kNoBias = 0, kBiasBf16 = 1, kBiasFp16 = 2, kBiasFp32 = 3 };

WS_DEVICE constexpr u32 div_up(u32 a, u32 b) { return (a + b - 1) / b; }

// index[i] within 0..m, so that no value of it leads outside the operands.
template <class Problem>
WS_DEVICE u32 read_index(const Problem& p, u32 i) {
  const i64 value = p.flags & kIndex64 ? static_cast<const i64*>(p.index)[i] : static_cast<const int*>(p.index)[i];
  return static_cast<u32>(max(0ll, min(value, static_cast<i64>(p.m))));
}

// Bands of 8 rows of tiles are walked column by column, so that blocks that run at the same time share rows of A and of
// B in L2.
WS_DEVICE void place(u32 in_matrix, u32 tile_rows, u32 tile_columns, u32& tile_row, u32& tile_column) {
  constexpr u32 height = 8;
  const u32 band = in_matrix / (height * tile_columns), in_band = in_matrix % (height * tile_columns);
  const u32 rows = min(height, tile_rows - band * height);
  tile_row = band * height + in_band % rows;
  tile_column = in_band / rows;
}

// Product of the host's factor and the device's for a batch. nvfp4 with a global scale that is not positive and finite
// dequantizes to NaN.
template <class Problem>
WS_DEVICE float alpha_of(const Problem& p, u32 batch) {
  float alpha = p.alpha;
  if (p.alphas) alpha *= p.alphas[p.flags & kAlphaPerBatch ? batch : 0];
  const float* const scales[2] = {p.a_global_scale, p.b_global_scale};
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    if (!scales[i]) continue;
    const float scale = scales[i][p.flags & (i == 0 ? kGlobalAPerBatch : kGlobalBPerBatch) ? batch : 0];
    alpha = scale > 0.0f && is_finite(scale) ? alpha / scale : float_of(kQuietNan);
  }
  return alpha;
}

// Four values of bias from column i on, a multiple of 4.
WS_DEVICE float4 load_bias(const u8* bias, u32 type, u32 i) {
  if (type == kBiasFp32) return *reinterpret_cast<const float4*>(bias + 4ull * i);
  float4 result{};
  if (type == kNoBias) return result;
  const uint2 pairs = *reinterpret_cast<const uint2*>(bias + 2ull * i);
  if (type == kBiasBf16) {
    unpack_bf16x2(pairs.x, result.x, result.y);
    unpack_bf16x2(pairs.y, result.z, result.w);
  } else {
    unpack_f16x2(pairs.x, result.x, result.y);
    unpack_f16x2(pairs.y, result.z, result.w);
  }
  return result;
}

// Four values of a row of D.
WS_DEVICE void store_values(u8* to, u32 type, const float4& v) {
  if (type == kOutFp32) {
    *reinterpret_cast<float4*>(to) = v;
  } else if (type == kOutBf16) {
    *reinterpret_cast<uint2*>(to) = {pack_bf16x2(v.x, v.y), pack_bf16x2(v.z, v.w)};
  } else {
    *reinterpret_cast<uint2*>(to) = {pack_f16x2(v.x, v.y), pack_f16x2(v.z, v.w)};
  }
}

}  // namespace ws
