# SPDX-License-Identifier: Apache-2.0
"""fp32 fma and casts against exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from warpsmith.errors import FormatError
from warpsmith.reference.arithmetic import cast, fma

from . import oracle

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
TINY = 2.0**-149
HALF_ULP = 1 + 2.0**-12  # its square is 1 + 2^-11 + 2^-24: half-way between two fp32 numbers


def expected_fma(a: float, b: float, c: float) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c  # the sign of an exact zero
    rounded = oracle.fl(exact)
    return math.copysign(math.inf if abs(rounded) == oracle.INFINITY else float(abs(rounded)), float(exact > 0) - 0.5)


@settings(max_examples=1000, deadline=None)
@given(floats, floats, floats)
@example(HALF_ULP, HALF_ULP, 2.0**-80)
@example(HALF_ULP, HALF_ULP, -(2.0**-80))
@example(-HALF_ULP, HALF_ULP, 2.0**-80)
@example(HALF_ULP, HALF_ULP, 0.0)
@example(TINY, 0.5, 0.0)
@example(TINY, 0.5, TINY)
@example(TINY, -TINY, 0.0)
@example(TINY, TINY, 1.0)
@example(2.0**127, 2.0, -(2.0**104))
@example(2.0**127, 2.0, 1.0)
@example(1.5, 2.0, -3.0)
@example(-0.0, 1.0, -0.0)
@example(2.0**-126, 1 - 2.0**-24, 0.0)
def test_fma_rounds_once(a: float, b: float, c: float) -> None:
    got = float(fma(np.float32(a), np.float32(b), np.float32(c)))
    want = expected_fma(a, b, c)
    assert got == want
    assert math.copysign(1, got) == math.copysign(1, want)


def test_fma_rounds_once_next_to_every_kind_of_tie() -> None:
    rng = np.random.default_rng(0)
    a = (1 + rng.integers(0, 1 << 12, 500) * 2.0**-12).astype(np.float32)
    b = (1 + rng.integers(0, 1 << 12, 500) * 2.0**-12).astype(np.float32)
    c = rng.choice([-1, 1], 500).astype(np.float32) * np.float32(2) ** -rng.integers(24, 140, 500).astype(np.float32)
    got = fma(a, b, c)
    for index in range(500):
        assert float(got[index]) == expected_fma(float(a[index]), float(b[index]), float(c[index]))


@pytest.mark.parametrize(
    ("a", "b", "c"), [(math.inf, 1, 1), (1, 1, -math.inf), (math.inf, 0, 1), (1, math.nan, 0), (math.inf, 1, -math.inf)]
)
def test_fma_of_non_finite_values(a: float, b: float, c: float) -> None:
    np.testing.assert_array_equal(fma(np.float32(a), np.float32(b), np.float32(c)), np.float32(a * b + c))


@settings(max_examples=300, deadline=None)
@given(st.floats(allow_nan=False, min_value=-1e39, max_value=1e39))
@example(1 + 2.0**-8 + 2.0**-40)
@example(1 + 2.0**-8 - 2.0**-40)
@example(-(1 + 2.0**-8) - 2.0**-40)
@example(1 + 3 * 2.0**-8)
@example(2.0**128 - 2.0**118)
def test_cast_of_float64_rounds_once(value: float) -> None:
    array = np.array([value])
    for name, precision, smallest, limit in (
        ("bf16", 8, -133, 2**128),
        ("fp16", 11, -24, 2**16),
        ("fp32", 24, -149, 2**128),
    ):
        rounded = oracle.nearest_even(Fraction(value), precision, smallest)
        want = math.copysign(math.inf, value) if abs(rounded) >= limit else float(rounded)
        assert float(cast(array, name)[0]) == want


def test_cast_returns_the_named_type_and_keeps_nan() -> None:
    for name, dtype in (("bf16", ml_dtypes.bfloat16), ("fp16", np.float16), ("fp32", np.float32)):
        result = cast(np.array([np.nan, 1]), name)
        assert result.dtype == dtype
        assert np.isnan(result[0])
    with pytest.raises(FormatError, match="'fp64' is not known: choose one of bf16, fp16, fp32"):
        cast(np.zeros(1), "fp64")
