// SPDX-License-Identifier: Apache-2.0
// What a block of sm90_stream_gemm.cuh does: rows of A to shared memory, columns of B through registers, sums to D.
#pragma once

#include "common/cluster.cuh"
#include "common/cp_async.cuh"
#include "common/dependent_launch.cuh"
#include "common/mbarrier.cuh"
#include "common/ptx.cuh"
#include "common/tma.cuh"
#include "common/types.cuh"
#include "gemm/sm90_stream_columns.cuh"
#include "gemm/sm90_stream_config.cuh"
#include "gemm/sm90_stream_epilogue.cuh"
#include "gemm/sm90_stream_problem.cuh"

namespace ws {

// The columns of B that a block multiplies: all, or half of them.
struct Part {
  u32 begin, end;

  WS_DEVICE explicit Part(const Problem& p) : begin(0), end(div_up(p.k, kColumn)) {
    if constexpr (kCluster > 1) {
      const u32 middle = div_up(end, 2);
      (cluster_rank() ? begin : end) = middle;
    }
  }

  // Bytes from one row of A to the next in shared memory, and how many sets of rows fit there.
  WS_DEVICE u32 pitch() const { return div_up((end - begin) * 2 * kColumn, 128) * 128 + Shared::kSkew; }
  WS_DEVICE u32 sets() const { return 2 * kRows * pitch() <= Shared::kABytes ? 2 : 1; }
};

// Rows of A in shared memory: one or two sets of at most kRows, those in use and those that come next. A set arrives in
// kPieces of its columns, each with a barrier, so that the first ones do not wait for the last.
class RowsOfA {
  static constexpr u32 kPieces = 4;

 public:
  WS_DEVICE RowsOfA(const Problem& p, const Work& work, const Part& part, u32 shared, u32 first)
      : p_(p), work_(work), shared_(shared), first_(first), begin_(part.begin), end_(part.end) {
    piece_ = max(div_up(part.end - part.begin, kPieces), 1u);
    pitch_ = part.pitch();
    sets_ = part.sets();
  }

  WS_DEVICE static void init_barriers(u32 shared) {
#pragma unroll
    for (u32 i = 0; i < 2 * kPieces; ++i) mbarrier_init(shared + Shared::kBarriers + 8 * i, 1);
  }

  WS_DEVICE u32 sets() const { return sets_; }
  WS_DEVICE u32 piece() const { return piece_; }  // columns

  // One warp starts to copy rows number `i`.
  WS_DEVICE void copy(u32 i) const {
    const u32 lane = threadIdx.x % 32;
    const Rows rows = work_.rows(i);
    const u8* const from = lane < rows.count ? row_of_a(p_, rows, lane) : nullptr;
    u32 to = at(i) + lane * pitch_, barrier = barrier_of(i);
#pragma unroll 1
    for (u32 column = begin_; column < end_; column += piece_, to += piece_ * 2 * kColumn, barrier += 8) {
      const u32 bytes = 2 * (min(min(column + piece_, end_) * kColumn, p_.k) - column * kColumn);
      if (lane == 0) mbarrier_arrive_expect(barrier, rows.count * bytes);
      __syncwarp();
      if (lane < rows.count) load_bulk(to, from + static_cast<i64>(column) * (2 * kColumn), bytes, barrier);
    }
  }

  WS_DEVICE void wait(u32 i, u32 piece) const { mbarrier_wait(barrier_of(i) + 8 * piece, (i - first_) / sets_ % 2); }

  // Shared address of what a lane reads for column 0: unit t of row g.
  WS_DEVICE u32 first_unit(u32 i) const {
    const u32 lane = threadIdx.x % 32;
    return at(i) + lane / 4 * pitch_ + lane % 4 * (2 * kUnit) - begin_ * (2 * kColumn);
  }
  WS_DEVICE u32 eight_rows() const { return 8 * pitch_; }

 private:
  WS_DEVICE u32 set(u32 i) const { return (i - first_) % sets_; }
  WS_DEVICE u32 at(u32 i) const { return shared_ + Shared::kA + set(i) * kRows * pitch_; }
  WS_DEVICE u32 barrier_of(u32 i) const { return shared_ + Shared::kBarriers + 8 * kPieces * set(i); }

  const Problem& p_;
  const Work& work_;
  u32 shared_, first_, begin_, end_, piece_, pitch_, sets_;
};

// Which of a block's 16 warps this is: they divide the tile's rows of B and the part's columns.
struct WarpPlace {
  u32 warps_k, rows, row, k;

  WS_DEVICE explicit WarpPlace(const Problem& p) : warps_k(p.warps_k()), rows(kWarps / warps_k) {
    const u32 warp = __shfl_sync(kAllLanes, threadIdx.x / 32, 0);
    row = warp % rows;
    k = warp / rows;
  }

  // What of a tile is this warp's: `eights` groups of 8 rows from `first` on.
  struct Share {
    u32 rows_of_a, first, eights;
  };
  WS_DEVICE Share of(const Tile& tile) const {
    const u32 warps = tile.warps();
    const bool next = row >= warps;
    const u32 before = (next ? row - warps : row) * kEights, count = next ? tile.more : tile.count;
    return {tile.rows_of_a + next, (next ? 0 : tile.row) + before, count > before ? min(count - before, kEights) : 0};
  }
};

// A warp's columns, in order, on their way from memory to its ring.
class Stream {
 public:
  WS_DEVICE Stream(const Problem& p, const Work& work, const Part& part, const WarpPlace& place, u32 shared)
      : p_(p), work_(work), part_(part), place_(place), lane_(opaque(threadIdx.x % 32)), column_(part.end) {
    slot_ = ring_ = opaque(shared + Shared::kRing + threadIdx.x / 32 * kAhead * Shared::kSlot);
#pragma unroll 1
    for (u32 i = 0; i < kAhead; ++i) copy_next(ring_ + i * Shared::kSlot);
  }

  // A group of copies to a slot, empty after the last column.
  WS_DEVICE void copy_next(u32 slot) {
    if (column_ >= part_.end) next_tile();
    if (column_ < part_.end) {
      source_.copy(lane_, slot, column_);
      column_ += place_.warps_k;
    }
    commit_copies();
  }

  // The next column, once it is here; its slot gets another one.
  WS_DEVICE void take(Column& column, u32 index) {
    wait_for_copies<kAhead - 1>();
    __syncwarp();
    source_.read(lane_, slot_, index, column);
    __syncwarp();
    copy_next(slot_);
    slot_ = slot_ == ring_ + (kAhead - 1) * Shared::kSlot ? ring_ : slot_ + Shared::kSlot;
  }

 private:
  // Of the tiles in which this warp has columns.
  WS_DEVICE void next_tile() {
    if (part_.begin + place_.k >= part_.end) return;
#pragma unroll 1
    while (work_.has_next()) {
      const WarpPlace::Share share = place_.of(work_.take(place_.rows));
      if (!share.eights) continue;
      source_ = ColumnSource(p_, work_.rows(share.rows_of_a).batch, share.first, share.eights);
      column_ = part_.begin + place_.k;
      return;
    }
  }

  const Problem& p_;
  Work work_;
  const Part& part_;
  const WarpPlace& place_;
  ColumnSource source_;
  u32 lane_, ring_, column_, slot_;
};

WS_DEVICE void compute(const Problem& p, u8* shared) {
  const u32 address = shared_address(shared);
  const u32 zeros = address + Shared::kZeros;
  if (threadIdx.x < Shared::kZeroBytes / 4) reinterpret_cast<u32*>(shared + Shared::kZeros)[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    RowsOfA::init_barriers(address);
    Exchange::init_barriers(address);
    fence_mbarrier_init();
  }
  if (!(p.flags & kEarlyWeights)) wait_for_predecessor();
  const Part part(p);
  Work work(p, reinterpret_cast<u32*>(shared + Shared::kGroups), kCluster == 1 && part.sets() == 2);
  __syncthreads();
  if constexpr (kCluster > 1) arrive_cluster();
  const WarpPlace place(p);
  Stream stream(p, work, part, place, address);
  wait_for_predecessor();
  release_successor();
  if constexpr (kCluster > 1) wait_cluster();
  if (!work.has_next()) return;
  const RowsOfA a(p, work, part, address, work.next_rows());
  if (threadIdx.x < 32) {
    for (u32 i = work.next_rows(), n = 0; n < a.sets() && i <= work.last_rows(); ++i, ++n) a.copy(i);
  }
  Exchange exchange(shared, place.warps_k);
  const u32 units = p.k / kUnit;  // of a row
#pragma unroll 1
  while (work.has_next()) {
    const Tile tile = work.take(place.rows);
    const WarpPlace::Share share = place.of(tile);
    const Rows rows = work.rows(tile.rows_of_a);
    const Factors factors(p, rows.batch);
    Multiplier sums;
    sums.clear();
    if (share.eights) {
      const u32 first_unit = opaque(a.first_unit(share.rows_of_a)), eight_rows = a.eight_rows();
      const u32 t = opaque(threadIdx.x % 4);
      u32 here = part.begin, piece = 0;  // columns of A that have arrived
#pragma unroll 1
      for (u32 column = part.begin + place.k; column < part.end; column += place.warps_k) {
        Column weights;
        stream.take(weights, column);
        for (; here <= column; here += a.piece(), ++piece) a.wait(share.rows_of_a, piece);
        const bool inside = 4 * column + t < units;
        const u32 from = inside ? first_unit + column * (2 * kColumn) : zeros;
        sums.multiply(weights, from, inside ? eight_rows : 0);
      }
    }
    const float alpha = factors.product();
    exchange.put(sums.sums, sums.deficit());
    __syncthreads();
    if (work.has_next() && threadIdx.x < 32) {
      for (u32 i = tile.rows_of_a; i < work.next_rows() && i + a.sets() <= work.last_rows(); ++i) a.copy(i + a.sets());
    }
    if constexpr (kCluster > 1) {
      exchange.send(address, rows.count);
      exchange.wait(address);
    }
    write_rows(exchange, p, 0, tile.row, tile.count, rows, alpha);
    if (tile.more) {
      const Rows next = work.rows(tile.rows_of_a + 1);
      write_rows(exchange, p, tile.warps(), 0, tile.more, next, Factors(p, next.batch).product());
    }
    exchange.next_tile();
    if (work.has_next()) __syncthreads();
  }
}

}  // namespace ws
