# SPDX-License-Identifier: Apache-2.0
"""Dequantizing CUDA tensors: the reference's values for every format, layout and output type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import warpsmith as ws
from warpsmith import reference
from warpsmith.catalog.formats import FORMATS

from .support import (
    DTYPES,
    FORMAT_LAYOUTS,
    ROW_FORMAT_LAYOUTS,
    SHORT,
    assert_same,
    guarded,
    random,
    scaled,
    torch,
    upload,
)


def quantized(
    x: np.ndarray, format: str, layout: str, **options: Any
) -> tuple[ws.QTensor, np.ndarray, np.ndarray, dict[str, Any]]:
    """The reference's codes and scales, as a `QTensor` on the GPU too, and what `reference.dequantize` needs else."""
    codes, scales = reference.quantize(x, format, scale_layout=layout, **options)
    parts = {name: upload(np.atleast_1d(value)) for name, value in options.items()}
    q = ws.QTensor(upload(codes), upload(scales), format, x.shape, scale_layout=layout, **parts)
    return q, codes, scales, {"shape": x.shape, "scale_layout": layout, **options}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("format", "layout"), FORMAT_LAYOUTS)
def test_every_format_layout_and_type(format: str, layout: str, dtype: str) -> None:
    block = FORMATS[format].block[1]
    for shape in ((1, block), (131, 5 * block), (2, 3, 37, 384), (300, 1408)):
        q, codes, scales, options = quantized(random(*shape), format, layout, **scaled(format, 0.37))
        want = reference.dequantize(codes, scales, format, dtype=SHORT[dtype], **options)
        assert_same("values", ws.dequantize(q, dtype), want, any_nan=True)
        out, check = guarded(shape, getattr(torch, dtype))
        assert ws.dequantize(q, out=out) is out
        assert_same("values", out, want, any_nan=True)
        check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", FORMATS)
def test_every_code_with_every_scale(format: str, dtype: str) -> None:
    spec, rng = FORMATS[format], np.random.default_rng(0)
    codes = rng.integers(0, 256, (256, spec.data_columns(512)), np.uint8)
    shape = spec.scale_shape("linear", (), 256, 512)
    scales: np.ndarray = np.resize(np.arange(256, dtype=np.uint8), shape).reshape(shape)
    if spec.scale == "fp32":
        scales = rng.integers(0, 1 << 32, shape, np.uint32).view(np.float32)
    want = reference.dequantize(codes, scales, format, shape=(256, 512), dtype=SHORT[dtype])
    q = ws.QTensor(upload(codes), upload(scales), format, (256, 512))
    assert_same("values", ws.dequantize(q, dtype), want, any_nan=True)


@pytest.mark.parametrize("what", ["codes", "scales", "out"])
@pytest.mark.parametrize("format", FORMATS)
def test_parts_that_start_anywhere(format: str, what: str) -> None:
    x = random(33, 384)
    q, codes, scales, options = quantized(x, format, "linear")
    want = reference.dequantize(codes, scales, format, **options)
    parts = {"data": q.data, "scales": q.scales}
    offset = {"codes": 1, "scales": FORMATS[format].scale_bytes, "out": 0}[what]
    name = "scales" if what == "scales" else "data"
    moved, _ = guarded(tuple(parts[name].shape), parts[name].dtype, offset)
    moved.copy_(parts[name])
    parts[name] = moved
    out, check = guarded((33, 384), torch.float32, 4 if what == "out" else 0)
    ws.dequantize(ws.QTensor(**parts, format=format, shape=(33, 384)), out=out)
    assert_same("values", out, want, any_nan=True)
    check()


@pytest.mark.parametrize("format", FORMATS)
def test_parts_may_be_strided(format: str) -> None:
    rows = 128 if FORMATS[format].block[0] > 1 else 1
    q, codes, scales, options = quantized(random(4 * rows, 512), format, "linear")
    want = reference.dequantize(codes, scales, format, **options).reshape(4, rows, 512)[::2].reshape(-1, 512)
    data = q.data.view(4, rows, -1).permute(1, 0, 2)[:, ::2].permute(1, 0, 2).reshape(2 * rows, -1)
    half = ws.QTensor(data if rows > 1 else q.data[::2], q.scales[::2], format, (2 * rows, 512))
    assert_same("values", ws.dequantize(half, "float32"), want, any_nan=True)


@pytest.mark.parametrize("offset_dtype", [np.int32, np.int64])
@pytest.mark.parametrize(("format", "layout"), ROW_FORMAT_LAYOUTS)
def test_rows_of_no_group_are_zero_or_left_alone(format: str, layout: str, offset_dtype: type) -> None:
    offsets = np.array([0, 0, 5, 5, 133, 134, 300], offset_dtype)
    each = {"global_scale": np.arange(1, 7, dtype=np.float32)} if format == "nvfp4" else {}
    q, codes, scales, options = quantized(random(303, 384), format, layout, offsets=offsets, **each)
    want = reference.dequantize(codes, scales, format, **options)
    assert not want[300:].any()
    assert_same("values", ws.dequantize(q, "float32"), want, any_nan=True)
    out = torch.full((303, 384), 7.0, device=q.data.device)
    ws.dequantize(q, out=out)
    want[300:] = 7
    assert_same("values", out, want, any_nan=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_global_scale_that_is_none_gives_nan(value: float) -> None:
    q = ws.quantize(upload(random(40, 64)), "nvfp4", global_scale=1.0)
    scale = upload(np.array([value], np.float32))
    bad = ws.QTensor(q.data, q.scales, "nvfp4", (40, 64), global_scale=scale)
    assert torch.isnan(ws.dequantize(bad)).all()


def test_a_round_trip_on_the_device_has_the_default_type() -> None:
    x = random(64, 256)
    back = ws.dequantize(ws.quantize(upload(x), "mxfp8"))
    assert back.dtype is torch.bfloat16
    assert (np.abs(back.float().cpu().numpy() - x) <= np.abs(x).max(axis=1, keepdims=True) / 16).all()
