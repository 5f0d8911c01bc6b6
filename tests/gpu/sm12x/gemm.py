# SPDX-License-Identifier: Apache-2.0
"""Runs a case of the GEMM and compares D, and all that lies around it, with float64."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from warpsmith.runtime.launch import Argument

from .cases import Case
from .device import Device, Program, Region
from .kernels import GEMM, PAIRS
from .operands import Operand, cancel, from_bits, to_bits

Array = npt.NDArray[Any]
LIMITS = {"bf16": 3e-3, "fp16": 4e-4, "fp32": 2e-6}
"""Of ‖D − reference‖ / ‖reference‖."""
ONE_ROUNDING = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp32": 0.0}
"""What a few values may be off by, where errors do not average out."""
_TYPES = {None: 0, "bf16": 0, "fp16": 1, "fp32": 2}
_MODES = {"dense": 0, "grouped": 1, "masked": 2}


class Arena:
    """What a case puts on the device, with bytes of 0xFF around each array."""

    def __init__(self, device: Device, rng: np.random.Generator) -> None:
        self._device, self._rng = device, rng
        self._parts: list[tuple[int, Array]] = []
        self._end = 1024

    def add(self, data: Array) -> int:
        """The address at which `data` will lie."""
        start = self._end
        self._parts.append((start, np.ascontiguousarray(data)))
        self._end += -(-data.nbytes // 16) * 16 + 16 * int(self._rng.integers(8, 16))
        if self._end + 4096 > self._device.size:
            raise MemoryError(f"a case needs more than the {self._device.size} bytes of the arena")
        return self._device.base + start

    def add_some(self, data: Array | None) -> int:
        """The address, or 0 for None."""
        return 0 if data is None else self.add(data)

    def commit(self) -> None:
        """Copy everything to the device."""
        image = np.full(self._end + 1024, 0xFF, np.uint8)
        for start, data in self._parts:
            image[start : start + data.nbytes] = data.reshape(-1).view(np.uint8)
        self._device.write(0, image)


@dataclass
class Problem:
    """A case with its operands and what D must be."""

    case: Case
    a: Operand
    b: Operand
    rows: int  # of a matrix of A
    offsets: Array | None
    valid: Array  # [batches of A, rows]: rows that are written
    alpha: float
    factors: tuple[Array | None, Array | None, Array | None]  # alphas, global scales of A and of B
    bias: Array | None  # bits
    want: Array
    size: Array  # what errors are relative to

    @property
    def matrices(self) -> int:
        """Matrices of B."""
        return self.b.shape[0]


def make_problem(rng: np.random.Generator, pair: str, case: Case) -> Problem:
    """Draw a case's operands and factors, and compute D in float64."""
    grouped = case.mode == "grouped"
    offsets = np.concatenate([[0], np.cumsum(case.sizes)]).astype(np.int64) if grouped else None
    m = sum(case.sizes) + case.tail if grouped else case.m
    matrices = len(case.sizes) if grouped else case.batches
    format_a, format_b = PAIRS[pair]
    square = format_b == "fp8_block"
    shape_a, shape_b = (1 if grouped else matrices, m, case.k), (matrices, case.n, case.k)
    a = Operand(rng, format_a, shape_a, case.style, left=True, offsets=offsets)
    b = Operand(rng, format_b, shape_b, case.style, left=False, prepared=format_a != format_b, square=square)
    if case.style == "cancel":
        cancel(a, b)
    valid, matrix = np.ones((shape_a[0], m), bool), np.repeat(np.arange(shape_a[0])[:, None], m, 1)
    if offsets is not None:
        valid, matrix = np.zeros((1, m), bool), np.zeros((1, m), np.int64)
        valid[0, : offsets[-1]], matrix[0, : offsets[-1]] = True, np.repeat(np.arange(matrices), case.sizes)
    elif case.mode == "masked":
        valid = np.arange(m)[None] < np.clip(case.counts, 0, m)[:, None]
    with np.errstate(all="ignore"):
        sums = _multiply(a.values(), b.values(), offsets)
        size = _multiply(abs(a.values()), abs(b.values()), offsets) if case.style == "cancel" else sums
    factors, bias = _factors(rng, case, matrices), None
    alpha = _alpha(sums[valid], size if case.style == "cancel" else None, factors if case.scaled else None)
    factor = np.full(matrices, np.float64(alpha))
    with np.errstate(all="ignore"):
        for values, divides in zip(factors, (False, True, True), strict=True):
            if values is not None:
                inverse = np.where((values > 0) & np.isfinite(values), 1 / values.astype(np.float64), np.nan)
                factor = factor * (inverse if divides else values.astype(np.float64))
        per_row = factor[matrix][..., None]
        want, size = sums * per_row, size * abs(per_row)
    if case.bias:
        bias = to_bits(rng.standard_normal((matrices, case.n)), case.bias)
        added = from_bits(bias, case.bias)[matrix]
        want, size = want + added, size + (abs(added) if case.style == "cancel" else 0)
    return Problem(case, a, b, m, offsets, valid, alpha, factors, bias, want, size)


def _multiply(a: Array, b: Array, offsets: Array | None) -> Array:
    """A · Bᵀ by batches, or by groups of rows; rows of no group are 0."""
    if offsets is None:
        return np.asarray(a @ b.transpose(0, 2, 1))
    product = np.zeros((1, a.shape[1], b.shape[1]))
    for g, (start, end) in enumerate(itertools.pairwise(offsets)):
        product[0, start:end] = a[0, start:end] @ b[g].T
    return product


def _factors(rng: np.random.Generator, case: Case, matrices: int) -> tuple[Array | None, Array | None, Array | None]:
    """Alphas and global scales: none, one, or one a matrix."""
    alphas = global_a = global_b = None
    if case.scaled:
        ranges = ((50, 2000), (50, 2000), (0.5, 2))
        global_a, global_b, alphas = (
            rng.uniform(low, high, rng.choice([1, matrices])).astype(np.float32) for low, high in ranges
        )
    if case.bad_global is not None:
        global_b = np.full(matrices, 1.0, np.float32)
        global_b[0] = case.bad_global
    return alphas, global_a, global_b


def _alpha(sums: Array, size: Array | None, factors: tuple[Array | None, ...] | None) -> float:
    """An alpha that keeps D near 3, where fp16 rounds as it should; an fp32."""
    finite = sums[np.isfinite(sums)]
    rms = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    if size is not None:
        rms = float(size.max(initial=0)) / 30
    alpha = 3.0 / rms if rms > 0 else 1.0
    for values in factors[1:] if factors else ():
        alpha *= float(np.mean(values)) if values is not None else 1.0
    return float(np.float32(alpha))


class Launch:
    """A problem on the device: D among poison, and the kernel's arguments."""

    def __init__(self, device: Device, tile: tuple[int, int, int], problem: Problem, rng: np.random.Generator) -> None:
        self._device, self._problem = device, problem
        case, a, b = problem.case, problem.a, problem.b
        self.dtype = np.dtype(np.uint32 if case.out == "fp32" else np.uint16)
        self.poison = 0x7BCDEF01 if case.out == "fp32" else 0x7BCD
        stride = case.n + 4 * int(rng.integers(1, 4))
        self.poisoned = np.full((a.shape[0], problem.rows + 1, stride), self.poison, self.dtype)
        arena = Arena(device, rng)
        scales_a, scales_b = a.scale_data(), b.scale_data()
        at_a, at_b, at_scales_a, at_scales_b = (arena.add(x) for x in (a.data(), b.data(), scales_a, scales_b))
        self._d = arena.add(self.poisoned)
        bias, alphas, global_a, global_b = (arena.add_some(x) for x in (problem.bias, *problem.factors))
        index = arena.add_some(_index(problem))
        self.tiles = _tiles(problem, tile)
        workspace = self._arrivals = 0
        if case.splits > 1:
            workspace = arena.add(np.full(self.tiles * case.splits * tile[0] * tile[1], np.nan, np.float32))
            self._arrivals = arena.add(np.zeros(self.tiles, np.uint32))
        arena.commit()
        grouped = case.mode == "grouped"
        map_a, map_b = (
            device.tensor_map(at, (case.k * x.bits // 8, x.shape[1], x.shape[0]), tile[2] * x.bits // 8, rows)
            for at, x, rows in ((at_a, a, tile[0]), (at_b, b, tile[1]))
        )
        row = stride * self.dtype.itemsize
        self.arguments: tuple[Argument, ...] = (
            *(
                map_a,
                map_b,
                at_scales_a,
                at_scales_b,
                self._d,
                bias,
                alphas,
                global_a,
                global_b,
                index,
                workspace,
                self._arrivals,
            ),
            *(row, 0 if grouped else (problem.rows + 1) * row, 0 if grouped else scales_a.nbytes // a.shape[0]),
            *(scales_b.nbytes // b.shape[0], 0 if problem.bias is None else problem.bias.nbytes // b.shape[0]),
            *(problem.rows, case.n, case.k, problem.matrices, case.splits, problem.alpha, _flags(problem)),
        )
        self.readable: tuple[Region, ...] = (
            (at_scales_a, at_scales_a + scales_a.nbytes),
            (at_scales_b, at_scales_b + scales_b.nbytes),
        )

    def run(self, program: Program, blocks: int) -> Array:
        """Launch it; D with its surroundings."""
        self.poison_d()
        program.launch(blocks, self.arguments, self.readable)
        return self.d()

    def poison_d(self) -> None:
        """Fill D and its surroundings with a value that no kernel writes."""
        self._device.write(self._d - self._device.base, self.poisoned)

    def d(self) -> Array:
        """D with its surroundings, as bits."""
        raw = self._device.read(self._d - self._device.base, self.poisoned.nbytes)
        return raw.view(self.dtype).reshape(self.poisoned.shape)

    def arrivals_are_zero(self) -> bool:
        """Whether the kernel has left the arrivals as it found them."""
        if not self._arrivals:
            return True
        return not self._device.read(self._arrivals - self._device.base, 4 * self.tiles).any()


def _index(problem: Problem) -> Array | None:
    case = problem.case
    values = case.raw_index or (problem.offsets if case.mode == "grouped" else case.counts)
    return None if case.mode == "dense" else np.asarray(values, np.int64 if case.int64 else np.int32)


def _tiles(problem: Problem, tile: tuple[int, int, int]) -> int:
    columns = -(-problem.case.n // tile[1])
    if problem.case.mode == "grouped":
        return (problem.rows // tile[0] + problem.matrices) * columns
    return -(-problem.rows // tile[0]) * columns * problem.matrices


def _flags(problem: Problem) -> int:
    case = problem.case
    bias = 0 if case.bias is None else _TYPES[case.bias] + 1
    flags = _MODES[case.mode] | _TYPES[case.out] << 2 | bias << 4 | case.int64 << 6
    for bit, values in enumerate(problem.factors, 9):
        flags |= (values is not None and len(values) > 1) << bit
    return flags


class Gemm:
    """One variant, ready for cases.

    Attributes
    ----------
    worst
        By type of D: the largest error so far, as a part of what is allowed.
    """

    def __init__(self, device: Device, variant: str, seed: int) -> None:
        self.pair = variant.rpartition("_")[0]
        self.worst: dict[str, float] = {}
        self._device, self._program = device, device.load(GEMM, GEMM.variant(variant))
        self.tile = self._program.tile
        self._rng = np.random.default_rng(seed)

    def problems(self, case: Case) -> list[str]:
        """What is wrong with D after running a case."""
        problem = make_problem(self._rng, self.pair, case)
        launch = Launch(self._device, self.tile, problem, self._rng)
        units = max(1, launch.tiles * case.splits)
        blocks = min(case.blocks, units)
        raw = launch.run(self._program, blocks)
        found = [] if launch.arrivals_are_zero() else ["arrivals are not 0"]
        outside = raw[:, :, case.n :], raw[:, problem.rows :]
        if any((x != launch.poison).any() for x in outside):
            found.append("wrote outside D")
        if case.raw_index:
            return found
        inside = raw[:, : problem.rows, : case.n]
        if (inside[~problem.valid] != launch.poison).any():
            found.append("wrote rows that are not to be written")
        found += self._differences(problem, inside[problem.valid])
        varied = case.bias is not None or case.splits > 1 or case.mode != "dense"
        if (
            case.blocks > 1
            and units > 1
            and varied
            and not np.array_equal(raw, launch.run(self._program, max(1, blocks // 2)))
        ):
            found.append("half as many blocks give other bits")
        return found

    def _differences(self, problem: Problem, bits: Array) -> list[str]:
        """How D differs from what it must be."""
        case = problem.case
        got, want, size = from_bits(bits, case.out), problem.want[problem.valid], problem.size[problem.valid]
        found = []
        nan = np.isnan(got), np.isnan(want)
        if not np.array_equal(*nan):
            found.append(f"{int((nan[0] != nan[1]).sum())} values are NaN that should not be, or the other way")
        numbers = ~(nan[0] | nan[1])
        got, want, size = got[numbers], want[numbers], size[numbers]
        limit = max(LIMITS[case.out], 3e-9 * case.k) if case.out == "fp32" else LIMITS[case.out]
        if want.size < 512:
            limit = max(limit, ONE_ROUNDING[case.out])
        norm = float(np.linalg.norm(size if case.style == "cancel" else want))
        error = float(np.linalg.norm(got - want)) / norm if norm else float(np.abs(got).sum())
        if not error <= limit:
            found.append(f"error {error:.2e}, at most {limit:.0e} is allowed")
        self.worst[case.out] = max(self.worst.get(case.out, 0.0), error / limit)
        return found
