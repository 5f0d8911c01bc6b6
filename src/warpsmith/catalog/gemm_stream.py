# SPDX-License-Identifier: Apache-2.0
"""Few rows of A on Hopper, B streamed through registers; before `sm80_gemm`, which takes all other sizes. Data only."""

from __future__ import annotations

from typing import NamedTuple

from warpsmith.arch import Capability
from warpsmith.catalog import gemm
from warpsmith.catalog.spec import Instructions, Kernel, Variant, pair
from warpsmith.tuning import Bound, Limit

CAPABILITIES = (Capability(9, 0),)
MOST_ROWS = 8
"""Rows of A, of a group on average, up to which the kernels are taken."""
MOST_GROUPS = 512

PAIRS = (
    ("bf16", "nvfp4"),
    ("bf16", "mxfp4"),
    ("bf16", "mxfp8"),
    ("bf16", "fp8_block_128x128"),
    ("fp16", "nvfp4"),
    ("fp16", "fp8_block_128x128"),
)


_MOST_ROWS = {"fp8_block_128x128": 4}
_MOST_ELEMENTS = {"mxfp8": 1 << 26, "fp8_block_128x128": 1 << 26}
"""Up to which rows of A, and elements of a matrix, it is ahead of `sm80_gemm` on an H200; for other formats all are."""


class StreamTile(NamedTuple):
    """What blocks of ``gemm/sm90_stream_gemm.cuh`` share and hold.

    Attributes
    ----------
    rows
        Rows of A at a time.
    cluster
        Blocks that divide K, 1 or 2.
    ahead
        Columns of 64 bytes that a warp has under way.
    """

    rows: int
    cluster: int
    ahead: int


class _Row(NamedTuple):
    name: str
    tile: StreamTile
    most_k: int  # what 8 rows of A may have to fit the shared memory of the blocks
    witness_k: int


_ROWS = (
    _Row("sm90_stream_gemm", StreamTile(8, 1, 2), 7680, 4096),
    _Row("sm90_stream_pair_gemm", StreamTile(8, 2, 2), 15104, 8192),
)
TILES = {row.name: row.tile for row in _ROWS}
"""By kernel: a block has all of K, or a pair of blocks divides it."""


def _instructions(a: str, b: str) -> tuple[Instructions, ...]:
    mma = r"HMMA\.16816\.F32\.BF16" if a == "bf16" else r"HMMA\.16816\.F32$"
    found = [Instructions((mma, r"LDGSTS\.E\.BYPASS", "UBLKCP", "ACQBULK"), CAPABILITIES)]
    if b not in gemm.PLAIN and b != "mxfp4":  # elements, or scales
        found.append(Instructions((r"F2FP\.F16\.E4M3\.UNPACK_B",), CAPABILITIES))
    return tuple(found)


def _limits(row: _Row, b: str) -> tuple[Bound, ...]:
    limits = (
        Bound(("m",), maximum=_MOST_ROWS.get(b, MOST_ROWS)),
        Bound(("k",), maximum=row.most_k),
        Bound(("batches",), maximum=MOST_GROUPS),
    )
    return limits if b not in _MOST_ELEMENTS else (*limits, Bound(("n", "k"), maximum=_MOST_ELEMENTS[b]))


def _serves(a: str, b: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    modes = ("dense",) if b in _MOST_ELEMENTS else gemm.MODES  # groups of 8-bit weights are slower than `sm80_gemm`'s
    return ("format", (pair(a, b),)), ("layout", (gemm.TILED_LAYOUT, gemm.LINEAR_LAYOUT)), ("mode", modes)


def _variants(row: _Row) -> tuple[Variant, ...]:
    return tuple(
        Variant(
            name=f"{pair(a, b)}_stream",
            macros=(
                ("WS_A_FORMAT", gemm.format_macro(a)),
                ("WS_B_FORMAT", gemm.format_macro(b)),
                ("WS_ROWS", str(row.tile.rows)),
                ("WS_CLUSTER", str(row.tile.cluster)),
                ("WS_AHEAD", str(row.tile.ahead)),
            ),
            serves=_serves(a, b),
            witnesses=(gemm.witness(pair(a, b), 1, k=row.witness_k),),
            tile="stream",
            instructions=_instructions(a, b),
            limits=tuple(Limit(bound) for bound in _limits(row, b)),
        )
        for a, b in PAIRS
    )


KERNELS = tuple(
    Kernel(
        name=row.name,
        module=gemm.MODULE,
        operation="gemm",
        source="gemm/sm90_stream_gemm.cuh",
        entry="ws_sm90_stream_gemm",
        capabilities=CAPABILITIES,
        params=gemm.KERNELS[0].params,
        variants=_variants(row),
    )
    for row in _ROWS
)
