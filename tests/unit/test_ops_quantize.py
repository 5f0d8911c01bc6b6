# SPDX-License-Identifier: Apache-2.0
"""Quantizing host arrays: the reference's bytes, in the array's own framework and with typed parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_samples import (
    DTYPES,
    FORMAT_LAYOUTS,
    FRAMEWORKS,
    HAS_TORCH,
    ROW_FORMAT_LAYOUTS,
    SCALE_DTYPES,
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

OFFSETS = [0, 5, 5, 70, 200]
ROWS = 203  # three belong to no group


def scaled(format: str) -> dict[str, float]:
    return {"global_scale": 4.0} if format == "nvfp4" else {}


def default_scale(x: np.ndarray, format: str) -> np.float32 | None:
    return reference.default_global_scale(x) if format == "nvfp4" else None


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("format", "layout"), FORMAT_LAYOUTS)
def test_codes_and_scales_are_the_references(framework: str, dtype: str, format: str, layout: str) -> None:
    x = random(131, 384, dtype=dtype)
    codes, scales = reference.quantize(x, format, scale_layout=layout, global_scale=default_scale(x, format))
    before = x.copy()
    q = ws.quantize(give(x, framework), format, scale_layout=layout)
    assert same(q.data, codes)
    assert same(q.scales, scales)
    assert (q.format, q.shape, q.scale_layout, q.offsets) == (format, (131, 384), layout, None)
    assert (q.global_scale is None) == (format != "nvfp4")
    assert q.device == ("numpy" if framework == "numpy" else "cpu")
    assert x.tobytes() == before.tobytes()


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("format", "layout"), ROW_FORMAT_LAYOUTS)
def test_silu_and_mul_quantizes_the_fp32_activation(framework: str, dtype: str, format: str, layout: str) -> None:
    x = random(37, 512, dtype=dtype)
    options: dict[str, Any] = {"global_scale": np.float32(3.5)} if format == "nvfp4" else {}
    codes, scales = reference.silu_and_mul_quantize(x, format, scale_layout=layout, **options)
    q = ws.silu_and_mul_quantize(give(x, framework), format, scale_layout=layout, **options)
    assert q.shape == (37, 256)
    assert same(q.data, codes)
    assert same(q.scales, scales)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("format", "layout"), FORMAT_LAYOUTS)
def test_parts_have_their_own_types_and_make_a_qtensor_again(framework: str, format: str, layout: str) -> None:
    spec = FORMATS[format]
    q = ws.quantize(give(random(2, 5, 256), framework), format, scale_layout=layout)
    assert dtype_name(q.data) == ("uint8" if spec.element_bits == 4 else "float8_e4m3fn")
    assert dtype_name(q.scales) == SCALE_DTYPES[spec.scale]
    if q.global_scale is not None:
        assert (dtype_name(q.global_scale), tuple(q.global_scale.shape)) == ("float32", (1,))
    again = ws.QTensor(q.data, q.scales, format, q.shape, scale_layout=layout, global_scale=q.global_scale)
    assert repr(again) == repr(q)
    assert f"{format}, shape=[2, 5, 256], scale_layout={layout!r}, device={q.device}" in repr(q)


def test_a_qtensor_does_not_change() -> None:
    q = ws.quantize(random(4, 32), "mxfp4")
    with pytest.raises(AttributeError, match="does not change; make a new one to replace scales"):
        q.scales = q.data  # type: ignore[misc]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_default_global_scale_is_2688_over_amax(framework: str, dtype: str) -> None:
    x = random(3, 7, 48, dtype=dtype)
    x[1, 2, 3], x[0, 0, 0], x[2, 1, 1] = 300, np.nan, np.inf
    for scale in (ws.global_scale(give(x, framework)), ws.quantize(give(x, framework), "nvfp4").global_scale):
        assert same(scale, np.array([np.float32(2688) / x[1, 2, 3].astype(np.float32)], np.float32))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("shape", [(4, 16), (0, 16), (0, 4, 16)])
def test_the_default_global_scale_of_nothing_but_zeros_is_one(framework: str, shape: tuple[int, ...]) -> None:
    x = give(np.zeros(shape, np.float32), framework)
    assert take(ws.global_scale(x)).tolist() == take(ws.quantize(x, "nvfp4").global_scale).tolist() == [1.0]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", ["float", "int", "np.float32", "np.float64", "np.float16", "array", "0-d"])
def test_a_global_scale_may_be_a_number_or_a_float32_array(framework: str, kind: str) -> None:
    x = random(9, 64)
    made: dict[str, Any] = {
        "float": 7.0,
        "int": 7,
        "np.float32": np.float32(7),
        "np.float64": np.float64(7),
        "np.float16": np.float16(7),
        "array": give(np.array([7], np.float32), framework),
        "0-d": give(np.array(7, np.float32), framework),
    }
    codes, scales = reference.quantize(x, "nvfp4", global_scale=np.float32(7))
    q = ws.quantize(give(x, framework), "nvfp4", global_scale=made[kind])
    assert same(q.data, codes)
    assert same(q.scales, scales)
    assert dtype_name(q.global_scale) == "float32"
    assert take(q.global_scale).reshape(-1).tolist() == [7.0]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("format", "layout"), FORMAT_LAYOUTS)
@pytest.mark.parametrize(
    "shape", [(2, 3, 130, 128), (1, 1, 1, 256), (0, 256), (3, 0, 128), (0, 5, 128), (2, 0, 4, 128)]
)
def test_batches_and_empty_tensors(framework: str, format: str, layout: str, shape: tuple[int, ...]) -> None:
    x = random(*shape, dtype="bfloat16")
    codes, scales = reference.quantize(x, format, scale_layout=layout, global_scale=default_scale(x, format))
    q = ws.quantize(give(x, framework), format, scale_layout=layout)
    assert q.shape == shape
    assert same(q.data, codes)
    assert same(q.scales, scales)
    assert tuple(ws.dequantize(q).shape) == shape


def views(x: Any) -> dict[str, Any]:
    """Views [*batch, M, K] of a [2, 3, 128, 256] array that are strided in different ways."""
    swap = np.transpose if isinstance(x, np.ndarray) else type(x).permute
    return {
        "padded rows": x[0, 0, :, :128],
        "every third row": x[0, 0, ::3, 64:192],
        "an odd start": x[0, 0, :20, 3:131],
        "one row of many": x[1, 2, 7:8, :128],
        "padded batches": x[:1, 1:, :7, :128],
        "every second column": x[0, :, :20, ::2],
        "columns as rows": swap(x, (0, 1, 3, 2))[:, :, 5:40],
        "batches without a common stride": swap(x, (1, 0, 2, 3))[1:, :, 2:5, 128:],
        "no rows and no common stride": swap(x, (1, 0, 2, 3))[:, :, :0, :128],
    }


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("view", views(np.zeros((2, 3, 128, 256))))
def test_a_view_gives_what_its_copy_gives(framework: str, format: str, view: str) -> None:
    x = views(give(random(2, 3, 128, 256, dtype="float16"), framework))[view]
    plain = np.ascontiguousarray(take(x))
    codes, scales = reference.quantize(plain, format, global_scale=default_scale(plain, format))
    q = ws.quantize(x, format)
    assert same(q.data, codes)
    assert same(q.scales, scales)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_array_of_any_framework_gives_the_references_bytes(data: st.DataObject) -> None:
    format, layout = data.draw(st.sampled_from(FORMAT_LAYOUTS))
    dtype = data.draw(st.sampled_from(sorted(DTYPES)))
    framework = data.draw(st.sampled_from(["numpy", "torch"] if HAS_TORCH else ["numpy"]))
    rounding = data.draw(st.sampled_from(FORMATS[format].roundings or ("ceil",)))
    batch = data.draw(st.lists(st.integers(0, 3), max_size=2))
    k = FORMATS[format].block[1] * data.draw(st.integers(1, 5))
    x = random(*batch, data.draw(st.integers(0, 140)), k, dtype=dtype, seed=data.draw(st.integers(0, 99)))
    options: dict[str, Any] = {"scale_layout": layout, "rounding": rounding}
    codes, scales = reference.quantize(x, format, global_scale=default_scale(x, format), **options)
    q = ws.quantize(give(x, framework), format, **options)
    assert same(q.data, codes)
    assert same(q.scales, scales)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("offset_dtype", [np.int32, np.int64])
@pytest.mark.parametrize(("format", "layout"), ROW_FORMAT_LAYOUTS)
def test_groups(framework: str, offset_dtype: type, format: str, layout: str) -> None:
    x, offsets = random(ROWS, 256), np.array(OFFSETS, offset_dtype)
    each = np.array([0.5, 1, 2, 3], np.float32) if format == "nvfp4" else None
    codes, scales = reference.quantize(x, format, scale_layout=layout, offsets=offsets, global_scale=each)
    given_scale = None if each is None else give(each, framework)
    q = ws.quantize(
        give(x, framework), format, scale_layout=layout, offsets=give(offsets, framework), global_scale=given_scale
    )
    assert same(q.data, codes)
    assert same(q.scales, scales)
    assert same(q.offsets, offsets)
    assert "groups=4" in repr(q)
    ws.QTensor(q.data, q.scales, format, q.shape, scale_layout=layout, global_scale=q.global_scale, offsets=q.offsets)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("format", ["mxfp4", "fp8_block"])
def test_groups_without_rows_have_padding_all_the_same(framework: str, format: str) -> None:
    x, offsets = np.zeros((0, 128), np.float32), np.zeros(4, np.int32)
    layout = FORMATS[format].layouts[-1]
    q = ws.quantize(give(x, framework), format, scale_layout=layout, offsets=give(offsets, framework))
    assert same(q.scales, reference.quantize(x, format, scale_layout=layout, offsets=offsets)[1])


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("format", "layout"), FORMAT_LAYOUTS)
def test_out_is_written_and_returned(framework: str, format: str, layout: str) -> None:
    first, second = random(2, 70, 128), random(2, 70, 128, seed=1)
    options: dict[str, Any] = {"scale_layout": layout, **scaled(format)}
    out = ws.quantize(give(first, framework), format, **options)
    q = ws.quantize(give(second, framework), format, out=out, **options)
    fresh = ws.quantize(give(second, framework), format, **options)
    assert q.data is out.data
    assert q.scales is out.scales
    assert same(out.data, take(fresh.data))
    assert same(out.scales, take(fresh.scales))
    assert repr(q) == repr(fresh)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("format", "layout"), ROW_FORMAT_LAYOUTS)
def test_rows_of_no_group_are_not_written_to_out(framework: str, format: str, layout: str) -> None:
    options: dict[str, Any] = {"scale_layout": layout, **scaled(format)}
    every, most = np.array([0, 5, 5, 70, ROWS], np.int32), np.array(OFFSETS, np.int32)
    out = ws.quantize(give(random(ROWS, 256), framework), format, offsets=give(every, framework), **options)
    data, scales = take(out.data).copy(), take(out.scales).copy()
    x = random(ROWS, 256, seed=1)
    ws.quantize(give(x, framework), format, offsets=give(most, framework), out=out, **options)
    fresh = ws.quantize(x, format, offsets=most, **options)
    data[:200] = take(fresh.data)[:200]
    if layout == "128x4":
        scales = take(fresh.scales)
    elif layout == "m_major":
        scales[:, :200] = take(fresh.scales)[:, :200]
    else:
        scales[:200] = take(fresh.scales)[:200]
    assert same(out.data, data)
    assert same(out.scales, scales)


@pytest.mark.parametrize("format", ["mxfp4", "mxfp8"])
def test_rounding_reaches_the_scales(format: str) -> None:
    x = np.full((1, 32), 7.9, np.float32)
    up, down = ws.quantize(x, format), ws.quantize(x, format, rounding="floor")
    assert (take(up.scales) == take(down.scales) + 1).all()


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("format", [name for name, format in FORMATS.items() if not format.whole])
def test_a_block_with_a_nan_is_nan_and_no_other_is(framework: str, format: str) -> None:
    x = random(1, 512)
    x[0, 200] = np.nan
    back = take(ws.dequantize(ws.quantize(give(x, framework), format, **scaled(format)), "float32"))
    block = FORMATS[format].block[1]
    start = 200 // block * block
    assert np.isnan(back[0, start : start + block]).all()
    assert np.isfinite(np.delete(back, slice(start, start + block), axis=1)).all()


@needs_torch
def test_tensors_that_require_gradients_are_read_like_any_other() -> None:
    import torch

    x = torch.randn(4, 32).requires_grad_()
    scale = torch.ones(1).requires_grad_()
    q = ws.quantize(x, "nvfp4", global_scale=scale)
    assert same(q.data, take(ws.quantize(x.detach(), "nvfp4", global_scale=1.0).data))
    assert not q.scales.requires_grad
    assert not ws.dequantize(q).requires_grad
    assert take(ws.global_scale(x)).shape == (1,)


@needs_torch
def test_a_parameter_is_a_tensor() -> None:
    import torch

    q = ws.quantize(torch.ones(4, 32), "mxfp4")
    loaded = ws.QTensor(torch.nn.Parameter(q.data, requires_grad=False), q.scales, "mxfp4", (4, 32))
    out = torch.empty(4, 32)
    assert ws.dequantize(loaded, out=out) is out
    assert (out == 1).all()
