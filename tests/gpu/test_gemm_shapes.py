# SPDX-License-Identifier: Apache-2.0
"""Products of the sizes that real models have, dense, batched, grouped and masked, against float64 on the GPU.

The operands are random and quantized here; float64 multiplies what `dequantize` makes of them, so that the error is the
product's own. Large M is held on rows drawn from all of it.
"""

from __future__ import annotations

import zlib
from itertools import product
from typing import Any

import pytest

import warpsmith as ws
from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.gemm import PAIRS, k_multiple
from warpsmith.catalog.gemm_sm90 import FP8_TOLERANCE

from . import need_gpu

need_gpu()
torch = pytest.importorskip("torch")

DEVICE = "cuda:0"
SHAPES = (
    *((1, 4096, 7168), (16, 7168, 2048), (64, 7168, 2048), (64, 4096, 7168), (128, 24576, 1536), (128, 7168, 16384)),
    *((2048, 4096, 4096), (4096, 7168, 2048), (4096, 4096, 7168), (4096, 7168, 16384), (4096, 24576, 1536)),
    *((8192, 8192, 8192), (100, 512, 1024), (33, 2880, 2880), (777, 11008, 4096)),
)
"""M, N, K of linear layers of Llama, Qwen, DeepSeek-V3 and gpt-oss."""

EXPERTS = ((1536, 2048), (2048, 768), (4096, 1536), (4096, 7168), (7168, 2048), (5760, 2880), (2880, 2880))
"""N, K of one expert's weights in Qwen3-30B and 235B, DeepSeek-V3 and gpt-oss."""

COUNTS = (0, 1, 130, 17, 64)
LIMITS = {"bfloat16": 3e-3, "float16": 4e-4, "float32": 2e-6}
"""Of docs/numerics.md; fp32's grows with K."""
_ROWS = 192
_PORTABLE_ROWS = 1024  # pairs without a kernel of 9.0 take their time
EVERY_PAIR = pytest.mark.parametrize(("a_format", "b_format"), PAIRS)


def operand(format: str, *shape: int, seed: str, **options: Any) -> tuple[Any, Any]:
    """A random operand and its values, in float32: nothing that a format holds is rounded."""
    generator = torch.Generator(DEVICE).manual_seed(zlib.crc32(seed.encode()))
    x = torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.bfloat16)
    if format not in FORMATS:
        x = x.to(torch.bfloat16 if format == "bf16" else torch.float16)
        return x, x.float()
    scale = {"global_scale": torch.full((1,), 512.0, device=DEVICE)} if format == "nvfp4" else {}
    q = ws.quantize(x, format, scale_layout=FORMATS[format].layouts[-1], **scale, **options)
    return q, ws.dequantize(q, dtype="float32")


def check(case: str, got: Any, want: Any, a_format: str, k: int) -> None:
    limit = max(LIMITS[str(got.dtype).removeprefix("torch.")], 3e-9 * k)
    if a_format.startswith("fp8"):
        limit = max(limit, FP8_TOLERANCE)  # the sums of 9.0's tensor cores
    error = float((got.double() - want).norm() / want.norm())
    assert error <= limit, f"{case}, {got.dtype}: error {error:.3g}, expected at most {limit:.3g}"


def rows_held(m: int, case: str) -> Any:
    """Rows drawn from all of `m`, the last among them."""
    generator = torch.Generator().manual_seed(zlib.crc32(case.encode()))
    drawn = torch.randperm(m, generator=generator)[:_ROWS]
    drawn[0] = m - 1
    return drawn.to(DEVICE)


@EVERY_PAIR
def test_dense(a_format: str, b_format: str) -> None:
    for m, n, k in SHAPES:
        if k % k_multiple(a_format, b_format):
            continue
        rows = m if a_format == b_format or a_format == "fp8_block" else min(m, _PORTABLE_ROWS)
        case = f"{a_format} x {b_format}, {rows}x{n}x{k}"
        (a, a_values), (b, b_values) = operand(a_format, rows, k, seed=f"a {case}"), operand(b_format, n, k, seed=case)
        held = rows_held(rows, case)
        want = a_values[held].double() @ b_values.double().t()
        bias = torch.randn(n, device=DEVICE)
        for dtype in LIMITS:
            check(case, ws.gemm(a, b, out_dtype=dtype)[held], want, a_format, k)
        check(
            f"{case} with bias", ws.gemm(a, b, bias=bias, out_dtype="float32")[held], want + bias.double(), a_format, k
        )


@EVERY_PAIR
def test_batched(a_format: str, b_format: str) -> None:
    for (n, k), m in product(EXPERTS, (1, 40)):
        if k % k_multiple(a_format, b_format):
            continue
        case = f"{a_format} x {b_format}, 3 of {m}x{n}x{k}"
        (a, a_values), (b, b_values) = (
            operand(a_format, 3, m, k, seed=f"a {case}"),
            operand(b_format, 3, n, k, seed=case),
        )
        want = a_values.double() @ b_values.double().transpose(1, 2)
        for dtype in LIMITS:
            check(case, ws.gemm(a, b, out_dtype=dtype), want, a_format, k)


@EVERY_PAIR
def test_grouped_and_masked(a_format: str, b_format: str) -> None:
    counts = torch.tensor(COUNTS, dtype=torch.int32, device=DEVICE)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0, dtype=torch.int32)])
    total, groups = sum(COUNTS), len(COUNTS)
    group = torch.repeat_interleave(torch.arange(groups, device=DEVICE), counts)
    place = torch.arange(total, device=DEVICE) - offsets[group]
    for n, k in EXPERTS:
        if k % k_multiple(a_format, b_format):
            continue
        case = f"{a_format} x {b_format}, groups of {COUNTS} rows, {n}x{k}"
        b, b_values = operand(b_format, groups, n, k, seed=case)
        a, a_values = operand(a_format, groups, max(COUNTS), k, seed=f"a {case}")
        want = (a_values.double() @ b_values.double().transpose(1, 2))[group, place]
        for dtype in LIMITS:
            got = ws.grouped_gemm(a, b, counts=counts, out_dtype=dtype)
            check(f"masked {case}", got[group, place], want, a_format, k)
        options = {"offsets": offsets} if a_format in FORMATS and not FORMATS[a_format].whole else {}
        a, a_values = operand(a_format, total, k, seed=f"a {case}", **options)
        want = torch.cat([x.double() @ w.double().t() for x, w in zip(a_values.split(COUNTS), b_values, strict=True)])
        for dtype in LIMITS:
            got = ws.grouped_gemm(a, b, offsets=a.offsets if options else offsets, out_dtype=dtype)
            check(f"grouped {case}", got, want, a_format, k)
