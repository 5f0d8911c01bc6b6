// SPDX-License-Identifier: Apache-2.0
// From the sums of warps to D. Every addition has its fixed place, so that the bits are the same from run to run.
#pragma once

#include "common/cluster.cuh"
#include "common/convert.cuh"
#include "common/mbarrier.cuh"
#include "common/ptx.cuh"
#include "common/types.cuh"
#include "gemm/sm90_stream_columns.cuh"
#include "gemm/sm90_stream_config.cuh"
#include "gemm/sm90_stream_problem.cuh"

namespace ws {

// The host's factor and the device's for a batch; fetched before the sums are made, multiplied after. nvfp4 with a
// global scale that is not positive and finite dequantizes to NaN.
class Factors {
 public:
  WS_DEVICE Factors(const Problem& p, u32 batch) : alpha_(p.alpha) {
    if (p.alphas) alpha_ = p.alpha * p.alphas[p.flags & kAlphaPerBatch ? batch : 0];
    if (p.a_global_scale) scales_[0] = p.a_global_scale[p.flags & kGlobalAPerBatch ? batch : 0];
    if (p.b_global_scale) scales_[1] = p.b_global_scale[p.flags & kGlobalBPerBatch ? batch : 0];
  }

  WS_DEVICE float product() const {
    float alpha = alpha_;
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      alpha = scales_[i] > 0.0f && is_finite(scales_[i]) ? alpha / scales_[i] : float_of(kQuietNan);
    }
    return alpha;
  }

 private:
  float alpha_, scales_[2] = {1.0f, 1.0f};
};

// Value i of a bias or of D, by their type's number.
WS_DEVICE float load_value(const u8* from, u32 type, u32 i) {
  if (type == kOutFp32) return reinterpret_cast<const float*>(from)[i];
  float low, high;
  const u32 bits = reinterpret_cast<const u16*>(from)[i];
  if (type == kOutBf16) return float_of(bits << 16);
  unpack_f16x2(bits, low, high);
  return low;
}

WS_DEVICE void store_value(u8* to, u32 type, u32 i, float value) {
  if (type == kOutFp32) {
    reinterpret_cast<float*>(to)[i] = value;
  } else {
    const u32 pair = type == kOutBf16 ? pack_bf16x2(value, value) : pack_f16x2(value, value);
    reinterpret_cast<u16*>(to)[i] = static_cast<u16>(pair);
  }
}

// Where warps leave their sums of a tile and blocks of a cluster give each other theirs.
class Exchange {
 public:
  WS_DEVICE Exchange(u8* shared, u32 warps_k) : shared_(shared), warps_k_(warps_k), warps_rows_(kWarps / warps_k) {}

  WS_DEVICE static void init_barriers(u32 shared) {
    if constexpr (kCluster > 1) {
      mbarrier_init(shared + Shared::kBarriers + 64, 1);
      mbarrier_init(shared + Shared::kBarriers + 72, 1);
    }
  }

  // Leaves a warp's sums.
  WS_DEVICE void put(const Sums& sums, float factor) {
    const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float* const to = buffer() + threadIdx.x / 32 * kRows * Shared::kStride + 2 * t * Shared::kStride + g;
#pragma unroll
    for (u32 m = 0; m < kEights / 2; ++m) {
#pragma unroll
      for (u32 n = 0; n < kN8; ++n) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
          to[(8 * n + i % 2) * Shared::kStride + 16 * m + i / 2 * 8] = sums[m][n][i] * factor;
        }
      }
    }
  }

  // Of all warps that divide K, for `row` of 32 of row warp `warp_row`.
  WS_DEVICE float sum(u32 warp_row, u32 a_row, u32 row) const {
    const float* from = buffer() + (warp_row * kRows + a_row) * Shared::kStride + row;
    float result = 0.0f;
#pragma unroll 4
    for (u32 k = 0; k < warps_k_; ++k, from += warps_rows_ * kRows * Shared::kStride) result += *from;
    return result;
  }

  // A block of a pair finishes 16 of 32 rows; it sends the other its sums of the others. `wait` before `received`.
  WS_DEVICE void send(u32 shared, u32 rows) const {
    const u32 peer = cluster_rank() ^ 1, place = tile_ % 2;
    const u32 barrier = shared + Shared::kBarriers + 64 + 8 * place;
    const u32 to = shared_address_of(shared + Shared::kInbox + place * Shared::kInboxBytes, peer);
    const u32 remote = shared_address_of(barrier, peer);
    const u32 all = warps_rows_ * 16 * rows;
    if (threadIdx.x == 0) mbarrier_arrive_expect(barrier, 4 * all);
    for (u32 i = threadIdx.x; i < all; i += kThreads) {
      store_to_block(to + 4 * i, bits_of(sum(i / 16 / rows, i / 16 % rows, 16 * peer + i % 16)), remote);
    }
  }

  WS_DEVICE void wait(u32 shared) const {
    mbarrier_wait(shared + Shared::kBarriers + 64 + 8 * (tile_ % 2), tile_ / 2 % 2);
  }

  WS_DEVICE float received(u32 warp_row, u32 a_row, u32 rows, u32 row) const {
    const u8* const place = shared_ + Shared::kInbox + tile_ % 2 * Shared::kInboxBytes;
    const float* const inbox = reinterpret_cast<const float*>(place);
    return inbox[(warp_row * rows + a_row) * 16 + row % 16];
  }

  WS_DEVICE void next_tile() { ++tile_; }

 private:
  WS_DEVICE float* buffer() const {
    return reinterpret_cast<float*>(shared_ + Shared::kSums);
  }

  u8* shared_;
  u32 warps_k_, warps_rows_, tile_ = 0;
};

// Adds the bias to a finished sum of row `row` of B.
WS_DEVICE float with_bias(const Problem& p, u32 batch, u32 row, float value) {
  const u32 type = p.flags >> kBiasShift & kTypeMask;
  return type == kNoBias ? value : value + load_value(p.bias + batch * p.bias_batch, type - 1, row);
}

// Writes what this block finishes for `count` groups of 8 rows of B from `first` on, whose sums the warps from `warp`
// along rows have: all of it, or its half of a pair's. Rows of D are those of A.
WS_DEVICE void write_rows(const Exchange& exchange, const Problem& p, u32 warp, u32 first, u32 count, const Rows& rows,
                          float alpha) {
  constexpr u32 values = kWarpRows / kCluster;  // of each row warp and row of A
  const u32 own = kCluster == 1 ? 0 : 16 * cluster_rank();
  const u32 all = div_up(count, kEights) * rows.count * values, type = p.flags >> kOutShift & kTypeMask;
  u8* const d = p.d + (p.kind() == kGrouped ? 0 : rows.batch * p.d_batch) + static_cast<i64>(rows.first) * p.d_row;
#pragma unroll 1
  for (u32 i = threadIdx.x; i < all; i += kThreads) {
    const u32 a_row = i / values % rows.count, warp_row = i / values / rows.count;
    const u32 row = own + i % values;
    const u32 eight = warp_row * kEights + row / 8;
    if (eight >= count) continue;
    const u32 b_row = 8 * (first + eight) + row % 8;
    float value = exchange.sum(warp + warp_row, a_row, row);
    if constexpr (kCluster > 1) value += exchange.received(warp_row, a_row, rows.count, row);
    store_value(d + a_row * p.d_row, type, b_row, with_bias(p, rows.batch, b_row, value * alpha));
  }
}

}  // namespace ws
