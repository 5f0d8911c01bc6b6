// SPDX-License-Identifier: Apache-2.0
// The values of the macros that select a program, the flags of a launch, and what a format fixes.
#pragma once

#include "common/types.cuh"

#define WS_NVFP4 1
#define WS_MXFP4 2
#define WS_MXFP8 3
#define WS_FP8_BLOCK 4

#define WS_BF16 1
#define WS_FP16 2
#define WS_FP32 3

namespace ws {

enum : u32 { kThreads = 256 };
enum : u32 { kElements = 8 };   // of one row, that a thread takes at a time
enum : u32 { kSlab = 128 };     // rows: the 128x4 layout's unit, and a group's

// Run-time flags; ops/quantization_args.py holds the same numbers.
enum : u32 { kVectorRows = 1 };       // the 16-bit or fp32 tensor is accessed by 16-byte vectors
enum : u32 { kVectorCodes = 2 };      // a thread's codes are accessed at once
enum : u32 { kVectorScales = 4 };     // one-byte scales are stored four at a time
enum : u32 { kLayout128x4 = 8 };
enum : u32 { kLayoutMMajor = 16 };
enum : u32 { kFloor = 32 };           // rounding of ue8m0 scales
enum : u32 { kOffsets64 = 64 };
enum : u32 { kPaddedGroups = 128 };   // the grid runs over the groups' padded rows
enum : u32 { kScalePerGroup = 256 };  // one global scale a group
enum : u32 { kSquareBlocks = 512 };   // fp8_block scales cover 128 rows too

WS_DEVICE constexpr u32 element_bytes(int type) { return type == WS_FP32 ? 4 : 2; }
WS_DEVICE constexpr u32 element_words(int type) { return kElements * element_bytes(type) / 4; }

template <int kFormat>
struct Format {
  enum : bool { nibbles = kFormat == WS_NVFP4 || kFormat == WS_MXFP4 };
  enum : u32 { block = kFormat == WS_NVFP4 ? 16 : kFormat == WS_FP8_BLOCK ? 128 : 32 };
  enum : u32 { lanes = block / kElements };         // threads that share a block
  enum : u32 { code_words = nibbles ? 1 : 2 };      // of a thread's eight codes
  enum : bool { byte_scales = kFormat != WS_FP8_BLOCK };
};

}  // namespace ws
