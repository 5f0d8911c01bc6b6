// SPDX-License-Identifier: Apache-2.0
// Stand-ins for what sm90_mixed_packed.cuh takes from CUDA, and a tile's way through it: from pieces in memory to each
// lane's left operands. `pieces.inc` has the parts of the header that packed.py cuts out.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define WS_DEVICE inline
#define WS_A_FORMAT WS_BF16
#define WS_SWAP 1
#define WS_PACKED 1

#include "gemm/sm90_config.cuh"

namespace ws {

using std::max;
using std::min;

u8 memory[1 << 18];
u32 expected, arrived;

u32 __funnelshift_l(u32 low, u32 high, u32 by) { return by ? high << by | low >> (32 - by) : high; }
void __syncwarp() {}
u32 opaque(u32 x) { return x; }
void mbarrier_arrive_expect(u32, u32 bytes) { expected = bytes; }
void load_bulk(u32 to, const void* from, u32 bytes, u32) {
  if (to % 16 || reinterpret_cast<u64>(from) % 16 || bytes % 16 || bytes == 0) abort();
  memcpy(memory + to, from, bytes);
  arrived += bytes;
}
template <int kWords>
void load_shared(u32 from, u32 (&words)[kWords]) {
  memcpy(words, memory + from, sizeof words);
}
float bf16(u32 bits) {
  const u32 wide = bits << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}
u32 rounded(float value) {
  u32 bits;
  memcpy(&bits, &value, 4);
  return value != value ? 0x7FC0 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
template <u32 kHalf>
u32 multiply_by_half(u32 pairs, u32 scales) {
  const float scale = bf16(kHalf ? scales >> 16 : scales & 0xFFFF);
  return rounded(bf16(pairs & 0xFFFF) * scale) | rounded(bf16(pairs >> 16) * scale) << 16;
}

struct Problem {
  const u8 *a_scales, *b_scales;
  i64 a_scale_batch, b_scale_batch;
  u32 n, k;
};
struct Tile {
  u32 batch, column;
};
struct Fragments {
  u32 words[2][kM64][4];
};

#include "pieces.inc"

}  // namespace ws

using namespace ws;

// Of all stages, warpgroups, warps and lanes the registers of each 16 of K. False: a stage's bytes are not those announced.
extern "C" bool operands(const u8* codes, const u8* scales, u64 batch_codes, u64 batch_scales, u32 n, u32 k, u32 batch,
                         u32 column, u32* out) {
  const Problem p{codes, scales, static_cast<i64>(batch_codes), static_cast<i64>(batch_scales), n, k};
  memset(memory, 0x5A, sizeof memory);
  for (u32 stage = 0; stage < div_up(k, kTileK); ++stage) {
    Ring ring{0};
    ring.index = stage % Shared::kStages;
    arrived = 0;
    for (u32 lane = 0; lane < 32; ++lane) PieceCopy(p, {batch, column}, lane).copy(stage, ring, lane);
    if (expected != arrived) return false;
    for (u32 i = 0; i < kTileWarps * 32; ++i) {
      const PackedPlace from(Place{i / 128, i / 32 % 4, i % 32});
      for (u32 tile = 0; tile < kUnpackedTiles; ++tile) {
        PackedCodes packed;
        Fragments made;
        from.read(ring, tile, packed);
        for (u32 step = 0; step < 4; ++step) {
          packed.convert(step, made);
          memcpy(out, made.words[step % 2], sizeof made.words[0]);
          out += kM64 * 4;
        }
      }
    }
  }
  return true;
}

extern "C" void shape(u32* of) {
  const u32 numbers[] = {kTileN, kTileK, kGroupsTile, kGroupsLeft, kM64};
  memcpy(of, numbers, sizeof numbers);
}
