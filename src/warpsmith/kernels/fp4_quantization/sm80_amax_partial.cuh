// SPDX-License-Identifier: Apache-2.0
// ws_amax_partial: the largest finite magnitude of a strided [batches, m, k] tensor, one partial result a CTA.
//
//   WS_INPUT  WS_BF16 | WS_FP16 | WS_FP32
//
// Grid: (CTAs). CTA i takes the tiles i, i + CTAs, … and writes partials[i], fp32 bits. A tile is 8 · 2^row_shift
// columns by 4 · (256 >> row_shift) rows; the tiles of a row of tiles follow each other, then the rows, then batches.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800
#error "ws_amax_partial needs an architecture of 8.0 or later"
#endif
#if !defined(WS_INPUT)
#error "ws_amax_partial needs WS_INPUT"
#endif

#include "common/record.cuh"
#include "fp4_quantization/cta_max.cuh"
#include "fp4_quantization/elements.cuh"
#include "fp4_quantization/format.cuh"

#if WS_INPUT < WS_BF16 || WS_INPUT > WS_FP32
#error "ws_amax_partial: unknown WS_INPUT"
#endif

WS_RECORD(0, ws::kThreads, 1, 0, 4, ws::kElements, 0)

namespace ws {

enum : u32 { kPasses = 4 };

// A tile's indices, advanced by a fixed number of tiles without dividing again.
struct TileIndex {
  u32 column, row, batch;

  WS_DEVICE TileIndex(u32 linear, u32 columns, u32 rows) {
    column = linear % columns;
    row = linear / columns % rows;
    batch = linear / columns / rows;
  }

  WS_DEVICE void advance(const TileIndex& by, u32 columns, u32 rows) {
    column += by.column;
    row += by.row;
    batch += by.batch;
    if (column >= columns) {
      column -= columns;
      ++row;
    }
    if (row >= rows) {
      row -= rows;
      ++batch;
    }
  }
};

// fp32 bits of the largest finite magnitude of the first `count` elements.
WS_DEVICE u32 finite_amax(const Elements<WS_INPUT>& elements, u32 count) {
  const u32 all = elements.amax();
  if (all < kInfinity && count >= kElements) return all;
  float values[kElements];
  elements.unpack(values);
  u32 amax = 0;
#pragma unroll
  for (u32 i = 0; i < kElements; ++i) {
    if (i < count && is_finite(values[i])) amax = max(amax, bits_of(values[i]) & kAbs);
  }
  return amax;
}

}  // namespace ws

extern "C" __global__ void __launch_bounds__(ws::kThreads, WS_INPUT == WS_FP32 ? 3 : 4)
ws_amax_partial(const void* x, unsigned* partials, long long row_stride, long long batch_stride, long long k,
                unsigned m, unsigned batches, unsigned row_tiles, unsigned col_tiles, unsigned row_shift,
                unsigned flags) {
  using namespace ws;
  __shared__ u32 warp_amax[kWarps];
  constexpr u32 size = element_bytes(WS_INPUT);
  const u32 row_step = kThreads >> row_shift;
  const u32 thread_row = threadIdx.x >> row_shift;
  const u32 thread_unit = threadIdx.x & ((1u << row_shift) - 1u);
  const bool vector = (flags & kVectorRows) != 0;
  const TileIndex step(gridDim.x, col_tiles, row_tiles);
  u32 amax = 0;
  for (TileIndex tile(blockIdx.x, col_tiles, row_tiles); tile.batch < batches;
       tile.advance(step, col_tiles, row_tiles)) {
    const u32 row = tile.row * kPasses * row_step + thread_row;
    const i64 column = ((static_cast<i64>(tile.column) << row_shift) + thread_unit) * kElements;
    const u32 count = static_cast<u32>(min(max(k - column, 0ll), static_cast<i64>(kElements)));
    bool active[kPasses];
#pragma unroll
    for (u32 i = 0; i < kPasses; ++i) active[i] = count > 0 && row + i * row_step < m;
    const u8* source = opaque_global(static_cast<const u8*>(x) +
                                     (tile.batch * batch_stride + row * row_stride + column) * size);
    Elements<WS_INPUT> values[kPasses];
    if (vector || count == kElements) {
      load_rows(values, source, row_step * row_stride * size, active, vector);
    } else {
#pragma unroll
      for (u32 i = 0; i < kPasses; ++i) {
        values[i].fill(0u);
        if (active[i]) values[i].load_first(source + i * (row_step * row_stride * size), count);
      }
    }
#pragma unroll
    for (u32 i = 0; i < kPasses; ++i) amax = max(amax, finite_amax(values[i], count));
  }
  amax = max_of_cta(amax, warp_amax);
  if (threadIdx.x == 0) partials[blockIdx.x] = amax;
}
