// SPDX-License-Identifier: Apache-2.0
// D that is stored while the next tile's MMAs run. Sums become pairs of D's elements, in half as many registers, so
// that the next tile begins at once; its first stages leave the warp time to bring them to shared memory.
#pragma once

#include "common/convert.cuh"
#include "common/mbarrier.cuh"
#include "common/stmatrix.cuh"
#include "common/tma.cuh"
#include "common/wgmma.cuh"
#include "gemm/sm90_config.cuh"
#include "gemm/sm90_epilogue.cuh"
#include "gemm/sm90_main_loop.cuh"
#include "gemm/sm90_schedule.cuh"

namespace ws {

// A warp's 16 rows of a tile of D. All that it does while MMAs run is without branches, beside which ptxas would wait
// for them: a warp that has nothing to store fills its places all the same.
struct LateStores {
  enum : u32 { kPairs = kLate ? kN / 4 : 1 };
  u32 pairs[kPairs];
  u32 column, row, batch;
  bool any;

  WS_DEVICE void clear() {
    any = false;
#pragma unroll
    for (u32 i = 0; i < kPairs; ++i) pairs[i] = 0;
  }

  // Whether tiles of the problem may wait so: D is the sums alone, in the operands' type, and by tensor copies.
  WS_DEVICE static bool serves(const Problem& p) {
    const bool factors = p.alpha != 1.0f || p.alphas || p.a_global_scale || p.b_global_scale;
    const bool aligned = ((reinterpret_cast<u64>(p.d) | p.d_row | p.d_batch) & 15) == 0;
    const u32 type = kType == WgmmaType::fp16 ? kOutFp16 : kOutBf16;
    return !factors && aligned && (p.flags & kStoresByMap) != 0 && (p.flags >> kOutShift & kTypeMask) == type &&
           (p.flags >> kBiasShift & kTypeMask) == kNoBias && p.activation() == 0;
  }

  // Takes a whole tile's sums, unless rows of the warp are another's.
  WS_DEVICE bool take(const Sums& sums, const Problem& p, const Tile& tile, const Place& place) {
    const u32 first = place.left() + place.warp * 16;
    if (tile.splits != 1 || first + 16 > tile.rows) return false;
    any = true;
    column = tile.column + place.right();
    row = tile.row + first;
    batch = p.is_grouped() ? 0 : tile.batch;
#pragma unroll
    for (u32 i = 0; i < kPairs; ++i) {
      const float x = sums[0][2 * i], y = sums[0][2 * i + 1];
      pairs[i] = kType == WgmmaType::fp16 ? pack_f16x2(x, y) : pack_bf16x2(x, y);
    }
    return true;
  }

  // Stores parts of 64 columns from the kFirst-th on: as many as the warp has places for.
  template <u32 kFirst>
  WS_DEVICE void store(const TensorMap& map, u32 own, u32 lane) const {
    constexpr u32 pieces = div_up(kN, 64);
    wait_for_stores_to_read<0>();
    __syncwarp();
#pragma unroll
    for (u32 i = 0; i < kOwnParts && kFirst + i < pieces; ++i) put(start_of(kFirst + i), own + i * kPartBytes, lane);
    fence_async_shared();
    __syncwarp();
#pragma unroll
    for (u32 i = 0; i < kOwnParts && kFirst + i < pieces; ++i) {
      const int x = static_cast<int>((column + start_of(kFirst + i)) * 2);
      store_tensor_if(any && lane == 0, map, x, static_cast<int>(row), static_cast<int>(batch), own + i * kPartBytes);
    }
    commit_stores();
  }

  // What is left when there are no more tiles.
  template <u32 kFirst = 0>
  WS_DEVICE void store_all(const TensorMap& map, u32 own, u32 lane) const {
    if constexpr (kFirst * 64 < kN) {
      store<kFirst>(map, own, lane);
      store_all<kFirst + kOwnParts>(map, own, lane);
    }
  }

 private:
  // The last part may begin in the one before it, and then writes the same bits again.
  WS_DEVICE static constexpr u32 start_of(u32 piece) { return piece * 64 < kN - 64 ? piece * 64 : kN - 64; }

  WS_DEVICE void put(u32 start, u32 part, u32 lane) const {
    const u32 r = lane % 16, to = part + r * 128, by = spread(part, r);
#pragma unroll
    for (u32 j = 0; j < 8; j += 2) {
      const u32* const p = pairs + start / 4 + 2 * j;
      stmatrix_x4(to + ((j + lane / 16) ^ by) * 16, p[0], p[1], p[2], p[3]);
    }
  }
};

// As add_stages; while the first two stages' MMAs run, the last tile's D is stored.
WS_DEVICE void add_stages_storing(Sums& sums, Ring& ring, const Place& place, u32 stages, const LateStores& late,
                                  const TensorMap& map, u32 own) {
  static_assert(!kLate || div_up(kN, 64) <= 2 * kOwnParts, "two turns");
  multiply_stage(sums, ring, place, 0);
  u32 before = ring.empty();
  ring.advance();
  late.store<0>(map, own, place.lane);
  if (stages > 1) {
    mbarrier_wait(ring.full(), ring.parity);
    multiply_stage(sums, ring, place, 1);
    wgmma_wait<1>();
    release_stage(before, place.lane);
    before = ring.empty();
    ring.advance();
  }
  if constexpr (div_up(kN, 64) > kOwnParts) late.store<kOwnParts>(map, own, place.lane);
#pragma unroll 1
  for (u32 i = 2; i < stages; ++i, ring.advance()) {
    mbarrier_wait(ring.full(), ring.parity);
    multiply_stage(sums, ring, place, 1);
    wgmma_wait<1>();
    release_stage(before, place.lane);
    before = ring.empty();
  }
  wgmma_wait<0>();
  hold_sums(sums[0]);
  release_stage(before, place.lane);
}

}  // namespace ws
