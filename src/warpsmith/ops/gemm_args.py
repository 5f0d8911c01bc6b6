# SPDX-License-Identifier: Apache-2.0
"""Grids, splits of K and arguments of the GEMM kernels, from plain integers.

The kernels' parameters are pointers first; all that follows them is the tail here, as in `quantization_args`. The
numbers that the device sources share with this module are in ``kernels/common/gemm_problem.cuh`` and
``kernels/gemm/sm80_schedule.cuh``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from warpsmith.catalog.formats import FORMATS, LINEAR, M_MAJOR, TILED
from warpsmith.catalog.gemm import MODES, PLAIN, Tile
from warpsmith.errors import InvalidArgumentError

OUT_SHIFT = 2
BIAS_SHIFT = 4
INDEX_64 = 1 << 6
TILED_SCALES_A = 1 << 7
TILED_SCALES_B = 1 << 8
GLOBAL_A_PER_BATCH = 1 << 10
GLOBAL_B_PER_BATCH = 1 << 11
ONE_SCALE_A = 1 << 14
ONE_SCALE_B = 1 << 15

TYPES = ("bf16", "fp16", "fp32")
"""Types of D and of the bias, in the order of their numbers in the flags (the bias's start at 1)."""
ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}

_PROLOGUE = 384
_SPLIT = 640
_MAX_SPLITS = 64
_SHARED_BESIDE = 1024  # bytes of shared memory that the driver takes of each block


class Operand(NamedTuple):
    """How an operand lies in memory.

    Attributes
    ----------
    format
        ``bf16``, ``fp16`` or a quantized one.
    row, batch
        Bytes from row to row and from batch to batch; batch 0 is the same matrix for all.
    layout
        Of its scales.
    scale_batch
        Bytes from the scales of one batch to those of the next.
    global_per_batch
        Whether each batch or group has a global scale of its own.
    """

    format: str
    row: int
    batch: int = 0
    layout: str = LINEAR
    scale_batch: int = 0
    global_per_batch: bool = False


class Output(NamedTuple):
    """How D and the bias lie in memory: types, and bytes from row to row and from batch to batch."""

    dtype: str
    row: int
    batch: int = 0
    bias: str = ""
    bias_batch: int = 0


class Size(NamedTuple):
    """What is multiplied.

    Attributes
    ----------
    mode
        ``dense``, ``grouped`` or ``masked``.
    m
        Rows of a matrix; of a grouped problem, rows in all; of a masked one, its capacity.
    n, k
        Columns of D, and of A and B.
    batches
        Matrices or groups.
    """

    mode: str
    m: int
    n: int
    k: int
    batches: int = 1

    @property
    def rows(self) -> int:
        """Rows of one matrix, as dispatch sees them: a group's on average."""
        return max(-(-self.m // self.batches), 1) if self.mode == "grouped" else self.m


class Launch(NamedTuple):
    """One launch but for its pointers, and the scratch it needs.

    Attributes
    ----------
    grid
        Tiles, splits of K, 1.
    tail
        The arguments behind the pointers.
    workspace
        Bytes of scratch, with any contents; 0 without splits.
    arrivals
        32-bit words that are 0 before and after the launch; 0 without splits.
    """

    grid: tuple[int, int, int]
    tail: tuple[int | float, ...]
    workspace: int
    arrivals: int


def row_bytes(format: str, k: int) -> int:
    """Bytes of a contiguous row of K elements."""
    return 2 * k if format in PLAIN else FORMATS[format].data_columns(k)


def scale_bytes(format: str, layout: str, rows: int, k: int) -> int:
    """Bytes of the scales of one matrix."""
    if format in PLAIN:
        return 0
    spec = FORMATS[format]
    return math.prod(spec.scale_shape(layout, (), rows, k)) * spec.scale_bytes


def whole_flags(a: str, b: str) -> int:
    """The flags of operands that have one scale for all of a matrix."""
    one = {name for name, format in FORMATS.items() if format.whole == "tensor"}
    return (ONE_SCALE_A if a in one else 0) | (ONE_SCALE_B if b in one else 0)


def _up(value: int, unit: int) -> int:
    return -(-value // unit)


def tiles_of(tile: Tile, size: Size) -> int:
    """Blocks along x: for a grouped problem as many as any division of its rows among its groups could need."""
    columns = _up(size.n, tile.n)
    if size.mode == "grouped":
        return (size.m // tile.m + min(size.batches, size.m)) * columns
    return size.batches * _up(size.m, tile.m) * columns


def resident(tile: Tile, shared_memory: int, limit: int) -> int:
    """Blocks that a multiprocessor holds at a time, where one block may have `limit` bytes of shared memory."""
    return max(1, min(tile.blocks, (limit + _SHARED_BESIDE) // (shared_memory + _SHARED_BESIDE)))


def _effort(blocks: int, held: int) -> float:
    """Time of one multiprocessor for equal blocks, in that of one block alone.

    Blocks that run together hide each other's latency: one more costs 0.7 of the first. Measured on an H200 for two and
    three blocks of the small tiles.
    """
    rounds, rest = divmod(blocks, held)
    return rounds * (0.3 + 0.7 * held) + (0.3 + 0.7 * rest if rest else 0.0)


def split_cost(tile: Tile, size: Size, splits: int, sm_count: int, held: int) -> float:
    """What a number of splits of K costs, in elements of K that one block walks through.

    A block starts and ends at the cost of 384 elements. Splits cost 640 more for their way through memory, and each of
    them what the last block takes to add its part of D. What the numbers are worth shows in ``tests/unit``, where the
    model is held against timings.
    """
    tiles = tiles_of(tile, size)
    steps = _up(_up(size.k, tile.k), splits)
    cost = _effort(_up(tiles * splits, sm_count), held) * (steps * tile.k + _PROLOGUE)
    return cost if splits == 1 else cost + _SPLIT + splits * tile.m * tile.n / 256


def choose_splits(tile: Tile, size: Size, sm_count: int, held: int) -> int:
    """The number of splits of K that costs least; the smallest of equal ones."""
    most = min(_up(size.k, tile.k), _MAX_SPLITS)
    return min(range(1, most + 1), key=lambda splits: split_cost(tile, size, splits, sm_count, held))


def tail_of(size: Size, a: Operand, b: Operand, d: Output, wide: bool, flags: int = 0) -> tuple[int | float, ...]:
    """The arguments behind the pointers, with a kernel's own `flags`; `wide`: offsets or counts are int64."""
    flags |= MODES.index(size.mode) | TYPES.index(d.dtype) << OUT_SHIFT | whole_flags(a.format, b.format)
    flags |= (TYPES.index(d.bias) + 1) << BIAS_SHIFT if d.bias else 0
    flags |= INDEX_64 if wide else 0
    flags |= TILED_SCALES_A if a.layout in (TILED, M_MAJOR) else 0
    flags |= TILED_SCALES_B if b.layout == TILED else 0
    flags |= GLOBAL_A_PER_BATCH if a.global_per_batch else 0
    flags |= GLOBAL_B_PER_BATCH if b.global_per_batch else 0
    return (
        a.row, b.row, d.row, a.batch, b.batch, d.batch, a.scale_batch, b.scale_batch, d.bias_batch,
        size.m, size.n, size.k, size.batches, 1.0, flags,
    )  # fmt: skip


def sm80_launch(
    tile: Tile, size: Size, a: Operand, b: Operand, d: Output, *, splits: int = 1, wide: bool = False
) -> Launch:
    """Plan ``ws_sm80_gemm``.

    Parameters
    ----------
    tile
        The variant's.
    size
        What is multiplied; m, n, k and batches at least 1.
    a, b, d
        How the operands and the result lie in memory; all strides are multiples of 16 bytes.
    splits
        Of K, from 1 to the number of its tiles.
    wide
        Whether offsets or counts are int64.

    Returns
    -------
    Launch
        Pointers are ``a, b, d, a_scales, b_scales, bias, alphas, a_global_scale, b_global_scale, index, workspace,
        arrivals``.

    Raises
    ------
    InvalidArgumentError
        If a size is beyond the kernel's 32-bit numbers.
    """
    tiles = tiles_of(tile, size)
    if tiles >= 1 << 31 or size.m + 127 * size.batches >= 1 << 32 or row_bytes("bf16", size.k) >= 1 << 31:
        raise InvalidArgumentError(
            f"a product of {size.batches} × {size.m} × {size.n} × {size.k} is too large: it has {tiles} tiles; "
            "expected fewer than 2^31 tiles, fewer than 2^32 rows (with 127 more a group), and K below 2^30"
        )
    split = splits > 1
    return Launch(
        (tiles, splits, 1),
        tail_of(size, a, b, d, wide),
        tiles * splits * tile.m * tile.n * 4 if split else 0,
        tiles if split else 0,
    )
