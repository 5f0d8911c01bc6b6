# SPDX-License-Identifier: Apache-2.0
"""Few rows of A on Hopper by 4-bit weights that `warpsmith.prepare_weight` has brought into an order of their own."""

from __future__ import annotations

from typing import NamedTuple

from warpsmith.arch import Capability
from warpsmith.catalog import gemm
from warpsmith.catalog.spec import Instructions, Kernel, Problem, Variant, operands
from warpsmith.tuning import Bound, Limit, Rule

CAPABILITIES = (Capability(9, 0),)


class PackedTile(NamedTuple):
    """What blocks of ``gemm/sm90_packed_gemm.cuh`` hold and share.

    Attributes
    ----------
    rows
        Rows of A at a time, at most.
    cluster
        Blocks that divide K, 1 or 2.
    """

    rows: int
    cluster: int


class _Row(NamedTuple):
    name: str
    tiles: tuple[tuple[str, PackedTile], ...]
    limits: tuple[Limit, ...]
    witnesses: tuple[tuple[int, int], ...]  # rows of A and K, by tile


_FEW = (
    Limit(Bound(("m",), maximum=16)),
    # Of groups with more rows on average many have more than 8, and with 16 at a time tiles of wgmma are as fast.
    Limit(Bound(("m",), maximum=5), (("mode", ("grouped",)),)),
    Limit(Bound(("batches",), maximum=512)),
)
_LONGEST = Limit(Bound(("k",), maximum=2 * 65536))
_ROWS = (
    _Row(
        "sm90_packed_gemm",
        (("rows8", PackedTile(8, 1)), ("rows16", PackedTile(16, 1))),
        (*_FEW, Limit(Bound(("m", "k"), maximum=16 * 4128))),  # A fits the block beside 3 stages
        ((1, 4096), (16, 4096)),
    ),
    _Row("sm90_packed_pair_gemm", (("rows16", PackedTile(16, 2)),), (*_FEW, _LONGEST), ((16, 8192),)),
)
TILES = {row.name: dict(row.tiles) for row in _ROWS}
"""By kernel and name: a block has all of K, or a pair of blocks divides it."""

_INSTRUCTIONS = (
    Instructions(
        (r"HMMA\.16816\.F32\.BF16", r"HMUL2\.BF16_V2", r"LDSM\.16\.M88\.4", "UBLKCP", "ACQBULK"), CAPABILITIES
    ),
)


def _witness(format: str, m: int, k: int) -> Problem:
    return gemm.witness(format, m, gemm.PREPARED_LAYOUT, k=k)


def _variants(row: _Row) -> tuple[Variant, ...]:
    return tuple(
        Variant(
            name=f"{format}_{name}",
            macros=(
                ("WS_B_FORMAT", gemm.format_macro(operands(format)[1])),
                ("WS_ROWS", str(tile.rows)),
                ("WS_CLUSTER", str(tile.cluster)),
            ),
            serves=(("format", (format,)), ("layout", (gemm.PREPARED_LAYOUT,))),
            witnesses=(_witness(format, *witness),),
            tile=name,
            instructions=_INSTRUCTIONS,
            limits=row.limits,
        )
        for format in gemm.FEW_ROWS
        for (name, tile), witness in zip(row.tiles, row.witnesses, strict=True)
    )


KERNELS = tuple(
    Kernel(
        name=row.name,
        module=gemm.MODULE,
        operation="gemm",
        source="gemm/sm90_packed_gemm.cuh",
        entry="ws_sm90_packed_gemm",
        capabilities=CAPABILITIES,
        params=gemm.KERNELS[0].params,
        variants=_variants(row),
    )
    for row in _ROWS
)

TUNING = (
    Rule("sm90_packed_gemm", "rows8", bounds=(Bound(("m",), maximum=8),)),
    Rule("sm90_packed_gemm", "rows16"),
)
