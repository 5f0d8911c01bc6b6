// SPDX-License-Identifier: Apache-2.0
// ws_global_scale: partial maxima to nvfp4's global scale, min(2688 / amax, largest finite), or 1 where amax is 0.
//
// Grid: one CTA. Each thread reads every 256th partial; the result does not depend on the order.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800
#error "ws_global_scale needs an architecture of 8.0 or later"
#endif

#include "common/record.cuh"
#include "fp4_quantization/cta_max.cuh"
#include "fp4_quantization/format.cuh"

WS_RECORD(0, ws::kThreads, 1, 0, ws::kThreads, 0, 0)

extern "C" __global__ void __launch_bounds__(ws::kThreads)
ws_global_scale(const unsigned* partials, float* global_scale, unsigned count) {
  using namespace ws;
  __shared__ u32 warp_amax[kWarps];
  u32 amax = 0;
  for (u32 i = threadIdx.x; i < count; i += kThreads) amax = max(amax, partials[i]);
  amax = max_of_cta(amax, warp_amax);
  if (threadIdx.x == 0) {
    *global_scale = amax == 0u ? 1.0f : fminf(__fdiv_rn(448.0f * 6.0f, float_of(amax)), float_of(kLargest));
  }
}
