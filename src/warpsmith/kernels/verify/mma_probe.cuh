// SPDX-License-Identifier: Apache-2.0
// Executes single block-scaled MMAs on given fragments, scale words and selectors: the test of the MMA layer.
// WS_MMA_KIND is the position of the form in MmaKind.
#include "common/mma_blockscaled.cuh"
#include "common/record.cuh"
#include "common/types.cuh"

namespace ws {

constexpr MmaKind kKind = static_cast<MmaKind>(WS_MMA_KIND);
enum : u32 { kWarps = 4 };

}  // namespace ws

WS_RECORD(0, 32 * ws::kWarps, 1, 0, 16, 8, ws::mma_k(ws::kKind))

// One warp computes one case. Per case and lane: `a` 4 words, `b` 2 words, `scales` 2 words (A's, B's), `c` and `d`
// 4 floats; per case the selectors as byte-id A + 4·thread-id A + 8·byte-id B + 32·thread-id B.
extern "C" __global__ void __launch_bounds__(32 * ws::kWarps)
    ws_mma_probe(const ws::u32* a, const ws::u32* b, const ws::u32* scales, const float* c, const int* selectors,
                 float* d, int cases) {
  using namespace ws;
  const i64 index = static_cast<i64>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (index >= cases) return;
  const i64 lane = index * 32 + threadIdx.x % 32;
  u32 fragment_a[4], fragment_b[2];
  float sum[4];
  for (int i = 0; i < 4; ++i) {
    fragment_a[i] = a[lane * 4 + i];
    sum[i] = c[lane * 4 + i];
  }
  for (int i = 0; i < 2; ++i) fragment_b[i] = b[lane * 2 + i];
  const int selector = selectors[index];
  block_scaled_mma<kKind>(sum, fragment_a, fragment_b, scales[lane * 2], scales[lane * 2 + 1],
                          static_cast<u16>(selector & 3), static_cast<u16>(selector >> 2 & 1),
                          static_cast<u16>(selector >> 3 & 3), static_cast<u16>(selector >> 5 & 3));
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = sum[i];
}
