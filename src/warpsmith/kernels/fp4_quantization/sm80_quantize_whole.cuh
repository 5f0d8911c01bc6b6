// SPDX-License-Identifier: Apache-2.0
// ws_quantize_whole: rows of bf16, fp16 or fp32 to e4m3 with one fp32 scale a row, or one a matrix; and, for the latter,
// what comes first: the largest magnitudes of a matrix's parts.
//
//   WS_INPUT  WS_BF16 | WS_FP16 | WS_FP32
//   WS_STEP   WS_ROWS      one scale a row
//             WS_MAXIMA    partials[batch][CTA]: fp32 bits of the largest magnitude of the CTA's rows; not below those
//                          of infinity if any element is NaN or infinite
//             WS_MATRICES  one scale a matrix, of the largest of its `parts` partials
//
// Grid: (CTAs, batches or fewer). CTA i takes the rows i, i + CTAs, …. A thread holds its units of a row in registers
// between the maximum and the codes; what does not fit is read again.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800
#error "ws_quantize_whole needs an architecture of 8.0 or later"
#endif
#if !defined(WS_INPUT) || !defined(WS_STEP)
#error "ws_quantize_whole needs WS_INPUT and WS_STEP"
#endif

#include "common/record.cuh"
#include "fp4_quantization/code_store.cuh"
#include "fp4_quantization/cta_max.cuh"
#include "fp4_quantization/elements.cuh"
#include "fp4_quantization/format.cuh"
#include "fp4_quantization/scale.cuh"

#define WS_ROWS 1
#define WS_MAXIMA 2
#define WS_MATRICES 3

#if WS_INPUT < WS_BF16 || WS_INPUT > WS_FP32 || WS_STEP < WS_ROWS || WS_STEP > WS_MATRICES
#error "ws_quantize_whole: unknown WS_INPUT or WS_STEP"
#endif

WS_RECORD(0, ws::kThreads, 1, 0, 1, ws::kElements, 0)

namespace ws {

constexpr u32 kHeld = 4;  // units of a row in a thread's registers
constexpr u32 kChunk = kHeld * kThreads;  // units

struct Parameters {
  const u8* x;
  u8* codes;
  u32* scales;
  u32* partials;
  i64 row_stride, batch_stride;  // elements
  u32 m, units, batches, parts, flags;
};

using Units = Elements<WS_INPUT>[kHeld];

// A thread's units of `row` from unit `first` on: every kThreads-th of kChunk.
struct RowPart {
  const u8* source;
  u8* target;
  bool active[kHeld];

  WS_DEVICE RowPart(const Parameters& p, u32 batch, u32 row, u32 first) {
    constexpr u32 size = element_bytes(WS_INPUT);
    const u32 unit = first + threadIdx.x;
    const i64 column = static_cast<i64>(unit) * kElements;
    source = opaque_global(p.x + (batch * p.batch_stride + row * p.row_stride + column) * size);
    target = opaque_global(p.codes + (static_cast<u64>(batch) * p.m + row) * p.units * kElements + column);
#pragma unroll
    for (u32 i = 0; i < kHeld; ++i) active[i] = unit + i * kThreads < p.units;
  }

  WS_DEVICE void load(const Parameters& p, Units& values) const {
    constexpr i64 step = kThreads * kElements * element_bytes(WS_INPUT);
    load_rows(values, source, step, active, (p.flags & kVectorRows) != 0);
  }

  WS_DEVICE void store(const Parameters& p, const Units& values, float factor) const {
    u32 words[kHeld][2];
#pragma unroll
    for (u32 i = 0; i < kHeld; ++i) encode<WS_FP8_BLOCK, true>(values[i], factor, words[i]);
    store_codes(target, kThreads * kElements, (p.flags & kVectorCodes) != 0, active, words);
  }
};

WS_DEVICE u32 amax_of(const Units& values) {
  u32 amax = 0;
#pragma unroll
  for (u32 i = 0; i < kHeld; ++i) amax = max(amax, values[i].amax());
  return amax;
}

// This thread's share of a row's maximum; `values` are its first units.
WS_DEVICE u32 row_amax(const Parameters& p, u32 batch, u32 row, Units& values) {
  RowPart(p, batch, row, 0).load(p, values);
  u32 amax = amax_of(values);
#pragma unroll 1
  for (u32 first = kChunk; first < p.units; first += kChunk) {
    Units more;
    RowPart(p, batch, row, first).load(p, more);
    amax = max(amax, amax_of(more));
  }
  return amax;
}

WS_DEVICE void write_rest(const Parameters& p, u32 batch, u32 row, float factor) {
#pragma unroll 1
  for (u32 first = kChunk; first < p.units; first += kChunk) {
    const RowPart part(p, batch, row, first);
    Units values;
    part.load(p, values);
    part.store(p, values, factor);
  }
}

WS_DEVICE void quantize_rows(const Parameters& p, u32 batch) {
  __shared__ u32 warp_amax[2][kWarps];
  u32 turn = 0;
  for (u32 row = blockIdx.x; row < p.m; row += gridDim.x, turn ^= 1) {
    Units values;
    const u32 amax = max_of_cta(row_amax(p, batch, row, values), warp_amax[turn]);
    const BlockScale scale = Scale<WS_FP8_BLOCK>::exact(amax, {1.0f, false});
    RowPart(p, batch, row, 0).store(p, values, scale.factor);
    write_rest(p, batch, row, scale.factor);
    if (threadIdx.x == 0) p.scales[static_cast<u64>(batch) * p.m + row] = scale.stored;
  }
  __syncthreads();  // before the next batch's maxima overwrite these
}

WS_DEVICE void find_maxima(const Parameters& p, u32 batch) {
  __shared__ u32 warp_amax[kWarps];
  u32 amax = 0;
  for (u32 row = blockIdx.x; row < p.m; row += gridDim.x) {
    Units values;
    amax = max(amax, row_amax(p, batch, row, values));
  }
  amax = max_of_cta(amax, warp_amax);
  if (threadIdx.x == 0) p.partials[static_cast<u64>(batch) * gridDim.x + blockIdx.x] = amax;
  __syncthreads();
}

WS_DEVICE void quantize_matrix(const Parameters& p, u32 batch) {
  __shared__ u32 warp_amax[kWarps];
  u32 amax = 0;
  for (u32 i = threadIdx.x; i < p.parts; i += kThreads) {
    amax = max(amax, p.partials[static_cast<u64>(batch) * p.parts + i]);
  }
  const BlockScale scale = Scale<WS_FP8_BLOCK>::exact(max_of_cta(amax, warp_amax), {1.0f, false});
  if (blockIdx.x == 0 && threadIdx.x == 0) p.scales[batch] = scale.stored;
  for (u32 row = blockIdx.x; row < p.m; row += gridDim.x) {
    const RowPart part(p, batch, row, 0);
    Units values;
    part.load(p, values);
    part.store(p, values, scale.factor);
    write_rest(p, batch, row, scale.factor);
  }
  __syncthreads();
}

}  // namespace ws

extern "C" __global__ void __launch_bounds__(ws::kThreads, WS_INPUT == WS_FP32 ? 3 : 4)
ws_quantize_whole(const void* x, void* codes, void* scales, unsigned* partials, long long row_stride,
                  long long batch_stride, unsigned m, unsigned units, unsigned batches, unsigned parts,
                  unsigned flags) {
  using namespace ws;
  const Parameters p{static_cast<const u8*>(x), static_cast<u8*>(codes), static_cast<u32*>(scales), partials,
                     row_stride, batch_stride, m, units, batches, parts, flags};
  for (u32 batch = blockIdx.y; batch < batches; batch += gridDim.y) {
    if constexpr (WS_STEP == WS_ROWS) {
      quantize_rows(p, batch);
    } else if constexpr (WS_STEP == WS_MAXIMA) {
      find_maxima(p, batch);
    } else {
      quantize_matrix(p, batch);
    }
  }
}
