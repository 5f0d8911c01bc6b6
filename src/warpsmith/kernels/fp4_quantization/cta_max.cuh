// SPDX-License-Identifier: Apache-2.0
// The largest of one value a thread, known to all threads of the CTA.
#pragma once

#include "fp4_quantization/format.cuh"

namespace ws {

enum : u32 { kWarps = kThreads / 32 };

// `shared` may be used again after the next barrier.
WS_DEVICE u32 max_of_cta(u32 value, u32 (&shared)[kWarps]) {
#pragma unroll
  for (u32 distance = 16; distance > 0; distance /= 2) {
    value = max(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared[0];
#pragma unroll
  for (u32 i = 1; i < kWarps; ++i) value = max(value, shared[i]);
  return value;
}

}  // namespace ws
