// SPDX-License-Identifier: Apache-2.0
// From a warp's sums to D. Every addition has its fixed place, so that a result does not depend on which block comes
// first.
#pragma once

#include "common/convert.cuh"
#include "common/ptx.cuh"
#include "common/shared_load.cuh"
#include "common/shared_store.cuh"
#include "common/stmatrix.cuh"
#include "common/tma.cuh"
#include "common/warpgroup.cuh"
#include "gemm/sm90_activation.cuh"
#include "gemm/sm90_config.cuh"
#include "gemm/sm90_schedule.cuh"

namespace ws {

// Leaves a split's sums in the workspace. The block that comes last adds those of all splits in their order, sets the
// tile's arrivals back to 0 and returns true; the others return false.
WS_DEVICE bool add_splits(Sums& sums, const Problem& p, const Tile& tile, u32 shared) {
  const u32 splits = tile.splits;
  if (splits == 1) return true;
  constexpr u32 quads = kM64 * kN / 8 * kTileThreads, per_tile = kN / 8;
  const u32 last_word = shared + Shared::kLast;
  float4* all = reinterpret_cast<float4*>(p.workspace) + static_cast<i64>(tile.index) * splits * quads + threadIdx.x;
  if constexpr (!kPromoted && !(kMixed && kN == 256)) all = opaque_global(all);  // of the two forms the one without spills
#pragma unroll
  for (u32 i = 0; i < kM64 * per_tile; ++i) {
    const float* const s = &sums[i / per_tile][i % per_tile * 4];
    all[tile.split * quads + i * kTileThreads] = {s[0], s[1], s[2], s[3]};
  }
  __threadfence();
  sync_warps<1, kTileThreads>();
  if (threadIdx.x == 0) store_shared(last_word, atomicAdd(p.arrivals + tile.index, 1u) == splits - 1 ? 1u : 0u);
  sync_warps<1, kTileThreads>();
  u32 last[1];
  load_shared(last_word, last);
  if (last[0] == 0) return false;
  __threadfence();
  if (threadIdx.x == 0) p.arrivals[tile.index] = 0;
#pragma unroll
  for (u32 i = 0; i < kM64 * kN / 2; ++i) sums[i / (kN / 2)][i % (kN / 2)] = 0.0f;
#pragma unroll 1
  for (u32 split = 0; split < splits; ++split) {
#pragma unroll
    for (u32 i = 0; i < kM64 * per_tile; ++i) {
      const float4 part = __ldcg(all + split * quads + i * kTileThreads);
      float* const s = &sums[i / per_tile][i % per_tile * 4];
      s[0] += part.x, s[1] += part.y, s[2] += part.z, s[3] += part.w;
    }
  }
  return true;
}

// Product of the host's factor and the device's for a batch. A global scale that is not positive and finite gives NaN.
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

// 16 bytes to global memory, unless `wanted` is 0; `to` is a multiple of 16 or, not `aligned`, of 8.
WS_DEVICE void store_if(u32 wanted, bool aligned, u8* to, const u32 (&v)[4]) {
  if (aligned) {
    asm volatile("{.reg .pred p;\n\tsetp.ne.b32 p, %5, 0;\n\t@p st.global.v4.u32 [%0], {%1, %2, %3, %4};}" ::"l"(to),
                 "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]), "r"(wanted)
                 : "memory");
  } else {
    asm volatile(
        "{.reg .pred p;\n\tsetp.ne.b32 p, %5, 0;\n\t@p st.global.v2.u32 [%0], {%1, %2};\n\t"
        "@p st.global.v2.u32 [%0+8], {%3, %4};}" ::"l"(to),
        "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]), "r"(wanted)
        : "memory");
  }
}

// Where rows of D go.
struct Output {
  u8* d;      // of the tile's first row, column 0
  i64 row;    // bytes
  u32 rows, n;
  bool bf16, aligned;  // stores of 16 bytes
  bool by_map;
  const Problem& p;
  const Tile& tile;

  WS_DEVICE u32 pack(float low, float high) const { return bf16 ? pack_bf16x2(low, high) : pack_f16x2(low, high); }
};

// What chunks of a row are spread over the banks by: as the copy engine does, by the address.
WS_DEVICE u32 spread(u32 part, u32 row) { return (part / 128 + row) % 8; }

// How sums become D: as they are, in the type of 16-bit operands or else bf16, or with alpha and bias and in either type.
enum class Finish { plain, any };

// 16 rows by 64 columns of 16-bit values to shared memory, in the copy engine's swizzle. The bias is staged.
template <Finish kFinish>
WS_DEVICE void put_part(const float* sums, const Output& out, const Bias& bias, float alpha, u32 part, u32 own, u32 lane) {
  const u32 row = lane % 16, to = part + row * 128, by = spread(own, row);
#pragma unroll
  for (u32 j = 0; j < 8; j += 2) {
    u32 pairs[4];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {  // rows g and g + 8 of 8 columns, then of the next 8
      const float x = sums[4 * j + 2 * i], y = sums[4 * j + 2 * i + 1];
      if constexpr (kFinish == Finish::any) {
        const float2 add = bias.staged(own + kOwnParts * kPartBytes, (j + i / 2) * 8 + lane % 4 * 2);
        pairs[i] = out.pack(__fmaf_rn(x, alpha, add.x), __fmaf_rn(y, alpha, add.y));
      } else {
        pairs[i] = kType == WgmmaType::fp16 ? pack_f16x2(x, y) : pack_bf16x2(x, y);
      }
    }
    stmatrix_x4(to + ((j + lane / 16) ^ by) * 16, pairs[0], pairs[1], pairs[2], pairs[3]);
  }
}

// Writes 16 rows of D by kColumns, or by the first `columns` of them, through the copy engine, which reads parts of 64
// columns while the next tile is under way: as many at a time as the warp has places.
template <Finish kFinish, u32 kColumns>
WS_DEVICE void store_rows(const float (&sums)[kN / 2], const Output& out, const Bias& bias, float alpha, u32 own,
                          u32 first_row, u32 first_column, u32 columns, u32 lane) {
  constexpr u32 pieces = div_up(kColumns, 64);
#pragma unroll
  for (u32 piece = 0; piece < pieces; piece += kOwnParts) {
    if (piece * 64 >= columns) break;
    wait_for_stores_to_read<0>();
    __syncwarp();
#pragma unroll
    for (u32 i = 0; i < kOwnParts && piece + i < pieces; ++i) {
      if ((piece + i) * 64 >= columns) break;
      // the last part may begin in the one before it, and then writes the same bits again
      const u32 start = min((piece + i) * 64, kColumns - 64);
      if (kFinish == Finish::any) {
        __syncwarp();
        bias.stage(own + kOwnParts * kPartBytes, first_column + start + 2 * lane, lane);
      }
      put_part<kFinish>(sums + start / 2, out, bias, alpha, own + i * kPartBytes, own, lane);
    }
    fence_async_shared();
    __syncwarp();
    if (lane != 0) continue;
#pragma unroll
    for (u32 i = 0; i < kOwnParts && piece + i < pieces; ++i) {
      if ((piece + i) * 64 >= columns) break;
      store_tensor(*out.p.d_map, static_cast<int>((first_column + min((piece + i) * 64, kColumns - 64)) * 2),
                   static_cast<int>(out.tile.row + first_row), out.p.is_grouped() ? 0 : static_cast<int>(out.tile.batch),
                   own + i * kPartBytes);
    }
    commit_stores();
  }
}

// The same without the copy engine, which takes whole parts of aligned 16-bit D alone: rows behind a group's last are
// another's. Parts are 16 rows of 128 bytes, whose chunks are spread over the banks.
template <bool kFloats, u32 kColumns>
WS_DEVICE void write_rows(const float (&sums)[kN / 2], const Output& out, const Bias& bias, float alpha, u32 own,
                          u32 first_row, u32 first_column, u32 columns, u32 lane) {
  constexpr u32 bytes = kFloats ? 4 : 2, width = kColumns < 128 / bytes ? 32 : 128 / bytes, chunks = width * bytes / 16;
  static_assert(kColumns >= width, "no part is wider than the sums");
  constexpr u32 pieces = (kColumns + width - 1) / width;
  constexpr u32 each = chunks / 2, kStep = 16 / each;  // stores of a lane, and the rows between them
  const u32 g = lane / 4, t = lane % 4, addends = own + kOwnParts * kPartBytes;
  if constexpr (kStores) {
    wait_for_stores_to_read<0>();
    __syncwarp();
  }
  const u32 chunk_row = lane / chunks, chunk = lane % chunks;
  u8* const to = out.d + (first_row + chunk_row) * out.row + static_cast<i64>(first_column) * bytes + chunk * 16;
#pragma unroll
  for (u32 piece = 0; piece < pieces; ++piece) {
    // the last part may begin in the one before it, and then writes the same bits again
    const u32 start = min(piece * width, kColumns - width);
    if (piece * width >= columns) break;
    if (!kFloats || start % 64 == 0) bias.stage(addends, first_column + start + 2 * lane, lane);
#pragma unroll
    for (u32 j = 0; j < width / 8; j += 2) {
      u32 pairs[4];
#pragma unroll
      for (u32 i = 0; i < 4; ++i) {  // rows g and g + 8 of 8 columns, then of the next 8
        const u32 from = (start / 8 + j + i / 2) * 4 + i % 2 * 2, column = start + (j + i / 2) * 8 + 2 * t;
        const float2 add = bias.staged(addends, kFloats ? column % 64 : column - start);
        const float x = __fmaf_rn(sums[from], alpha, add.x), y = __fmaf_rn(sums[from + 1], alpha, add.y);
        if constexpr (kFloats) {
          const u32 row = g + i % 2 * 8, chunk = ((j + i / 2) * 2 + t / 2) ^ (row % 4 * 2);
          store_shared(own + row * 128 + chunk * 16 + t % 2 * 8, {bits_of(x), bits_of(y)});
        } else {
          pairs[i] = out.pack(x, y);
        }
      }
      if constexpr (!kFloats) {
        const u32 row = lane % 16, chunk = (j + lane / 16) ^ spread(own, row);
        stmatrix_x4(own + row * 128 + chunk * 16, pairs[0], pairs[1], pairs[2], pairs[3]);
      }
    }
    __syncwarp();
    const bool in_d = (first_column + start) * bytes + chunk * 16 < out.n * bytes;
#pragma unroll
    for (u32 i = 0; i < each; i += 2) {
      u32 v[2][4];
#pragma unroll
      for (u32 j = 0; j < 2; ++j) {
        const u32 row = chunk_row + (i + j) * kStep;
        load_shared(own + row * 128 + (chunk ^ (kFloats ? row % 4 * 2 : spread(own, row))) * 16, v[j]);
      }
#pragma unroll
      for (u32 j = 0; j < 2; ++j) {
        const bool wanted = in_d && first_row + chunk_row + (i + j) * kStep < out.rows;
        store_if(wanted, out.aligned, to + (i + j) * kStep * out.row + start * bytes, v[j]);
      }
    }
    __syncwarp();
  }
}

// The same with rows of the sums along N: kN rows of D by 16 columns.
template <bool kFloats>
WS_DEVICE void write_swapped(const float (&sums)[kN / 2], const Output& out, const Bias& bias, float alpha, u32 part,
                             u32 first_row, u32 first_column, u32 lane) {
  constexpr u32 bytes = kFloats ? 4 : 2, fit = 2048 / (16 * bytes), rows = kN < fit ? kN : fit;
  const u32 g = lane / 4, t = lane % 4;
  const float low = bias.one(first_column + g), high = bias.one(first_column + g + 8);
#pragma unroll
  for (u32 start = 0; start < kN; start += rows) {
    if (start >= out.rows) return;
#pragma unroll
    for (u32 j = 0; j < rows / 8; j += 2) {
      u32 pairs[4] = {};
#pragma unroll
      for (u32 i = 0; i < 4; ++i) {  // columns g and g + 8 of 8 rows, then of the next 8
        if (start / 8 + j + i / 2 >= kN / 8) continue;
        const u32 from = (start / 8 + j + i / 2) * 4 + i % 2 * 2;
        const float add = i % 2 ? high : low;
        const float x = __fmaf_rn(sums[from], alpha, add), y = __fmaf_rn(sums[from + 1], alpha, add);
        if constexpr (kFloats) {
          // Two rows share 128 bytes; which of its four parts of 32 has what depends on the pair.
          const u32 pair = (j + i / 2) * 4 + t, at = part + pair * 128 + g * 4, half = i % 2;
          store_shared(at + (half ^ (pair % 4)) * 32, bits_of(x));
          store_shared(at + ((2 + half) ^ (pair % 4)) * 32, bits_of(y));
        } else {
          pairs[i] = out.pack(x, y);
        }
      }
      if constexpr (!kFloats) {
        const u32 row = j * 8 + lane / 16 * 8 + lane % 8, chunk = (lane / 8 + row / 4) % 2;
        if constexpr (kN == 8) {
          stmatrix_x2_transposed(part + lane % 8 * 32 + (lane / 8 + lane % 8 / 4) % 2 * 16, pairs[0], pairs[1]);
        } else {
          stmatrix_x4_transposed(part + row * 32 + chunk * 16, pairs[0], pairs[1], pairs[2], pairs[3]);
        }
      }
    }
    __syncwarp();
    constexpr u32 chunks = bytes;  // of 16 bytes in a row
#pragma unroll
    for (u32 i = 0; i < rows * chunks; i += 32) {
      const u32 row = (i + lane) / chunks, chunk = lane % chunks;
      if (row >= rows) continue;
      const u32 at = kFloats ? row / 2 * 128 + ((row % 2 * 2 + chunk / 2) ^ (row / 2 % 4)) * 32 + chunk % 2 * 16
                             : row * 32 + (chunk + row / 4) % 2 * 16;
      u32 v[4];
      load_shared(part + at, v);
      const bool in_d = first_row + start + row < out.rows && first_column * bytes + chunk * 16 < out.n * bytes;
      const bool wanted = in_d && start + row < kN;
      store_if(wanted, out.aligned, out.d + (first_row + start + row) * out.row + first_column * bytes + chunk * 16, v);
    }
    __syncwarp();
  }
}

// Of activated pairs of rows of the sums: kN rows of D by 8 columns.
template <bool kFloats>
WS_DEVICE void write_swapped_pairs(const float (&sums)[kN / 2], const Output& out, u32 part, u32 first_row,
                                   u32 first_column, u32 lane) {
  constexpr u32 bytes = kFloats ? 4 : 2, chunks = bytes / 2;  // of 16 bytes in a row
  const u32 g = lane / 4, t = lane % 4;
#pragma unroll
  for (u32 j = 0; j < kN / 8; ++j) {
    if constexpr (kFloats) {
#pragma unroll
      for (u32 e = 0; e < 2; ++e) store_shared(part + (j * 8 + 2 * t + e) * 32 + g * 4, bits_of(sums[2 * j + e]));
    } else {
      stmatrix_x1_transposed(part + (j * 8 + lane % 8) * 16, out.pack(sums[2 * j], sums[2 * j + 1]));
    }
  }
  __syncwarp();
#pragma unroll
  for (u32 i = 0; i < kN * chunks; i += 32) {
    const u32 row = (i + lane) / chunks, chunk = lane % chunks;
    if (row >= kN) continue;
    u32 v[4];
    load_shared(part + (i + lane) * 16, v);
    const bool wanted = first_row + row < out.rows && first_column < out.n;
    store_if(wanted, out.aligned, out.d + (first_row + row) * out.row + first_column * bytes + chunk * 16, v);
  }
  __syncwarp();
}

// Writes 16 rows of D by kColumns, or by the first `columns` of them, of a tile that is not swapped.
template <bool kFloats, u32 kColumns>
WS_DEVICE void write_part(const float (&sums)[kN / 2], const Output& out, const Bias& bias, float alpha, u32 own, u32 row,
                          u32 column, u32 columns, u32 lane) {
  if constexpr (kStores && !kFloats && kColumns >= 64) {
    if (out.by_map && row + 16 <= out.rows) {
      if (bias.type == kNoBias && alpha == 1.0f && out.bf16 == (kType != WgmmaType::fp16)) {
        return store_rows<Finish::plain, kColumns>(sums, out, bias, alpha, own, row, column, columns, lane);
      }
      // activated sums have neither; their D of the other type is rare, and this program large
      if constexpr (kColumns == kN) {
        return store_rows<Finish::any, kColumns>(sums, out, bias, alpha, own, row, column, columns, lane);
      }
    }
  }
  write_rows<kFloats, kColumns>(sums, out, bias, alpha, own, row, column, columns, lane);
}

// Bias and alpha are in the sums already if there is an activation.
template <bool kFloats>
WS_DEVICE void write_sums(Sums& sums, const Problem& p, const Output& out, const Bias& bias, const Tile& tile,
                          const Place& place, float alpha, u32 part) {
#pragma unroll
  for (u32 i = 0; i < kM64; ++i) {
    const u32 left = place.left() + i * 64 + place.warp * 16, right = place.right();
    const u32 row = kSwap ? right : left, column = tile.column + (kSwap ? left : right), lane = place.lane;
    if (!kSwap && left >= tile.rows) continue;
    if constexpr (kSwap) {
      if (p.is_gated()) {
        write_swapped_pairs<kFloats>(sums[i], out, part, row, column / 2, lane);
      } else {
        write_swapped<kFloats>(sums[i], out, bias, alpha, part, row, column, lane);
      }
    } else {
      constexpr u32 half = kActivates ? kN / 2 : kN;
      const bool gated = p.is_gated();
      if (half % 64 == 0) {  // whole parts: the same program stops sooner
        write_part<kFloats, kN>(sums[i], out, bias, alpha, part, row, gated ? column / 2 : column, gated ? half : kN, lane);
      } else if (gated) {
        write_part<kFloats, half>(sums[i], out, bias, alpha, part, row, column / 2, half, lane);
      } else {
        write_part<kFloats, kN>(sums[i], out, bias, alpha, part, row, column, kN, lane);
      }
    }
  }
}

WS_DEVICE void write_d(Sums& sums, const Problem& p, const Tile& tile, const Place& place, u32 shared) {
  const u32 type = p.flags >> kOutShift & kTypeMask, warp = place.group * 4 + place.warp;
  const u32 part = shared + Shared::kParts + warp * kOwnBytes;
  float alpha = alpha_of(p, tile.batch);
  Bias bias{p.bias + tile.batch * p.bias_batch, p.flags >> kBiasShift & kTypeMask, p.n};
  u8* const d = p.d + (p.is_grouped() ? 0 : tile.batch * p.d_batch) + tile.row * p.d_row;
  const bool aligned = ((reinterpret_cast<u64>(p.d) | p.d_row | p.d_batch) & 15) == 0;
  const u32 columns = p.is_gated() ? p.n / 2 : p.n;
  const Output out{d, p.d_row, tile.rows, columns, type == kOutBf16, aligned,
                   aligned && (p.flags & kStoresByMap) != 0, p, tile};
  if (p.activation() != 0) {
#pragma unroll
    for (u32 i = 0; i < kM64; ++i) {
      const u32 column = tile.column + (kSwap ? place.left() + i * 64 + place.warp * 16 : place.right());
      activate_sums(sums[i], p.gate, bias, alpha, part + kOwnParts * kPartBytes, p.activation(), column, place.lane);
    }
    alpha = 1.0f;
    bias.type = kNoBias;
  }
  if (type == kOutFp32) {
    write_sums<true>(sums, p, out, bias, tile, place, alpha, part);
  } else {
    write_sums<false>(sums, p, out, bias, tile, place, alpha, part);
  }
}

}  // namespace ws
