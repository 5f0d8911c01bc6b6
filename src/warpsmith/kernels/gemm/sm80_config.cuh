// SPDX-License-Identifier: Apache-2.0
// What the macros of sm80_gemm.cuh make of one program: formats, tiles, warps, and the layout of shared memory.
#pragma once

#include "common/element_pairs.cuh"
#include "common/types.cuh"

#define WS_BF16 0
#define WS_FP16 1
#define WS_NVFP4 2
#define WS_MXFP4 3
#define WS_MXFP8 4
#define WS_FP8_BLOCK 5
#define WS_FP8_ROW 6  // fp8_tensor too

#if !defined(WS_A_FORMAT) || !defined(WS_B_FORMAT)
#error "WS_A_FORMAT and WS_B_FORMAT must be one of WS_BF16, WS_FP16, WS_NVFP4, WS_MXFP4, WS_MXFP8, WS_FP8_BLOCK, WS_FP8_ROW"
#endif

namespace ws {

enum class Format {
  bf16 = WS_BF16,
  fp16 = WS_FP16,
  nvfp4 = WS_NVFP4,
  mxfp4 = WS_MXFP4,
  mxfp8 = WS_MXFP8,
  fp8_block = WS_FP8_BLOCK,
  fp8_row,
  of_a = WS_A_FORMAT,
  of_b = WS_B_FORMAT
};

WS_DEVICE constexpr u32 element_bits(Format f) {
  return f == Format::bf16 || f == Format::fp16 ? 16 : f == Format::nvfp4 || f == Format::mxfp4 ? 4 : 8;
}

// Elements along K that share a scale; 0 where there is none. Those of fp8_row multiply D.
WS_DEVICE constexpr u32 scale_block(Format f) {
  return element_bits(f) == 16 || f == Format::fp8_row ? 0 : f == Format::nvfp4 ? 16 : f == Format::fp8_block ? 128 : 32;
}

// nvfp4's scales are multiplied into the elements: value · scale has at most 6 significant bits and lies in
// 2^−10..2688, so that the product is exact in fp16 and in bf16. All others do not fit (2^±127, fp32) or share a block
// with a whole step of K, and multiply fp32 sums over their block instead.
WS_DEVICE constexpr bool scales_elements(Format f) { return f == Format::nvfp4; }
WS_DEVICE constexpr bool scales_sums(Format f) { return scale_block(f) != 0 && f != Format::nvfp4; }

enum : bool { kBothPlain = element_bits(Format::of_a) == 16 && element_bits(Format::of_b) == 16 };
enum : bool { kAnyNibbles = element_bits(Format::of_a) == 4 || element_bits(Format::of_b) == 4 };
enum : bool { kBf16 = Format::of_a == Format::bf16 || Format::of_b == Format::bf16 };  // the MMA's type; else fp16
enum : bool { kRowScaled = Format::of_a == Format::fp8_row };
static_assert(kRowScaled == (Format::of_b == Format::fp8_row), "both or none");
static_assert(!kBf16 || (Format::of_a != Format::fp16 && Format::of_b != Format::fp16),
              "neither of bf16 and fp16 holds the other's values");

// ---- tiles and warps ------------------------------------------------------------------------------------------------

enum : u32 { kTileM = WS_TILE_M, kTileN = WS_TILE_N, kTileK = WS_TILE_K };
enum : u32 { kWarpsK = WS_WARPS_K };  // warps that share a part of D and divide the tile's K
enum : u32 { kWarpsMN = WS_WARPS_M * WS_WARPS_N };
enum : u32 { kThreads = 32 * kWarpsMN * kWarpsK };
enum : u32 { kStages = WS_STAGES };
enum : bool { kSwap = WS_SWAP };

// Elements of K that a warp consumes at a time. With a quantized operand a step is 32, of which lanes t = 0..3 of a row
// own elements 8t..8t+7: one word of e2m1, two of e4m3, four of 16 bits. A sum over K does not depend on the order of
// K, so the MMA's K slots take them as they lie, and no element changes lanes.
enum : u32 { kStepK = kBothPlain ? 16 : 32 };
enum : u32 { kStepPairs = kStepK / 8 };  // MMA registers that 8 rows of a step take
enum : u32 { kSteps = kTileK / kStepK / kWarpsK };  // of one warp in a stage
static_assert(kTileK % (kStepK * kWarpsK) == 0 && kStages >= 2, "whole steps, and a stage to copy into");
static_assert((kWarpsK & (kWarpsK - 1)) == 0, "a power of two");

// One operand of the MMA: the left one has 16 rows an MMA, the right one 8.
template <Format kFormat, bool kIsB, u32 kRows_, u32 kWarps>
struct Operand {
  enum : u32 { kBits = element_bits(kFormat) };
  enum : u32 { kRows = kRows_ };             // of the tile
  enum : u32 { kWarpRows = kRows / kWarps };
  enum : u32 { kGroups = kWarpRows / 8 };    // 8-row groups of a warp
  enum : u32 { kWords = kBothPlain ? 2 : kBits / 4 };  // that a lane reads of a group in a step
  static_assert(kRows % (8 * kWarps) == 0 && (kGroups == 1 || kGroups % 2 == 0), "1 or an even number of groups");

  // The tile: rows of kTileK elements, in 16-byte chunks.
  enum : u32 { kRowBytes = kTileK * kBits / 8 };
  enum : u32 { kChunks = kRowBytes / 16 };
  enum : u32 { kTileBytes = kRows * kRowBytes };
  enum : u32 { kStepChunks = kStepK * kBits / 128 };

  // Scales. One scale serves the whole tile where 128 x 128 blocks cover it.
  enum : bool { kScalesElements = scales_elements(kFormat) };
  enum : bool { kScalesSums = scales_sums(kFormat) };
  enum : bool { kSquareBlocks = kIsB && kFormat == Format::fp8_block };
  enum : bool { kOneScale = kSquareBlocks && 128 % kRows == 0 };
  enum : bool { kHasScales = kScalesElements || kScalesSums };
  enum : bool { kFloatScales = kFormat == Format::fp8_block };
  enum : u32 { kBlock = kHasScales ? scale_block(kFormat) : kTileK };
  enum : u32 { kBlocks = kTileK < kBlock ? 1 : kTileK / kBlock };  // of a row in a stage
  enum : u32 { kScaleRows = !kHasScales ? 0 : kOneScale ? 1 : kRows };
  // A thread copies up to four bytes' worth of scales of one row, from two aligned words, or one fp32 scale.
  enum : u32 { kUnitScales = kFloatScales ? 1 : kBlocks < 4 ? kBlocks : 4 };
  enum : u32 { kUnits = kScaleRows * (kBlocks / kUnitScales) };
  enum : u32 { kUnitBytes = kFloatScales ? 4 : 8 };
  // Decoded scales are stored [block][row]; 8 more words keep two blocks of 8 rows in different banks.
  enum : u32 { kScaleStride = kScaleRows + 8 };
  enum : u32 { kDecodedBytes = kHasScales ? kBlocks * kScaleStride * 4 : 0 };
  static_assert(kUnits * kUnitBytes <= kDecodedBytes, "a buffer of decoded scales also holds them as they come");
  static_assert(kTileK % kBlock == 0 || kBlock % kTileK == 0, "whole blocks in a stage or whole stages in a block");

  // log2 of what its elements are too small by in the MMA's registers.
  enum : u32 { kDeficit = kScalesElements ? 7 : 0 };
};

// Large M: rows of A are the left operand. Small M (kSwap): rows of B are, so that few rows of A fill an MMA.
template <bool kSwapped>
struct Roles {
  using Left = Operand<Format::of_a, false, kTileM, WS_WARPS_M>;
  using Right = Operand<Format::of_b, true, kTileN, WS_WARPS_N>;
};
template <>
struct Roles<true> {
  using Left = Operand<Format::of_b, true, kTileN, WS_WARPS_N>;
  using Right = Operand<Format::of_a, false, kTileM, WS_WARPS_M>;
};
using Left = Roles<kSwap>::Left;
using Right = Roles<kSwap>::Right;

enum : u32 { kM16 = Left::kWarpRows / 16, kN8 = Right::kWarpRows / 8 };  // MMA tiles of a warp
static_assert(Left::kWarpRows % 16 == 0, "whole MMA tiles");
enum : bool { kScaledSums = Left::kScalesSums || Right::kScalesSums };

using Sums = float[kM16][kN8][4];

// ---- shared memory --------------------------------------------------------------------------------------------------

struct Shared {
  enum : u32 { kStage = Left::kTileBytes + Right::kTileBytes };  // left tile, then right tile
  enum : u32 { kLeftRaw = kStages * kStage };                    // [kStages][unit] scales as they come
  enum : u32 { kRightRaw = kLeftRaw + kStages * Left::kUnits * Left::kUnitBytes };
  enum : u32 { kLeftScales = (kRightRaw + kStages * Right::kUnits * Right::kUnitBytes + 15) / 16 * 16 };
  enum : u32 { kRightScales = kLeftScales + 2 * Left::kDecodedBytes };
  enum : u32 { kPipeline = kRightScales + 2 * Right::kDecodedBytes };
  // After the last copy, from 0 on, the sums of warps that share a part of D.
  enum : u32 { kPartialSums = (kWarpsK - 1) * kTileM * kTileN * 4 };
  enum : u32 { kTile = kPipeline > kPartialSums ? kPipeline : kPartialSums };  // which tile this is
  enum : u32 { kBytes = kTile + 32 };
};

// The epilogue needs kTileM · kTileN floats, or a part of them at a time, in rows whose padding keeps the lanes of a store
// in different banks.
WS_DEVICE constexpr u32 epilogue_stride(u32 passes) { return kSwap ? 16 * kM16 / passes + 4 : 8 * kN8 + 8; }
WS_DEVICE constexpr u32 epilogue_bytes(u32 passes) {
  return (kSwap ? 8 * kN8 : 16 * kM16 / passes) * epilogue_stride(passes) * 4 * kWarpsMN;
}
enum : u32 { kEpiloguePasses = epilogue_bytes(1) <= Shared::kTile ? 1 : epilogue_bytes(2) <= Shared::kTile ? 2 : 4 };

static_assert(Left::kTileBytes % 128 == 0 && Right::kTileBytes % 128 == 0, "rows of tiles keep their banks");
#if __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 870
enum : u32 { kSharedLimit = 166912 };
#elif __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
enum : u32 { kSharedLimit = 232448 };
#else
enum : u32 { kSharedLimit = 101376 };
#endif
static_assert(Shared::kBytes <= kSharedLimit, "shared memory of a block");
static_assert(Shared::kTile >= 256, "room for the search for a group");

}  // namespace ws
