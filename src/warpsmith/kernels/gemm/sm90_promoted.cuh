// SPDX-License-Identifier: Apache-2.0
// The main loops of e4m3: sums over a stage are added to those of D, of fp8_block times their scales.
#pragma once

#include "common/mbarrier.cuh"
#include "common/wgmma.cuh"
#include "common/wgmma_hidden.cuh"
#include "gemm/sm90_config.cuh"
#include "gemm/sm90_main_loop.cuh"
#include "gemm/sm90_schedule.cuh"

namespace ws {

// With two buffers: the product of a stage is added while the next one's MMAs run. Turns are of two
// stages and begin with a product that is complete but not added, so that between them the tensor cores wait for nothing
// but a barrier. ptxas lets no MMA run from one turn of a loop to the next; and the shorter the turn, the faster.
class HiddenLoop {
 public:
  // `a_scales`: where a lane's first one lies in a stage's.
  WS_DEVICE HiddenLoop(Ring& ring, const Place& place, u32 a_scales)
      : ring_(ring),
        lane_(place.lane),
        full_(ring.base + Shared::kFull),
        a_scales_(ring.base + Shared::kScales + a_scales),
        b_scale_(ring.base + Shared::kScales + Scales::kB),
        left_(wgmma_operand(ring.base + place.left() * kRowBytes)),
        right_(wgmma_operand(ring.base + kLeftBytes + place.right() * kRowBytes)) {}

  // All stages of a tile, of which there is one at least, added to 0.
  WS_DEVICE void add(Sums& all, u32 stages) {
    float* const sums = all[0];
#pragma unroll
    for (u32 c = 0; c < kN / 2; ++c) sums[c] = 0.0f;
    start<1>();
    if (stages == 1) {
      finish<1, 0>();
      add_product<1>(sums);
      return;
    }
    start<0>();
    finish<1, 1>();
    add_product<1>(sums);
    finish<0, 0>();
#pragma unroll 1
    for (stages -= 2; stages >= 2; stages -= 2) {
      start<1>();
      add_product<0>(sums);
      start<0>();
      finish<1, 1>();
      add_product<1>(sums);
      finish<0, 0>();
    }
    if (stages == 0) {
      add_product<0>(sums);
    } else {
      start<1>();
      add_product<0>(sums);
      finish<1, 0>();
      add_product<1>(sums);
    }
  }

 private:
  static constexpr u32 kColumns = kHidesProducts ? kN : 128;  // tiles without hidden products compile it too
  struct Buffer {
    float low, high;  // what the product is multiplied by: in row g of a lane, in row g + 8
    u32 empty;        // the stage's
  };

  template <u32 kWhich>
  WS_DEVICE void start() {
    Buffer& buffer = buffers_[kWhich];
    const u32 index = ring_.index, full = full_ + index * 8, scales = index * Scales::kBytes;
    const u64 elements = index * (kStageBytes / 16);
    mbarrier_wait(full, ring_.parity);
    if constexpr (kPromoted) {
      const float b = shared_float(b_scale_ + scales);
      buffer.low = shared_float(a_scales_ + scales) * b;
      buffer.high = shared_float(a_scales_ + scales + 32) * b;
    } else {
      buffer.low = buffer.high = 1.0f;
    }
    buffer.empty = full + (Shared::kEmpty - Shared::kFull);
    wgmma_fence();
    HiddenProduct<kWhich, kColumns>::start_e4m3(left_ + elements, right_ + elements);
    wgmma_commit();
    ring_.advance();
  }

  template <u32 kWhich, u32 kUnderWay>
  WS_DEVICE void finish() const {
    wgmma_wait<kUnderWay>();
    release_stage(buffers_[kWhich].empty, lane_);
  }

  template <u32 kWhich>
  WS_DEVICE void add_product(float* sums) const {
    HiddenProduct<kWhich, kColumns>::add_to(sums, buffers_[kWhich].low, buffers_[kWhich].high);
  }

  Ring& ring_;
  const u32 lane_, full_, a_scales_, b_scale_;  // the last three: of the ring's first stage
  const u64 left_, right_;                      // likewise
  Buffer buffers_[2];
};

WS_DEVICE void add_promoted_stages(Sums& sums, Ring& ring, const Place& place, const Problem& p, const Tile& tile) {
  const Promotion promotion(p, tile, place);
  if constexpr (kHidesProducts) {
    if (!promotion.by_rows) {
      HiddenLoop(ring, place, promotion.a).add(sums, tile.stages);
      return;
    }
  }
#pragma unroll
  for (u32 c = 0; c < kN / 2; ++c) sums[0][c] = 0.0f;
  if constexpr (kBuffers == 2) {
    if (kSwap || !promotion.by_rows) {
      add_overlapped_stages(sums, ring, place, promotion, tile.stages);
      return;
    }
  }
#pragma unroll 1
  for (u32 i = 0; i < tile.stages; ++i, ring.advance()) {
    mbarrier_wait(ring.full(), ring.parity);
    add_stage(sums, promotion, ring, place);
  }
}

// fp8_row, fp8_tensor.
WS_DEVICE void add_summed_stages(Sums& sums, Ring& ring, const Place& place, u32 stages) {
  if constexpr (kHidesProducts) {
    HiddenLoop(ring, place, 0).add(sums, stages);
  } else {
    add_periods(sums, ring, place, stages);
  }
}

}  // namespace ws
