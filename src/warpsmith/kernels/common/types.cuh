// SPDX-License-Identifier: Apache-2.0
// Integer names, bit casts and the function qualifier that every device source uses.
#pragma once

#define WS_DEVICE __device__ __forceinline__

namespace ws {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

// Constants outside of functions are enumerators, here and everywhere: NVRTC puts each variable into the cubin,
// constexpr or not, with its name, an address and a relocation: a seventh of all bytes. Variable templates it leaves
// out: they are for other types.
enum : u32 { kAbs = 0x7FFFFFFFu };
enum : u32 { kMantissa = 0x007FFFFFu };
enum : u32 { kInfinity = 0x7F800000u };     // fp32 bits; magnitudes at or above it are not finite
enum : u32 { kLargest = 0x7F7FFFFFu };      // fp32 bits of the largest finite value
enum : u32 { kQuietNan = 0x7FC00000u };     // fp32 bits of the NaN that kernels write
enum : u32 { kAllLanes = 0xFFFFFFFFu };

WS_DEVICE u32 bits_of(float value) { return __float_as_uint(value); }
WS_DEVICE float float_of(u32 bits) { return __uint_as_float(bits); }

WS_DEVICE bool is_finite(float value) { return (bits_of(value) & kAbs) < kInfinity; }

}  // namespace ws
