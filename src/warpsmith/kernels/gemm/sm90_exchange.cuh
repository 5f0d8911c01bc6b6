// SPDX-License-Identifier: Apache-2.0
// Sums of the parts of K that the blocks of a cluster have made, through shared memory.
#pragma once

#include "common/cluster.cuh"
#include "common/mbarrier.cuh"
#include "common/shared_load.cuh"
#include "gemm/sm90_config.cuh"
#include "gemm/sm90_schedule.cuh"

namespace ws {

// Warp w of every block sends its sums to warp w of block w mod `splits`, which adds them to its own: in the order of
// the parts, so that bits do not depend on which comes first.
struct Exchange {
  u32 parity = 0;

  // Whether the warp now has the sums of all parts.
  WS_DEVICE bool add(Sums& sums, const Tile& tile, const Place& place, u32 shared) {
    const u32 splits = tile.splits, rank = tile.split, warp = place.group * 4 + place.warp, owner = warp % splits;
    if (splits == 1) return true;
    const u32 arrived = shared + Shared::kArrived + warp * 8, taken = shared + Shared::kTaken + warp * 8;
    const u32 first = shared + Shared::kSent + warp / splits * (splits - 1) * kSentBytes + place.lane * 16;
    if (rank == owner) {
      if (place.lane == 0) mbarrier_arrive_expect(arrived, (splits - 1) * kSentBytes);
      mbarrier_wait(arrived, parity);
      take(sums, first, splits, rank);
      __syncwarp();
      if constexpr (kArriving > 1) {
        for (u32 i = 0; i < splits; ++i) mbarrier_arrive_at(taken, i);
      } else {
        if (place.lane < splits) mbarrier_arrive_at(taken, place.lane);
      }
    } else {
      mbarrier_wait(taken, parity ^ 1);
      const u32 to = address_at(first + (rank - (rank > owner)) * kSentBytes, owner), barrier = address_at(arrived, owner);
#pragma unroll
      for (u32 i = 0; i < kQuads; ++i) {
        const float* const s = &sums[i / kPerTile][i % kPerTile * 4];
        store_async(to + i * 512, s[0], s[1], s[2], s[3], barrier);
      }
    }
    parity ^= 1;
    return rank == owner;
  }

 private:
  static constexpr u32 kPerTile = kN / 8, kQuads = kM64 * kPerTile;  // of a lane, four sums each

  WS_DEVICE static void take(Sums& sums, u32 first, u32 splits, u32 rank) {
    if constexpr (kPartsK == 2) {  // of two, either order gives the same bits
#pragma unroll
      for (u32 i = 0; i < kQuads; ++i) {
        u32 words[4];
        load_shared(first + i * 512, words);
#pragma unroll
        for (u32 e = 0; e < 4; ++e) sums[i / kPerTile][i % kPerTile * 4 + e] += float_of(words[e]);
      }
      return;
    }
#pragma unroll
    for (u32 i = 0; i < kQuads; ++i) {
      float* const s = &sums[i / kPerTile][i % kPerTile * 4];
      float4 total{};
#pragma unroll
      for (u32 part = 0; part < kPartsK; ++part) {
        if (part >= splits) continue;
        float v[4] = {s[0], s[1], s[2], s[3]};
        if (part != rank) {
          u32 words[4];
          load_shared(first + (part - (part > rank)) * kSentBytes + i * 512, words);
#pragma unroll
          for (u32 e = 0; e < 4; ++e) v[e] = float_of(words[e]);
        }
        total.x += v[0], total.y += v[1], total.z += v[2], total.w += v[3];
      }
      s[0] = total.x, s[1] = total.y, s[2] = total.z, s[3] = total.w;
    }
  }
};

}  // namespace ws
