// SPDX-License-Identifier: Apache-2.0
// What the macros of sm12x_blockscaled_gemm.cuh make of one program: operands, tiles, warps, and shared memory.
#pragma once

#include "common/gemm_problem.cuh"
#include "common/mma_blockscaled.cuh"
#include "common/types.cuh"

#define WS_NVFP4 2
#define WS_MXFP4 3
#define WS_MXFP8 4
#define WS_FP8_BLOCK 5

// 1: all lanes say that they have read a stage, not one for its warp after __syncwarp, which racecheck does not follow.
#ifndef WS_EVERY_LANE_ARRIVES
#define WS_EVERY_LANE_ARRIVES 0
#endif

// 1: D is the codes of an activation's blocks, in A's format; see sm12x_gated_epilogue.cuh.
#ifndef WS_GATED
#define WS_GATED 0
#endif

namespace ws {

enum class Format {
  nvfp4 = WS_NVFP4,
  mxfp4 = WS_MXFP4,
  mxfp8 = WS_MXFP8,
  fp8_block = WS_FP8_BLOCK,
  of_a = WS_A_FORMAT,
  of_b = WS_B_FORMAT
};
enum : bool { kMixed = Format::of_a == Format::mxfp8 && Format::of_b == Format::mxfp4 };
static_assert(Format::of_a == Format::of_b || kMixed, "operands of one format, or mxfp8 by mxfp4");

WS_DEVICE constexpr u32 element_bits(Format f) { return f == Format::nvfp4 || f == Format::mxfp4 ? 4 : 8; }

enum : bool { kSwap = WS_SWAP };
enum : u32 { kTileM = WS_TILE_M, kTileN = WS_TILE_N, kTileK = WS_TILE_K };

WS_DEVICE constexpr MmaKind mma_kind() {
  return Format::of_a == Format::nvfp4   ? MmaKind::nvfp4
         : Format::of_a == Format::mxfp4 ? MmaKind::mxfp4
         : !kMixed                       ? MmaKind::e4m3_e4m3
         : kSwap                         ? MmaKind::e2m1_e4m3
                                         : MmaKind::e4m3_e2m1;
}
enum : u32 { kSteps = kTileK / mma_k(mma_kind()) };  // MMA steps along K in a stage
static_assert(kSteps % 2 == 0, "fragments alternate between two buffers");

// ---- scales -------------------------------------------------------------------------------------------------------

// fp8_block multiplies with scales of 1 and adds sums over 128 of K, times the fp32 scales of A and B, to those of D.
enum : bool { kPromoted = Format::of_a == Format::fp8_block };

// One-byte scales come in atoms: 128 rows by 4 blocks of K are 512 bytes, row r's 4 at r % 32 · 16 + r / 32 · 4. A
// stage has kAtoms of them for every 128 rows, or kScaleStages stages share one.
enum : u32 { kAtomBytes = 512 };
enum : u32 { kScaleK = Format::of_a == Format::nvfp4 ? 64 : 128 };  // K of an atom, or of an fp32 scale
enum : u32 { kAtoms = kTileK < kScaleK ? 1 : kTileK / kScaleK };
enum : u32 { kScaleStages = kTileK < kScaleK ? kScaleK / kTileK : 1 };
enum : u32 { kScaleSteps = kScaleK / mma_k(mma_kind()) };

static_assert(kScaleStages <= (kPromoted ? 1 : 2) && (!kPromoted || kAtoms == 1), "a scale serves one stage or two");

// ---- operands -----------------------------------------------------------------------------------------------------

// The MMA's left operand has 16 rows, the right one 8. Rows of A are on the left, or, for small M, rows of B (kSwap).
template <bool kIsA, u32 kWarps_>
struct Operand {
  enum : bool { kA = kIsA };
  // Nibbles where the MMA takes bytes. prepare_weight has put elements k and k + 16 of every 32 into one byte, so that
  // a lane's word of a row's 16 bytes holds both words of its fragment.
  enum : bool { kPrepared = kMixed && !kIsA };
  enum : u32 { kRows = kIsA ? kTileM : kTileN };
  enum : u32 { kWarps = kWarps_ };
  enum : u32 { kWarpRows = kRows / kWarps };
  enum : u32 { kSlabs = div_up(kWarpRows, 32) };  // of 32 rows
  enum : u32 { kRowBytes = kTileK * element_bits(kIsA ? Format::of_a : Format::of_b) / 8 };
  enum : u32 { kTileBytes = kRows * kRowBytes };
  enum : u32 { kStepBytes = kPrepared ? 16 : 32 };  // of a row
  enum : u32 { kBlocks = div_up(kRows, 128) };      // of 128 rows
  // fp32 scales of A are copied from a multiple of four rows on; one serves all rows of B.
  enum : u32 { kScaleBytes = kPromoted ? (kIsA ? (kRows + 4) * 4 : 16) : kBlocks * kAtoms * kAtomBytes };
  static_assert(kRowBytes <= 128 && kRows <= 256, "a box of a tensor map");
};

using Left = Operand<!kSwap, kSwap ? WS_WARPS_N : WS_WARPS_M>;
using Right = Operand<kSwap, kSwap ? WS_WARPS_M : WS_WARPS_N>;
enum : u32 { kM16 = Left::kWarpRows / 16, kN8 = Right::kWarpRows / 8 };  // MMA tiles of a warp
static_assert(Left::kWarpRows % 32 == 0 && (Right::kWarpRows % 32 == 0 || Right::kRows < 32), "whole slabs");
static_assert(kTileN == 128 && Left::kRows % 128 == 0, "one row of 128 x 128 scales; whole atoms on the left");

using Sums = float[kM16][kN8][4];

// ---- warps --------------------------------------------------------------------------------------------------------

// Beside eight MMA warps the producer has a warpgroup of its own, of which one warp works: registers move by whole
// warpgroups, and the SM's four partitions hand out as many for nine warps as for twelve.
enum : u32 { kMmaWarps = WS_WARPS_M * WS_WARPS_N, kMmaThreads = 32 * kMmaWarps };
enum : bool { kMovesRegisters = kMmaWarps == 8 };
enum : u32 { kThreads = kMmaThreads + (kMovesRegisters ? 128 : 32) };
enum : u32 { kProducerRegisters = mma_kind() == MmaKind::e4m3_e4m3 ? 56 : 40 };
enum : u32 { kMmaRegisters = mma_kind() == MmaKind::e4m3_e4m3 ? 224 : 232 };
static_assert(kMmaWarps == 4 || kMmaWarps == 8, "one or two MMA warps in a partition of the SM");
static_assert(128 * kProducerRegisters + 256 * kMmaRegisters <= 384 * 168, "registers that the block starts with");

// ---- shared memory ------------------------------------------------------------------------------------------------

struct Stage {
  enum : u32 { kLeft = 0 };  // rows of kRowBytes, swizzled
  enum : u32 { kRight = Left::kTileBytes };
  enum : u32 { kLeftScales = kRight + Right::kTileBytes };  // [kBlocks][kAtoms] atoms, or floats
  enum : u32 { kRightScales = kLeftScales + Left::kScaleBytes };
  enum : u32 { kBytes = (kRightScales + Right::kScaleBytes + 1023) / 1024 * 1024 };
  static_assert(kRight % 1024 == 0, "swizzled tiles are aligned to 1024 bytes");
};

// Each warp writes D by parts of 8 rows, which pass through shared memory of its own.
enum : u32 { kPartColumns = kSwap ? Left::kWarpRows : Right::kWarpRows };
enum : u32 { kPartBytes = 8 * kPartColumns * 4 };
static_assert(kPartColumns == 32 || kPartColumns == 64, "whole rows for 8 or 16 lanes");

// A warp has half as many activations of a row. Where two warps share a block of them, they exchange the largest values
// of a part's rows, in two turns.
enum : u32 { kBlock = Format::of_a == Format::nvfp4 ? 16 : 32 };
enum : bool { kExchanges = WS_GATED && kPartColumns / 2 < kBlock };
enum : u32 { kExchangeBytes = kExchanges ? 2 * kMmaWarps * 8 * 4 : 0 };

struct Shared {
  enum : u32 { kLimit = 101376 };  // of a block of 12.x
  enum : u32 { kTileWords = 8 };   // that describe a tile
  enum : u32 { kFixed = kMmaWarps * kPartBytes + 16 + kExchangeBytes };
  enum : u32 { kPerStage = Stage::kBytes + 16 + kTileWords * 4 };
  enum : u32 { kFit = (kLimit - kFixed - kTileWords * 4) / kPerStage };
  enum : u32 { kStages = kFit < 10 ? kFit : 10 };
  enum : u32 { kTileSlots = kStages + 1 };

  enum : u32 { kParts = kStages * Stage::kBytes };          // [kMmaWarps]
  enum : u32 { kTiles = kParts + kMmaWarps * kPartBytes };  // [kTileSlots][kTileWords]
  enum : u32 { kFull = kTiles + kTileSlots * kTileWords * 4, kEmpty = kFull + kStages * 8 };  // barriers
  enum : u32 { kLast = kEmpty + kStages * 8 };              // whether a block is the last of a tile's splits
  enum : u32 { kExchange = kLast + 16 };                    // [2][kMmaWarps][8]
  enum : u32 { kBytes = kExchange + kExchangeBytes };
  static_assert(kBytes <= kLimit && kStages >= 2, "shared memory of a block of 12.x");
};

// A place in the ring of stages; producer and consumers each walk their own. All are shared addresses.
struct Ring {
  u32 base, stage, full, parity;

  WS_DEVICE explicit Ring(u32 shared) : base(shared), stage(shared), full(shared + Shared::kFull), parity(0) {}
  WS_DEVICE u32 empty() const { return full + (Shared::kEmpty - Shared::kFull); }
  WS_DEVICE void advance() {
    stage += Stage::kBytes;
    full += 8;
    if (full == base + Shared::kEmpty) {
      stage = base;
      full = base + Shared::kFull;
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

}  // namespace ws
