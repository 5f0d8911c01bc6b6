// SPDX-License-Identifier: Apache-2.0
// Correctly rounded quotients without the general division's range check and branch, and SiLU from them.
// All of it is IEEE fp32, one rounding an operation, so that a NumPy reference can repeat it bit for bit.
#pragma once

#include "common/ptx.cuh"
#include "common/types.cuh"

namespace ws {

// reciprocal, then quotient: the sequence that the compiler makes of a / b where neither the quotient nor the
// residual can over- or underflow.
WS_DEVICE float reciprocal(float b) {
  const float guess = reciprocal_approx(b);
  return __fmaf_rn(__fmaf_rn(-b, guess, 1.0f), guess, guess);
}

// The residual is formed as b·q − a and subtracted, which keeps the sign of a zero.
WS_DEVICE float quotient(float a, float b, float reciprocal_of_b) {
  const float q = __fmul_rn(a, reciprocal_of_b);
  return __fmaf_rn(-__fmaf_rn(b, q, -a), reciprocal_of_b, q);
}

// e4m3(t / 6) is the same for this value as for the correctly rounded quotient, for every t ≥ 0, infinity included:
// where t / 6 is subnormal the residual is inexact, but the code is 0 all the same.
WS_DEVICE float sixth(float t) {
  const float bounded = fminf(t, 0x1p100f);
  constexpr float c = 0x1.555556p-3f;
  return quotient(bounded, 6.0f, c);
}

// The magnitudes of a global scale for which quotients with e4m3 values stay far from under- and overflow.
WS_DEVICE bool is_moderate(float value) {
  const float magnitude = fabsf(value);
  return magnitude >= 0x1p-60f && magnitude <= 0x1p60f;
}

// exp(−g) for |g| ≤ 88, as 2^n · p(f), n + f/ln 2 = −g/ln 2. The degree-6 polynomial and the two-part ln 2 are those
// of the reference; n is added to the exponent bits.
WS_DEVICE float exp_of_negative(float g) {
  const float v = -g;
  constexpr float magic = 0x1.8p+23f;
  const float m = __fmaf_rn(v, 0x1.715476p+0f, magic);
  const float n = __fadd_rn(m, -magic);
  float f = __fmaf_rn(n, -0x1.62e400p-1f, v);
  f = __fmaf_rn(n, -0x1.7f7d1cp-20f, f);
  float p = __fmaf_rn(0x1.6a23d0p-10f, f, 0x1.123a20p-7f);
  p = __fmaf_rn(p, f, 0x1.5558f2p-5f);
  p = __fmaf_rn(p, f, 0x1.555492p-3f);
  p = __fmaf_rn(p, f, 0x1.fffffcp-2f);
  p = __fmaf_rn(p, f, 1.0f);
  p = __fmaf_rn(p, f, 1.0f);
  return float_of(bits_of(p) + (bits_of(m) << 23));
}

// g / (1 + exp(−g)) for |g| ≤ 80: the divisor lies in [1, 2^116], and where g is too small for an exact residual the
// divisor is exactly 2.
WS_DEVICE float silu_moderate(float g) {
  const float d = __fadd_rn(1.0f, exp_of_negative(g));
  return quotient(g, d, reciprocal(d));
}

// The same for any g; NaN gives NaN.
WS_DEVICE float silu(float g) {
  const float bounded = fminf(fmaxf(g, -88.0f), 87.0f);
  return __fdiv_rn(g, __fadd_rn(1.0f, exp_of_negative(bounded)));
}

}  // namespace ws
