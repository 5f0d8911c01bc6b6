# SPDX-License-Identifier: Apache-2.0
"""Grid and arguments of ``ws_sm90_packed_gemm``, whose parameters are those of ``ws_sm80_gemm``."""

from __future__ import annotations

from warpsmith.catalog.gemm_packed import PackedTile
from warpsmith.errors import InvalidArgumentError
from warpsmith.ops.gemm_args import Launch, Operand, Output, Size, tail_of

_MOST_K = 65536  # of a block, for one row of A to fit
_MOST_GROUPS = 512


def packed_launch(
    tile: PackedTile, size: Size, a: Operand, b: Operand, d: Output, *, sm_count: int, wide: bool = False
) -> Launch:
    """Plan ``ws_sm90_packed_gemm``; arguments as for `warpsmith.ops.gemm_args.sm80_launch`.

    Raises
    ------
    InvalidArgumentError
        If sizes are beyond the kernel's shared memory or 32-bit numbers.
    """
    matrices = size.batches * max(size.m, 1) if size.mode != "grouped" else size.batches + size.m
    groups = size.mode == "dense" or size.batches <= _MOST_GROUPS
    if size.k > _MOST_K * tile.cluster or size.n // 32 * matrices >= 1 << 32 or not groups:
        raise InvalidArgumentError(
            f"a product of {size.batches} × {size.m} × {size.n} × {size.k} by prepared weights is too large: expected "
            f"K up to {_MOST_K * tile.cluster}, at most {_MOST_GROUPS} groups, and fewer than 2^32 times 32 columns of "
            "D: pass the weights as they were quantized"
        )
    blocks = max(sm_count // tile.cluster, 1) * tile.cluster
    return Launch((blocks, 1, 1), tail_of(size, a, b, d, wide), 0, 0)
