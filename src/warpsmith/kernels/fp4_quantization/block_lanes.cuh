// SPDX-License-Identifier: Apache-2.0
// Sharing a block's work among its lanes, and which of them stores its scale.
//
// With four passes a thread holds part of four blocks (one a pass) and shares each with `lanes` - 1 neighbours.
// Instead of every lane reducing and scaling all four, the reduction scatters: lane l ends up with the whole amax of
// the passes that it owns, computes their scales alone, and the factors are gathered back.
//
//   lanes 2 (nvfp4): lane 0 owns passes 0, 1, lane 1 owns 2, 3     lanes 4, 16: lane l owns pass l % 4
#pragma once

#include "common/ptx.cuh"
#include "fp4_quantization/scale.cuh"
#include "fp4_quantization/tile.cuh"

namespace ws {

WS_DEVICE u32 max_across(u32 value, u32 distance) { return max(value, __shfl_xor_sync(kAllLanes, value, distance)); }

// Keeps one of two values, the larger of the own and the partner's.
WS_DEVICE u32 scatter_max(u32 for_clear, u32 for_set, u32 distance) {
  const bool set = (threadIdx.x & distance) != 0;
  const u32 sent = set ? for_clear : for_set;
  return max(set ? for_set : for_clear, __shfl_xor_sync(kAllLanes, sent, distance));
}

template <u32 kLanes, u32 kPasses>
struct Share {
  enum : u32 { owned = kPasses == 4 && kLanes == 2 ? 2 : 1 };

  WS_DEVICE static u32 first_owned() {
    return kPasses == 1 ? 0u : kLanes == 2 ? (threadIdx.x & 1u) * 2u : threadIdx.x & 3u;
  }

  WS_DEVICE static void reduce(const u32 (&amax)[kPasses], u32 (&own)[owned]) {
    if constexpr (kPasses == 1) {
      own[0] = amax[0];
#pragma unroll
      for (u32 distance = 1; distance < kLanes; distance *= 2) own[0] = max_across(own[0], distance);
    } else if constexpr (kLanes == 2) {
      own[0] = scatter_max(amax[0], amax[2], 1);
      own[1] = scatter_max(amax[1], amax[3], 1);
    } else {
      own[0] = scatter_max(scatter_max(amax[0], amax[2], 2), scatter_max(amax[1], amax[3], 2), 1);
#pragma unroll
      for (u32 distance = 4; distance < kLanes; distance *= 2) own[0] = max_across(own[0], distance);
    }
  }

  WS_DEVICE static float factor_of_pass(const BlockScale (&scales)[owned], u32 pass) {
    if constexpr (kPasses == 1) {
      return scales[0].factor;
    } else if constexpr (kLanes == 2) {
      return __shfl_sync(kAllLanes, scales[pass % 2].factor, (threadIdx.x & 30u) | (pass / 2));
    } else {
      return __shfl_sync(kAllLanes, scales[0].factor, (threadIdx.x & 28u) | pass);
    }
  }
};

// Which scales a thread stores: with one pass its block's, from the block's first lane; with four passes and one-byte
// scales, those of four neighbouring blocks (a quad, 4 · kLanes threads) in one pass.
template <u32 kLanes, u32 kPasses, bool kQuads>
struct Writer {
  WS_DEVICE static u32 lane() { return threadIdx.x % kLanes; }
  WS_DEVICE static u32 block_of_quad() { return threadIdx.x / kLanes % 4; }

  WS_DEVICE static u32 pass() {
    const u32 first = Share<kLanes, kPasses>::first_owned();
    return kQuads && kLanes == 2 ? first + block_of_quad() / 2 : first;
  }

  WS_DEVICE static bool writes() {
    if constexpr (kQuads) return block_of_quad() % (kLanes == 2 ? 2 : 4) == 0;
    return lane() == pass();
  }
};

// The scales of a quad's blocks in the pass that the thread writes, block 0 lowest.
template <u32 kLanes>
WS_DEVICE u32 gather_quad(const BlockScale (&scales)[Share<kLanes, 4>::owned]) {
  const u32 block = Writer<kLanes, 4, true>::block_of_quad();
  const u32 own_pair = kLanes == 2 ? scales[0].stored | (scales[Share<kLanes, 4>::owned - 1].stored << 16)
                                   : scales[0].stored;
  const u32 other_pair = __shfl_xor_sync(kAllLanes, own_pair, kLanes);
  const u32 two = block & 1u ? other_pair | (own_pair << 8) : own_pair | (other_pair << 8);
  const u32 other_two = __shfl_xor_sync(kAllLanes, two, 2 * kLanes);
  // Blocks 0 and 1 finish the lane's first pass, 2 and 3 its second (or the only one once more).
  const bool upper = block >= 2;
  return permute(upper ? other_two : two, upper ? two : other_two, kLanes == 2 && upper ? 0x7632u : 0x5410u);
}

}  // namespace ws
