// SPDX-License-Identifier: Apache-2.0
// ws_moe_activation: act[r] = activation(gate[r], up[r]) for the sorted rows r that exist; eight columns a thread.
//
//   WS_TYPE  WS_BF16 | WS_FP16, of h and of act
//
// Grid: any number of blocks; how many rows there are is read on the device.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800
#error "ws_moe_activation needs an architecture of 8.0 or later"
#endif
#ifndef WS_TYPE
#error "ws_moe_activation needs WS_TYPE"
#endif

#include "common/dependent_launch.cuh"
#include "common/record.cuh"
#include "fused_moe/activation.cuh"
#include "fused_moe/packed.cuh"

#if WS_TYPE != WS_BF16 && WS_TYPE != WS_FP16
#error "ws_moe_activation: unknown WS_TYPE"
#endif

namespace ws {

constexpr u32 kActivationThreads = 256;

// `units` are eight columns of act; rows · units < 2^32. With `gated`, rows of h have the gate's columns, then up's.
template <u32 kActivation>
WS_DEVICE void activate_rows(const uint4* h, u8* act, u32 rows, u32 units, float alpha, float limit) {
  constexpr bool gated_kind = kActivation != kRelu2;
  const u32 end = rows * units, step = gridDim.x * kActivationThreads;
  for (u64 i = blockIdx.x * kActivationThreads + threadIdx.x; i < end; i += step) {
    const u32 row = static_cast<u32>(i) / units;
    const uint4* const from = h + i + (gated_kind ? static_cast<u64>(row) * units : 0);
    float gate[8] = {}, up[8], result[8];
    if constexpr (gated_kind) unpack8<WS_TYPE>(__ldg(from), gate);
    unpack8<WS_TYPE>(__ldg(from + (gated_kind ? units : 0)), up);
#pragma unroll
    for (u32 j = 0; j < 8; ++j) result[j] = activate(kActivation, gate[j], up[j], alpha, limit);
    store8<WS_TYPE>(act + 16 * i, result);
  }
}

}  // namespace ws

WS_RECORD(0, ws::kActivationThreads, 1, ws::kWaitsWherePossible, 8, 0, 0)

// `last_offset` is offsets[local experts]: the rows.
extern "C" __global__ void __launch_bounds__(ws::kActivationThreads)
ws_moe_activation(const void* h, void* act, const int* last_offset, unsigned most_rows, unsigned units,
                  unsigned activation, float alpha, float limit) {
  using namespace ws;
  wait_for_predecessor();
  release_successor();
  const uint4* const from = static_cast<const uint4*>(h);
  u8* const to = static_cast<u8*>(act);
  const u32 rows = min(static_cast<u32>(max(*last_offset, 0)), most_rows);
  switch (activation) {
    case kSwiglu:
      return activate_rows<kSwiglu>(from, to, rows, units, alpha, limit);
    case kSwigluOai:
      return activate_rows<kSwigluOai>(from, to, rows, units, alpha, limit);
    case kGeglu:
      return activate_rows<kGeglu>(from, to, rows, units, alpha, limit);
    case kGegluTanh:
      return activate_rows<kGegluTanh>(from, to, rows, units, alpha, limit);
    default:
      return activate_rows<kRelu2>(from, to, rows, units, alpha, limit);
  }
}
