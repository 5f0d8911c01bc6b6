// SPDX-License-Identifier: Apache-2.0
// Activations in fp32. NaN stays NaN.
#pragma once

#include "common/types.cuh"

namespace ws {

// The host has the same numbers: catalog/fused_moe.py.
enum : u32 { kSwiglu = 0, kSwigluOai = 1, kGeglu = 2, kGegluTanh = 3, kRelu2 = 4 };

// g · sigmoid(z).
WS_DEVICE float gated(float g, float z) { return __fdividef(g, 1.0f + __expf(-z)); }

WS_DEVICE float activate(u32 activation, float gate, float up, float alpha, float limit) {
  switch (activation) {
    case kSwiglu:
      return gated(gate, gate) * up;
    case kSwigluOai: {
      const float g = gate > limit ? limit : gate;
      const float u = up > limit ? limit : up < -limit ? -limit : up;
      return gated(g, alpha * g) * (u + 1.0f);
    }
    case kGeglu:
      return 0.5f * gate * erfcf(gate * -0.70710678f) * up;
    case kGegluTanh:
      return gated(gate, gate * (1.5957691f + 0.071354816f * gate * gate)) * up;
    default: {
      const float u = up < 0.0f ? 0.0f : up;
      return u * u;
    }
  }
}

}  // namespace ws
