# SPDX-License-Identifier: Apache-2.0
"""bf16 by quantized weights on Hopper's `wgmma`: the program of `sm90_gemm`, codes its operand in registers. Data only.

``docs/kernels/sm90_mixed_gemm.md`` has the contract, and the timings that tiles and splits were chosen by.
"""

from __future__ import annotations

from typing import NamedTuple

from warpsmith.catalog import gemm
from warpsmith.catalog.gemm_sm90 import CAPABILITIES
from warpsmith.catalog.gemm_sm90 import KERNEL as SAME_PROGRAM
from warpsmith.catalog.spec import Instructions, Kernel, Problem, Variant, pair
from warpsmith.tuning import Bound, Rule
from warpsmith.tuning.splits import SplitRule

PAIRS = (("bf16", "nvfp4"), ("bf16", "mxfp4"), ("bf16", "mxfp8"), ("bf16", "fp8_block_128x128"))
"""(A, B)."""


class MixedTile(NamedTuple):
    """What a block computes, and with what; rows of B are the 64-row operand of the MMA.

    Attributes
    ----------
    m, n
        Tile of D.
    k
        K of a stage: 64 or 128.
    groups
        Warpgroups that multiply.
    groups_k
        Of them, those that take the stages of a tile by turns.
    blocks
        Blocks that share a multiprocessor.
    fits
        Whether boxes of A have no more rows than the matrix.
    """

    m: int
    n: int
    k: int = 128
    groups: int = 2
    groups_k: int = 1
    blocks: int = 1
    fits: bool = False

    @property
    def macros(self) -> dict[str, int]:
        """What the program is told of it."""
        sizes = {"TILE_M": self.m, "TILE_N": self.n, "TILE_K": self.k, "SWAP": 1}
        turns = {"GROUPS": self.groups, "GROUPS_K": self.groups_k, "BLOCKS": self.blocks}
        return {**sizes, **turns, **({"FITS": 1} if self.fits else {})}


TILES = {
    "m256": MixedTile(256, 128, k=64),
    "m128": MixedTile(128, 128),
    "m128n": MixedTile(128, 64, groups_k=2, fits=True),
    "m64w": MixedTile(64, 128, k=64, blocks=2),
    "m64": MixedTile(64, 64, groups=3, groups_k=3),
    "m32": MixedTile(32, 64, groups_k=2, blocks=2),
    "m32w": MixedTile(32, 128, blocks=2),
    "m16": MixedTile(16, 64, groups_k=2, blocks=2),
    "m16w": MixedTile(16, 128, blocks=2),
}
"""By name, which says the rows of A; `w`: wide, for groups; `n`: narrow."""

_WITNESS_ROWS = {"m16": 16, "m16w": 12, "m32": 32, "m32w": 20, "m64": 64, "m64w": 40}
_WITNESS_ROWS |= {"m128": 128, "m128n": 128, "m256": 4096}
_MMA = (r"HGMMA\.64x\d+x16\.F32\.BF16", r"HMUL2\.BF16", "WARPGROUP\\.DEPBAR", "UTMALDG\\.3D")
_SCALES = {"fp8_block_128x128": ("MUFU\\.RCP",)}
"""What shows how block scales come: a row's by copies of words, or of tiles."""


def _witness(format: str, name: str) -> Problem:
    found = gemm.witness(format, _WITNESS_ROWS[name])
    if name == "m128n":
        return Problem.of("gemm", dict(found.fields), {**dict(found.dims), "n": 64 * 48})
    if name.endswith("w"):  # for groups alone
        found = Problem.of("gemm", {**dict(found.fields), "mode": "grouped"}, {**dict(found.dims), "batches": 8})
    return found


def _variant(a: str, b: str, name: str) -> Variant:
    tile, format = TILES[name], pair(a, b)
    return Variant(
        name=f"{format}_{name}",
        macros=(
            ("WS_A_FORMAT", gemm.format_macro(a)),
            ("WS_B_FORMAT", gemm.format_macro(b)),
            *((f"WS_{key}", str(value)) for key, value in tile.macros.items()),
        ),
        serves=(("format", (format,)), ("layout", (gemm.TILED_LAYOUT, gemm.LINEAR_LAYOUT))),
        witnesses=(_witness(format, name),),
        tile=name,
        instructions=(Instructions((*_MMA, *_SCALES.get(b, ("LDGSTS", "UBLKCP"))), CAPABILITIES, "a"),),
    )


KERNEL = Kernel(
    name="sm90_mixed_gemm",
    module=gemm.MODULE,
    operation="gemm",
    source=SAME_PROGRAM.source,
    entry=SAME_PROGRAM.entry,
    capabilities=CAPABILITIES,
    params=SAME_PROGRAM.params,
    variants=tuple(_variant(a, b, name) for a, b in PAIRS for name in TILES),
    feature="a",
)
"""Its row of the catalog."""

_GROUPED, _DENSE = ((("mode", (mode,)),) for mode in ("grouped", "dense"))
_FEW = Bound(("n", "batches"), maximum=64, per_sm=True)
"""Half of the multiprocessors have 128 columns, or fewer have."""
_FOUR_ROWS = Bound(("n", "batches"), maximum=32, per_sm=True)
"""Four rows of tiles of 128 × 128, or two of 64 columns, are one wave."""
_FEWER = Bound(("n", "batches"), maximum=24, per_sm=True)
_NOT_LONG = Bound(("k",), maximum=5120)
_NARROW = (_FEW, Bound(("n", "batches"), 129, 192, per_sm=True))
"""Tiles of 64 columns are one wave, or three where those of 128 are two, the last one half empty."""
_MXFP8, _SQUARES = ((pair(*operands),) for operands in PAIRS[2:])
_TINY = Bound(("n", "batches"), maximum=16, per_sm=True)


def _rule(
    tile: str, m: int = 0, *bounds: Bound, grouped: bool = False, dense: bool = False, formats: tuple[str, ...] = ()
) -> Rule:
    most = (Bound(("m",), maximum=m),) if m else ()
    mode = _GROUPED if grouped else _DENSE if dense else ()
    fields = (*mode, *((("format", formats),) if formats else ()))
    return Rule(KERNEL.name, tile, fields=fields, bounds=(*most, *bounds))


TUNING = (
    _rule("m16w", 12, grouped=True),
    _rule("m32w", 26, grouped=True),
    _rule("m64w", 56, grouped=True),
    _rule("m128", 160, grouped=True),
    _rule("m256", grouped=True),
    _rule("m16", 16),
    _rule("m32", 32),
    _rule("m64", 64),
    _rule("m32", 128, _TINY),
    _rule("m64", 128, _FOUR_ROWS, _NOT_LONG, dense=True),
    *(_rule("m128n", 128, columns, dense=True) for columns in _NARROW),
    _rule("m128", 128),
    _rule("m128n", 256, _FOUR_ROWS, dense=True),
    _rule("m128", 256, _FEW),
    _rule("m128", 384, _FOUR_ROWS),
    _rule("m128", 512, _FEWER),
    _rule("m128", 512, _FOUR_ROWS, formats=_SQUARES),
    _rule("m256"),
)
"""Of groups, with m rows on average, many have more."""
SPLITS = (
    SplitRule(KERNEL.name, "m16", most=4, units_per_sm=2, part_k=1024, formats=_MXFP8),
    SplitRule(KERNEL.name, "m16", most=4, units_per_sm=2, part_k=1440, formats=_SQUARES),
    SplitRule(KERNEL.name, "m16", most=2, units_per_sm=2, part_k=1440),
    SplitRule(KERNEL.name, "m32", most=4, units_per_sm=2, part_k=1440),
    SplitRule(KERNEL.name, "m64", most=2, units_per_sm=1, part_k=1440),
    SplitRule(KERNEL.name, "m128n", most=2, units_per_sm=1, part_k=2048),
    SplitRule(KERNEL.name, "m128", most=4, units_per_sm=1, part_k=1024),
    SplitRule(KERNEL.name, "m256", most=4, units_per_sm=1, part_k=1440),
)
