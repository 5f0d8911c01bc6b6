# SPDX-License-Identifier: Apache-2.0
"""Operands of a case on the GPU, in the layouts that the kernel reads, and D in float64. All tensors are torch's."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from warpsmith.reference.moe import activate as reference_activate

from .cases import Case

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass
class Operand:
    """[batches, rows, K] as it lies in memory, its scales, and its values in float64."""

    data: Any
    scales: Any
    square: bool
    values: Any


def _spread_scales(scales: Any, square: bool, rows: int) -> Any:
    spread = scales.double().repeat_interleave(128, -1)
    return spread.repeat_interleave(128, 1)[:, :rows] if square else spread


def _operand(generator: Any, format: str, shape: tuple[int, int, int], square: bool, cancels: bool) -> Operand:
    batches, rows, k = shape
    x = torch.randn(shape, generator=generator, device="cuda")
    if cancels:
        x[..., k // 2 :] = -x[..., : k // 2]
    if format != "fp8":
        data = x.to(DTYPES[format])
        return Operand(data, None, False, data.double())
    data = (x * 8).to(torch.float8_e4m3fn)
    lines = -(-rows // 128) if square else rows
    exponents = torch.rand((batches, lines, k // 128), generator=generator, device="cuda") * 6 - 6
    scales = torch.exp2(exponents)
    values = data.double() * _spread_scales(scales, square, rows)
    if not square:  # m_major
        stored = torch.full((batches, k // 128, -(-rows // 4) * 4), float("nan"), device="cuda")
        stored[..., :rows] = scales.transpose(1, 2)
        scales = stored
    return Operand(data, scales.contiguous(), square, values)


@dataclass
class Problem:
    """A case with its operands and what D must be.

    Attributes
    ----------
    valid
        [batches of A, rows]: rows that are written.
    factors
        alphas, global scales of A and of B.
    size
        What errors are relative to.
    """

    case: Case
    a: Operand
    b: Operand
    rows: int
    index: Any
    valid: Any
    alpha: float
    factors: tuple[Any, Any, Any]
    bias: Any
    want: Any
    size: Any


def _multiply(a: Any, b: Any, offsets: list[int] | None) -> Any:
    """A · Bᵀ by batches, or by groups of rows; rows of no group are 0."""
    if offsets is None:
        return a @ b.transpose(1, 2)
    product = torch.zeros((1, a.shape[1], b.shape[1]), dtype=torch.float64, device="cuda")
    for g, (start, end) in enumerate(itertools.pairwise(offsets)):
        if end > start:
            product[0, start:end] = a[0, start:end] @ b[g].T
    return product


def _valid(case: Case, rows: int, offsets: list[int] | None, matrices: int) -> tuple[Any, Any]:
    """Which rows are written, and the matrix of B of each."""
    if offsets is not None:
        number = torch.arange(rows)
        matrix = torch.bucketize(number, torch.tensor(offsets[1:]), right=True).clamp(max=matrices - 1)
        return (number < offsets[-1])[None].cuda(), matrix[None].cuda()
    matrix = torch.arange(matrices)[:, None].expand(-1, rows)
    counts = torch.tensor(case.counts or (rows,) * matrices).clamp(0, rows)
    return (torch.arange(rows)[None] < counts[:, None]).cuda(), matrix.cuda()


def activated(h: Any, activation: str) -> Any:
    """An activation of [..., columns] in float64: gate, then what it gates."""
    return torch.from_numpy(reference_activate(h.cpu().numpy(), activation)).cuda()


def make_problem(format: str, case: Case, seed: int) -> Problem:
    """Draw a case's operands and factors, and compute D."""
    generator = torch.Generator("cuda").manual_seed(seed)
    grouped = case.mode == "grouped"
    offsets = [0, *itertools.accumulate(case.sizes)] if grouped else None
    rows = sum(case.sizes) + case.tail if grouped else case.m
    matrices = len(case.sizes) if grouped else case.batches
    a = _operand(generator, format, (1 if grouped else matrices, rows, case.k), False, case.cancels)
    b = _operand(generator, format, (matrices, case.product_n, case.k), not case.rows_b, False)
    if case.cancels:
        half = case.k // 2
        b.data[..., half:] = b.data[..., :half]
        for x in (a, b):
            if x.scales is not None and x.square:
                x.scales[..., half // 128 :] = x.scales[..., : half // 128]
            elif x.scales is not None:
                x.scales[:, half // 128 :] = x.scales[:, : half // 128]
        b.values[..., half:], a.values[..., half:] = b.values[..., :half], -a.values[..., :half]
    valid, matrix = _valid(case, rows, offsets, matrices)
    sums = _multiply(a.values, b.values, offsets)
    size = _multiply(a.values.abs(), b.values.abs(), offsets) if case.cancels else sums
    rms = float((size if case.cancels else sums)[valid].square().mean().sqrt()) if valid.any() else 1.0
    alpha = float(torch.tensor(3.0 / rms if rms > 0 and not case.plain else 1.0, dtype=torch.float32))
    factors: tuple[Any, Any, Any] = (None, None, None)
    factor = torch.full((matrices,), alpha, dtype=torch.float64, device="cuda")
    if case.scaled:
        counts = [1 if (seed >> i) % 2 else matrices for i in range(3)]
        factors = tuple(torch.rand(c, generator=generator, device="cuda") + 0.5 for c in counts)
        factor = factor * factors[0].double() / factors[1].double() / factors[2].double()
    per_row = factor[matrix][..., None]
    want, size, bias = sums * per_row, size * per_row, None
    if case.bias:
        bias = torch.randn((matrices, case.product_n), generator=generator, device="cuda").to(DTYPES[case.bias])
        want = want + bias.double()[matrix]
        size = size + bias.double()[matrix].abs() if case.cancels else want
    if case.activation:
        want = size = activated(want, case.activation)
    values = case.raw_index or (offsets if grouped else case.counts)
    index = torch.tensor(values, dtype=torch.int64 if case.int64 else torch.int32, device="cuda") if values else None
    return Problem(case, a, b, rows, index, valid, alpha, factors, bias, want, size)
