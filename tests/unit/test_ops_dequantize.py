# SPDX-License-Identifier: Apache-2.0
"""Dequantizing host arrays: the reference's values, in the array's own framework and any of three types."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from ops_samples import (
    DTYPES,
    FORMAT_LAYOUTS,
    FRAMEWORKS,
    ROW_FORMAT_LAYOUTS,
    dtype_name,
    give,
    needs_torch,
    random,
    same,
    take,
)

import warpsmith as ws
from warpsmith import reference
from warpsmith.catalog.formats import FORMATS

SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("format", "layout"), FORMAT_LAYOUTS)
def test_values_are_the_references(framework: str, dtype: str, format: str, layout: str) -> None:
    x = random(2, 67, 384)
    scale = np.array([0.37], np.float32) if format == "nvfp4" else None
    codes, scales = reference.quantize(x, format, scale_layout=layout, global_scale=scale)
    options: dict[str, Any] = {"shape": x.shape, "scale_layout": layout, "global_scale": scale}
    want = reference.dequantize(codes, scales, format, dtype=SHORT[dtype], **options)
    q = ws.quantize(give(x, framework), format, scale_layout=layout, global_scale=scale)
    got = ws.dequantize(q, dtype)
    assert dtype_name(got) == dtype
    assert same(got, want)
    out = give(np.full(x.shape, 7, DTYPES[dtype]), framework)
    assert ws.dequantize(q, out=out) is out
    assert same(out, want)


@pytest.mark.parametrize(
    ("framework", "dtype"), [("numpy", "float32"), pytest.param("torch", "bfloat16", marks=needs_torch)]
)
def test_each_framework_has_its_default_type(framework: str, dtype: str) -> None:
    q = ws.quantize(give(random(4, 32), framework), "mxfp8")
    assert dtype_name(ws.dequantize(q)) == dtype


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (np.float32, "float32"),
        (np.dtype("float16"), "float16"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (np.dtype(ml_dtypes.bfloat16), "bfloat16"),
        ("float16", "float16"),
    ],
)
def test_a_dtype_may_be_numpys_own_or_a_name(dtype: Any, name: str) -> None:
    assert dtype_name(ws.dequantize(ws.quantize(random(4, 32), "mxfp8"), dtype)) == name


@needs_torch
@pytest.mark.parametrize("name", DTYPES)
def test_a_dtype_may_be_torchs_own(name: str) -> None:
    import torch

    q = ws.quantize(torch.ones(4, 32), "mxfp8")
    assert ws.dequantize(q, getattr(torch, name)).dtype is getattr(torch, name)
    assert dtype_name(ws.dequantize(ws.quantize(random(4, 32), "mxfp8"), getattr(torch, name))) == name


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("format", "layout"), ROW_FORMAT_LAYOUTS)
def test_rows_of_no_group_are_zero_or_left_alone(framework: str, format: str, layout: str) -> None:
    x, offsets = random(203, 256), np.array([0, 5, 5, 70, 200])
    each = np.array([0.5, 1, 2, 3], np.float32) if format == "nvfp4" else None
    codes, scales = reference.quantize(x, format, scale_layout=layout, offsets=offsets, global_scale=each)
    options: dict[str, Any] = {"shape": x.shape, "scale_layout": layout, "offsets": offsets, "global_scale": each}
    want = reference.dequantize(codes, scales, format, **options)
    parts: dict[str, Any] = {"scale_layout": layout, "offsets": give(offsets, framework)}
    parts["global_scale"] = None if each is None else give(each, framework)
    q = ws.quantize(give(x, framework), format, **parts)
    assert same(ws.dequantize(q, "float32"), want)
    assert not want[200:].any()
    want[200:] = 7
    out = give(np.full(x.shape, 7, np.float32), framework)
    ws.dequantize(q, out=out)
    assert same(out, want)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("format", FORMATS)
def test_bytes_serve_as_one_byte_types(framework: str, format: str) -> None:
    x = random(5, 256)
    q = ws.quantize(give(x, framework), format)
    plain = ws.QTensor(
        give(take(q.data), framework), give(take(q.scales), framework), format, (5, 256), global_scale=q.global_scale
    )
    assert same(ws.dequantize(plain), take(ws.dequantize(q)))


@needs_torch
def test_torchs_own_type_for_two_fp4_a_byte_is_taken() -> None:
    import torch

    q = ws.quantize(torch.randn(5, 64), "mxfp4")
    typed = ws.QTensor(q.data.view(torch.float4_e2m1fn_x2), q.scales, "mxfp4", (5, 64))
    assert same(ws.dequantize(typed), take(ws.dequantize(q)))
    assert same(ws.quantize(torch.ones(5, 64), "mxfp4", out=typed).scales, np.full((5, 2), 125, np.uint8))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_without_a_global_scale_it_is_one(framework: str) -> None:
    q = ws.quantize(give(random(5, 64), framework), "nvfp4", global_scale=1.0)
    bare = ws.QTensor(q.data, q.scales, "nvfp4", (5, 64))
    assert same(ws.dequantize(bare), take(ws.dequantize(q)))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_global_scale_that_is_none_gives_nan(framework: str, value: float) -> None:
    q = ws.quantize(give(random(5, 64), framework), "nvfp4", global_scale=1.0)
    scale = give(np.array([value], np.float32), framework)
    assert np.isnan(
        take(ws.dequantize(ws.QTensor(q.data, q.scales, "nvfp4", (5, 64), global_scale=scale), "float32"))
    ).all()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_parts_may_be_strided(framework: str) -> None:
    x = random(40, 64)
    q = ws.quantize(give(x, framework), "mxfp8")
    half = ws.QTensor(q.data[::2], q.scales[::2], "mxfp8", (20, 64))
    assert same(ws.dequantize(half, "float32"), take(ws.dequantize(q, "float32"))[::2])
