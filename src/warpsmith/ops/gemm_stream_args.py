# SPDX-License-Identifier: Apache-2.0
"""Grid and arguments of ``ws_sm90_stream_gemm``, whose parameters are those of ``ws_sm80_gemm``."""

from __future__ import annotations

from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.gemm import PLAIN
from warpsmith.catalog.gemm_stream import StreamTile
from warpsmith.errors import InvalidArgumentError
from warpsmith.ops.gemm_args import Launch, Operand, Output, Size, row_bytes, tail_of

_WARPS = 16
_WARP_ROWS = 32
_LEAST_WARPS = {1: 1, 2: 4}  # along K, by the blocks that divide it
_GO = 4  # columns: what it takes to add the sums of a go, and to begin the next
_WARPS_SHIFT = 16  # of the flags: log2 of the warps that divide K


def matrices_read(tile: StreamTile, size: Size) -> float:
    """How often all rows of B of a matrix are gone through: for groups, those that rows are spread to evenly hit."""
    if size.mode == "dense":
        return size.batches * -(-size.m // tile.rows)
    if size.mode == "masked":
        return size.batches
    return size.batches * (1 - (1 - 1 / size.batches) ** size.m)


def warps_along_k(tile: StreamTile, size: Size, format: str, sm_count: int) -> int:
    """How many of a block's 16 warps divide K, a power of two; the others divide rows of B.

    A block goes through its rows of B in as many goes as its warps along them need. A go takes a warp's columns of 64
    bytes, and a little more; so few goes of few columns are sought. Of equal ones the more warps, the better.
    """
    rows = size.n * matrices_read(tile, size) / max(sm_count // tile.cluster, 1)
    rows += 0 if size.mode == "dense" else _WARP_ROWS  # a group may end in the middle of a warp's rows
    columns = -(-row_bytes(format, size.k) // (64 * tile.cluster))
    least = _LEAST_WARPS[tile.cluster]
    choices = [w for w in (16, 8, 4, 2, 1) if w >= least and (w <= columns or w == least)]
    return min(choices, key=lambda w: -(-rows * w // (_WARPS * _WARP_ROWS)) * (columns / w + _GO))


def stream_launch(
    tile: StreamTile, size: Size, a: Operand, b: Operand, d: Output, *, sm_count: int, wide: bool = False
) -> Launch:
    """Plan ``ws_sm90_stream_gemm``; arguments as for `warpsmith.ops.gemm_args.sm80_launch`.

    Raises
    ------
    InvalidArgumentError
        If sizes are beyond the kernel's 32-bit offsets.
    """
    blocks_of_k = 0 if b.format in PLAIN else -(-size.k // FORMATS[b.format].block[1])
    matrices = size.batches + -(-size.m // tile.rows) * (size.batches if size.mode != "grouped" else 1)
    if size.n * blocks_of_k >= 1 << 30 or 24 * b.row >= 1 << 32 or size.n // 8 * matrices >= 1 << 32:
        raise InvalidArgumentError(
            f"a product of {size.batches} × {size.m} × {size.n} × {size.k} is too large: expected fewer than 2^30 "
            "scales in a matrix, rows of B below 2^27 bytes, and fewer than 2^32 groups of 8 rows of B in all"
        )
    warps = warps_along_k(tile, size, b.format, sm_count)
    flags = (warps.bit_length() - 1) << _WARPS_SHIFT
    blocks = max(sm_count // tile.cluster, 1) * tile.cluster
    return Launch((blocks, 1, 1), tail_of(size, a, b, d, wide, flags), 0, 0)
