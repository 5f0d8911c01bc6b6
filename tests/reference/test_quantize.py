# SPDX-License-Identifier: Apache-2.0
"""Quantization: exact codes and scales, against rational arithmetic and ml_dtypes."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from warpsmith.errors import FormatError
from warpsmith.reference import default_global_scale, quantize
from warpsmith.reference.formats import decode_e4m3, decode_ue8m0, get_format, unpack_nibbles

from . import oracle

ALL_BF16 = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
FORMATS = [("nvfp4", "ceil"), ("mxfp4", "ceil"), ("mxfp4", "floor"), ("mxfp8", "ceil"), ("mxfp8", "floor")]
ROW_FORMATS = [*FORMATS, ("fp8_block", "ceil")]
FLT_MAX = np.finfo(np.float32).max
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
positive = st.floats(width=32, min_value=float(np.float32(1e-38)), allow_nan=False, allow_infinity=False)


def element_codes(codes: np.ndarray, format: str) -> np.ndarray:
    return unpack_nibbles(codes) if format.endswith("fp4") else codes


def scale_values(scales: np.ndarray, format: str) -> np.ndarray:
    return {"ue4m3": decode_e4m3, "ue8m0": decode_ue8m0, "fp32": np.asarray}[get_format(format).scale](scales)


def vectorised(x: np.ndarray, format: str, rounding: str, gs: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Codes, one an element, and scale bytes of blocks [n, block] by ml_dtypes casts and float64 logarithms."""
    finite_rows = np.isfinite(x).all(axis=1, keepdims=True)
    x = np.where(finite_rows, x, np.float32(0))
    amax = np.abs(x).max(axis=1, keepdims=True)
    fp4 = format.endswith("fp4")
    limit, dtype = (6, ml_dtypes.float4_e2m1fn) if fp4 else (448, ml_dtypes.float8_e4m3fn)
    if format == "nvfp4":
        scales = np.clip(gs * amax / np.float32(6), 0, 448).astype(ml_dtypes.float8_e4m3fn)
        values = scales.astype(np.float32)
        factor = np.where(values == 0, np.float32(0), np.minimum(gs / np.where(values == 0, 1, values), FLT_MAX))
        nan = np.uint8(0x7F)
    elif format == "fp8_block":
        scales = np.where(amax == 0, np.float32(1), amax / np.float32(448))
        factor = np.where(amax == 0, np.float32(0), np.minimum(np.float32(448) / amax, FLT_MAX))
        nan = np.float32(np.nan)
    else:
        mantissa, exponent = np.frexp(amax.astype(np.float64))  # [0.5, 1)
        top = 3 if fp4 else 9
        above = (rounding == "ceil") & (mantissa > limit / 2**top)
        e = np.where(amax == 0, -127, np.clip(exponent - top + above, -127, 127))
        scales = (e + 127).astype(np.uint8)
        factor = (2.0 ** -e.astype(np.float64)).astype(np.float32)
        nan = np.uint8(0xFF)
    codes = np.clip(x * factor, -limit, limit).astype(dtype).view(np.uint8)
    scales = scales.view(np.uint8) if scales.dtype.itemsize == 1 else scales
    return np.where(finite_rows, codes, 0), np.where(finite_rows, scales, nan)[:, 0]


@pytest.mark.parametrize(
    ("format", "rounding", "gs"),
    [*((*row, 1.0) for row in ROW_FORMATS), *(("nvfp4", "ceil", gs) for gs in (37.5, 1e-30, 3e38, 2.0**-149))],
)
@pytest.mark.parametrize("beside", [0.0, 1.0, 3e38, 1e-30, 2.0**-149])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_bf16_value_in_a_block(format: str, rounding: str, gs: float, beside: float) -> None:
    block = get_format(format).block[1]
    x = np.zeros((1 << 16, block), np.float32)
    x[:, 3] = ALL_BF16.astype(np.float32)
    x[:, block - 2] = -x[:, 3] / 3
    x[:, 0] = beside
    options = {"global_scale": gs} if format == "nvfp4" else {}
    codes, scales = quantize(x, format, rounding=rounding, **options)
    want_codes, want_scales = vectorised(x, format, rounding, np.float32(gs))
    np.testing.assert_array_equal(element_codes(codes, format), want_codes)
    np.testing.assert_array_equal(scales[:, 0], want_scales)


@pytest.mark.parametrize(("format", "rounding"), ROW_FORMATS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_block_of_any_floats_agrees_with_rational_arithmetic(format: str, rounding: str, data: st.DataObject) -> None:
    block = get_format(format).block[1]
    scale = data.draw(st.sampled_from([1.0, 1e-40, 1e-30, 1e30]))
    values = data.draw(st.lists(st.one_of(finite, st.floats(-8, 8, width=32)), min_size=4, max_size=block))
    with np.errstate(all="ignore"):
        x = np.zeros((1, block), np.float32)
        x[0, : len(values)] = np.clip(np.float32(values) * np.float32(scale), -FLT_MAX, FLT_MAX)
    gs = float(np.float32(data.draw(positive))) if format == "nvfp4" else 1.0
    options = {"global_scale": gs} if format == "nvfp4" else {}
    codes, scales = quantize(x, format, rounding=rounding, **options)
    want_codes, want_scale = oracle.quantize(x[0].tolist(), format, gs, rounding)
    assert element_codes(codes, format)[0].tolist() == want_codes
    assert float(scale_values(scales, format)[0, 0]) == want_scale


def around(values: np.ndarray) -> np.ndarray:
    """Each float32 value with its neighbours, [n, 3]."""
    values = np.asarray(values, np.float32)
    return np.stack([np.nextafter(values, np.float32(0)), values, np.nextafter(values, np.float32(np.inf))], axis=-1)


def test_nvfp4_scales_next_to_ties_follow_the_order_of_the_roundings() -> None:
    rng = np.random.default_rng(10)
    bytes_ = rng.integers(0, 0x7E, 400, dtype=np.uint8)
    ties = (decode_e4m3(bytes_).astype(np.float64) + decode_e4m3(bytes_ + np.uint8(1))) / 2
    gs = np.exp(rng.uniform(-5, 5, 400)).astype(np.float32)
    other_order = 0
    for tie, scale in zip(ties, gs, strict=True):
        x = np.zeros((3, 16), np.float32)
        x[:, 9] = around(6 * tie / scale)
        scales = quantize(x, "nvfp4", global_scale=scale)[1]
        want = [oracle.quantize(row.tolist(), "nvfp4", float(scale))[1] for row in x]
        assert decode_e4m3(scales)[:, 0].tolist() == want
        other = np.clip(x[:, 9] / np.float32(6) * scale, 0, 448).astype(ml_dtypes.float8_e4m3fn)
        other_order += (other.view(np.uint8) != scales[:, 0]).sum()
    assert other_order > 0


@pytest.mark.parametrize("format", ["nvfp4", "mxfp4", "mxfp8", "fp8_block"])
def test_elements_next_to_ties_follow_the_order_of_the_roundings(format: str) -> None:
    rng = np.random.default_rng(11)
    grid = np.array([float(v) for v in (oracle.E2M1 if format.endswith("fp4") else oracle.E4M3)])
    ties = (grid[1:] + grid[:-1]) / 2
    block = get_format(format).block[1]
    for _ in range(40):
        amax = np.float32(np.exp(rng.uniform(-3, 3)))
        gs = float(np.float32(np.exp(rng.uniform(0, 5)))) if format == "nvfp4" else 1.0
        scale = float(oracle.quantize([float(amax)], format, gs)[1]) / gs
        x = around(rng.choice(ties, block) * scale)[:, rng.integers(0, 3)][None]
        x = np.minimum(x, amax)
        x[0, 0] = amax
        options = {"global_scale": gs} if format == "nvfp4" else {}
        codes = quantize(x, format, **options)[0]
        assert element_codes(codes, format)[0].tolist() == oracle.quantize(x[0].tolist(), format, gs)[0]


@pytest.mark.parametrize(("format", "largest"), [("mxfp4", 6), ("mxfp8", 448)])
def test_ceil_moves_on_one_ulp_past_the_largest_value(format: str, largest: int) -> None:
    for exponent in (-126, -60, 0, 60, 118):
        x = np.zeros((3, 32), np.float32)
        x[:, 0] = around(np.ldexp(np.float32(largest), exponent))
        scales = quantize(x, format)[1]
        assert scales[:, 0].tolist() == [exponent + 127, exponent + 127, exponent + 128]


def test_small_blocks_in_full() -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :8] = [6, -3, 0.26, -0.25, 5, 1.75, -0.0, 0]
    codes, scales = quantize(x[:, :16], "nvfp4")
    assert codes[0].tolist() == [0xD7, 0x81, 0x46, 0x08] + [0] * 4
    assert scales.tolist() == [[0x38]]
    codes, scales = quantize(x, "mxfp4")
    assert codes[0, :4].tolist() == [0xD7, 0x81, 0x46, 0x08]
    assert scales.tolist() == [[127]]
    x[0, 0] = 6.5  # just past what 2^0 holds: ceil doubles the scale, floor saturates
    codes, scales = quantize(x, "mxfp4")
    assert (codes[0, 0], scales[0, 0]) == (0xB5, 128)
    codes, scales = quantize(x, "mxfp4", rounding="floor")
    assert (codes[0, 0], scales[0, 0]) == (0xD7, 127)
    codes, scales = quantize(x, "mxfp8")
    assert (codes[0, 0], codes[0, 1], scales[0, 0]) == (0x7D, 0xF4, 127 - 6)
    wide = np.zeros((1, 128), np.float32)
    wide[0, :3] = [-896, 448, 1]
    codes, scales = quantize(wide, "fp8_block")
    assert codes[0, :4].tolist() == [0xFE, 0x76, 0x30, 0]
    assert scales.tolist() == [[2.0]]


def test_128x128_blocks_share_one_scale_over_their_rows() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 300, 384)).astype(np.float32)
    codes, scales = quantize(x, "fp8_block_128x128")
    assert codes.shape == (2, 300, 384)
    assert scales.shape == (2, 3, 3)
    for batch, row, column in np.ndindex(2, 3, 3):
        tile = (batch, slice(row * 128, (row + 1) * 128), slice(column * 128, (column + 1) * 128))
        want_codes, want_scale = vectorised(x[tile].reshape(1, -1), "fp8_block", "ceil", np.float32(1))
        np.testing.assert_array_equal(codes[tile].reshape(1, -1), want_codes)
        assert scales[batch, row, column] == want_scale[0]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("format", "rounding"), ROW_FORMATS)
def test_short_inputs_are_quantized_as_their_float32_values(dtype: type, format: str, rounding: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    np.random.default_rng(4).shuffle(bits)
    x = bits.view(dtype).reshape(256, 256)
    for got, want in zip(
        quantize(x, format, rounding=rounding),
        quantize(x.astype(np.float32), format, rounding=rounding),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("format", "rounding"), ROW_FORMATS)
@settings(max_examples=25, deadline=None)
@given(amaxes=st.lists(positive, min_size=2, max_size=20))
def test_scales_are_monotone_in_amax(format: str, rounding: str, amaxes: list[float]) -> None:
    x = np.zeros((len(amaxes), get_format(format).block[1]), np.float32)
    x[:, 5] = np.sort(np.float32(amaxes))
    scales = quantize(x, format, rounding=rounding)[1][:, 0]
    assert (np.diff(scales.astype(np.float64)) >= 0).all()


@pytest.mark.parametrize("format", ["nvfp4", "mxfp4", "mxfp8", "fp8_block", "fp8_block_128x128"])
@pytest.mark.parametrize("poison", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_non_finite_value_spoils_its_block_and_only_that(format: str, poison: float) -> None:
    spec = get_format(format)
    rows, block = 256, spec.block[1]
    x = np.random.default_rng(5).standard_normal((rows, 3 * block)).astype(np.float32)
    clean_codes, clean_scales = quantize(x, format)
    x[140, block + 7] = poison
    codes, scales = quantize(x, format)
    first, count = (140, 1) if spec.block[0] == 1 else (128, 128)
    hit = (slice(first, first + count), slice(spec.code_columns(block), spec.code_columns(2 * block)))
    assert not codes[hit].any()
    bits = scales.view(np.uint32) if spec.scale == "fp32" else scales
    assert bits[first // spec.block[0], 1] == {"ue4m3": 0x7F, "ue8m0": 0xFF, "fp32": 0x7FC00000}[spec.scale]
    clean_codes[hit], clean_scales[first // spec.block[0], 1] = codes[hit], scales[first // spec.block[0], 1]
    np.testing.assert_array_equal(codes, clean_codes)
    np.testing.assert_array_equal(scales, clean_scales)


@pytest.mark.parametrize("format", ["nvfp4", "mxfp4", "mxfp8", "fp8_block", "fp8_block_128x128"])
def test_zero_keeps_its_sign(format: str) -> None:
    sign = 8 if format.endswith("fp4") else 0x80
    zeros = np.zeros((1, 128), np.float32)
    zeros[0, 1::2] = -0.0
    codes, scales = quantize(zeros, format)
    assert element_codes(codes, format)[0, :4].tolist() == [0, sign, 0, sign]
    assert (scales == {"fp32": 1, "ue8m0": 0, "ue4m3": 0}[get_format(format).scale]).all()
    small = np.full((1, 128), -1e-9, np.float32)
    small[0, 0] = 1
    assert element_codes(quantize(small, format)[0], format)[0, 1] == sign


def test_nvfp4_scale_that_underflows_gives_signed_zeros() -> None:
    x = np.full((1, 16), -1e-6, np.float32)
    codes, scales = quantize(x, "nvfp4", global_scale=1.0)
    assert scales.tolist() == [[0]]
    assert (codes == 0x88).all()


@pytest.mark.parametrize("bad", [0.0, -0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_global_scale_that_is_not_positive_and_finite_spoils_every_block(bad: float) -> None:
    x = np.ones((2, 32), np.float32)
    codes, scales = quantize(x, "nvfp4", global_scale=bad)
    assert not codes.any()
    assert (scales == 0x7F).all()
    codes, scales = quantize(x, "nvfp4", global_scale=np.float32([1, bad]), offsets=[0, 1, 2])
    assert not codes[1].any()
    assert (scales[1] == 0x7F).all()
    assert (scales[0] != 0x7F).all()
    assert codes[0].all()


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["nvfp4", "mxfp4", "mxfp8", "fp8_block"]),
    st.integers(0, 1),
    st.lists(st.integers(0, 140), min_size=1, max_size=4),
    st.sampled_from([0, 3]),
    st.sampled_from([np.int32, np.int64]),
)
@example("nvfp4", 1, [0, 0], 3, np.int32)
def test_grouped_is_each_group_quantized_alone(
    format: str, layout: int, counts: list[int], rest: int, dtype: type
) -> None:
    name = get_format(format).layouts[layout]
    offsets = np.cumsum([0, *counts]).astype(dtype)
    rows = int(offsets[-1])
    x = np.random.default_rng(rows).standard_normal((rows + rest, 256)).astype(np.float32)
    gs = np.float32([3.5, 100, 1e-3, 7])[: len(counts)]
    codes, scales = quantize(
        x, format, scale_layout=name, offsets=offsets, global_scale=gs if format == "nvfp4" else None
    )
    assert not codes[rows:].any()
    untouched = np.ones(scales.shape, bool)
    for group in range(len(counts)):
        part = slice(int(offsets[group]), int(offsets[group + 1]))
        want_codes, want = quantize(
            x[part], format, scale_layout=name, global_scale=gs[group] if format == "nvfp4" else None
        )
        np.testing.assert_array_equal(codes[part], want_codes)
        if name == "m_major":
            where = (slice(None), part)
            want = want[:, : counts[group]]
        else:
            start = part.start if name == "linear" else (part.start + 127 * group) // 128 * 128
            where = (slice(start, start + len(want)),)
        np.testing.assert_array_equal(scales[where], want)
        untouched[where] = False
    assert not scales[untouched].any()


def test_batched_and_strided_inputs_equal_their_parts() -> None:
    whole = np.random.default_rng(6).standard_normal((2, 3, 150, 512)).astype(np.float32)
    x = whole[:, :, ::2, 128:384]
    for format in ("nvfp4", "mxfp8", "fp8_block", "fp8_block_128x128"):
        for layout in get_format(format).layouts:
            codes, scales = quantize(x, format, scale_layout=layout)
            for entry in np.ndindex(2, 3):
                want_codes, want_scales = quantize(np.ascontiguousarray(x[entry]), format, scale_layout=layout)
                np.testing.assert_array_equal(codes[entry], want_codes)
                np.testing.assert_array_equal(scales[entry], want_scales)


@pytest.mark.parametrize("format", ["nvfp4", "mxfp4", "mxfp8", "fp8_block", "fp8_block_128x128"])
@pytest.mark.parametrize("lead", [(0,), (0, 5), (2, 0)])
def test_no_rows_give_empty_outputs(format: str, lead: tuple[int, ...]) -> None:
    for layout in get_format(format).layouts:
        codes, scales = quantize(np.zeros((*lead, 128), np.float32), format, scale_layout=layout)
        assert codes.size == scales.size == 0
        assert codes.shape[:-1] == lead


def test_chunks_do_not_show() -> None:
    x = np.random.default_rng(7).standard_normal((3000, 256)).astype(np.float32)
    offsets = [0, 1100, 3000]
    gs = np.float32([2, 9])
    codes, scales = quantize(x, "nvfp4", offsets=offsets, global_scale=gs)
    for row in range(0, 3000, 37):
        want = quantize(x[row : row + 1], "nvfp4", global_scale=gs[int(row >= 1100)])
        np.testing.assert_array_equal(codes[row], want[0][0])
        np.testing.assert_array_equal(scales[row], want[1][0])


def test_a_python_global_scale_beyond_float32_is_infinite() -> None:
    assert (quantize(np.ones((1, 16), np.float32), "nvfp4", global_scale=1e300)[1] == 0x7F).all()


def test_default_global_scale_is_that_of_the_finite_values() -> None:
    x = np.float32([[3, -7, np.nan, np.inf] * 4])
    assert default_global_scale(x) == np.float32(2688) / np.float32(7)
    assert default_global_scale(x).dtype == np.float32
    assert default_global_scale(np.zeros((4, 16), np.float16)) == 1
    assert default_global_scale(np.zeros((0, 16), np.float32)) == 1
    assert default_global_scale(np.full((1, 16), np.nan, ml_dtypes.bfloat16)) == 1
    assert default_global_scale(np.full((1, 16), 1e-40, np.float32)) == FLT_MAX


X = np.zeros((4, 128), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize(X, "fp6"), "format 'fp6' is not known"),
        (lambda: quantize(X.astype(np.float64), "nvfp4"), "input is float64: expected a float32, float16 or bfloat16"),
        (lambda: quantize(X.astype(">f4"), "nvfp4"), "input is >f4"),
        (lambda: quantize([[1.0]], "nvfp4"), "input is list"),
        (lambda: quantize(X[0], "nvfp4"), r"input has shape \(128,\): expected \[..., M, K\]"),
        (lambda: quantize(X[:, :24], "nvfp4"), "K = 24 does not fit nvfp4: it must be a positive multiple of 16"),
        (lambda: quantize(X[:, :0], "nvfp4"), "K = 0 does not fit"),
        (lambda: quantize(X, "mxfp8", scale_layout="m_major"), "mxfp8 scales cannot have the layout 'm_major'"),
        (lambda: quantize(X, "mxfp8", rounding="even"), "rounding 'even' does not fit mxfp8: expected 'ceil' or"),
        (lambda: quantize(X, "nvfp4", rounding="floor"), "rounding 'floor' does not fit nvfp4"),
        (lambda: quantize(X, "mxfp4", global_scale=1.0), "mxfp4 has no global scale"),
        (lambda: quantize(X, "nvfp4", global_scale=np.float16([1])), "global_scale is float16"),
        (lambda: quantize(X, "nvfp4", global_scale=np.float32([1, 2])), r"shape \(2,\): expected float32, one value"),
        (
            lambda: quantize(X, "nvfp4", global_scale=np.float32([1, 2]), offsets=[0, 1, 2, 3]),
            r"one value or \[3\], one a group",
        ),
        (lambda: quantize(X, "nvfp4", offsets=[0, 3, 1]), "do not divide 4 rows"),
        (lambda: quantize(X[None], "nvfp4", offsets=[0, 4]), "groups need a 2-D tensor"),
        (lambda: quantize(X, "fp8_block_128x128", offsets=[0, 4]), "blocks of one row"),
        (lambda: default_global_scale(X.astype(np.int8)), "input is int8"),
    ],
)
def test_bad_arguments_are_errors_that_say_what_was_expected(call: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        call()
