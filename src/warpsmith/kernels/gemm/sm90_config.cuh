// SPDX-License-Identifier: Apache-2.0
// What the macros of sm90_gemm.cuh make of one program: operands, tiles, warpgroups, and shared memory.
#pragma once

#include "common/types.cuh"
#include "common/wgmma.cuh"

#define WS_BF16 0
#define WS_FP16 1
#define WS_NVFP4 2
#define WS_MXFP4 3
#define WS_MXFP8 4
#define WS_FP8_BLOCK 5
#define WS_FP8_ROW 6  // fp8_tensor too

#ifndef WS_CLUSTER
#define WS_CLUSTER 1
#endif
#ifndef WS_PARTS
#define WS_PARTS 1
#endif
#ifndef WS_STAGES
#define WS_STAGES 16  // at most; as many as fit
#endif
#ifndef WS_GROUPS
#define WS_GROUPS 2
#endif
#ifndef WS_GROUPS_K
#define WS_GROUPS_K 1
#endif
#ifndef WS_FITS
#define WS_FITS 0
#endif
#ifndef WS_BLOCKS
#define WS_BLOCKS 1
#endif
#ifndef WS_BUFFERS
#define WS_BUFFERS 1
#endif
#ifndef WS_ACTIVATES
#define WS_ACTIVATES 1
#endif
#ifndef WS_PERIOD
#define WS_PERIOD 0
#endif
#ifndef WS_PACKED
#define WS_PACKED 0
#endif
#ifndef WS_BAND
#define WS_BAND 8
#endif

#ifndef WS_LATE
#define WS_LATE 1
#endif

// 1: all lanes arrive at barriers, not one for its warp, which racecheck does not follow.
#ifndef WS_EVERY_LANE_ARRIVES
#define WS_EVERY_LANE_ARRIVES 0
#endif

namespace ws {

// Rows of B, quantized, that become the type of A in registers.
constexpr bool kMixed = WS_A_FORMAT != WS_B_FORMAT, kNvfp4 = WS_B_FORMAT == WS_NVFP4;
constexpr bool kSquares = kMixed && WS_B_FORMAT == WS_FP8_BLOCK;  // an fp32 scale for 128 of K and all rows of a tile
constexpr bool kWholeBytes = kSquares || (kMixed && WS_B_FORMAT == WS_MXFP8);  // e4m3, else e2m1
// 4-bit rows of B in the order of common/prepared_weights.cuh. An enumerator is no symbol of other cubins.
enum : bool { kPacked = WS_PACKED };
WS_DEVICE constexpr float unit_of_sums() { return !kPacked ? 1.0f : kNvfp4 ? 128.0f : 0.5f; }  // what they are too small by
static_assert(!kPacked || (kMixed && (kNvfp4 || WS_B_FORMAT == WS_MXFP4)), "nvfp4 and mxfp4 beside bf16 have that order");
static_assert(!kMixed || (WS_A_FORMAT == WS_BF16 && WS_SWAP), "beside quantized rows of B, bf16; they are the left operand");
constexpr WgmmaType kType = WS_A_FORMAT == WS_BF16   ? WgmmaType::bf16
                            : WS_A_FORMAT == WS_FP16 ? WgmmaType::fp16
                                                     : WgmmaType::e4m3;

WS_DEVICE constexpr u32 div_up(u32 a, u32 b) { return (a + b - 1) / b; }

// ---- tiles --------------------------------------------------------------------------------------------------------

// A stage has 128 bytes of K, of which an MMA takes 32; beside quantized rows of B, rows of
// A have 128 or twice 128 bytes.
constexpr u32 kTileM = WS_TILE_M, kTileN = WS_TILE_N, kTileK = WS_TILE_K;
constexpr u32 kRowBytes = 128, kStepBytes = 32, kBoxesA = kMixed ? kTileK / 64 : 1;
constexpr u32 kRowBytesB = !kMixed ? kRowBytes : kWholeBytes ? kTileK : kTileK / 2;
constexpr bool kSwap = WS_SWAP;
static_assert(kTileK == (kType == WgmmaType::e4m3 ? 128 : 64) || (kMixed && kTileK == 128), "rows of a stage, 128 bytes");

// Blocks of a cluster compute tiles one below the other: each has rows of A of its own, and copies its part of the rows
// of B to all of them.
constexpr u32 kCluster = WS_CLUSTER, kClusterM = kCluster * kTileM, kPartB = kTileN / kCluster;
static_assert(kPartB % 8 == 0, "parts start with the swizzle's pattern");

// Or the blocks of a cluster divide the K of a tile, and add their sums through each other's shared memory.
constexpr u32 kPartsK = WS_PARTS, kClusterBlocks = kCluster * kPartsK;
static_assert(kCluster == 1 || kPartsK == 1, "clusters divide M or K");

// The left operand of the MMA has 64 rows, the right one 8 to 256. Rows of A are on the left, or, for small M, rows of
// B (kSwap). Two warpgroups divide the left rows, or, where there are 64, the right ones.
constexpr u32 kGroups = WS_GROUPS, kGroupsK = WS_GROUPS_K, kGroupsTile = kGroups / kGroupsK;
constexpr u32 kLeftRows = kSwap ? kTileN : kTileM, kRightRows = kSwap ? kTileM : kTileN;
constexpr u32 kGroupsLeft = kLeftRows == 64 ? 1 : kGroupsTile, kGroupsRight = kGroupsTile / kGroupsLeft;
constexpr u32 kM64 = kLeftRows / kGroupsLeft / 64, kN = kRightRows / kGroupsRight;  // MMA tiles of a warpgroup
static_assert(kLeftRows % (64 * kGroupsLeft) == 0 && kN % 8 == 0 && kN <= 256, "whole MMA tiles");
static_assert(kSwap || (kN % 32 == 0 && kN != 96), "parts of D have 64 columns or 32, the last one perhaps shared");

using Sums = float[kM64][kN / 2];

// fp8_block: sums over 128 of K, times the fp32 scales of A and B, are added to those of D.
// With two buffers the next sums are under way while the last ones are added.
constexpr bool kPromoted = WS_A_FORMAT == WS_FP8_BLOCK;
// Activations are of 16-bit operands: a stage of fp8_block has one scale for all rows of B, and a gate's differ from those
// of what it gates. Some tiles leave them out: beside them ptxas makes their MMAs wait for each other.
constexpr bool kActivates = kType != WgmmaType::e4m3 && !kMixed && WS_ACTIVATES;
// fp8_tensor, fp8_row: sums over all of K are scaled. The tensor cores add in fewer bits than fp32 has: what they have
// summed over kPeriod stages is added in fp32, unless that is 0.
constexpr bool kScaled = WS_A_FORMAT == WS_FP8_ROW;
constexpr u32 kPeriod = WS_PERIOD, kTurn = 4;  // periods in a turn of the loop
constexpr u32 kBuffers = WS_BUFFERS;
static_assert(kPeriod == 0 || kM64 == 1, "one MMA tile a warpgroup");
static_assert(!kPromoted || (kM64 == 1 && kTileN <= 128), "one MMA tile a warpgroup, one of 128 x 128 scales a stage");
using Part = float[kN / 2];
// Their products then are in registers that only PTX names, in tiles that are not swapped: wgmma_hidden.cuh.
constexpr bool kHidesProducts = kBuffers == 2 && !kSwap && (kPromoted || kPeriod != 0);

// ---- warpgroups ---------------------------------------------------------------------------------------------------

// A block that has a multiprocessor to itself moves registers from a producer's warpgroup, of which one warp works, to
// the others. Small tiles share the multiprocessor with other blocks, and leave registers as they are.
constexpr u32 kBlocks = WS_BLOCKS;
constexpr bool kMovesRegisters = kBlocks == 1 && kGroups == 2;
constexpr u32 kMmaWarps = 4 * kGroups, kMmaThreads = 32 * kMmaWarps;
constexpr u32 kTileWarps = 4 * kGroupsTile, kTileThreads = 32 * kTileWarps;  // that write D
constexpr u32 kArriving = WS_EVERY_LANE_ARRIVES ? 32 : 1;  // lanes of a warp
constexpr u32 kProducers = kPromoted || kMixed ? 2 : 1;  // warps: for elements, for scales
constexpr u32 kThreads = kMmaThreads + (kMovesRegisters ? 128 : 32 * kProducers);
constexpr u32 kProducerRegisters = 40, kMmaRegisters = kPromoted ? 224 : 232;

// ---- shared memory ------------------------------------------------------------------------------------------------

constexpr u32 kLeftBytes = kLeftRows * (kSwap ? kRowBytesB : kRowBytes);
constexpr u32 kRightBytes = kRightRows * (kSwap ? kRowBytes * kBoxesA : kRowBytesB);
constexpr u32 kStageBytes = kLeftBytes + kRightBytes;  // left tile, then right tile
static_assert(kLeftBytes % 1024 == 0 && kRightBytes % 1024 == 0, "swizzled tiles are aligned to 1024 bytes");

// fp32 scales of a stage: those of A's rows, copied from a multiple of four rows on; then those of B's rows, or one for
// all of them.
struct Scales {
  static constexpr u32 kA = 0;
  static constexpr u32 kB = (kTileM + 4) * 4;
  // Mixed: words of four scales of B's rows, and one more for rows that do not start at a word.
  static constexpr u32 kOfRow = kTileK / (kNvfp4 ? 16 : 32), kWords = div_up(kOfRow, 4), kTiles = div_up(kTileN, 128);
  static constexpr u32 kOfRows = kSquares ? 16 : kPacked ? kTileN * kOfRow : kTiles * (kWords + 1) * 512;
  static constexpr u32 kBytes = kPromoted ? kB + (kTileN + 4) * 4 : kMixed ? kOfRows : 0;
};

// Each warp writes D by parts of 2 KB, which pass through shared memory of its own; where the copy engine takes them from
// there, it has two, if it has so much to write. Then come 64 values of bias.
constexpr bool kStores = !kSwap && kN >= 64;  // parts have rows of 128 bytes
constexpr bool kTwoParts = kStores && (kN > 64 || kGroups == 1);  // a stage more is of no use to one warpgroup
constexpr u32 kPartBytes = 2048, kOwnParts = kTwoParts ? 2 : 1, kOwnBytes = kOwnParts * kPartBytes + 256;
// Large tiles of 16-bit operands store D while the next tile is under way: sm90_late_stores.cuh.
enum : bool { kLate = WS_LATE && kStores && kType != WgmmaType::e4m3 && !kMixed && kM64 == 1 && kN > 64 && kPartsK == 1 };

// Warpgroups that take stages of a tile by turns leave their sums for the first ones.
constexpr u32 kLeftBytesOfSums = (kGroupsK - 1) * kTileThreads * kM64 * kN * 2;

// With parts of K, a warp's sums that another block of the cluster sends.
constexpr u32 kSentBytes = kPartsK > 1 ? kM64 * kN / 2 * 32 * 4 : 0;

struct Shared {
  static constexpr u32 kLimit = 233472 / kBlocks - 1024;  // of a block
  static constexpr u32 kTileWords = 8;   // that describe a tile
  static constexpr u32 kFixed = kTileWarps * (kOwnBytes + kSentBytes + 16) + kLeftBytesOfSums + kTileWords * 4 + 32;
  static constexpr u32 kPerStage = kStageBytes + Scales::kBytes + 16 + kTileWords * 4;
  static constexpr u32 kFit = (kLimit - kFixed) / kPerStage;
  static constexpr u32 kStages = kFit < WS_STAGES ? kFit : WS_STAGES;
  static constexpr u32 kTileSlots = kStages + 1;

  static constexpr u32 kParts = kStages * kStageBytes;            // [kTileWarps]
  static constexpr u32 kSent = kParts + kTileWarps * kOwnBytes;   // [kTileWarps]
  static constexpr u32 kSums = kSent + kTileWarps * kSentBytes;   // [kGroupsK - 1][kM64 * kN / 8][kTileThreads][4]
  static constexpr u32 kScales = kSums + kLeftBytesOfSums;        // [kStages]
  static constexpr u32 kTiles = kScales + kStages * Scales::kBytes;  // [kTileSlots][kTileWords]
  static constexpr u32 kFull = kTiles + kTileSlots * kTileWords * 4, kEmpty = kFull + kStages * 8;  // barriers
  static constexpr u32 kArrived = kEmpty + kStages * 8, kTaken = kArrived + kTileWarps * 8;  // barriers of warps
  static constexpr u32 kLast = kTaken + kTileWarps * 8;  // whether a block is the last of a tile's splits
  static constexpr u32 kBytes = kLast + 16;
  static_assert(Scales::kBytes % 16 == 0 && kTiles % 16 == 0, "aligned for bulk copies");
  static_assert(kBytes <= kLimit && kStages >= 2, "shared memory of a block");
  static_assert(kPeriod == 0 || kStages >= 2 * kPeriod, "two periods under way");
};

// Beside quantized rows of B, boxes of A have no more rows than the matrix only where that is asked for.
enum : bool { kFits = !kMixed || WS_FITS };
// Warpgroups that take stages by turns, of which few fit, hold none while they wait for their next one.
enum : bool { kDrains = kMixed && kGroupsK == 2 && kTileM == 128 };

// A place in the ring of stages; producer and consumers each walk their own.
struct Ring {
  u32 base;  // shared address
  u32 index = 0, parity = 0;

  WS_DEVICE u32 left() const { return base + index * kStageBytes; }
  WS_DEVICE u32 right() const { return left() + kLeftBytes; }
  WS_DEVICE u32 scales() const { return base + Shared::kScales + index * Scales::kBytes; }
  WS_DEVICE u32 full() const { return base + Shared::kFull + index * 8; }
  WS_DEVICE u32 empty() const { return base + Shared::kEmpty + index * 8; }
  WS_DEVICE void advance() {
    if (++index == Shared::kStages) {
      index = 0;
      parity ^= 1;
    }
  }
};

// A place in the ring of tile descriptions. The producer is at most kStages tiles ahead of a tile that is being
// written, since each has a stage at least.
struct TileRing {
  u32 base;  // shared address
  u32 index = 0;

  WS_DEVICE u32 slot() const { return base + Shared::kTiles + index * Shared::kTileWords * 4; }
  WS_DEVICE void advance() { index = index + 1 == Shared::kTileSlots ? 0 : index + 1; }
};

// Which part of a tile a warp has.
struct Place {
  u32 group, warp, lane, turn = 0;  // warpgroup of the tile, warp of the warpgroup; which stages, by turns

  WS_DEVICE u32 left() const { return kGroupsLeft == 2 ? group * (kLeftRows / 2) : 0; }  // first rows of the warpgroup
  WS_DEVICE u32 right() const { return kGroupsRight == 2 ? group * kN : 0; }
};

}  // namespace ws
