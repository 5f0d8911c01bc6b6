# SPDX-License-Identifier: Apache-2.0
"""Quantizing CUDA tensors: the reference's bytes for every format, layout, type and way of lying in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import warpsmith as ws
from warpsmith import reference
from warpsmith.catalog.formats import FORMATS

from .support import (
    DEVICE,
    DTYPES,
    FORMAT_LAYOUTS,
    QUANTIZE_CASES,
    ROW_FORMAT_LAYOUTS,
    assert_same,
    check_quantize,
    download,
    guarded,
    guarded_out,
    kernels_used,
    on_gpu,
    random,
    scaled,
    torch,
    upload,
)

OFFSETS = [0, 0, 5, 5, 133, 134, 300]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("format", "layout", "silu"), QUANTIZE_CASES)
def test_every_format_layout_and_type(format: str, layout: str, dtype: str, silu: bool) -> None:
    block = FORMATS[format].block[1]
    for m, blocks in ((1, 1), (3, 11), (131, 5), (260, 8)):
        x = random(m, blocks * block * (1 + silu), dtype=dtype, seed=m)
        check_quantize(x, format, scale_layout=layout, silu=silu, **scaled(format))


@pytest.mark.parametrize("silu", [False, True], ids=["quantize", "silu"])
@pytest.mark.parametrize(("format", "layout"), ROW_FORMAT_LAYOUTS)
@pytest.mark.usefixtures("nothing_loaded")
def test_tensors_of_all_sizes_get_the_kernel_for_their_size(format: str, layout: str, silu: bool) -> None:
    per_sm = 32768 // 2048  # rows of 2048 columns: up to here one pass a thread, beyond it four
    m = per_sm * torch.cuda.get_device_properties(0).multi_processor_count + 129
    check_quantize(random(130, 2048 * (1 + silu)), format, scale_layout=layout, silu=silu, **scaled(format))
    check_quantize(random(m, 2048 * (1 + silu)), format, scale_layout=layout, silu=silu, **scaled(format))
    assert kernels_used() == {f"{format}_fp32_p1", f"{format}_fp32_p4"}


@pytest.mark.parametrize("rounding", ["ceil", "floor"])
@pytest.mark.parametrize("format", ["mxfp4", "mxfp8"])
def test_rounding(format: str, rounding: str) -> None:
    check_quantize(random(133, 256), format, rounding=rounding)


def views(x: Any) -> dict[str, Any]:
    """Views [*batch, M, K] of a [2, 3, 128, 256] tensor that are strided in different ways."""
    return {
        "padded rows": x[0, 0, :, :128],
        "every third row": x[0, 0, ::3, 64:192],
        "an odd start": x[0, 0, :20, 3:131],
        "one row of many": x[1, 2, 7:8, :128],
        "padded batches": x[:1, 1:, :7, :128],
        "every second column": x[0, :, :20, ::2],
        "columns as rows": x.transpose(-1, -2)[:, :, 5:40],
        "batches without a common stride": x.transpose(0, 1)[1:, :, 2:5, 128:],
        "one row for all": x[:, :, :1].expand(2, 3, 130, 256),
        "one matrix for all": x[:1, :1, :9].expand(4, 5, 9, 256),
        "no rows and no common stride": x.transpose(0, 1)[:, :, :0, :128],
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("view", views(torch.zeros(2, 3, 128, 256)))
@pytest.mark.parametrize(("format", "layout"), FORMAT_LAYOUTS)
def test_views(format: str, layout: str, view: str, dtype: str) -> None:
    tensor = views(upload(random(2, 3, 128, 256, dtype=dtype)))[view]
    check_quantize(download(tensor.contiguous()), format, view=tensor, scale_layout=layout, **scaled(format))


@pytest.mark.parametrize("shift", [1, 2, 4, 5])
@pytest.mark.parametrize("pad", [0, 1, 8])
@pytest.mark.parametrize("format", FORMATS)
def test_rows_that_start_anywhere(format: str, shift: int, pad: int) -> None:
    x = random(33, 256, dtype="bfloat16")
    memory = torch.full((33 * (256 + pad) + 8,), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    tensor = memory[shift : shift + 33 * (256 + pad)].view(33, 256 + pad)[:, :256]
    tensor.copy_(upload(x))
    assert tensor.data_ptr() % 16
    check_quantize(x, format, view=tensor, **scaled(format))


@pytest.mark.parametrize("shape", [(0, 256), (3, 0, 128), (0, 5, 128), (2, 0, 4, 128)], ids=str)
@pytest.mark.parametrize(("format", "layout"), FORMAT_LAYOUTS)
def test_empty_tensors(format: str, layout: str, shape: tuple[int, ...]) -> None:
    q = check_quantize(np.zeros(shape, np.float32), format, scale_layout=layout)
    assert tuple(ws.dequantize(q).shape) == shape


@pytest.mark.parametrize("offset_dtype", [np.int32, np.int64])
@pytest.mark.parametrize("silu", [False, True], ids=["quantize", "silu"])
@pytest.mark.parametrize(("format", "layout"), ROW_FORMAT_LAYOUTS)
def test_groups(format: str, layout: str, silu: bool, offset_dtype: type) -> None:
    offsets = np.array(OFFSETS, offset_dtype)
    each = {"global_scale": np.arange(1, 7, dtype=np.float32)} if format == "nvfp4" else {}
    x = random(300, 384 * (1 + silu), dtype="float16")
    check_quantize(x, format, scale_layout=layout, silu=silu, offsets=offsets, **each)
    check_quantize(x, format, scale_layout=layout, silu=silu, offsets=offsets, **scaled(format))


@pytest.mark.parametrize(("format", "layout"), ROW_FORMAT_LAYOUTS)
def test_groups_without_rows(format: str, layout: str) -> None:
    offsets = np.zeros(4, np.int32)
    for _ in range(2):
        torch.full((256 * 16,), 0xA5, dtype=torch.uint8, device=DEVICE)  # freed at once, and allocated again
        check_quantize(np.zeros((0, 256), np.float32), format, scale_layout=layout, offsets=offsets)


@pytest.mark.parametrize("misaligned", [False, True], ids=["aligned", "misaligned"])
@pytest.mark.parametrize(("format", "layout"), ROW_FORMAT_LAYOUTS)
def test_rows_of_no_group_are_not_written(format: str, layout: str, misaligned: bool) -> None:
    x, offsets = random(303, 384), np.array(OFFSETS, np.int32)
    out, check = guarded_out(format, (303, 384), layout, offsets=upload(offsets), misaligned=misaligned)
    before = download(out.data), download(out.scales)
    ws.quantize(upload(x), format, scale_layout=layout, offsets=out.offsets, out=out, **on_gpu(scaled(format)))
    codes, scales = reference.quantize(x, format, scale_layout=layout, offsets=offsets, **scaled(format))
    codes[300:] = before[0][300:]
    if layout == "m_major":
        scales[:, 300:303] = before[1][:, 300:303]
    elif layout == "linear":
        scales[300:] = before[1][300:]
    assert_same("codes", out.data, codes)
    assert_same("scales", out.scales, scales)
    check()


BAD_OFFSETS = [
    [0, 150, 40, 200],
    [0, 190, 10, 0],
    [200, 100, 50, 0],
    [-7, 60, 20, 10**9],
    [-(10**9), -5, -4, -3],
    [10**9, 10**9, 10**9, 10**9],
    [0, 2**62, -(2**62), 200],
    [60, 70, 80, 150],
]


@pytest.mark.parametrize("offsets", BAD_OFFSETS, ids=str)
@pytest.mark.parametrize(("format", "layout"), ROW_FORMAT_LAYOUTS)
def test_bad_offsets_on_the_device_touch_nothing_else(format: str, layout: str, offsets: list[int]) -> None:
    x = upload(random(200, 384))
    before = x.clone()
    each = {"global_scale": torch.ones(3, device=DEVICE)} if format == "nvfp4" else {}
    for kind in (torch.int64, torch.int32) if max(map(abs, offsets)) < 2**31 else (torch.int64,):
        given = torch.tensor(offsets, dtype=kind, device=DEVICE)
        out, check = guarded_out(format, (200, 384), layout, offsets=given)
        q = ws.quantize(x, format, scale_layout=layout, offsets=given, out=out, **each)
        back, check_back = guarded((200, 384), torch.bfloat16)
        ws.dequantize(q, out=back)
        torch.cuda.synchronize()
        check()
        check_back()
        assert torch.equal(x, before)
    check_quantize(random(40, 384), format, **scaled(format))  # the context is alive


@pytest.mark.parametrize(("format", "layout"), ROW_FORMAT_LAYOUTS)
def test_offsets_beyond_the_rows_end_with_them(format: str, layout: str) -> None:
    x = random(200, 384)
    right = np.array([0, 64, 200, 200], np.int64)
    codes, scales = reference.quantize(x, format, scale_layout=layout, offsets=right, **scaled(format))
    given = upload(np.array([-3, 64, 10**6, 2**40], np.int64))
    q = ws.quantize(upload(x), format, scale_layout=layout, offsets=given, **on_gpu(scaled(format)))
    assert_same("codes", q.data, codes)
    assert_same("scales", q.scales, scales)


@pytest.mark.parametrize("misaligned", [False, True], ids=["aligned", "misaligned"])
@pytest.mark.parametrize(("format", "layout", "silu"), QUANTIZE_CASES)
def test_out(format: str, layout: str, silu: bool, misaligned: bool) -> None:
    x = random(3, 131, 384 * (1 + silu))
    out, check = guarded_out(format, (3, 131, 384), layout, misaligned=misaligned)
    q = check_quantize(x, format, scale_layout=layout, silu=silu, out=out, **scaled(format))
    assert q.data is out.data
    assert q.scales is out.scales
    check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16), (7, 1000), (3, 129, 640), (2000, 2048)], ids=str)
def test_the_default_global_scale(shape: tuple[int, ...], dtype: str) -> None:
    x = random(*shape, dtype=dtype)
    x.reshape(-1)[[0, -1]] = np.inf, np.nan
    want = np.array([reference.default_global_scale(x)], np.float32)
    assert_same("scale", ws.global_scale(upload(x)), want)
    strided = torch.nn.functional.pad(upload(x), (1, 2))[..., 1:-2]
    assert_same("scale", ws.global_scale(strided), want)
    if shape[-1] % 16 == 0:
        q = ws.quantize(upload(x), "nvfp4")
        assert_same("scale", q.global_scale, want)
        assert_same("codes", q.data, reference.quantize(x, "nvfp4", global_scale=want)[0])


def test_the_default_global_scale_of_nothing_but_zeros_is_one() -> None:
    for shape in ((4, 16), (0, 16), (0, 4, 16)):
        assert ws.global_scale(torch.zeros(shape, device=DEVICE)).tolist() == [1.0]


@pytest.mark.parametrize("number", [3.25, np.float32(3.25), np.float64(3.25), 7, "0-d", "strided"])
def test_a_global_scale_may_be_a_number_or_any_tensor_of_one(number: Any) -> None:
    x = random(33, 256)
    tensors = {
        "0-d": torch.tensor(2.5, device=DEVICE),
        "strided": torch.full((4, 4), 2.5, device=DEVICE)[1, ::4],
    }
    given, value = (tensors[number], 2.5) if isinstance(number, str) else (number, float(number))
    q = ws.quantize(upload(x), "nvfp4", global_scale=given)
    codes, scales = reference.quantize(x, "nvfp4", global_scale=value)
    assert_same("codes", q.data, codes)
    assert_same("scales", q.scales, scales)
    assert (q.global_scale.dtype, str(q.global_scale.device)) == (torch.float32, DEVICE)
    assert q.global_scale.reshape(-1).tolist() == [value]


@pytest.mark.parametrize("layout", ["linear", "128x4"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, -2.0])
def test_a_device_global_scale_that_is_none_makes_every_scale_nan(value: float, layout: str) -> None:
    q = check_quantize(random(130, 128), "nvfp4", scale_layout=layout, global_scale=np.float32(value))
    linear = check_quantize(random(130, 128), "nvfp4", global_scale=np.float32(value))
    assert (download(linear.scales) == 0x7F).all()
    assert not download(q.data).any()
    assert torch.isnan(ws.dequantize(q)).all()


def test_only_the_group_of_a_bad_global_scale_is_nan() -> None:
    each, offsets = np.array([1, np.nan, 3], np.float32), np.array([0, 40, 90, 130])
    x = random(130, 128)
    q = check_quantize(x, "nvfp4", scale_layout="128x4", global_scale=each, offsets=offsets)
    rows = torch.isnan(ws.dequantize(q)).all(dim=1).nonzero().reshape(-1).tolist()
    assert rows == list(range(40, 90))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("format", "silu"), [(format, silu) for format, layout, silu in QUANTIZE_CASES if layout == "linear"]
)
def test_a_block_that_is_not_finite_is_nan_and_no_other_is(format: str, dtype: str, silu: bool, bad: float) -> None:
    rows, block = FORMATS[format].block
    x = random(140, 512 * (1 + silu), dtype=dtype)
    x[137, 200] = bad
    if silu:
        x[137, 712] = 1.0
    clean = x.copy()
    clean[137, 200] = 0.5
    q = check_quantize(x, format, silu=silu, **scaled(format))
    other = check_quantize(clean, format, silu=silu, **scaled(format))
    hit = np.zeros((140, 512), bool)
    whole = FORMATS[format].whole  # what has one scale: a row, or all of it
    columns = slice(None) if whole else slice(200 // block * block, (200 // block + 1) * block)
    hit[137 // rows * rows :, columns] = True
    if rows == 1:
        hit[:137] = hit[138:] = whole == "tensor"
    back = download(ws.dequantize(q, "float32"))
    assert np.isnan(back[hit]).all()
    assert np.array_equal(back[~hit], download(ws.dequantize(other, "float32"))[~hit])


def test_tensors_that_require_gradients_are_read_like_any_other() -> None:
    x = random(33, 256)
    q = check_quantize(x, "mxfp8", view=upload(x).requires_grad_())
    assert not ws.dequantize(q).requires_grad
