# SPDX-License-Identifier: Apache-2.0
"""4-bit weights in the order for few rows: lane by lane what the kernel's registers are to hold, and back again."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import warpsmith as ws
from warpsmith import reference
from warpsmith.errors import FormatError, InvalidArgumentError
from warpsmith.ops.prepared_order import few_rows_weight, restored

BLOCKS = {"nvfp4": 16, "mxfp4": 32}
PLACES = 0x81C081C0


def weight(format: str, *shape: int, seed: int = 0, scales: Any = None) -> ws.QTensor:
    rng = np.random.default_rng(seed)
    *batch, n, k = shape
    data = rng.integers(0, 256, (*batch, n, k // 2), np.uint8)
    made = rng.integers(0, 127, (*batch, n, k // BLOCKS[format]), np.uint8) if scales is None else scales
    return ws.QTensor(data, made, format, shape)


def rotated(word: int, by: int) -> int:
    return (word << by | word >> (32 - by)) & 0xFFFFFFFF


def bf16(bits: int) -> float:
    return float(np.array([bits << 16], np.uint32).view(np.float32)[0])


def read_as_the_kernel_does(w: ws.QTensor) -> Any:
    """Values [N, K] of a prepared matrix, by lane, register and half: `common/prepared_weights.cuh` in words."""
    n, k = w.shape
    nvfp4 = w.format == "nvfp4"
    codes = w.data.reshape(-1).view(np.uint32).reshape(n // 16, k // 64, 32, 4)
    scales = w.scales.reshape(-1).view(np.uint32).reshape(n // 32, k // 64, 8, 4 if nvfp4 else 2)
    values = np.full((n, k), np.nan)
    for tile, block, lane, step in np.ndindex(codes.shape):
        g, t, word = lane // 4, lane % 4, int(codes[tile, block, lane, step])
        turned = rotated(word, 10)
        registers = [x & PLACES for x in (word ^ word << 8, turned, word << 4, turned << 4)]
        scale = int(scales[tile // 2, block, g, step if nvfp4 else step // 2])
        scale = rotated(scale, 8 * (tile % 2))
        scale = scale & 0x0FF00FF0 | 0x70007000 if nvfp4 else scale & 0x7F807F80
        for i, register in enumerate(registers):
            factor = bf16(scale >> 16 * (i % 2) & 0xFFFF)
            for half in range(2):
                row, column = 16 * tile + g + 8 * (i % 2), 64 * block + 16 * step + 2 * t + half + 8 * (i // 2)
                values[row, column] = bf16(register >> 16 * half & 0xFFFF) * factor
    return values


@pytest.mark.parametrize("format", BLOCKS)
def test_each_lane_finds_its_codes_and_scales(format: str) -> None:
    scales = None if format == "nvfp4" else np.random.default_rng(1).integers(110, 140, (64, 4), np.uint8)
    w = weight(format, 64, 128, scales=scales)
    prepared = ws.prepare_weight(w, "bf16", few_rows=True)
    factor = 2.0**-7 if format == "nvfp4" else 2.0 * float(prepared.global_scale[0])
    assert (
        read_as_the_kernel_does(prepared) == reference.decode_float64(w.data, w.scales, format, shape=w.shape) * factor
    ).all()


@pytest.mark.parametrize("format", BLOCKS)
@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_values_are_those_of_the_weights(format: str, framework: str, interleaved: bool) -> None:
    w = weight(format, 3, 96, 128, seed=2)
    if framework == "torch":
        torch = pytest.importorskip("torch")
        w = ws.QTensor(torch.from_numpy(w.data), torch.from_numpy(w.scales), format, w.shape)
    prepared = ws.prepare_weight(w, "bf16", few_rows=True, interleaved=interleaved)
    assert (prepared.packing, prepared.scale_layout, prepared.shape) == ("bf16", "linear", w.shape)
    plain = ws.prepare_weight(w, "bf16", interleaved=interleaved)
    assert (ws.dequantize(prepared) == ws.dequantize(plain)).all()
    assert ws.prepare_weight(prepared, "bf16") is prepared
    assert ws.prepare_weight(prepared, "bf16", few_rows=True) is prepared


def test_tiled_scales_are_taken_too() -> None:
    x = np.random.default_rng(3).standard_normal((64, 192), np.float32)
    for format in BLOCKS:
        linear, tiled = (ws.quantize(x, format, scale_layout=layout) for layout in ("linear", "128x4"))
        made = [ws.prepare_weight(w, "bf16", few_rows=True) for w in (linear, tiled)]
        assert (made[0].data == made[1].data).all()
        assert made[0].scales.tobytes() == made[1].scales.tobytes()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(BLOCKS)), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_packing_is_undone_exactly(format: str, rows: int, columns: int, seed: int) -> None:
    n, k = 32 * rows, 64 * columns
    rng = np.random.default_rng(seed)
    scales = rng.integers(0, 256, (n, k // BLOCKS[format]), np.uint8)
    w = weight(format, n, k, seed=seed, scales=scales)
    back = restored(few_rows_weight(w, w.data, w.scales))
    want, got = (reference.decode_float64(x.data, x.scales, format, shape=x.shape) for x in (w, back))
    np.testing.assert_array_equal(got, want)
    whole = (scales & 127 != 0) & (scales & 127 != 127) if format == "nvfp4" else scales != 255
    kept = np.repeat(whole, BLOCKS[format] // 2, 1)
    flipped = np.repeat(scales >> 7 if format == "nvfp4" else 0 * scales, BLOCKS[format] // 2, 1) * 0x88
    assert (back.data[kept] == (w.data ^ flipped)[kept]).all()
    assert not back.data[~kept].any()
    if format == "mxfp4":
        assert (back.scales == scales).all()


def test_products_on_the_host_understand_it() -> None:
    rng = np.random.default_rng(4)
    a = rng.standard_normal((3, 5, 128)).astype(ml_dtypes.bfloat16)
    for format in BLOCKS:
        w = ws.quantize(rng.standard_normal((3, 32, 128), np.float32), format)
        prepared = ws.prepare_weight(w, "bf16", few_rows=True)
        assert (ws.gemm(a, prepared) == ws.gemm(a, w)).all()
        counts = np.array([5, 0, 2])
        assert (ws.grouped_gemm(a, prepared, counts=counts) == ws.grouped_gemm(a, w, counts=counts)).all()


def test_copies_and_pickles_keep_the_packing() -> None:
    prepared = ws.prepare_weight(weight("mxfp4", 32, 64), "bf16", few_rows=True)
    for other in (copy.copy(prepared), copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):  # noqa: S301
        assert other.packing == "bf16"
        assert (ws.dequantize(other) == ws.dequantize(prepared)).all()


def test_what_does_not_fit_is_refused() -> None:
    w = weight("mxfp4", 32, 64)
    prepared = ws.prepare_weight(w, "bf16", few_rows=True)
    cases: list[tuple[Any, str, str]] = [
        (weight("mxfp4", 24, 64), "bf16", "N to be a multiple of 32"),
        (weight("mxfp4", 32, 96), "bf16", "and K of 64"),
        (w, "fp16", "beside fp16"),
        (np.zeros((32, 64), ml_dtypes.bfloat16), "bf16", "w is bf16"),
        (ws.quantize(np.zeros((32, 64), np.float32), "mxfp8"), "bf16", "w is mxfp8"),
        (prepared, "mxfp8", "packed for bf16"),
    ]
    for given_weight, activations, message in cases:
        with pytest.raises(FormatError, match=message):
            ws.prepare_weight(given_weight, activations, few_rows=True)
    with pytest.raises(FormatError, match="reordered before"):
        ws.prepare_weight(prepared, "bf16", interleaved=True)
    with pytest.raises(FormatError, match="have a global scale"):
        ws.QTensor(prepared.data, prepared.scales, "mxfp4", (32, 64), packing="bf16")
    with pytest.raises(FormatError, match="linear scales"):
        ws.QTensor(
            prepared.data, np.zeros((128, 4), np.uint8), "mxfp4", (32, 64), scale_layout="128x4",
            global_scale=prepared.global_scale, packing="bf16",
        )  # fmt: skip


def test_nobody_else_misreads_it() -> None:
    rng = np.random.default_rng(5)
    w = ws.quantize(rng.standard_normal((2, 64, 64), np.float32), "mxfp4")
    prepared = ws.prepare_weight(w, "bf16", few_rows=True)
    with pytest.raises(FormatError, match="a is fp16"):
        ws.gemm(np.zeros((2, 1, 64), np.float16), prepared)
    with pytest.raises(FormatError, match="expected activations as they were quantized"):
        ws.gemm(ws.prepare_weight(weight("mxfp4", 32, 64), "bf16", few_rows=True), weight("mxfp4", 32, 64))
    with pytest.raises(InvalidArgumentError, match="packing"):
        ws.quantize(np.zeros((2, 64, 64), np.float32), "mxfp4", out=prepared)
