// SPDX-License-Identifier: Apache-2.0
// Which rows of A a block of sm90_packed_gemm.cuh multiplies by which rows of B, and those rows in shared memory.
#pragma once

#include "common/cluster.cuh"
#include "common/gemm_problem.cuh"
#include "common/mbarrier.cuh"
#include "common/tma.cuh"
#include "common/types.cuh"
#include "gemm/sm90_packed_config.cuh"

namespace ws {

struct Problem {
  const u8 *a, *b, *b_scales, *bias;
  u8* d;
  const float *alphas, *a_global_scale, *b_global_scale;
  const void* index;
  i64 a_row, d_row, a_batch, b_batch, d_batch, b_scale_batch, bias_batch;  // bytes
  u32 m, n, k, batches;
  float alpha;
  u32 flags;
  WS_DEVICE u32 kind() const { return flags & kKindMask; }
};

// Rows of A that are multiplied by the same matrix: some of a batch or group.
struct Rows {
  u32 batch;  // or group
  u32 first;  // within the batch; grouped: of all rows
  u32 count;
};

// The part of K that a block of a cluster has, in tiles, and what of its shared memory rows of A take.
struct Part {
  u32 first, count, pitch, rows;  // `rows`: as many at a time

  WS_DEVICE explicit Part(const Problem& p) {
    const u32 all = p.k / kPreparedTileK, rank = kCluster > 1 ? cluster_rank() : 0;
    first = all * rank / kCluster;
    count = all * (rank + 1) / kCluster - first;
    pitch = div_up(all, kCluster) * (2 * kPreparedTileK) + 16;  // lanes of an ldmatrix read different banks
    rows = min(kRows, p.m);
    if (rows * pitch > kSpace) rows = kSpace / pitch;
  }

  // How many sets of rows there is room for: the next ones come while the present ones are in use.
  WS_DEVICE u32 sets(u32 of) const { return of > 1 && 2 * rows * pitch <= kSpace ? 2 : 1; }

 private:
  static constexpr u32 kSpace = Shared::kBytes - 128 - Shared::kA - Shared::kLeastStages * Shared::kStage;
};

// The work of a problem, in order: for each Rows, all rows of B. A block or cluster has an equal part.
class Work {
 public:
  // Of a list of groups, `table` gets what is known of each. All threads; they must meet afterwards.
  WS_DEVICE Work(const Problem& p, u32 rows, u32* table) : p_(p), table_(table), most_(rows) {
    per_batch_ = p.kind() != kDense ? 0 : p.m <= rows ? 1 : div_up(p.m, rows);
    if (!per_batch_) {
      if (threadIdx.x < 32) count_groups();
      __syncthreads();
    }
    tiles_ = p.n / kTileRows;
    const u32 all = (per_batch_ ? per_batch_ * p.batches : table_[3 * kMostGroups]) * tiles_;
    const u32 parts = gridDim.x / kCluster, part = blockIdx.x / kCluster;
    const u32 each = all / parts, more = all - each * parts, begin = each * part + min(part, more);
    left_ = each + (part < more);
    rows_ = last_ = 0;
    tile_ = begin;
    if (all == tiles_) return;  // divisions take long, and nothing has been fetched yet
    rows_ = begin / tiles_;
    tile_ = begin - rows_ * tiles_;
    last_ = left_ ? (begin + left_ - 1) / tiles_ : 0;
  }

  // Where the block is: the number of its Rows and the tile of B.
  WS_DEVICE bool has_next() const { return left_ > 0; }
  WS_DEVICE u32 rows_number() const { return rows_; }
  WS_DEVICE u32 last_number() const { return last_; }
  WS_DEVICE u32 tile() const { return tile_; }
  WS_DEVICE void next() {
    --left_;
    if (++tile_ == tiles_) tile_ = 0, ++rows_;
  }

  WS_DEVICE Rows rows(u32 i) const {
    if (per_batch_ == 1) return {i, 0, p_.m};
    if (per_batch_) {
      const u32 first = i % per_batch_ * most_;
      return {i / per_batch_, first, min(p_.m - first, most_)};
    }
    u32 low = 0, high = p_.batches;  // the last group with as many Rows or fewer before it
    while (high - low > 1) {
      const u32 middle = (low + high) / 2;
      (table_[middle] <= i ? low : high) = middle;
    }
    const u32 first = (i - table_[low]) * most_;
    return {low, table_[kMostGroups + low] + first, min(table_[2 * kMostGroups + low] - first, most_)};
  }

 private:
  // One warp: of each group the Rows before it, its first row and its rows; at the end how many Rows there are.
  WS_DEVICE void count_groups() {
    const u32 lane = threadIdx.x % 32;
    u32 before = 0;
    for (u32 base = 0; base < p_.batches; base += 32) {
      const u32 g = base + lane;
      u32 count = 0;
      if (g < p_.batches) {
        const u32 first = p_.kind() == kGrouped ? read_index(p_, g) : 0;
        const u32 end = read_index(p_, p_.kind() == kGrouped ? g + 1 : g);
        count = end > first ? div_up(end - first, most_) : 0;
        table_[kMostGroups + g] = first;
        table_[2 * kMostGroups + g] = end - first;
      }
      u32 through = count;
#pragma unroll
      for (u32 distance = 1; distance < 32; distance *= 2) {
        const u32 other = __shfl_up_sync(kAllLanes, through, distance);
        if (lane >= distance) through += other;
      }
      if (g < p_.batches) table_[g] = before + through - count;
      before += __shfl_sync(kAllLanes, through, 31);
    }
    if (lane == 0) table_[3 * kMostGroups] = before;
  }

  const Problem& p_;
  u32* table_;
  u32 most_, per_batch_, tiles_, left_, rows_, tile_, last_;
};

// Rows of A in shared memory: one or two sets. Each arrives in four pieces of K, so that the first one is used early.
class RowsOfA {
 public:
  WS_DEVICE RowsOfA(const Part& part, u32 sets, u32 shared)
      : sets_(sets),
        shared_(shared),
        pitch_(part.pitch),
        bytes_(part.rows * part.pitch),
        piece_(div_up(part.count, kPieces * kWarps) * kWarps) {}

  // One thread of each warp.
  WS_DEVICE static void init_barriers(u32 shared) {
    const u32 warp = threadIdx.x / 32;
    if (warp < 2 * kPieces) mbarrier_init(shared + Shared::kPieces + 8 * warp, 1);
    if (warp < 2) mbarrier_init(shared + Shared::kFree + 8 * warp, kWarps);
  }

  WS_DEVICE u32 end() const { return at(sets_); }
  // Where the `i`-th Rows of a block are, and which time it is that the set is filled, from 0 on.
  WS_DEVICE u32 set(u32 i) const { return i & (sets_ - 1); }
  WS_DEVICE u32 use(u32 i) const { return i >> (sets_ - 1); }

  // One warp starts to copy piece number `i`, if its place is at tile `k` of the part.
  WS_DEVICE void copy(const Problem& p, const Part& part, const Rows& rows, u32 set, u32 k, u32& i) const {
    if (k != i * piece_) return;
    const u32 lane = threadIdx.x % 32, bytes = min(piece_, part.count - k) * (2 * kPreparedTileK);
    const u8* const a = p.a + (p.kind() == kGrouped ? 0 : rows.batch * p.a_batch);
    if (lane == 0) mbarrier_arrive_expect(barrier(set, i), rows.count * bytes);
    __syncwarp();
    if (lane < rows.count) {
      load_bulk(at(set) + lane * pitch_ + k * (2 * kPreparedTileK),
                a + static_cast<i64>(rows.first + lane) * p.a_row + (part.first + k) * (2 * kPreparedTileK), bytes,
                barrier(set, i));
    }
    __syncwarp();
    ++i;
  }

  // Waits until the warps that multiply have left a set, before it is filled.
  WS_DEVICE void wait_until_free(u32 set, u32 use) const { mbarrier_wait(shared_ + Shared::kFree + 8 * set, ~use & 1); }
  WS_DEVICE void free(u32 set) const { mbarrier_arrive(shared_ + Shared::kFree + 8 * set); }

  // Waits for the pieces up to that with tile `k`; `here` have been waited for.
  WS_DEVICE void wait(u32 set, u32 use, u32 k, u32& here) const {
    for (; here * piece_ <= k; ++here) mbarrier_wait(barrier(set, here), use & 1);
  }

  // Where a lane reads what it gives an ldmatrix, for rows 8i to 8i + 7 of `count`.
  WS_DEVICE u32 lane_row(u32 set, u32 i, u32 count) const {
    const u32 lane = threadIdx.x % 32, row = lane % 8 + 8 * i;
    return (row < count ? at(set) + row * pitch_ : shared_ + Shared::kZeros) + lane / 8 * 16;
  }

 private:
  static constexpr u32 kPieces = 4;

  WS_DEVICE u32 at(u32 set) const { return shared_ + Shared::kA + set * bytes_; }
  WS_DEVICE u32 barrier(u32 set, u32 piece) const { return shared_ + Shared::kPieces + 8 * (kPieces * set + piece); }

  u32 sets_, shared_, pitch_, bytes_, piece_;
};

}  // namespace ws
