// SPDX-License-Identifier: Apache-2.0
// Rows of tokens copied to their sorted places, with their scales, or multiplied by a weight; a warp a row.
#pragma once

#include "common/convert.cuh"
#include "common/ptx.cuh"
#include "common/types.cuh"

namespace ws {

enum : u32 { kRowsFp16 = 1 };  // rows that are multiplied are fp16, not bf16

struct Gathering {
  const u8* x;
  u8* a;
  const u8* x_scales;
  u8* a_scales;
  const float* weights;
  i64 x_row;
  u32 row_bytes, scale_bytes, scale_pitch, top_k, flags;

  WS_DEVICE u32 scaled(u32 pair, float weight) const {
    float low, high;
    if (flags & kRowsFp16) {
      unpack_f16x2(pair, low, high);
      return pack_f16x2(low * weight, high * weight);
    }
    unpack_bf16x2(pair, low, high);
    return pack_bf16x2(low * weight, high * weight);
  }

  // 16 bytes a lane, four times in flight; rows are whole 16-byte words.
  WS_DEVICE void copy_row(const u8* from, u8* to, const float* weight) const {
    constexpr u32 kAhead = 4;
    const u32 lane = threadIdx.x % 32;
    for (u32 first = 16 * lane; first < row_bytes; first += 512 * kAhead) {
      uint4 words[kAhead];
#pragma unroll
      for (u32 i = 0; i < kAhead; ++i) {
        const u32 at = first + 512 * i;
        if (at < row_bytes) words[i] = *reinterpret_cast<const uint4*>(from + at);
      }
#pragma unroll
      for (u32 i = 0; i < kAhead; ++i) {
        const u32 at = first + 512 * i;
        if (at >= row_bytes) continue;
        uint4 w = words[i];
        if (weight) w = {scaled(w.x, *weight), scaled(w.y, *weight), scaled(w.z, *weight), scaled(w.w, *weight)};
        store_vector(to + at, w.x, w.y, w.z, w.w);
      }
    }
  }

  template <class Word>
  WS_DEVICE void copy_words(const u8* from, u8* to) const {
    for (u32 i = threadIdx.x % 32; i < scale_bytes / sizeof(Word); i += 32) {
      reinterpret_cast<Word*>(to)[i] = reinterpret_cast<const Word*>(from)[i];
    }
  }

  // m_major: the rows' fp32 scales of 128 columns follow each other.
  WS_DEVICE void scatter_scales(const u8* from, u32 place) const {
    for (u32 i = threadIdx.x % 32; i < scale_bytes / 4; i += 32) {
      reinterpret_cast<u32*>(a_scales)[static_cast<u64>(i) * scale_pitch + place] = reinterpret_cast<const u32*>(from)[i];
    }
  }

  // `places` are the sorted rows of the pairs from `first` on, ~0 for none.
  WS_DEVICE void run(const u32* places, u32 first, u32 count) const {
    const u32 warps = blockDim.x / 32 * gridDim.y;
    for (u32 i = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32; i < count; i += warps) {
      const u32 place = places[i];
      if (place == ~0u) continue;
      const u32 token = (first + i) / top_k;
      copy_row(x + token * x_row, a + static_cast<u64>(place) * row_bytes, weights ? weights + first + i : nullptr);
      if (!scale_bytes) continue;
      const u8* const from = x_scales + static_cast<u64>(token) * scale_bytes;
      u8* const to = a_scales + static_cast<u64>(place) * scale_bytes;
      if (scale_pitch) {
        scatter_scales(from, place);
      } else if (scale_bytes % 4 == 0) {
        copy_words<u32>(from, to);
      } else {
        copy_words<u8>(from, to);
      }
    }
  }
};

}  // namespace ws
