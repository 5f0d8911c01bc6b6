// SPDX-License-Identifier: Apache-2.0
// From a stage to the MMA's operands: fragments and scale words of one warp.
#pragma once

#include "common/shared_load.cuh"
#include "common/tma.cuh"
#include "fp4_gemm/sm12x_config.cuh"

namespace ws {

// A lane's word of scales serves MMA row g = lane / 4 of the 8-row group t = lane % 4 of a slab. Were that row 8t + g
// of the slab, the loads of the four t would meet in the same banks. So in group t MMA row g is row g ^ 2t of the
// group; the same holds for columns of the right operand, whose pairs stay together. Fragments and D follow it.
WS_DEVICE constexpr u32 in_group(u32 group, u32 mma_row) { return mma_row ^ (2 * (group % 4)); }
WS_DEVICE constexpr u32 slab_row(u32 group, u32 mma_row) { return 8 * group + in_group(group, mma_row); }

// Where a lane's loads of an operand start within its tile. Pairs of 8-row groups of odd and even number differ in
// their permutation.
template <class Op, bool kIsLeft>
struct TileReader {
  enum : u32 { kGroups = Op::kWarpRows / 8 };
  enum : u32 { kSlabBytes = 32 * Op::kRowBytes };
  enum : u32 { kKinds = Op::kPrepared ? 1 : 2 };
  u32 offsets[kKinds][kSteps];

  // Matrices of ldmatrix, of 8 rows by 16 bytes. Left: groups 0 and 1 of the low 16 bytes of a step, then of the high
  // ones. Right: low and high 16 bytes of group 0, then of group 1. Nibbles: 16 bytes of groups 0 to 3.
  WS_DEVICE TileReader(u32 warp, u32 lane) {
    const u32 matrix = lane / 8;
    const u32 group = Op::kPrepared ? matrix : kIsLeft ? matrix % 2 : kGroups == 1 ? 0 : matrix / 2;
    const u32 chunk = Op::kPrepared ? 0 : kIsLeft ? matrix / 2 : matrix % 2;
#pragma unroll
    for (u32 odd = 0; odd < kKinds; ++odd) {
      const u32 row = warp * Op::kWarpRows + slab_row(2 * odd + group, lane % 8);
#pragma unroll
      for (u32 step = 0; step < kSteps; ++step) {
        offsets[odd][step] = swizzled_offset<Op::kRowBytes>(row, step * Op::kStepBytes / 16 + chunk);
      }
    }
  }

  WS_DEVICE u32 address(u32 tile, u32 pair, u32 step) const {
    return tile + offsets[pair % kKinds][step] + pair / 2 * kSlabBytes;
  }

  // m16 tiles of the left operand: a register each for rows g and g + 8 of the low half of K, then of the high one.
  WS_DEVICE void read(u32 tile, u32 step, u32 (&words)[div_up(kGroups, 2)][4]) const {
    if constexpr (Op::kPrepared) {
#pragma unroll
      for (u32 i = 0; i < kGroups / 2; i += 2) {
        u32 v[4];
        ldmatrix_x4(address(tile, i, step), v[0], v[1], v[2], v[3]);
#pragma unroll
        for (u32 j = 0; j < 4; ++j) unpack(v[j], words[i + j / 2][j % 2], words[i + j / 2][j % 2 + 2]);
      }
    } else {
#pragma unroll
      for (u32 i = 0; i < kGroups / 2; ++i) {
        ldmatrix_x4(address(tile, i, step), words[i][0], words[i][1], words[i][2], words[i][3]);
      }
    }
  }

  // n8 tiles of the right operand: a register for the low half of K and one for the high half.
  WS_DEVICE void read(u32 tile, u32 step, u32 (&words)[kGroups][2]) const {
    if constexpr (Op::kPrepared) {
#pragma unroll
      for (u32 i = 0; i < kGroups; i += 4) {
        u32 v[4];
        ldmatrix_x4(address(tile, i / 2, step), v[0], v[1], v[2], v[3]);
#pragma unroll
        for (u32 j = 0; j < 4; ++j) unpack(v[j], words[i + j][0], words[i + j][1]);
      }
    } else if constexpr (kGroups == 1) {
      ldmatrix_x2(address(tile, 0, step), words[0][0], words[0][1]);
    } else {
#pragma unroll
      for (u32 i = 0; i < kGroups; i += 2) {
        ldmatrix_x4(address(tile, i / 2, step), words[i][0], words[i][1], words[i + 1][0], words[i + 1][1]);
      }
    }
  }

 private:
  // Nibbles to the middle of bytes, 00ABCD00.
  WS_DEVICE static void unpack(u32 nibbles, u32& low, u32& high) {
    low = nibbles << 2 & 0x3C3C3C3Cu;
    high = nibbles >> 2 & 0x3C3C3C3Cu;
  }
};

// Where a lane's words of one-byte scales start within a stage; `row` is the warp's first, in its atoms.
WS_DEVICE u32 scale_offset(u32 row, u32 lane) {
  const u32 group = lane % 4, slab = row / 32;
  return slab / 4 * kAtoms * kAtomBytes + slab % 4 * 4 +
         (8 * ((group + row / 8) % 4) + in_group(group, lane / 4)) * 16;
}

struct Fragments {
  u32 left[kM16][4], right[kN8][2], left_scales[Left::kSlabs], right_scales[Right::kSlabs];

  WS_DEVICE void set_scales(u32 word) {
#pragma unroll
    for (u32 i = 0; i < Left::kSlabs; ++i) left_scales[i] = word;
#pragma unroll
    for (u32 i = 0; i < Right::kSlabs; ++i) right_scales[i] = word;
  }

  WS_DEVICE void copy_scales(const Fragments& from, u32 shift) {
#pragma unroll
    for (u32 i = 0; i < Left::kSlabs; ++i) left_scales[i] = from.left_scales[i] >> shift;
#pragma unroll
    for (u32 i = 0; i < Right::kSlabs; ++i) right_scales[i] = from.right_scales[i] >> shift;
  }

  WS_DEVICE void multiply_add(Sums& sums, u16 byte) const {
#pragma unroll
    for (u32 i = 0; i < kM16; ++i) {
#pragma unroll
      for (u32 j = 0; j < kN8; ++j) {
        // scales of 1 are 1 in every lane: selectors that are all 0 take no register
        block_scaled_mma<mma_kind()>(sums[i][j], left[i], right[j], left_scales[i / 2], right_scales[j / 4], byte,
                                kPromoted ? 0 : i % 2, byte, kPromoted ? 0 : j % 4);
      }
    }
  }
};

// What a warp needs to read fragments, and where it stands.
struct Reader {
  u32 warp_left, warp_right, lane;
  TileReader<Left, true> left;
  TileReader<Right, false> right;
  u32 left_scales, right_scales;  // one-byte: in a stage

  WS_DEVICE Reader(u32 warp, u32 lane_)
      : warp_left(warp % Left::kWarps),
        warp_right(warp / Left::kWarps),
        lane(lane_),
        left(warp_left, lane),
        right(warp_right, lane),
        left_scales(Stage::kLeftScales + scale_offset(warp_left * Left::kWarpRows, lane)) {
    set_rows(0);
  }

  // `row` is where the rows of A start in their atoms.
  WS_DEVICE void set_rows(u32 row) {
    right_scales = Stage::kRightScales + scale_offset(warp_right * Right::kWarpRows + (kSwap ? row % 128 : 0), lane);
  }

  // Fragments of step kStep of a stage. Scales that serve more than one step are taken from the fragments of the one
  // before; `fresh`: this stage is the first of those that share an atom.
  template <u32 kStep>
  WS_DEVICE void read(u32 stage, Fragments& fragments, const Fragments& before, bool fresh) const {
    if constexpr (kPromoted) {
      fragments.set_scales(0x7F7F7F7Fu);
    } else if constexpr (kStep % kScaleSteps == 0) {
      constexpr u32 atom = kStep / kScaleSteps * kAtomBytes;
      if (kScaleStages == 1 || fresh) {
        load_shared(stage + left_scales + atom, fragments.left_scales);
        load_shared(stage + right_scales + atom, fragments.right_scales);
      } else {
        fragments.copy_scales(before, 16);
      }
    } else {
      fragments.copy_scales(before, 0);
    }
    left.read(stage + Stage::kLeft, kStep, fragments.left);
    right.read(stage + Stage::kRight, kStep, fragments.right);
  }
};

// The byte of a scale word where those of a step start.
template <u32 kStep>
constexpr u16 kScaleByte = kPromoted ? 0 : kStep % kScaleSteps * mma_scales(mma_kind());

}  // namespace ws
