# SPDX-License-Identifier: Apache-2.0
"""Dequantization: exact values, round trips and their error bounds."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpsmith.errors import FormatError
from warpsmith.reference import decode_float64, default_global_scale, dequantize, quantize
from warpsmith.reference.formats import FORMATS, decode_e2m1, decode_e4m3, decode_ue8m0, get_format

LAYOUTS = [(spec.name, layout) for spec in FORMATS.values() for layout in spec.layouts if not spec.whole]
E4M3_NUMBERS = np.delete(np.arange(256, dtype=np.uint8), [0x7F, 0xFF])


def test_every_fp4_code_under_every_scale_byte() -> None:
    pairs = np.tile(np.arange(16, dtype=np.uint8), (256, 2))
    codes = pairs[:, 0::2] | pairs[:, 1::2] << 4
    scales = np.arange(256, dtype=np.uint8)[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        want = decode_e2m1(pairs).astype(np.float64) * decode_ue8m0(scales)
        np.testing.assert_array_equal(dequantize(codes, scales, "mxfp4", shape=(256, 32)), want.astype(np.float32))
        np.testing.assert_array_equal(decode_float64(codes, scales, "mxfp4", shape=(256, 32)), want)
        values = dequantize(codes[:, :8], scales, "nvfp4", shape=(256, 16), global_scale=3.0)
        want = decode_e2m1(pairs[:, :16]) * decode_e4m3(scales) / np.float32(3)
    np.testing.assert_array_equal(values, want)
    assert np.isnan(values[0x7F]).all()


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_every_e4m3_code_under_every_power_of_two(dtype: str) -> None:
    codes = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    scales = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 8, axis=1)
    got = dequantize(codes, scales, "mxfp8", shape=(256, 256), dtype=dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = (decode_e4m3(codes) * decode_ue8m0(scales[:, :1])).astype(np.float32)
        want = exact.astype({"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}[dtype])
    nan = np.isnan(want)
    assert got[~nan].tobytes() == want[~nan].tobytes()
    assert np.isnan(got[nan]).all()
    assert np.isinf(got[254, 0x7E])


@pytest.mark.parametrize(("format", "layout"), LAYOUTS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_values_that_the_format_holds_survive(format: str, layout: str, data: st.DataObject) -> None:
    spec = get_format(format)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    lead = data.draw(st.sampled_from([(1,), (5,), (130,), (2, 3), (0,)]))
    rows, blocks = lead[-1], data.draw(st.integers(1, 5))
    block_rows, block = spec.block
    scale_shape = (*lead[:-1], -(-rows // block_rows), blocks)
    if spec.scale == "ue4m3":
        scales = decode_e4m3(rng.integers(1, 0x7F, scale_shape, dtype=np.uint8))
    elif spec.scale == "ue8m0":
        low, high = (0, 253) if spec.element == "e2m1" else (0, 247)
        scales = decode_ue8m0(rng.integers(low, high, scale_shape, dtype=np.uint8))
    else:
        scales = (rng.integers(1, 1 << 12, scale_shape) * 2.0 ** rng.integers(-60, 60, scale_shape)).astype(np.float32)
    if spec.element == "e2m1":
        elements = decode_e2m1(rng.integers(0, 16, (*lead, blocks, block), dtype=np.uint8))
    else:
        elements = decode_e4m3(rng.choice(E4M3_NUMBERS, (*lead, blocks, block)))
    elements[..., ::block_rows, :, block // 2] = 6 if spec.element == "e2m1" else -448
    row_scales = np.repeat(scales, block_rows, axis=-2)[..., :rows, :]
    shape = (*lead, blocks * block)
    x = (elements * row_scales[..., None]).reshape(shape)
    codes, packed = quantize(x, format, scale_layout=layout)
    back = dequantize(codes, packed, format, shape=shape, scale_layout=layout)
    assert back.tobytes() == x.tobytes()


BOUNDS = {
    ("nvfp4", "ceil"): 0.18,
    ("mxfp4", "ceil"): 0.25,
    ("mxfp4", "floor"): 0.25,
    ("mxfp8", "ceil"): 1 / 16,
    ("mxfp8", "floor"): 1 / 8,
    ("fp8_block", "ceil"): 1 / 27,
    ("fp8_block_128x128", "ceil"): 1 / 27,
}


@pytest.mark.parametrize(("format", "rounding"), BOUNDS)
@pytest.mark.parametrize("magnitude", [1e-25, 1.0, 1e25])
def test_round_trip_error_stays_within_a_part_of_the_block_maximum(
    format: str, rounding: str, magnitude: float
) -> None:
    rng = np.random.default_rng(8)
    x = (rng.standard_normal((256, 512)) * magnitude * np.exp(rng.uniform(-1, 1, (256, 1)))).astype(np.float32)
    gs = default_global_scale(x) if format == "nvfp4" else None
    codes, scales = quantize(x, format, rounding=rounding, global_scale=gs)
    back = dequantize(codes, scales, format, shape=x.shape, global_scale=gs)
    block_rows, block = get_format(format).block
    tiles = x.reshape(-1, block_rows, 512 // block, block)
    amax = np.abs(tiles).max(axis=(1, 3), keepdims=True)
    error = np.abs(back.reshape(tiles.shape) - tiles) / amax
    assert error.max() <= BOUNDS[format, rounding]
    assert error.max() >= BOUNDS[format, rounding] / 3


@pytest.mark.parametrize("layout", ["linear", "128x4"])
def test_grouped_round_trip_uses_each_groups_global_scale(layout: str) -> None:
    rng = np.random.default_rng(9)
    offsets = np.array([0, 130, 130, 200], np.int32)
    x = rng.standard_normal((210, 64)).astype(ml_dtypes.bfloat16)
    gs = np.float32([100, np.nan, 7])
    codes, scales = quantize(x, "nvfp4", scale_layout=layout, global_scale=gs, offsets=offsets)
    options = {"shape": x.shape, "scale_layout": layout, "global_scale": gs, "offsets": offsets}
    back = dequantize(codes, scales, "nvfp4", **options, dtype="bf16")
    exact = decode_float64(codes, scales, "nvfp4", **options)
    for start, stop, scale in ((0, 130, 100.0), (130, 200, 7.0)):
        alone = quantize(x[start:stop], "nvfp4", global_scale=scale)
        want = dequantize(*alone, "nvfp4", shape=(stop - start, 64), global_scale=scale, dtype="bf16")
        np.testing.assert_array_equal(back[start:stop], want)
        elements = decode_float64(*alone, "nvfp4", shape=(stop - start, 64))
        np.testing.assert_array_equal(exact[start:stop], elements / scale)
    assert not back[200:].any()
    assert not exact[200:].any()


@pytest.mark.parametrize("format", FORMATS)
def test_a_spoiled_block_comes_back_as_nan_and_only_that(format: str) -> None:
    block_rows, block = get_format(format).scaled_together(256, 256)
    x = np.ones((256, 256), np.float32)
    x[128, block % 256] = np.inf
    back = dequantize(*quantize(x, format), format, shape=x.shape)
    want = np.zeros(x.shape, bool)
    want[128 // block_rows * block_rows :][:block_rows, block % 256 :][:, :block] = True
    np.testing.assert_array_equal(np.isnan(back), want)


@pytest.mark.parametrize("bad", [0.0, -2.0, np.nan, np.inf])
def test_a_global_scale_that_is_not_positive_and_finite_gives_nan(bad: float) -> None:
    codes, scales = quantize(np.ones((1, 16), np.float32), "nvfp4")
    assert np.isnan(dequantize(codes, scales, "nvfp4", shape=(1, 16), global_scale=bad)).all()
    assert np.isnan(decode_float64(codes, scales, "nvfp4", shape=(1, 16), global_scale=bad)).all()


def test_negative_zero_survives() -> None:
    x = np.full((1, 128), -0.0, np.float32)
    for format in FORMATS:
        assert np.signbit(dequantize(*quantize(x, format), format, shape=x.shape)).all()


CODES, SCALES = quantize(np.ones((4, 64), np.float32), "nvfp4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": CODES[:, :-1]}, r"codes are uint8 of shape \(4, 31\): expected uint8 of shape \(4, 32\) for nvfp4"),
        ({"codes": CODES.astype(np.int8)}, "codes are int8"),
        ({"scales": SCALES[:, :2]}, r"scales are uint8 of shape \(4, 2\): expected uint8 of shape \(4, 4\)"),
        ({"scales": SCALES.astype(np.float32)}, "scales are float32"),
        ({"scale_layout": "128x4"}, r"expected uint8 of shape \(128, 4\) for nvfp4 of shape \(4, 64\) with 128x4"),
        ({"shape": (4, 72)}, "K = 72 does not fit"),
        ({"format": "fp8_block"}, "K = 64 does not fit fp8_block"),
        ({"dtype": "fp8"}, "output dtype 'fp8' is not known"),
        ({"global_scale": np.float64([1, 2])}, "global_scale is float64"),
        ({"offsets": [0, 9]}, "do not divide 4 rows"),
    ],
)
def test_parts_that_do_not_fit_are_errors(changes: dict[str, object], message: str) -> None:
    arguments = {"codes": CODES, "scales": SCALES, "format": "nvfp4", "shape": (4, 64)} | changes
    with pytest.raises(FormatError, match=message):
        dequantize(**arguments)
