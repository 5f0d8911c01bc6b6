// SPDX-License-Identifier: Apache-2.0
// Blocks of a cluster (9.0 and up): barriers across them, and what reaches the shared memory of others.
#pragma once

#include "common/tma.cuh"
#include "common/types.cuh"

namespace ws {

// This block's number in its cluster.
WS_DEVICE u32 cluster_rank() {
  u32 rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// The two halves of a barrier of all threads of a cluster. What was written before an arrival is seen after the wait.
WS_DEVICE void arrive_cluster() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
WS_DEVICE void wait_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Where block `rank` of the cluster has what lies at `address` in this one.
WS_DEVICE u32 shared_address_of(u32 address, u32 rank) {
  u32 result;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(result) : "r"(address), "r"(rank));
  return result;
}

// Stores a word in another block, whose barrier counts its 4 bytes.
WS_DEVICE void store_to_block(u32 address, u32 value, u32 barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];"
               ::"r"(address), "r"(value), "r"(barrier)
               : "memory");
}

// All threads of all blocks of the cluster.
WS_DEVICE void sync_cluster() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n\t"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

// One arrival at the barrier of block `rank` that lies where `barrier` does in this one.
WS_DEVICE void mbarrier_arrive_at(u32 barrier, u32 rank) {
  asm volatile(
      "{.reg .b32 remote;\n\t"
      "mapa.shared::cluster.u32 remote, %0, %1;\n\t"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Where `address` of this block lies in block `rank`, for instructions on .shared::cluster.
WS_DEVICE u32 address_at(u32 address, u32 rank) {
  u32 remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}

// 16 bytes to another block's shared memory, which complete at a barrier of that block; addresses of `address_at`.
WS_DEVICE void store_async(u32 to, float x, float y, float z, float w, u32 barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
      "f"(x), "f"(y), "f"(z), "f"(w), "r"(barrier)
      : "memory");
}

// Copies the box to the same place in each block of `blocks`, a bit each, and completes at the barrier of each.
WS_DEVICE void load_tensor_multicast(u32 destination, const TensorMap& map, int x, int y, int z, u32 barrier,
                                     u16 blocks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(destination),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier), "h"(blocks)
      : "memory");
}

// The same of five dimensions; the middle ones start at 0.
WS_DEVICE void load_tensor_interleaved_multicast(u32 destination, const TensorMap& map, int x, int y, int z,
                                                 u32 barrier, u16 blocks) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %7, %7, %3, %4}], [%5], %6;" ::"r"(destination),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier), "h"(blocks), "r"(0)
      : "memory");
}

}  // namespace ws
