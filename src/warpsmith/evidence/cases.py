# SPDX-License-Identifier: Apache-2.0
"""What `warpsmith verify` runs: shapes, layouts and inputs for each kernel of `fp4_quantization`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from warpsmith.catalog.formats import FORMATS, LINEAR

Array = np.ndarray[Any, Any]
DTYPES = {"bf16": np.dtype(ml_dtypes.bfloat16), "fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}

DISTRIBUTIONS = ("normal", "outliers", "zeros", "largest", "subnormal", "alternating", "not_finite", "ties")
"""Input distributions; every one of them but the first is adversarial in its own way."""


@dataclass(frozen=True)
class Case:
    """One launch to compare with the reference.

    Attributes
    ----------
    operation, format, dtype, layout, rounding
        The problem; `dtype` is the input's or, for dequantize, the output's.
    batches, m, k
        The shape.
    distribution
        One of `DISTRIBUTIONS`, or ``exhaustive`` (every 16-bit pattern of the input type, or every code).
    offsets
        Row offsets of the groups, or None.
    wide_offsets
        Whether they are int64.
    global_scale
        nvfp4: one value, or one a group; None for 1.
    row_padding
        Elements between rows (strided input).
    misaligned
        Whether buffers start off their natural alignment.
    """

    operation: str
    format: str
    dtype: str
    layout: str
    batches: int
    m: int
    k: int
    rounding: str = "ceil"
    distribution: str = "normal"
    offsets: tuple[int, ...] | None = None
    wide_offsets: bool = False
    global_scale: tuple[float, ...] | None = None
    row_padding: int = 0
    misaligned: bool = False

    def __str__(self) -> str:
        extra = [self.rounding] if self.rounding != "ceil" else []
        extra += [f"groups={len(self.offsets) - 1}"] if self.offsets else []
        extra += [f"padding={self.row_padding}"] if self.row_padding else []
        extra += ["misaligned"] if self.misaligned else []
        extra += [f"gs={self.global_scale}"] if self.global_scale else []
        shape = f"{self.batches}x{self.m}x{self.k}"
        return " ".join([self.operation, self.format, self.dtype, self.layout, shape, self.distribution, *extra])


def draw(case: Case, columns: int, rng: np.random.Generator) -> Array:
    """The input [batches, M, columns] of a case, in its dtype."""
    shape = (case.batches, case.m, columns)
    dtype = DTYPES[case.dtype]
    if case.distribution == "exhaustive":
        return _every_pattern(dtype, shape, rng)
    with np.errstate(over="ignore", invalid="ignore"):
        return _values(case.distribution, shape, dtype, rng).astype(dtype)


def _every_pattern(dtype: np.dtype[Any], shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """All 65536 bit patterns, spread so that each finite one shares its block with finite ones of like size."""
    count = int(np.prod(shape))
    if dtype.itemsize == 2:
        patterns = np.resize(np.arange(1 << 16, dtype=np.uint16), count)
        return patterns.view(dtype).reshape(shape)
    return rng.integers(0, 1 << 32, count, dtype=np.uint32).view(np.float32).reshape(shape)


def _values(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
    normal: Array = rng.standard_normal(shape).astype(np.float32)
    limits: Any = ml_dtypes.finfo(dtype)
    values: Array
    if name == "normal":
        values = normal * 2.0 ** int(rng.integers(-6, 7))
    elif name == "outliers":
        values = np.where(rng.random(shape) < 1 / 32, normal * 3000, normal * 0.01)
    elif name == "zeros":
        values = np.where(rng.random(shape) < 0.5, 0.0, -0.0)
    elif name == "largest":
        values = np.sign(normal) * float(limits.max) * rng.choice([1.0, 0.5, 0.99], shape)
    elif name == "subnormal":
        values = normal * float(limits.tiny) * 2.0
    elif name == "alternating":
        sign = np.where(np.arange(shape[-1]) % 2, -1.0, 1.0)
        values = np.broadcast_to(sign * (1 + rng.random(shape[:-1])[..., None]), shape)
    elif name == "not_finite":
        values = np.where(rng.random(shape) < 1 / 300, rng.choice([np.nan, np.inf, -np.inf], shape), normal)
    else:
        ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 0.5, 0.0])
        values = rng.choice(ties, shape) * np.sign(normal) * 2.0 ** rng.integers(-8, 9, (*shape[:-1], 1))
    return values


def quantize_cases(operation: str, format: str, dtype: str) -> Iterator[Case]:
    """The cases of one format and input type of `quantize` or `silu_and_mul_quantize`."""
    spec = FORMATS[format]
    block = spec.block[1]
    base = Case(operation, format, dtype, LINEAR, 1, 1, block)
    silu = operation == "silu_and_mul_quantize"
    for layout in spec.layouts:
        for m, k in (
            (1, block),
            (3, 7 * block),
            (17, 2 * block),
            (129, 11 * block),
            (96, 10 * block),
            (260, 640),
            (40, 1408),
        ):
            yield _with(base, layout=layout, m=m, k=k)
        for distribution in DISTRIBUTIONS[1:]:
            yield _with(base, layout=layout, m=67, k=9 * block, distribution=distribution)
        yield _with(base, layout=layout, batches=3, m=37, k=5 * block)
        yield _with(base, layout=layout, batches=2, m=130, k=3 * block, row_padding=2 * block)
        yield _with(base, layout=layout, m=29, k=6 * block, row_padding=3, misaligned=True)
        if not silu:
            yield _with(base, layout=layout, m=128, k=512, distribution="exhaustive")
        for rounding in spec.roundings[1:]:
            for distribution in ("normal", "subnormal", "largest", "ties"):
                yield _with(base, layout=layout, m=131, k=4 * block, rounding=rounding, distribution=distribution)
        if spec.whole:
            for k in (2064, 8192, 8208, 20000):  # of which a thread holds some units of a row, all, or not all
                yield _with(base, layout=layout, m=5, k=k)
            yield _with(base, layout=layout, m=2100, k=2 * block)
        elif spec.block[0] == 1:
            yield from _grouped(base, layout, block, has_scale=spec.has_global_scale)
    if spec.has_global_scale:
        for value in (1.0, 0.37, 2688.0, 1e-30, 3e38, float("nan"), float("inf"), -2.0, 0.0):
            yield _with(base, layout=spec.layouts[-1], m=33, k=4 * block, global_scale=(value,))


def _grouped(base: Case, layout: str, block: int, *, has_scale: bool) -> Iterator[Case]:
    offsets = ((0, 5), (0, 0, 1, 1, 130, 131, 300), (0, 128, 256, 256, 300))
    for number, group_offsets in enumerate(offsets):
        groups = len(group_offsets) - 1
        scales = tuple(0.5 + g for g in range(groups)) if has_scale else None
        yield _with(
            base,
            layout=layout,
            m=group_offsets[-1] + number,
            k=(2 + number) * block,
            offsets=group_offsets,
            wide_offsets=number == 1,
            global_scale=scales,
        )


def dequantize_cases(format: str, dtype: str) -> Iterator[Case]:
    """The cases of one format and output type of `dequantize`."""
    spec = FORMATS[format]
    block = spec.block[1]
    base = Case("dequantize", format, dtype, LINEAR, 1, 1, block)
    for layout in spec.layouts:
        for m, k in ((1, block), (17, 3 * block), (130, 5 * block), (300, 640)):
            yield _with(base, layout=layout, m=m, k=k)
        yield _with(base, layout=layout, batches=3, m=37, k=2 * block)
        yield _with(base, layout=layout, m=256, k=max(block, 512), distribution="exhaustive")
        yield _with(base, layout=layout, m=29, k=6 * block, misaligned=True)
        if spec.block[0] == 1 and not spec.whole:
            yield from _grouped(base, layout, block, has_scale=spec.has_global_scale)
    if spec.has_global_scale:
        for value in (0.37, 2688.0, float("nan"), -1.0):
            yield _with(base, m=33, k=4 * block, global_scale=(value,))


def amax_cases(dtype: str) -> Iterator[Case]:
    """The cases of one input type of the global scale (both of its kernels)."""
    base = Case("amax_partial", "-", dtype, LINEAR, 1, 1, 16)
    for m, k in ((1, 16), (3, 1000), (513, 257), (2000, 2048)):
        for distribution in ("normal", "zeros", "not_finite", "subnormal"):
            yield _with(base, m=m, k=k, distribution=distribution)
    yield _with(base, batches=3, m=70, k=129, row_padding=5)
    yield _with(base, batches=2, m=11, k=64, row_padding=3, misaligned=True)


def _with(case: Case, **changes: Any) -> Case:
    from dataclasses import replace

    return replace(case, **changes)
