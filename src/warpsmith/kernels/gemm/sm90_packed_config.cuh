// SPDX-License-Identifier: Apache-2.0
// What the macros of sm90_packed_gemm.cuh make of one program: rows, stages, and the layout of shared memory.
#pragma once

#include "common/prepared_weights.cuh"
#include "common/types.cuh"

#define WS_NVFP4 2
#define WS_MXFP4 3

#if !defined(WS_B_FORMAT) || !defined(WS_ROWS) || !defined(WS_CLUSTER)
#error "WS_B_FORMAT, WS_ROWS and WS_CLUSTER must be defined; see gemm/sm90_packed_gemm.cuh"
#endif

#if WS_CLUSTER > 1
#define WS_CLUSTER_ATTRIBUTE __cluster_dims__(WS_CLUSTER, 1, 1)
#else
#define WS_CLUSTER_ATTRIBUTE
#endif

namespace ws {

constexpr bool kNvfp4 = WS_B_FORMAT == WS_NVFP4;
constexpr u32 kRows = WS_ROWS, kN8 = kRows / 8;  // of A at a time, at most
constexpr u32 kCluster = WS_CLUSTER;             // blocks that divide K
static_assert(kNvfp4 || WS_B_FORMAT == WS_MXFP4, "weights are nvfp4 or mxfp4");
static_assert(kRows == 8 || kRows == 16, "one or two MMA columns");
static_assert(kCluster == 1 || kCluster == 2 || kCluster == 4, "blocks that divide K");

constexpr u32 kWarps = 16;               // that multiply; one more copies
constexpr u32 kConsumers = 32 * kWarps;  // threads
constexpr u32 kThreads = kConsumers + 32;
constexpr u32 kMostGroups = 512;

// A block computes 32 rows of B at a time, two tiles side by side that share their scales and rows of A. A stage has
// 64 of K for each warp.
constexpr u32 kTileRows = 2 * kPreparedTileRows;
constexpr u32 kScaleWords = kNvfp4 ? 4 : 2;     // of a lane, for 64 of K
constexpr u32 kScaleBytes = 8 * 4 * kScaleWords;
constexpr u32 kShare = kTileRows / kCluster;    // rows of B whose sums a block of a cluster finishes
static_assert(kTileRows * kRows <= kConsumers, "a value of D a thread");

struct Shared {
  static constexpr u32 kCodes = kWarps * kPreparedTileBytes;  // of 16 rows
  static constexpr u32 kStage = 2 * kCodes + kWarps * kScaleBytes;
  static constexpr u32 kLeastStages = 3, kMostStages = 14;
  // Barriers: stages that are full and empty, pieces of two sets of rows of A, sets that are free, sums of other blocks.
  static constexpr u32 kFull = 0, kEmpty = 128, kPieces = 256, kFree = 320, kArrived = 336;
  static constexpr u32 kZeros = 384;  // read in place of rows of A that there are not
  // Sums of a warp are [row of A][row of B]; 4 words more keep the lanes of a store in different banks.
  static constexpr u32 kStride = kTileRows + 4;
  static constexpr u32 kSums = 512;
  static constexpr u32 kInbox = kSums + kWarps * kRows * kStride * 4;  // two buffers
  static constexpr u32 kInboxBytes = (kCluster - 1) * kShare * kRows * 4;
  static constexpr u32 kGroups = kInbox + 2 * kInboxBytes;
  static constexpr u32 kA = kGroups + (3 * kMostGroups + 4) * 4;  // then rows of A, then stages
  static constexpr u32 kBytes = 232448;
};
static_assert(Shared::kMostStages * 8 <= Shared::kEmpty && Shared::kA % 16 == 0, "layout of barriers and rows");

}  // namespace ws
