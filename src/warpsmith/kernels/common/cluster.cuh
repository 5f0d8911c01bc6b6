// SPDX-License-Identifier: Apache-2.0
// What the blocks of a cluster do with each other. From 9.0 on.
#pragma once

#include "common/types.cuh"

namespace ws {

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

}  // namespace ws
