# SPDX-License-Identifier: Apache-2.0
"""More than 2^31 elements: rows before, at and beyond every 32-bit boundary are what the reference says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import warpsmith as ws
from warpsmith import reference

from .support import DEVICE, assert_same, download, torch

M, K = 2**20 + 3, 2176
NEEDED = 14 << 30
BOUNDARIES = (2**30, 2**31)
"""Elements at which a 32-bit index would wrap: of 2^31 bytes of bf16, and of 2^31 elements or 2^32 bytes."""

pytestmark = pytest.mark.skipif(
    torch.cuda.mem_get_info(0)[0] < NEEDED, reason=f"needs {NEEDED >> 30} GiB of free GPU memory"
)


@pytest.fixture(scope="module")
def x() -> Iterator[Any]:
    """A tensor of 4.6 GB."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    tensor = torch.empty(M, K, dtype=torch.bfloat16, device=DEVICE).normal_(generator=generator)
    assert tensor.numel() > 2**31
    tensor[M - 2, 5] = 1000
    yield tensor
    del tensor
    torch.cuda.empty_cache()


def slabs() -> list[slice]:
    """128-row slabs to look at: the first, those around each boundary, the last, partial one."""
    rows = sorted({0, M - 1} | {min(boundary // K + step, M - 1) for boundary in BOUNDARIES for step in (-128, 0, 128)})
    starts = sorted({row // 128 * 128 for row in rows})
    assert starts[-1] + 128 > M
    return [slice(start, min(start + 128, M)) for start in starts]


@pytest.mark.parametrize(
    ("format", "layout"),
    [
        ("nvfp4", "128x4"),
        ("mxfp4", "linear"),
        ("mxfp8", "128x4"),
        ("fp8_block", "m_major"),
        ("fp8_block_128x128", "linear"),
    ],
)
def test_codes_and_scales(x: Any, format: str, layout: str) -> None:
    scale = {"global_scale": np.float32(2.688)} if format == "nvfp4" else {}
    q = ws.quantize(x, format, scale_layout=layout)
    if scale:
        assert_same("scale", q.global_scale, np.array([2.688], np.float32))
    for rows in slabs():
        codes, scales = reference.quantize(download(x[rows]), format, scale_layout=layout, **scale)
        assert_same(f"codes of {rows}", q.data[rows], codes)
        if layout == "m_major":
            # The last rows have padding beside them, which the whole tensor's scales have too.
            got = q.scales[:, rows.start : rows.start + scales.shape[1]].contiguous()
        elif format == "fp8_block_128x128":
            got = q.scales[rows.start // 128 : rows.start // 128 + 1]
        else:
            got = q.scales[rows.start : rows.start + scales.shape[0]]
        assert_same(f"scales of {rows}", got, scales)


def test_values(x: Any) -> None:
    q = ws.quantize(x, "mxfp8")
    back = ws.dequantize(q)
    for rows in slabs():
        shape = (rows.stop - rows.start, K)
        codes, scales = download(q.data[rows]), download(q.scales[rows])
        want = reference.dequantize(codes, scales, "mxfp8", shape=shape, dtype="bf16")
        assert_same(f"values of {rows}", back[rows], want)


def test_the_activation(x: Any) -> None:
    q = ws.silu_and_mul_quantize(x, "mxfp4")
    for rows in slabs():
        codes, scales = reference.silu_and_mul_quantize(download(x[rows]), "mxfp4")
        assert_same(f"codes of {rows}", q.data[rows], codes)
        assert_same(f"scales of {rows}", q.scales[rows], scales)
