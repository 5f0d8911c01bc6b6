// SPDX-License-Identifier: Apache-2.0
// What a block of sm90_packed_gemm.cuh does: one warp copies, sixteen multiply, and their sums become D.
#pragma once

#include "common/cluster.cuh"
#include "common/dependent_launch.cuh"
#include "common/gemm_problem.cuh"
#include "common/mbarrier.cuh"
#include "common/mma_bf16.cuh"
#include "common/prepared_weights.cuh"
#include "common/ptx.cuh"
#include "common/shared_load.cuh"
#include "common/tma.cuh"
#include "common/types.cuh"
#include "gemm/sm90_packed_config.cuh"
#include "gemm/sm90_packed_rows.cuh"

namespace ws {

// A place in the ring of stages, and how often it was come by.
struct Stage {
  u32 slot = 0, phase = 0;

  WS_DEVICE void next(u32 slots) {
    if (++slot == slots) slot = 0, phase ^= 1;
  }
};

// All of a block's copies, in the order of its work. One warp.
WS_DEVICE void copy_all(const Problem& p, const Part& part, Work work, const RowsOfA& a, u32 shared, u32 ring,
                        u32 slots) {
  const u32 all = p.k / kPreparedTileK, first = work.rows_number();
  Stage stage;
  u32 number = ~0u, set = 0, piece = 0;
  Rows rows{};
#pragma unroll 1
  for (; work.has_next(); work.next()) {
    const bool fresh = work.rows_number() != number;
    if (fresh) {
      number = work.rows_number();
      rows = work.rows(number);
      set = a.set(number - first);
      piece = 0;
      a.wait_until_free(set, a.use(number - first));
    }
    const u64 before = static_cast<u64>(work.tile()) * all;  // tiles of the rows of B before these, of 32 rows
    const u8* const codes = p.b + rows.batch * p.b_batch + (2 * before + part.first) * kPreparedTileBytes;
    const u8* const scales = p.b_scales + rows.batch * p.b_scale_batch + (before + part.first) * kScaleBytes;
#pragma unroll 1
    for (u32 k = 0; k < part.count; k += kWarps) {
      if (fresh) a.copy(p, part, rows, set, k, piece);
      if (threadIdx.x % 32 == 0) {
        const u32 count = min(kWarps, part.count - k), to = ring + stage.slot * Shared::kStage;
        const u32 barrier = shared + Shared::kFull + 8 * stage.slot;
        mbarrier_wait(shared + Shared::kEmpty + 8 * stage.slot, stage.phase ^ 1);
        mbarrier_arrive_expect(barrier, count * (2 * kPreparedTileBytes + kScaleBytes));
        load_bulk(to, codes + k * kPreparedTileBytes, count * kPreparedTileBytes, barrier);
        load_bulk(to + Shared::kCodes, codes + static_cast<u64>(all + k) * kPreparedTileBytes,
                  count * kPreparedTileBytes, barrier);
        load_bulk(to + 2 * Shared::kCodes, scales + k * kScaleBytes, count * kScaleBytes, barrier);
      }
      __syncwarp();
      stage.next(slots);
    }
  }
}

// Sums of 32 rows of B and kRows of A: lane 4g+t has rows 16i + g (+8 for the last two) and rows 8j + 2t (+1) of A.
using Sums = float[2][kN8][4];

// Adds the products of a warp's 64 of K in a stage.
WS_DEVICE void multiply(u32 codes, u32 scales, const u32 (&rows)[kN8], Sums& sums) {
  u32 words[2][4], scale_words[kScaleWords], right[kN8][8];
  load_shared(codes, words[0]);
  load_shared(codes + Shared::kCodes, words[1]);
  load_shared(scales, scale_words);
#pragma unroll
  for (u32 j = 0; j < kN8; ++j) {
    ldmatrix_x4(rows[j], right[j][0], right[j][1], right[j][2], right[j][3]);
    ldmatrix_x4(rows[j] + 64, right[j][4], right[j][5], right[j][6], right[j][7]);
  }
#pragma unroll
  for (u32 k = 0; k < 4; ++k) {
    const u32 word = scale_words[k * kScaleWords / 4];
    const u32 pairs[2] = {prepared_scales<kNvfp4>(word), prepared_scales<kNvfp4>(__funnelshift_l(word, word, 8))};
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      u32 left[4];
      prepared_operand(words[i][k], pairs[i], left);
#pragma unroll
      for (u32 j = 0; j < kN8; ++j) mma_bf16(sums[i][j], left, {right[j][2 * k], right[j][2 * k + 1]});
    }
  }
}

// From the sums of warps to D. Every addition has its fixed place, so that the bits are the same from run to run. A
// thread finishes one value of a tile; where blocks of a cluster share it, after the next tile has been computed.
class Finish {
 public:
  WS_DEVICE Finish(const Problem& p, u8* shared, u32 address)
      : p_(p), shared_(shared), address_(address), rank_(kCluster > 1 ? cluster_rank() : 0) {}

  WS_DEVICE static void init_barriers(u32 shared) {
    if (kCluster > 1 && threadIdx.x / 32 < 2) mbarrier_init(shared + Shared::kArrived + threadIdx.x / 32 * 8, 1);
  }

  // What the value of this thread needs besides sums; fetched before these are made.
  WS_DEVICE void begin(const Rows& rows, u32 tile, float alpha) {
    next_.valid = threadIdx.x < kShare * rows.count;
    if (!next_.valid) return;
    const u32 row = threadIdx.x / kShare, column = tile * kTileRows + kShare * rank_ + threadIdx.x % kShare;
    const u32 type = p_.flags >> kOutShift & kTypeMask, bias_type = p_.flags >> kBiasShift & kTypeMask;
    u8* const d = p_.d + (p_.kind() == kGrouped ? 0 : rows.batch * p_.d_batch);
    next_.to = d + static_cast<i64>(rows.first + row) * p_.d_row + static_cast<u64>(column) * (type == kOutFp32 ? 4 : 2);
    next_.alpha = alpha;
    next_.bias = bias_type == kNoBias ? 0.0f : load_one(p_.bias + rows.batch * p_.bias_batch, bias_type - 1, column);
  }

  // All warps that multiply leave their sums.
  WS_DEVICE void put(const Sums& sums) const {
    const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float* const to = buffer() + threadIdx.x / 32 * kRows * Shared::kStride + 2 * t * Shared::kStride + g;
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
#pragma unroll
      for (u32 j = 0; j < kN8; ++j) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) to[(8 * j + e % 2) * Shared::kStride + 16 * i + e / 2 * 8] = sums[i][j][e];
      }
    }
  }

  // After a barrier: adds them. A value that is complete is written; others' parts go to their blocks.
  WS_DEVICE void add(u32 rows) {
    if constexpr (kCluster == 1) {
      if (next_.valid) write(next_, sum(threadIdx.x / kShare, threadIdx.x % kShare));
    } else {
      complete();
      const u32 share = kShare * rows, barrier = address_ + Shared::kArrived + 8 * (tiles_ % 2);
      const u32 inbox = address_ + Shared::kInbox + tiles_ % 2 * Shared::kInboxBytes;
      if (threadIdx.x == 0) mbarrier_arrive_expect(barrier, (kCluster - 1) * share * 4);
#pragma unroll 1
      for (u32 i = threadIdx.x; i < kCluster * share; i += kConsumers) {
        const u32 rank = (i / share + rank_) % kCluster, value = i % share;  // own ones first
        const float part = sum(value / kShare, kShare * rank + value % kShare);
        if (rank == rank_) {
          own_ = part;
          continue;
        }
        const u32 to = inbox + ((rank_ < rank ? rank_ : rank_ - 1) * share + value) * 4;
        store_to_block(shared_address_of(to, rank), bits_of(part), shared_address_of(barrier, rank));
      }
      last_ = next_;
      share_ = share;
      ++tiles_;
    }
  }

  // Writes the values of the tile before, once all parts of them are here.
  WS_DEVICE void complete() const {
    if (kCluster == 1 || !tiles_) return;
    const u32 place = (tiles_ - 1) % 2;
    mbarrier_wait(address_ + Shared::kArrived + 8 * place, (tiles_ - 1) / 2 % 2);
    if (!last_.valid) return;
    const u8* const inbox = shared_ + Shared::kInbox + place * Shared::kInboxBytes;
    float value = 0.0f;
#pragma unroll
    for (u32 rank = 0; rank < kCluster; ++rank) {
      const u32 i = share_ * (rank < rank_ ? rank : rank - 1) + threadIdx.x;
      value += rank == rank_ ? own_ : reinterpret_cast<const float*>(inbox)[i];
    }
    write(last_, value);
  }

 private:
  struct Value {
    u8* to;
    float alpha, bias;
    bool valid;
  };

  WS_DEVICE float* buffer() const { return reinterpret_cast<float*>(shared_ + Shared::kSums); }

  WS_DEVICE float sum(u32 a_row, u32 row) const {
    const float* const from = buffer() + a_row * Shared::kStride + row;
    float result = 0.0f;
#pragma unroll
    for (u32 warp = 0; warp < kWarps; ++warp) result += from[warp * kRows * Shared::kStride];
    return result;
  }

  WS_DEVICE static float load_one(const u8* from, u32 type, u32 i) {
    if (type == kOutFp32) return reinterpret_cast<const float*>(from)[i];
    const u32 bits = reinterpret_cast<const u16*>(from)[i];
    if (type == kOutBf16) return float_of(bits << 16);
    float low, high;
    unpack_f16x2(bits, low, high);
    return low;
  }

  WS_DEVICE void write(const Value& to, float sum) const {
    const u32 type = p_.flags >> kOutShift & kTypeMask;
    const float value = sum * to.alpha + to.bias;
    if (type == kOutFp32) {
      *reinterpret_cast<float*>(to.to) = value;
    } else {
      const u32 pair = type == kOutBf16 ? pack_bf16x2(value, value) : pack_f16x2(value, value);
      *reinterpret_cast<u16*>(to.to) = static_cast<u16>(pair);
    }
  }

  const Problem& p_;
  u8* shared_;
  u32 address_, rank_, tiles_ = 0, share_ = 0;
  float own_ = 0.0f;
  Value next_{}, last_{};
};

WS_DEVICE void sync_consumers() { asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory"); }

// What the warps that multiply do.
WS_DEVICE void multiply_all(const Problem& p, const Part& part, Work work, const RowsOfA& a, u8* shared, u32 address,
                            u32 ring, u32 slots) {
  const u32 warp = __shfl_sync(kAllLanes, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const u32 codes = opaque(ring + warp * kPreparedTileBytes + lane * 16);
  const u32 scales = opaque(ring + 2 * Shared::kCodes + warp * kScaleBytes + lane / 4 * (4 * kScaleWords));
  const u32 barriers = opaque(address), first = work.rows_number();
  const bool elected = opaque(lane) == 0;
  Finish finish(p, shared, address);
  Stage stage;
#pragma unroll 1
  while (work.has_next()) {
    const u32 number = work.rows_number(), set = a.set(number - first), use = a.use(number - first);
    const Rows rows = work.rows(number);
    const float alpha = alpha_of(p, rows.batch) * (kNvfp4 ? 128.0f : 0.5f);  // what scales are too small by
    u32 here = 0, from[kN8], step[kN8];
#pragma unroll
    for (u32 j = 0; j < kN8; ++j) {
      from[j] = opaque(a.lane_row(set, j, rows.count));
      step[j] = opaque(lane % 8 + 8 * j < rows.count ? 2 * kPreparedTileK : 0u);
    }
#pragma unroll 1
    for (; work.has_next() && work.rows_number() == number; work.next()) {
      finish.begin(rows, work.tile(), alpha);
      Sums sums = {};
#pragma unroll 1
      for (u32 k = warp; k < div_up(part.count, kWarps) * kWarps; k += kWarps) {
        mbarrier_wait(barriers + Shared::kFull + 8 * stage.slot, stage.phase);
        if (k < part.count) {
          a.wait(set, use, k, here);
          u32 lanes[kN8];
#pragma unroll
          for (u32 j = 0; j < kN8; ++j) lanes[j] = from[j] + k * step[j];
          multiply(codes + stage.slot * Shared::kStage, scales + stage.slot * Shared::kStage, lanes, sums);
        }
        __syncwarp();
        if (elected) mbarrier_arrive(barriers + Shared::kEmpty + 8 * stage.slot);
        stage.next(slots);
      }
      finish.put(sums);
      sync_consumers();
      finish.add(rows.count);
      sync_consumers();
    }
    if (elected) a.free(set);
  }
  finish.complete();
}

WS_DEVICE void compute(const Problem& p, u8* shared) {
  const u32 address = shared_address(shared);
  if (threadIdx.x < 32) reinterpret_cast<u32*>(shared + Shared::kZeros)[threadIdx.x] = 0;
  if (threadIdx.x % 32 == 0) {  // each warp a few barriers
    const u32 warp = threadIdx.x / 32;
    if (warp < Shared::kMostStages) {
      mbarrier_init(address + Shared::kFull + 8 * warp, 1);
      mbarrier_init(address + Shared::kEmpty + 8 * warp, kWarps);
    }
    RowsOfA::init_barriers(address);
    Finish::init_barriers(address);
    fence_mbarrier_init();
  }
  const Part part(p);
  if (p.kind() != kDense) wait_for_predecessor();
  const Work work(p, part.rows, reinterpret_cast<u32*>(shared + Shared::kGroups));
  __syncthreads();
  if constexpr (kCluster > 1) arrive_cluster();
  const RowsOfA a(part, part.sets(work.last_number() - work.rows_number() + 1), address);
  const u32 ring = (a.end() + 127) / 128 * 128;
  const u32 slots = min((address + Shared::kBytes - ring) / Shared::kStage, Shared::kMostStages);
  wait_for_predecessor();
  release_successor();
  if (threadIdx.x < kConsumers) {
    if constexpr (kCluster > 1) wait_cluster();
    multiply_all(p, part, work, a, shared, address, ring, slots);
  } else {
    copy_all(p, part, work, a, address, ring, slots);
    if constexpr (kCluster > 1) wait_cluster();
  }
}

}  // namespace ws
