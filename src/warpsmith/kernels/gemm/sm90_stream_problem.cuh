// SPDX-License-Identifier: Apache-2.0
// The problem as the kernel gets it, and which rows of B a block multiplies by which rows of A.
#pragma once

#include "common/types.cuh"
#include "gemm/sm90_stream_config.cuh"

namespace ws {

// Bits of `flags`, from the lowest: 2 kind, 2 type of D, 2 type of bias, then single ones.
enum : u32 {
  kDense = 0,    // `batches` matrices of m rows
  kGrouped = 1,  // m rows in all; group g is rows index[g] to index[g + 1]
  kMasked = 2,   // `batches` matrices of m rows, of which the first index[g] count
  kKindMask = 3,
  kOutShift = 2,
  kBiasShift = 4,  // 0: no bias
  kTypeMask = 3,
  kIndex64 = 1 << 6,       // index is i64, not i32
  kTiledScales = 1 << 8,   // 128x4, not linear
  kAlphaPerBatch = 1 << 9,  // one value for each batch or group, not one
  kGlobalAPerBatch = 1 << 10,
  kGlobalBPerBatch = 1 << 11,
  kEarlyWeights = 1 << 12,  // b, its scales and index were complete before the kernel before this one began
  kWarpsShift = 16,         // log2 of the warps that divide K
  kWarpsMask = 7,
};
enum : u32 { kOutBf16 = 0, kOutFp16 = 1, kOutFp32 = 2 };
enum : u32 { kNoBias = 0, kBiasBf16 = 1, kBiasFp16 = 2, kBiasFp32 = 3 };

struct Problem {
  const u8 *a, *b, *b_scales, *bias;
  u8* d;
  const float *alphas, *a_global_scale, *b_global_scale;
  const void* index;
  i64 a_row, b_row, d_row, a_batch, b_batch, d_batch, b_scale_batch, bias_batch;  // bytes
  u32 m, n, k, batches;
  float alpha;
  u32 flags;
  WS_DEVICE u32 kind() const { return flags & kKindMask; }
  WS_DEVICE u32 warps_k() const { return 1u << (flags >> kWarpsShift & kWarpsMask); }
};

WS_DEVICE constexpr u32 div_up(u32 a, u32 b) { return (a + b - 1) / b; }

// index[i], kept within 0..m so that no value of it leads outside the operands.
WS_DEVICE u32 read_index(const Problem& p, u32 i) {
  const i64 value = p.flags & kIndex64 ? static_cast<const i64*>(p.index)[i] : static_cast<const int*>(p.index)[i];
  return static_cast<u32>(max(0ll, min(value, static_cast<i64>(p.m))));
}

// Rows of A that are multiplied by the same matrix: at most kRows of a batch or group.
struct Rows {
  u32 batch;   // or group
  u32 first;   // within the batch; grouped: of all rows
  u32 count;
};

// Row `i` of them in A.
WS_DEVICE const u8* row_of_a(const Problem& p, const Rows& rows, u32 i) {
  const u8* const a = p.a + (p.kind() == kGrouped ? 0 : rows.batch * p.a_batch);
  return a + static_cast<i64>(rows.first + i) * p.a_row;
}

// Rows of B that a block computes at a time, at most kWarpRows for each warp along them: for one of Rows and, where it
// ends, the first ones for the next, since a tile takes as long however few of its warps have rows.
struct Tile {
  u32 rows_of_a;   // which Rows, counted over all groups
  u32 row, count;  // of B, in groups of 8
  u32 more;        // for the next Rows

  // Warps along rows that are the first Rows'.
  WS_DEVICE u32 warps() const { return div_up(count, kEights); }
};

// The work of a problem, in order: for each Rows, all rows of B, 8 at a time. A block or pair has an equal part. All
// of it is fewer than 2^32 times 8 rows.
class Work {
 public:
  // With a list of groups, `table` (3 · kMostGroups + kWarps words) gets what is known of each. All threads; they must
  // meet afterwards. With `two`, a tile may be for two of Rows.
  WS_DEVICE Work(const Problem& p, u32* table, bool two)
      : p_(p),
        two_(two),
        before_(table),
        starts_(table + kMostGroups),
        sizes_(table + 2 * kMostGroups),
        eights_(p.n / 8) {
    if (p.kind() == kDense) {
      per_batch_ = div_up(p.m, kRows);
      all_ = per_batch_ * p.batches;
    } else {
      per_batch_ = 0;
      all_ = count_groups();
    }
    // As many for each part as for any other, or one more.
    const u32 parts = gridDim.x / kCluster, part = blockIdx.x / kCluster;
    const u32 eights = all_ * eights_, each = eights / parts, more = eights - each * parts;
    const u32 begin = each * part + min(part, more);
    left_ = each + (part < more);
    rows_ = begin / eights_;
    first_ = begin - rows_ * eights_;
    last_ = left_ ? (begin + left_ - 1) / eights_ : 0;
  }

  WS_DEVICE bool has_next() const { return left_ > 0; }
  WS_DEVICE u32 next_rows() const { return rows_; }
  WS_DEVICE u32 last_rows() const { return last_; }  // that this block has

  // Takes what `warps` along rows compute at most.
  WS_DEVICE Tile take(u32 warps) {
    Tile tile{rows_, first_, 0, 0};
    tile.count = advance(warps);
    if (two_ && left_ && !first_) tile.more = advance(warps - tile.warps());
    return tile;
  }

  WS_DEVICE Rows rows(u32 i) const {
    if (per_batch_ == 1) return {i, 0, p_.m};
    if (per_batch_) {
      const u32 batch = i / per_batch_, first = i % per_batch_ * kRows;
      return {batch, first, min(p_.m - first, kRows)};
    }
    u32 low = 0, high = p_.batches;  // the last group with before_[group] <= i
    while (high - low > 1) {
      const u32 middle = (low + high) / 2;
      if (before_[middle] <= i) {
        low = middle;
      } else {
        high = middle;
      }
    }
    const u32 first = (i - before_[low]) * kRows;
    return {low, starts_[low] + first, min(sizes_[low] - first, kRows)};
  }

 private:
  WS_DEVICE u32 advance(u32 warps) {
    const u32 count = min(min(left_, eights_ - first_), warps * kEights);
    left_ -= count;
    first_ += count;
    if (first_ == eights_) ++rows_, first_ = 0;
    return count;
  }

  // One thread a group: sums over a warp, then over the warps.
  WS_DEVICE u32 count_groups() {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = threadIdx.x;
    static_assert(kMostGroups <= kThreads, "one thread a group");
    u32 count = 0;
    if (g < p_.batches) {
      const u32 first = p_.kind() == kGrouped ? read_index(p_, g) : 0;
      const u32 end = read_index(p_, p_.kind() == kGrouped ? g + 1 : g);
      count = end > first ? div_up(end - first, kRows) : 0;
      starts_[g] = first;
      sizes_[g] = end - first;
    }
    u32 through = count;
#pragma unroll
    for (u32 distance = 1; distance < 32; distance *= 2) {
      const u32 other = __shfl_up_sync(kAllLanes, through, distance);
      if (lane >= distance) through += other;
    }
    u32* const sums = before_ + 3 * kMostGroups;
    if (lane == 31) sums[warp] = through;
    __syncthreads();
    u32 total = 0;
#pragma unroll
    for (u32 w = 0; w < kWarps; ++w) {
      if (w == warp) through += total;
      total += sums[w];
    }
    if (g < p_.batches) before_[g] = through - count;
    __syncthreads();
    return total;
  }

  const Problem& p_;
  bool two_;
  u32 *before_, *starts_, *sizes_;  // of each group: Rows before it, its first row, its rows
  u32 eights_, per_batch_, all_;
  u32 left_, rows_, first_, last_;
};

}  // namespace ws
