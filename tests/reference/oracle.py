# SPDX-License-Identifier: Apache-2.0
"""The formats once more, a number at a time in exact rational arithmetic: slow, and nothing to hide behind."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

INFINITY = Fraction(2) ** 128  # stands for an fp32 overflow: larger than any fp32 number
FLT_MAX = Fraction(2) ** 128 - Fraction(2) ** 104
E2M1 = [Fraction(v).limit_denominator(2) for v in (0, 0.5, 1, 1.5, 2, 3, 4, 6)]
E4M3 = [Fraction(m, 512) if e == 0 else Fraction(8 + m) * Fraction(2) ** (e - 10) for e in range(16) for m in range(8)][
    :127
]
BLOCKS = {"nvfp4": 16, "mxfp4": 32, "mxfp8": 32, "fp8_block": 128}


def floor_log2(x: Fraction) -> int:
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= x else exponent - 1


def nearest_even(x: Fraction, precision: int, smallest_ulp: int) -> Fraction:
    """Round to `precision` bits, ties to even, with no ulp below 2^smallest_ulp."""
    if x == 0:
        return x
    ulp = Fraction(2) ** max(floor_log2(abs(x)) - precision + 1, smallest_ulp)
    return round(x / ulp) * ulp


def fl(x: Fraction) -> Fraction:
    """Round to fp32; what overflows becomes ±INFINITY."""
    rounded = nearest_even(x, 24, -149)
    return min(max(rounded, -INFINITY), INFINITY)


def encode(x: Fraction, negative: bool, element: str) -> int:
    """Return the code of |x| rounded and saturated, with the given sign."""
    values, precision, smallest_ulp = (E2M1, 2, -1) if element == "e2m1" else (E4M3, 4, -9)
    rounded = nearest_even(min(abs(x), values[-1]), precision, smallest_ulp)
    return values.index(rounded) | (8 if element == "e2m1" else 0x80) * negative


def power_scale(amax: Fraction, largest: int, rounding: str) -> int:
    """Return e of an MX scale 2^e: the least that lets nothing saturate, or OCP's floor rule."""
    if amax == 0:
        return -127
    if rounding == "ceil":
        exponent = floor_log2(amax / largest)
        exponent += Fraction(2) ** exponent * largest < amax
    else:
        exponent = floor_log2(amax) - floor_log2(Fraction(largest))
    return min(max(exponent, -127), 127)


def quantize(
    block: Iterable[float], format: str, gs: float = 1.0, rounding: str = "ceil"
) -> tuple[list[int], Fraction]:
    """Return the codes, one an element, and the scale's value of one block of finite fp32 values."""
    values = [Fraction(v) for v in block]
    negative = [math.copysign(1, v) < 0 for v in block]
    amax = max(abs(v) for v in values)
    element = "e2m1" if format.endswith("fp4") else "e4m3"
    if format == "nvfp4":
        unrounded = fl(fl(Fraction(gs) * amax) / 6)
        scale = nearest_even(min(unrounded, E4M3[-1]), 4, -9)
        factor = min(fl(Fraction(gs) / scale), FLT_MAX) if scale else Fraction(0)
    elif format.startswith("mx"):
        scale = Fraction(2) ** power_scale(amax, 6 if element == "e2m1" else 448, rounding)
        factor = 1 / scale
    else:
        scale = fl(amax / 448) if amax else Fraction(1)
        factor = min(fl(448 / amax), FLT_MAX) if amax else Fraction(0)
    return [encode(fl(v * factor), n, element) for v, n in zip(values, negative, strict=True)], scale


def fma(a: Fraction, b: Fraction, c: Fraction) -> Fraction:
    return fl(a * b + c)


def exp(v: Fraction) -> Fraction:
    """The project's e^v, step by step."""
    v = min(max(v, Fraction(-87)), Fraction(88))
    magic = Fraction(3 << 22)
    n = fma(v, Fraction(float.fromhex("0x1.715476p+0")), magic) - magic
    f = fma(n, -Fraction(float.fromhex("0x1.62e400p-1")), v)
    f = fma(n, -Fraction(float.fromhex("0x1.7f7d1cp-20")), f)
    p = Fraction(float.fromhex("0x1.6a23d0p-10"))
    for coefficient in ("0x1.123a20p-7", "0x1.5558f2p-5", "0x1.555492p-3", "0x1.fffffcp-2", "0x1p0", "0x1p0"):
        p = fma(p, f, Fraction(float.fromhex(coefficient)))
    return p * Fraction(2) ** int(n)


def silu_and_mul(gate: float, up: float) -> Fraction:
    """One element of the activation, for finite inputs."""
    g = Fraction(gate)
    return fl(fl(g / fl(1 + exp(-g))) * Fraction(up))
