// SPDX-License-Identifier: Apache-2.0
// ws_quantize_128x128: rows of bf16, fp16 or fp32 to e4m3 with one fp32 scale for 128 rows × 128 columns (weights).
//
//   WS_INPUT  WS_BF16 | WS_FP16 | WS_FP32
//
// Grid: (column blocks, row blocks or fewer, batches or fewer). A CTA holds one block in registers: 16 threads a row,
// eight passes of 16 rows. The last block of rows may be partial.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800
#error "ws_quantize_128x128 needs an architecture of 8.0 or later"
#endif
#if !defined(WS_INPUT)
#error "ws_quantize_128x128 needs WS_INPUT"
#endif

#include "common/record.cuh"
#include "fp4_quantization/code_store.cuh"
#include "fp4_quantization/cta_max.cuh"
#include "fp4_quantization/elements.cuh"
#include "fp4_quantization/format.cuh"
#include "fp4_quantization/scale.cuh"

#if WS_INPUT < WS_BF16 || WS_INPUT > WS_FP32
#error "ws_quantize_128x128: unknown WS_INPUT"
#endif

WS_RECORD(0, ws::kThreads, 1, 0, ws::kSlab, ws::kSlab, 0)

namespace ws {

enum : u32 { kBlockUnits = kSlab / kElements };         // threads a row
enum : u32 { kRowStep = kThreads / kBlockUnits };       // rows a pass
enum : u32 { kPasses = kSlab / kRowStep };

}  // namespace ws

extern "C" __global__ void __launch_bounds__(ws::kThreads, WS_INPUT == WS_FP32 ? 2 : 4)
ws_quantize_128x128(const void* x, void* codes, void* scales, long long row_stride, long long batch_stride, unsigned m,
                    unsigned units, unsigned batches, unsigned flags) {
  using namespace ws;
  __shared__ u32 warp_amax[kWarps];
  constexpr u32 size = element_bytes(WS_INPUT);
  const u32 row_blocks = (m + kSlab - 1) / kSlab;
  const u32 unit = blockIdx.x * kBlockUnits + threadIdx.x % kBlockUnits;
  for (u32 batch = blockIdx.z; batch < batches; batch += gridDim.z) {
    for (u32 row_block = blockIdx.y; row_block < row_blocks; row_block += gridDim.y) {
      const u32 row = row_block * kSlab + threadIdx.x / kBlockUnits;
      bool active[kPasses];
#pragma unroll
      for (u32 i = 0; i < kPasses; ++i) active[i] = row + i * kRowStep < m;
      const i64 element = batch * batch_stride + row * row_stride + static_cast<u64>(unit) * kElements;
      Elements<WS_INPUT> values[kPasses];
      load_rows(values, opaque_global(static_cast<const u8*>(x) + element * size), kRowStep * size * row_stride, active,
                (flags & kVectorRows) != 0);
      u32 amax = 0;
#pragma unroll
      for (u32 i = 0; i < kPasses; ++i) amax = max(amax, values[i].amax());
      amax = max_of_cta(amax, warp_amax);

      const BlockScale scale = Scale<WS_FP8_BLOCK>::exact(amax, {1.0f, false});
      u32 words[kPasses][2];
#pragma unroll
      for (u32 i = 0; i < kPasses; ++i) encode<WS_FP8_BLOCK, true>(values[i], scale.factor, words[i]);
      const u64 position = (static_cast<u64>(batch) * m + row) * units + unit;
      store_codes(opaque_global(static_cast<u8*>(codes) + position * kElements),
                  static_cast<i64>(units) * (kRowStep * kElements), (flags & kVectorCodes) != 0, active, words);
      if (threadIdx.x == 0) {
        const u64 block = (static_cast<u64>(batch) * row_blocks + row_block) * (units / kBlockUnits) + blockIdx.x;
        static_cast<u32*>(scales)[block] = scale.stored;
      }
      __syncthreads();  // before the next block's maxima overwrite these
    }
  }
}
