// SPDX-License-Identifier: Apache-2.0
// Eight consecutive elements of a row as a thread holds them: packed 16-bit pairs or fp32 words.
#pragma once

#include "common/arithmetic.cuh"
#include "common/convert.cuh"
#include "fp4_quantization/format.cuh"

namespace ws {

template <int kType>
struct Elements {
  enum : u32 { words = element_words(kType) };
  u32 word[words];

  WS_DEVICE void fill(u32 value) {
#pragma unroll
    for (u32 i = 0; i < words; ++i) word[i] = value;
  }

  // The address is a multiple of 16.
  WS_DEVICE void load_vectors(const u8* source) {
#pragma unroll
    for (u32 i = 0; i < words; i += 4) {
      load_streaming(source + 4 * i, word[i], word[i + 1], word[i + 2], word[i + 3]);
    }
  }

  // The address is a multiple of the element.
  WS_DEVICE void load_single(const u8* source) {
#pragma unroll
    for (u32 i = 0; i < words; ++i) {
      if constexpr (kType == WS_FP32) {
        word[i] = reinterpret_cast<const u32*>(source)[i];
      } else {
        const u16* pair = reinterpret_cast<const u16*>(source) + 2 * i;
        word[i] = pair[0] | (static_cast<u32>(pair[1]) << 16);
      }
    }
  }

  // The first `count` elements; the others stay as they are.
  WS_DEVICE void load_first(const u8* source, u32 count) {
#pragma unroll
    for (u32 i = 0; i < kElements; ++i) {
      if (i >= count) continue;
      if constexpr (kType == WS_FP32) {
        word[i] = reinterpret_cast<const u32*>(source)[i];
      } else {
        word[i / 2] |= static_cast<u32>(reinterpret_cast<const u16*>(source)[i]) << (16 * (i % 2));
      }
    }
  }

  WS_DEVICE void unpack(float (&value)[kElements]) const {
#pragma unroll
    for (u32 i = 0; i < kElements; ++i) {
      if constexpr (kType == WS_FP32) {
        value[i] = float_of(word[i]);
      } else if (i % 2 == 0) {
        if constexpr (kType == WS_BF16) {
          unpack_bf16x2(word[i / 2], value[i], value[i + 1]);
        } else {
          unpack_f16x2(word[i / 2], value[i], value[i + 1]);
        }
      }
    }
  }

  // fp32 bits of the largest magnitude; not below those of infinity if any element is NaN or infinite.
  WS_DEVICE u32 amax() const {
    if constexpr (kType == WS_FP32) {
      float largest = fabsf(float_of(word[0]));
#pragma unroll
      for (u32 i = 1; i < words; ++i) largest = max_nan(largest, fabsf(float_of(word[i])));
      return bits_of(largest);
    } else {
      float low, high;
      if constexpr (kType == WS_BF16) {
        const u32 a = larger_magnitude_bf16x2(word[0], word[1]);
        unpack_bf16x2(larger_magnitude_bf16x2(a, larger_magnitude_bf16x2(word[2], word[3])), low, high);
      } else {
        const u32 a = larger_magnitude_f16x2(word[0], word[1]);
        unpack_f16x2(larger_magnitude_f16x2(a, larger_magnitude_f16x2(word[2], word[3])), low, high);
      }
      return bits_of(max_nan(fabsf(low), fabsf(high)));
    }
  }
};

// Up to N rows' worth, a fixed step of bytes apart; zero where not active. All loads are issued before the first use.
template <int kType, u32 kCount>
WS_DEVICE void load_rows(Elements<kType> (&rows)[kCount], const u8* source, i64 step, const bool (&active)[kCount],
                         bool vector) {
#pragma unroll
  for (u32 i = 0; i < kCount; ++i) rows[i].fill(0u);
  if (vector) {
#pragma unroll
    for (u32 i = 0; i < kCount; ++i) {
      if (active[i]) rows[i].load_vectors(source + i * step);
    }
  } else {
#pragma unroll
    for (u32 i = 0; i < kCount; ++i) {
      if (active[i]) rows[i].load_single(source + i * step);
    }
  }
}

// silu(gate)·up as fp32. NaN and infinity in either come out as such.
template <int kType>
WS_DEVICE void silu_and_multiply(const Elements<kType>& gate, const Elements<kType>& up,
                                 Elements<WS_FP32>& product) {
  float g[kElements], u[kElements];
  gate.unpack(g);
  up.unpack(u);
  const bool moderate = gate.amax() <= bits_of(80.0f);
  if (moderate) {
#pragma unroll
    for (u32 i = 0; i < kElements; ++i) g[i] = silu_moderate(g[i]);
  } else {
#pragma unroll
    for (u32 i = 0; i < kElements; ++i) g[i] = silu(g[i]);
  }
#pragma unroll
  for (u32 i = 0; i < kElements; ++i) product.word[i] = bits_of(__fmul_rn(g[i], u[i]));
}

}  // namespace ws
