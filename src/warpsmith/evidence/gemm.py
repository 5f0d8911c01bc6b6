# SPDX-License-Identifier: Apache-2.0
"""What `warpsmith verify` runs of `gemm` and `fp4_gemm`: every tile of every pair of formats, against float64.

Operands are random codes and scales, decoded exactly by the reference; the measure and its limits are those of
``docs/numerics.md``. Padding of scales and rows is filled with what would show: 0xFF, which is NaN as a scale, and
0xAB. The launches are in ``evidence/gemm_launches.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from warpsmith import reference
from warpsmith.catalog.formats import FORMATS, LINEAR, TILED
from warpsmith.catalog.fp4_gemm import PAIRS as BLOCK_SCALED_PAIRS
from warpsmith.catalog.gemm import (
    DEFAULT_PATH,
    EMULATED_PATH,
    FEW_ROWS,
    LINEAR_LAYOUT,
    PAIRS,
    PLAIN,
    PREPARED,
    PREPARED_LAYOUT,
    TILED_LAYOUT,
    k_multiple,
)
from warpsmith.catalog.gemm_mixed import PAIRS as MIXED_PAIRS
from warpsmith.catalog.gemm_stream import PAIRS as STREAMED_PAIRS
from warpsmith.catalog.spec import operands, pair
from warpsmith.evidence.cases import DTYPES
from warpsmith.evidence.device import Array
from warpsmith.ops import gemm_args as arguments
from warpsmith.ops.gemm_activation import Activation, activation_of
from warpsmith.ops.prepared_order import few_rows_weight
from warpsmith.ops.qtensor import QTensor
from warpsmith.reference import layouts
from warpsmith.reference.moe import activate

KINDS = ("outliers", "zeros", "largest", "subnormal", "not_finite")
"""Adversarial operands; ``cancelling`` is one more for pairs of plain ones, and ``normal`` is what the rest have."""
LIMITS = {"bf16": 3e-3, "fp16": 4e-4}
_STEEPEST = 4.0  # what an activation may make of a relative error, its own in fp32 included
_ROW_PADDING = 0xAB
_SCALE_PADDING = 0xFF


@dataclass(frozen=True)
class GemmCase:
    """One product to compare with the reference.

    Attributes
    ----------
    a, b
        Formats.
    m, n, k, batches, mode
        As in `gemm_args.Size`.
    out, bias
        Types; no bias if empty.
    kind
        ``normal``, ``cancelling`` or one of `KINDS`.
    tiled_a, tiled_b
        Whether scales have the format's last layout, not linear.
    rows
        Rows of each group, or counts.
    wide
        Whether offsets or counts are int64.
    splits
        Of K.
    padding
        Bytes between rows.
    scale_each
        Whether each batch or group has global scales of its own.
    path
        As a problem names it.
    prepared
        Whether B's elements are packed by `reference.pack_codes`, or beside bf16 for few rows.
    activation
        Of the product, for the kernels that have it in their epilogue; with a gate, n is twice D's columns.
    """

    a: str
    b: str
    m: int
    n: int
    k: int
    mode: str = "dense"
    batches: int = 1
    out: str = "fp32"
    bias: str = ""
    kind: str = "normal"
    tiled_a: bool = False
    tiled_b: bool = False
    rows: tuple[int, ...] = ()
    wide: bool = False
    splits: int = 1
    padding: int = 0
    scale_each: bool = False
    path: str = DEFAULT_PATH
    prepared: bool = False
    activation: str = ""

    @property
    def operation(self) -> str:
        """The operation that it is of."""
        return "gemm"

    @property
    def format(self) -> str:
        """Both formats, as a problem names them."""
        return pair(self.a, self.b)

    @property
    def layout(self) -> str:
        """How operands lie, as a problem names it."""
        if self.prepared:
            return PREPARED_LAYOUT
        sides = ((self.a, self.tiled_a), (self.b, self.tiled_b))
        linear = any(f not in PLAIN and not tiled and len(FORMATS[f].layouts) > 1 for f, tiled in sides)
        return LINEAR_LAYOUT if linear else TILED_LAYOUT

    @property
    def few_rows(self) -> bool:
        """Whether B is in the order for few rows."""
        return self.prepared and self.format in FEW_ROWS

    @property
    def epilogue(self) -> Activation | None:
        """The activation, with gpt-oss's numbers."""
        return activation_of(self.activation or None, 1.702, 7.0)

    @property
    def columns(self) -> int:
        """Of D."""
        return self.n if self.epilogue is None else self.epilogue.columns(self.n)

    @property
    def size(self) -> arguments.Size:
        """What is multiplied."""
        return arguments.Size(self.mode, self.m, self.n, self.k, self.batches)

    def __str__(self) -> str:
        flags = [f for f in ("tiled_a", "tiled_b", "wide", "scale_each", "prepared") if getattr(self, f)]
        flags += [self.path] if self.path != DEFAULT_PATH else []
        extra = [
            f"{f}={getattr(self, f)}"
            for f in ("bias", "splits", "padding", "activation")
            if getattr(self, f) not in ("", 0, 1)
        ]
        shape = f"{self.batches}x{self.m}x{self.n}x{self.k}"
        return " ".join(["gemm", self.format, shape, self.mode, self.out, self.kind, *flags, *extra])


def gemm_cases(a: str, b: str) -> Iterator[GemmCase]:
    """The cases of one pair of formats."""
    step = k_multiple(a, b)
    short, long = 3 * step, -(-3072 // step) * step + step
    base = GemmCase(a, b, 1, 8, step)
    yield base
    yield replace(base, m=3, n=136, k=long, out="bf16", bias="bf16", tiled_a=True)
    yield replace(base, m=17, n=40, k=long, out="fp16", bias="fp32", tiled_b=True, padding=32)
    yield replace(base, m=129, n=264, k=short, bias="fp16", tiled_a=True, tiled_b=True)
    yield replace(base, m=130, n=72, k=short, batches=3, out="bf16", bias="fp32", tiled_b=True, scale_each=True)
    yield replace(base, m=5, n=24, k=long, splits=3, tiled_a=True, scale_each=True)
    yield replace(base, m=777, n=136, k=1024 + step, out="bf16", splits=2)
    rows = (0, 1, 130, 0, 3, 1)
    grouped = replace(base, mode="grouped", batches=6, m=sum(rows) + 9, rows=rows, n=40, k=short, scale_each=True)
    yield replace(grouped, tiled_a=True, tiled_b=True)
    yield replace(grouped, splits=2, out="fp16", bias="bf16")
    many = tuple(int(i % 3 > 0) for i in range(300))
    yield replace(base, mode="grouped", batches=300, m=sum(many), rows=many, n=24, k=step, wide=True, tiled_a=True)
    masked = replace(base, mode="masked", batches=4, m=137, rows=(137, 0, 4, 1), n=72)
    yield replace(masked, k=long, splits=2, tiled_a=True)
    yield replace(masked, k=short, wide=True, out="bf16", bias="fp32", scale_each=True)
    for kind in KINDS:
        yield replace(base, m=19, n=24, k=short, kind=kind, tiled_b=kind == "not_finite")
    if a in PLAIN and b in PLAIN:
        yield replace(base, m=33, n=40, k=1024, kind="cancelling")
        yield from _activated(base, rows)


def _activated(base: GemmCase, rows: tuple[int, ...]) -> Iterator[GemmCase]:
    dense = replace(base, m=130, n=144, k=200, activation="swiglu", bias="fp32")
    yield replace(dense, out="bf16", padding=32)
    yield replace(dense, m=7, n=80, k=1024, splits=2, activation="geglu_tanh")
    yield replace(dense, batches=2, out="fp16", activation="swiglu_oai", bias="bf16")
    yield replace(dense, m=40, n=72, activation="relu2", out="bf16")
    yield replace(dense, mode="grouped", batches=6, m=sum(rows) + 9, rows=rows, n=304, out="bf16")
    yield replace(dense, mode="masked", batches=4, m=137, rows=(137, 0, 4, 1), activation="swiglu_oai")
    yield replace(dense, m=19, n=48, kind="largest", activation="relu2")


def stream_cases(a: str, b: str) -> Iterator[GemmCase]:
    """The cases of one pair for kernels of few rows: rows of B and K that end anywhere, and groups of every size."""
    step = k_multiple(a, b)
    base = GemmCase(a, b, 1, 8, step)
    yield replace(base, m=4, n=4104, k=-(-1000 // step) * step, out="bf16", tiled_b=True)
    yield replace(base, m=3, n=520, k=-(-4700 // step) * step, out="fp16", bias="fp32", tiled_b=True, padding=32)
    yield replace(base, m=8, n=16384, k=2 * step, out="bf16", bias="bf16")
    yield replace(base, m=3, n=72, k=9 * step, batches=5, scale_each=True, tiled_b=True)
    yield replace(base, m=2, n=136, k=9216)
    yield from (replace(base, m=8, n=24, k=most) for most in (7680, 15104))
    pair_groups = replace(base, mode="grouped", batches=4, m=15, rows=(0, 9, 2, 1), k=7680 + step)
    yield replace(pair_groups, n=40, out="bf16", bias="fp16", tiled_b=True, scale_each=True)
    rows = (4, 0, 20, 1, 1, 0, 0, 7, 3, 0, 0, 9, 0, 0, 0, 2)
    grouped = replace(base, mode="grouped", batches=16, m=sum(rows), rows=rows, n=776, k=6 * step, scale_each=True)
    yield grouped
    yield replace(grouped, out="bf16", bias="bf16", tiled_b=True, wide=True)
    yield replace(base, mode="masked", batches=4, m=4, rows=(4, 0, 3, 1), n=1000, k=11 * step, tiled_b=True)
    for kind in KINDS:
        yield replace(base, m=4, n=200, k=19 * step, kind=kind, tiled_b=kind == "not_finite")


def packed_cases(a: str, b: str) -> Iterator[GemmCase]:
    """The cases of one pair for kernels that read B in the order for few rows: N a multiple of 32, K of 64."""
    base = GemmCase(a, b, 1, 32, 128, prepared=True)
    yield base
    yield replace(base, m=4, n=4256, k=1088, out="bf16")
    yield replace(base, m=8, n=2880, k=2880, out="fp16", bias="fp32", padding=32)
    yield replace(base, m=16, n=544, k=3136, out="bf16", bias="bf16")
    yield replace(base, m=37, n=96, k=7168, bias="fp16")
    yield replace(base, m=11, n=32, k=16448)
    yield replace(base, m=5, n=32, k=16448, out="bf16")
    yield replace(base, m=3, n=160, k=704, batches=5, scale_each=True, padding=16)
    rows = (4, 0, 20, 1, 1, 0, 0, 7, 3, 0, 0, 9, 0, 0, 0, 2)
    grouped = replace(base, mode="grouped", batches=16, m=sum(rows) + 3, rows=rows, n=608, k=576, scale_each=True)
    yield grouped
    yield replace(grouped, k=9600, n=96, out="bf16", bias="bf16", wide=True)
    many = tuple(int(i % 3 > 0) for i in range(300))
    yield replace(grouped, batches=300, m=sum(many), rows=many, n=32, k=128)
    yield replace(grouped, mode="masked", batches=4, m=37, rows=(37, 0, 3, 1), n=1024)
    for kind in KINDS:
        yield replace(base, m=4, n=224, k=1216, kind=kind)


def mixed_cases(a: str, b: str) -> Iterator[GemmCase]:
    """The cases of one pair for the kernel that makes operands of codes: K and rows of scales that end anywhere."""
    step = k_multiple(a, b)
    long, middle, odd, least, short = (-(-k // step) * step for k in (2880, 1056, 1120, 992, 480))
    base = GemmCase(a, b, 33, 264, long)
    yield replace(base, out="bf16", bias="bf16", tiled_b=True)
    yield replace(base, m=100, n=136, k=middle)
    yield replace(base, m=300, n=392, k=odd, batches=2, out="fp16", bias="fp32", tiled_b=True, scale_each=True)
    yield replace(base, m=129, n=200, k=4096, splits=3, padding=32)
    rows = (0, 5, 130, 1, 0, 64)
    grouped = replace(base, mode="grouped", batches=6, m=sum(rows) + 3, rows=rows, n=200, k=short, scale_each=True)
    yield from (grouped, replace(grouped, out="bf16", bias="bf16", tiled_b=True, wide=True))
    yield replace(base, mode="masked", batches=4, m=70, rows=(70, 0, 3, 70), k=least)
    few = replace(base, m=20, n=72, k=short)  # two for tools that slow a launch down a thousandfold
    yield from (replace(few, splits=2, tiled_b=True), replace(few, mode="grouped", batches=3, rows=(3, 0, 17)))
    yield from (replace(few, m=40, k=short + 4 * step, kind=kind, tiled_b=kind == "not_finite") for kind in KINDS)


def emulated_cases(a: str, b: str) -> Iterator[GemmCase]:
    """The cases of one pair for kernels that read tiled scales, or prepared weights, and may be emulated."""
    for case in gemm_cases(a, b):
        path, prepared = (DEFAULT_PATH, True) if pair(a, b) in PREPARED else (EMULATED_PATH, False)
        yield replace(case, tiled_a=True, tiled_b=True, path=path, prepared=prepared)


def all_gemm_cases() -> Iterator[GemmCase]:
    """Every case of both modules."""
    for a, b in PAIRS:
        yield from gemm_cases(a, b)
    for a, b in STREAMED_PAIRS:
        yield from stream_cases(a, b)
    for format in FEW_ROWS:
        yield from packed_cases(*operands(format))
    for a, b in MIXED_PAIRS:
        yield from mixed_cases(a, b)
    for a, b in BLOCK_SCALED_PAIRS:
        yield from emulated_cases(a, b)


@dataclass
class Side:
    """An operand: its rows in memory with their padding, scales as they lie, and its values in float64."""

    memory: Array
    scales: Array | None
    layout: str
    values: Array
    factor: Array | None = None  # of values in memory: what they are divided by


def _codes(spec: Any, kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Random elements of a format, one a byte."""
    bits = spec.element_bits
    top, small = (7, 1) if bits == 4 else (0x7E, 7)
    values: Array = rng.integers(0, top + 1, shape)
    if kind == "outliers":
        values = np.where(np.arange(shape[-1]) % spec.block[1] == 3, top, rng.integers(0, small + 1, shape))
    elif kind == "zeros":
        values = np.zeros(shape, np.int64)
    elif kind == "largest":
        values = np.full(shape, top)
    elif kind == "subnormal":
        values = rng.integers(0, small + 1, shape)
    codes: Array = (values | rng.integers(0, 2, shape) << (bits - 1)).astype(np.uint8)
    return codes


def _scales(spec: Any, kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Random linear scales of a format."""
    if spec.scale == "fp32":
        scales: Array = np.exp(rng.standard_normal(shape)).astype(np.float32)
        if kind == "largest":
            scales[:] = 1e13
        if kind == "not_finite":
            scales[:, 0, 0] = np.nan
        return scales
    if spec.scale == "ue4m3":
        small = rng.integers(0, 8 if kind == "subnormal" else 0x7F, shape)
        scales = np.full(shape, 0x7E) if kind == "largest" else small
    else:
        scales = np.full(shape, 150) if kind == "largest" else 127 + rng.integers(-8, 9, shape)
    if kind == "not_finite":
        scales[:, 0, 0] = 0x7F if spec.scale == "ue4m3" else 0xFF
    return scales.astype(np.uint8)


def _plain(format: str, kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    values = rng.standard_normal(shape)
    if kind == "outliers":
        values = values * np.where(np.arange(shape[-1]) % 32 == 0, 100, 1e-3)
    elif kind == "zeros":
        values = np.where(values > 0, 0.0, -0.0)
    elif kind == "largest":
        values = np.sign(values) * (65504 if format == "fp16" else 2.0**50)
    elif kind == "subnormal" and format == "fp16":
        values = values * 3e-6
    elif kind == "not_finite":
        values[:, 0, 0] = np.nan
    elif kind == "cancelling":
        values[..., shape[-1] // 2 :] = values[..., : shape[-1] // 2]
    return values.astype(DTYPES[format])


def _with_padding(rows: Array, padding: int) -> Array:
    """Rows of bytes with `padding` bytes behind each."""
    wide = np.full((*rows.shape[:-1], rows.shape[-1] + padding), _ROW_PADDING, np.uint8)
    wide[..., : rows.shape[-1]] = rows
    return wide


def make_side(
    case: GemmCase, format: str, rows: int, batches: int, tiled: bool, offsets: Array | None, rng: np.random.Generator
) -> Side:
    """A random operand [batches, rows, K] of a case."""
    shape = (batches, rows, case.k)
    kind = case.kind
    if format in PLAIN:
        plain = _plain(format, kind, shape, rng)
        return Side(_with_padding(plain.view(np.uint8), case.padding), None, LINEAR, plain.astype(np.float64))
    spec = FORMATS[format]
    codes = _codes(spec, kind, shape, rng)
    if spec.element_bits == 4:
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    packing = "mxfp8" if case.prepared and not case.few_rows and format == case.b else ""
    codes = reference.pack_codes(codes, packing) if packing else codes
    if spec.whole:
        return _whole_side(case, spec, codes, rng)
    linear = _scales(spec, kind, (batches, -(-rows // spec.block[0]), case.k // spec.block[1]), rng)
    layout = spec.layouts[-1] if tiled else LINEAR
    flat = linear if offsets is None else linear[0]
    scales = layouts.pack(flat, layout, offsets=offsets)
    used = layouts.pack(_readable(case, layout, flat), layout, offsets=offsets).astype(bool)
    values = reference.decode_float64(
        codes if offsets is None else codes[0], scales, format,
        shape=shape if offsets is None else shape[1:], scale_layout=layout, offsets=offsets,
        packing=packing,
    )  # fmt: skip
    if case.few_rows:
        made = few_rows_weight(QTensor(codes, linear, format, shape), codes, linear)
        factor = np.ones(1, np.float32) if made.global_scale is None else made.global_scale
        return Side(made.data, made.scales, LINEAR, values.reshape(shape), factor)
    poisoned = scales.copy()
    poisoned[~used] = _SCALE_PADDING if scales.dtype == np.uint8 else np.nan
    return Side(_with_padding(codes, case.padding), poisoned, layout, values.reshape(shape))


def _whole_side(case: GemmCase, spec: Any, codes: Array, rng: np.random.Generator) -> Side:
    """An operand with one scale a row or a matrix."""
    batches, rows, k = codes.shape
    shape = spec.scale_shape(LINEAR, (batches,), rows, k)
    scales = _scales(spec, case.kind, (batches, shape[-1] if spec.whole == "row" else 1, 1), rng)
    values = reference.decode_float64(codes, scales.reshape(shape), spec.name, shape=codes.shape)
    return Side(_with_padding(codes, case.padding), scales, LINEAR, values)


def _readable(case: GemmCase, layout: str, linear: Array) -> Array:
    """Ones for each scale that a kernel may use, shaped as the linear ones.

    Kernels that take all scales tiled multiply the padding of a row with zeros: it has to be a number.
    """
    if layout != TILED or case.a in PLAIN or case.layout == LINEAR_LAYOUT:
        return np.ones_like(linear, np.uint8)
    return np.ones((*linear.shape[:-1], -(-linear.shape[-1] // 4) * 4), np.uint8)


def _power(values: Array) -> float:
    """The mean square of all that is not NaN."""
    known = values[~np.isnan(values)]
    return float(np.mean(known**2)) if known.size else 1.0


class Product:
    """Host arrays of a case and what is to come of them."""

    def __init__(self, case: GemmCase, rng: np.random.Generator) -> None:
        self.case = case
        grouped = case.mode == "grouped"
        batches = case.batches
        self.index = self._index()
        offsets = None if not grouped or self.index is None else self.index.astype(np.int64)
        self.a = make_side(case, case.a, case.m, 1 if grouped else batches, case.tiled_a, offsets, rng)
        calm = replace(case, kind="normal") if case.kind in ("zeros", "not_finite") else case
        self.b = make_side(calm, case.b, case.n, batches, case.tiled_b, None, rng)
        if case.kind == "cancelling":  # the second half of K takes away what the first has added
            self.b.values[..., case.k // 2 :] *= -1
            self.b.memory.view(np.uint16)[..., case.k // 2 : case.k] ^= 0x8000
        self.bias: Array | None = None
        if case.bias:
            self.bias = rng.standard_normal((batches, case.n)).astype(DTYPES[case.bias])
        # Global scales bring the product to about 1, whatever the operands.
        with np.errstate(all="ignore"):
            size = np.sqrt(_power(self.a.values) * _power(self.b.values) * case.k)
        count = batches if case.scale_each else 1
        size = size if np.isfinite(size) and size > 0 else 1.0
        self.a_scale = (2.0 ** np.round(np.log2(size)) * rng.uniform(0.5, 2, count)).astype(np.float32)
        self.b_scale = rng.uniform(0.5, 2, count).astype(np.float32)
        self.b_factor = self.b_scale if self.b.factor is None else self.b_scale * self.b.factor

    def _index(self) -> Array | None:
        case = self.case
        if case.mode == "dense":
            return None
        values = np.cumsum([0, *case.rows]) if case.mode == "grouped" else np.array(case.rows)
        return values.astype(np.int64 if case.wide else np.int32)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of D."""
        case = self.case
        return (1 if case.mode == "grouped" else case.batches, case.m, case.columns)

    def written(self) -> Array:
        """Which rows of D belong to a batch or group."""
        case = self.case
        inside = np.ones(self.shape[:2], bool)
        if case.mode == "grouped":
            inside[0, sum(case.rows) :] = False
        elif case.mode == "masked":
            inside = np.arange(case.m) < np.array(case.rows)[:, None]
        return inside

    def _multiply(self, a: Array, b: Array, bias: Array | None, alpha: Array) -> Array:
        case = self.case
        if case.mode == "dense":
            return reference.gemm(a, b, bias=bias, alpha=alpha)
        groups = np.broadcast_to(alpha, (case.batches,))
        index = np.asarray(self.index)
        if case.mode == "grouped":
            return reference.grouped_gemm(a[0], b, index, bias=bias, alpha=groups)[None]
        return reference.masked_gemm(a, b, index, bias=bias, alpha=groups)

    def expected(self) -> tuple[Array, Array]:
        """D in float64, and what its error is measured by."""
        alpha = 1 / (self.a_scale.astype(np.float64) * self.b_scale)
        alpha = alpha if self.case.scale_each else alpha[0]
        bias = None if self.bias is None else self.bias.astype(np.float64)
        want = self._multiply(self.a.values, self.b.values, bias, alpha)
        if self.case.activation:
            want = activate(want, self.case.activation)
        if self.case.kind != "cancelling":
            return want, want
        return want, self._multiply(np.abs(self.a.values), np.abs(self.b.values), None, alpha)


def compare(
    case: GemmCase, got: Array, want: Array, measure: Array, written: Array, tolerance: float = 0.0
) -> tuple[str, float]:
    """How D differs from what it should be, in words (empty if it does not), and the error.

    `tolerance` is that of the kernel's sums, where it is more than that of the result's type.
    """
    values, target, size = got.astype(np.float64)[written], want[written], measure[written]
    nan = np.isnan(target)
    if (np.isnan(values) != nan).any():
        return f"NaN at {int((np.isnan(values) != nan).sum())} places where there should be none, or none there", 0.0
    with np.errstate(all="ignore"):
        error = float(np.linalg.norm(np.where(nan, 0, values - np.where(nan, 0, target))))
        norm = float(np.linalg.norm(np.where(nan, 0, size)))
    relative = error / norm if norm else 0.0 if error == 0 else np.inf
    limit = max(tolerance, LIMITS.get(case.out, max(2e-6, 3e-9 * case.k) * (_STEEPEST if case.activation else 1)))
    return ("" if relative <= limit else f"error {relative:.3g} exceeds {limit:.3g}"), relative
