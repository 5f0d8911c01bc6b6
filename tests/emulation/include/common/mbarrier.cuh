// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/types.cuh"
namespace ws {
// 8 bytes: pending arrivals, phase, pending bytes, expected arrivals packed
struct EmuBar { uint16_t count, pending; int32_t phase_tx; };  // phase in bit 31.. kept apart below
inline u32 shared_address(const void* p) { return static_cast<u32>(static_cast<const u8*>(p) - emu::shared_base); }
inline EmuBar* bar(u32 a) { return reinterpret_cast<EmuBar*>(emu::at(a, 8, 8)); }
// phase_tx = tx * 2 + phase
inline void settle(EmuBar* b) { if (b->pending == 0 && b->phase_tx >> 1 == 0) { b->pending = b->count; b->phase_tx ^= 1; } }
inline void mbarrier_init(u32 a, u32 n) { *bar(a) = {static_cast<uint16_t>(n), static_cast<uint16_t>(n), 0}; }
inline void fence_mbarrier_init() {}
inline void mbarrier_arrive(u32 a) { auto* b = bar(a); if (!b->pending) emu::fail("too many arrivals"); --b->pending; settle(b); }
inline void mbarrier_arrive_expect(u32 a, u32 n) { auto* b = bar(a); if (!b->pending) emu::fail("too many arrivals"); b->phase_tx += 2 * static_cast<int>(n); --b->pending; settle(b); }
inline void complete_tx(u32 a, u32 n) { auto* b = bar(a); b->phase_tx -= 2 * static_cast<int>(n); settle(b); }
inline bool mbarrier_try_wait(u32 a, u32 parity) { return (bar(a)->phase_tx & 1) != static_cast<int>(parity); }
inline void mbarrier_wait(u32 a, u32 parity) { while (!mbarrier_try_wait(a, parity)) emu::yield(); }
}
