// SPDX-License-Identifier: Apache-2.0
// What the macros of sm90_stream_gemm.cuh make of one program: formats, warps, and the layout of shared memory.
#pragma once

#include "common/types.cuh"

#define WS_BF16 0
#define WS_FP16 1
#define WS_NVFP4 2
#define WS_MXFP4 3
#define WS_MXFP8 4
#define WS_FP8_BLOCK 5

#if !defined(WS_A_FORMAT) || !defined(WS_B_FORMAT) || !defined(WS_ROWS) || !defined(WS_CLUSTER) || !defined(WS_AHEAD)
#error "WS_A_FORMAT, WS_B_FORMAT, WS_ROWS, WS_CLUSTER and WS_AHEAD must be defined; see gemm/sm90_stream_gemm.cuh"
#endif

#if WS_CLUSTER > 1
#define WS_CLUSTER_ATTRIBUTE __cluster_dims__(WS_CLUSTER, 1, 1)
#else
#define WS_CLUSTER_ATTRIBUTE
#endif

namespace ws {

enum class Format { bf16 = WS_BF16, fp16, nvfp4, mxfp4, mxfp8, fp8_block = WS_FP8_BLOCK };

constexpr Format kFormatA = static_cast<Format>(WS_A_FORMAT), kFormatB = static_cast<Format>(WS_B_FORMAT);
constexpr bool kBf16 = kFormatA == Format::bf16;
constexpr bool kPlain = kFormatB == Format::bf16 || kFormatB == Format::fp16;
constexpr bool kMx = kFormatB == Format::mxfp4 || kFormatB == Format::mxfp8;
constexpr bool kNvfp4 = kFormatB == Format::nvfp4;
constexpr bool kFp8Block = kFormatB == Format::fp8_block;
static_assert(kBf16 || kFormatA == Format::fp16, "rows of A are bf16 or fp16");
static_assert(!kPlain || kFormatA == kFormatB, "neither of bf16 and fp16 holds the other's values");
static_assert(kBf16 || !kMx, "fp16 cannot hold an element times a power of two of the mx formats");

// ---- along K: a lane reads units of 16 bytes of a row of B; four lanes of a row read a column of 64 bytes -----------

constexpr u32 kBits = kPlain ? 16 : kNvfp4 || kFormatB == Format::mxfp4 ? 4 : 8;
constexpr u32 kUnit = 128 / kBits;      // elements of a unit
constexpr u32 kColumn = 4 * kUnit;
constexpr u32 kBlock = kPlain ? 0 : kNvfp4 ? 16 : kFp8Block ? 128 : 32;  // elements that share a scale
constexpr u32 kOctets = kUnit / 8;      // two MMAs each
constexpr u32 kOctetWords = kBits / 4;  // words of 8 elements

// ---- along rows of B: a warp computes 32 of them at a time ----------------------------------------------------------

constexpr u32 kRows = WS_ROWS;  // of A
constexpr u32 kN8 = kRows / 8;
constexpr u32 kWarpRows = 32;
constexpr u32 kEights = kWarpRows / 8;  // groups of 8 rows; two make an MMA's left operand
constexpr u32 kWarps = 16;
constexpr u32 kThreads = 32 * kWarps;
constexpr u32 kAhead = WS_AHEAD;        // columns that a warp has under way
constexpr u32 kCluster = WS_CLUSTER;    // blocks that divide K
static_assert(kRows == 8 || kRows == 16, "one or two MMA columns");
static_assert(kCluster == 1 || kCluster == 2, "a block or a pair");
constexpr u32 kLeastWarpsK = kCluster == 1 ? 1 : 4;  // warps that divide a row's K
constexpr u32 kMostWarpsRows = kWarps / kLeastWarpsK;
constexpr u32 kMostGroups = 512;

// ---- shared memory --------------------------------------------------------------------------------------------------

struct Shared {
  // A warp's ring of columns: lane l's 16 bytes of a group of 8 rows at 16·l; then scales, 16 bytes a row.
  static constexpr u32 kScales = kWarpRows * 64;
  static constexpr u32 kSlot = kScales + (kPlain ? 0 : kFp8Block ? 16 : kWarpRows * 16);
  static constexpr u32 kRing = 0;
  // Sums of a warp are [row of A][row of B]; 4 words more keep the lanes of a store in different banks.
  static constexpr u32 kStride = kWarpRows + 4;
  static constexpr u32 kSumBytes = kWarps * kRows * kStride * 4;
  static constexpr u32 kInboxBytes = kCluster == 1 ? 0 : kMostWarpsRows * kWarpRows / 2 * kRows * 4;
  static constexpr u32 kSums = kRing + kWarps * kAhead * kSlot;
  static constexpr u32 kInbox = kSums + kSumBytes;      // two buffers
  static constexpr u32 kBarriers = kInbox + 2 * kInboxBytes;
  // Read in place of rows of A beyond the end of K: a lane's elements of a column.
  static constexpr u32 kZeros = kBarriers + 128;
  static constexpr u32 kZeroBytes = 2 * kUnit;
  static constexpr u32 kGroups = kZeros + 64;
  static constexpr u32 kA = (kGroups + 4 * (3 * kMostGroups + kWarps) + 127) / 128 * 128;
  static constexpr u32 kABytes = 232448 - kA;
  static constexpr u32 kBytes = kA + kABytes;
  // A row starts this many bytes behind a multiple of 128, so that loads of 8 lanes, two rows of four units, conflict
  // least: never for 8 and 16 bits, twice for 4.
  static constexpr u32 kSkew = kBits == 4 ? 32 : kBits == 8 ? 16 : 64;
};
static_assert(Shared::kA + 16384 <= 232448, "room for rows of A in a block of 9.0");

}  // namespace ws
