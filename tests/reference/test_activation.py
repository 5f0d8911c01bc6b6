# SPDX-License-Identifier: Apache-2.0
"""SiLU-and-multiply: each bit by rational arithmetic, its error by float64, and the fused quantization."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from warpsmith.errors import FormatError
from warpsmith.reference import quantize, silu_and_mul, silu_and_mul_quantize
from warpsmith.reference.activation import exp
from warpsmith.reference.arithmetic import fma
from warpsmith.reference.formats import get_format

from . import oracle

ALL_FORMATS = ["nvfp4", "mxfp4", "mxfp8", "fp8_block", "fp8_block_128x128"]


def ulps(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    return np.abs(got - want) / np.spacing(np.abs(want).astype(np.float32)).astype(np.float64)


def pair(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return np.concatenate([gate, up], axis=-1)


@settings(max_examples=150, deadline=None)
@given(st.floats(-100, 100, width=32))
@example(-87.0)
@example(88.0)
@example(-0.0)
@example(2.0**-149)
def test_exp_is_the_defined_polynomial_bit_for_bit(value: float) -> None:
    assert float(exp(np.float32([value]))[0]) == float(oracle.exp(oracle.Fraction(value)))


def test_exp_is_the_defined_polynomial_over_a_million_values() -> None:
    v = np.random.default_rng(4).uniform(-87, 88, 1_000_000).astype(np.float32)
    magic = np.float32(3 << 22)
    n = fma(v, np.float32(float.fromhex("0x1.715476p+0")), magic) - magic
    f = fma(n, -np.float32(float.fromhex("0x1.62e4p-1")), v)
    f = fma(n, -np.float32(float.fromhex("0x1.7f7d1cp-20")), f)
    p = np.float32(float.fromhex("0x1.6a23d0p-10"))
    for coefficient in ("0x1.123a20p-7", "0x1.5558f2p-5", "0x1.555492p-3", "0x1.fffffcp-2", "0x1p0", "0x1p0"):
        p = fma(p, f, np.float32(float.fromhex(coefficient)))
    np.testing.assert_array_equal(exp(v), np.ldexp(p, n.astype(np.int32)))


def test_exp_is_within_one_ulp_and_clamped() -> None:
    values = np.linspace(-87, 88, 400_001).astype(np.float32)
    assert ulps(exp(values), np.exp(values.astype(np.float64))).max() <= 1
    ends = exp(np.float32([-1e30, -87, 88, 1e30, -np.inf, np.inf]))
    assert ends[0] == ends[1] == ends[4] >= np.finfo(np.float32).tiny
    assert ends[2] == ends[3] == ends[5] < np.inf


@settings(max_examples=150, deadline=None)
@given(st.floats(-120, 120, width=32), st.floats(-1e6, 1e6, width=32))
@example(-1000.0, 1.0)
@example(2.0**-149, 0.5)
def test_silu_and_mul_bit_for_bit(gate: float, up: float) -> None:
    got = silu_and_mul(np.float32([[gate, up]]))
    assert float(got[0, 0]) == float(oracle.silu_and_mul(gate, up))


def test_silu_and_mul_is_within_three_ulp() -> None:
    rng = np.random.default_rng(0)
    gate = np.concatenate([rng.uniform(-80, 80, 100_000), rng.standard_normal(200_000) * 3])[None].astype(np.float32)
    up = rng.standard_normal(gate.shape).astype(np.float32)
    exact = gate.astype(np.float64)
    exact = exact / (1 + np.exp(-exact)) * up
    assert ulps(silu_and_mul(pair(gate, up)), exact).max() <= 3


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_short_inputs_give_what_their_float32_values_give(dtype: type) -> None:
    gate = np.arange(1 << 16, dtype=np.uint16).view(dtype).reshape(256, 256)
    x = pair(gate, gate[::-1])
    got, want = silu_and_mul(x), silu_and_mul(x.astype(np.float32))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want)


def test_non_finite_gates() -> None:
    x = np.float32([[np.nan, np.inf, -np.inf, np.inf, 1, 2, 2, 2, 0, np.nan]])
    np.testing.assert_array_equal(silu_and_mul(x), np.float32([[np.nan, np.inf, -np.inf, np.nan, np.nan]]))


@pytest.mark.parametrize("format", ALL_FORMATS)
def test_fused_equals_activation_then_quantization_in_float32(format: str) -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((2, 300, 512)) * 4).astype(ml_dtypes.bfloat16)
    x[0, 7, 3] = np.nan
    options = {"global_scale": 12.5} if format == "nvfp4" else {}
    for layout in get_format(format).layouts:
        fused = silu_and_mul_quantize(x, format, scale_layout=layout, **options)
        apart = quantize(silu_and_mul(x), format, scale_layout=layout, **options)
        for got, want in zip(fused, apart, strict=True):
            np.testing.assert_array_equal(got, want)


def test_fused_and_grouped_uses_each_groups_global_scale() -> None:
    x = np.random.default_rng(2).standard_normal((40, 64)).astype(np.float32)
    gs, offsets = np.float32([3, 50]), np.array([0, 11, 36])
    codes, scales = silu_and_mul_quantize(x, "nvfp4", scale_layout="128x4", global_scale=gs, offsets=offsets)
    want = quantize(silu_and_mul(x), "nvfp4", scale_layout="128x4", global_scale=gs, offsets=offsets)
    np.testing.assert_array_equal(codes, want[0])
    np.testing.assert_array_equal(scales, want[1])
    assert codes[:36].any()
    assert not codes[36:].any()


def test_floor_rounding_is_passed_on() -> None:
    x = np.random.default_rng(3).standard_normal((8, 64)).astype(np.float32)
    fused = silu_and_mul_quantize(x, "mxfp4", rounding="floor")
    np.testing.assert_array_equal(fused[1], quantize(silu_and_mul(x), "mxfp4", rounding="floor")[1])
    assert (fused[1] != silu_and_mul_quantize(x, "mxfp4")[1]).any()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 33), np.float32), "33 columns"),
        (np.zeros((2, 0), np.float32), "0 columns"),
        (np.zeros(32, np.float32), r"shape \(32,\)"),
        (np.zeros((2, 32), np.float64), "input is float64"),
        (np.zeros((2, 48), np.float32), "K = 24 does not fit nvfp4"),
    ],
)
def test_bad_inputs_are_errors(x: np.ndarray, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        silu_and_mul_quantize(x, "nvfp4")


def test_no_rows() -> None:
    assert silu_and_mul(np.zeros((0, 64), np.float32)).shape == (0, 32)
    assert silu_and_mul_quantize(np.zeros((2, 0, 64), np.float32), "nvfp4")[0].shape == (2, 0, 16)
