# SPDX-License-Identifier: Apache-2.0
"""bf16 by 4-bit weights in the order that `gemm_packed` reads, for more rows than that takes. Data only.

The program of `gemm_mixed`, whose tiles, rules and splits these are but for the least rows;
``docs/kernels/sm90_mixed_packed_gemm.md`` has the contract.
"""

from __future__ import annotations

from warpsmith.catalog import gemm, gemm_mixed
from warpsmith.catalog.gemm_sm90 import CAPABILITIES
from warpsmith.catalog.spec import Instructions, Kernel, Problem, Variant, operands
from warpsmith.tuning import Bound, Rule
from warpsmith.tuning.splits import SplitRule

TILES = {name: tile for name, tile in gemm_mixed.TILES.items() if name != "m16"} | {
    "m64w": gemm_mixed.MixedTile(64, 128, blocks=2)
}
"""By name."""

NAME = "sm90_mixed_packed_gemm"
_INSTRUCTIONS = Instructions(
    (r"HGMMA\.64x\d+x16\.F32\.BF16", r"HMUL2\.BF16", "WARPGROUP\\.DEPBAR", "UTMALDG\\.3D", "UBLKCP"), CAPABILITIES, "a"
)


def _witness(format: str, tile: str) -> Problem:
    """That of the same tile for weights as they were quantized."""
    (like,) = gemm_mixed.KERNEL.variant(f"{format}_{tile}").witnesses
    return Problem.of("gemm", {**dict(like.fields), "layout": gemm.PREPARED_LAYOUT}, dict(like.dims))


def _variant(format: str, tile: str) -> Variant:
    a, b = operands(format)
    sizes = {**TILES[tile].macros, "PACKED": 1, "ACTIVATES": 0}
    return Variant(
        name=f"{format}_{tile}",
        macros=(
            ("WS_A_FORMAT", gemm.format_macro(a)),
            ("WS_B_FORMAT", gemm.format_macro(b)),
            *((f"WS_{key}", str(value)) for key, value in sizes.items()),
        ),
        serves=(("format", (format,)), ("layout", (gemm.PREPARED_LAYOUT,))),
        witnesses=(_witness(format, tile),),
        tile=tile,
        instructions=(_INSTRUCTIONS,),
    )


KERNEL = Kernel(
    name=NAME,
    module=gemm.MODULE,
    operation="gemm",
    source=gemm_mixed.KERNEL.source,
    entry=gemm_mixed.KERNEL.entry,
    capabilities=CAPABILITIES,
    params=gemm_mixed.KERNEL.params,
    variants=tuple(_variant(format, tile) for format in gemm.FEW_ROWS for tile in TILES),
    feature="a",
)
"""Its row of the catalog."""

_FEW = Bound(("n", "batches"), maximum=64, per_sm=True)
_FOUR_ROWS = Bound(("n", "batches"), maximum=32, per_sm=True)
"""Four rows of tiles of 128 × 128, or two of 64 columns, are one wave."""
_NOT_LONG = Bound(("k",), maximum=5120)
_NARROW = (_FEW, Bound(("n", "batches"), 129, 192, per_sm=True))
"""Tiles of 64 columns are one wave, or three where those of 128 are two, the last one half empty."""
_TINY = Bound(("n", "batches"), maximum=16, per_sm=True)


def _rule(tile: str, m: int = 0, *bounds: Bound, grouped: bool = False, dense: bool = False) -> Rule:
    most = (Bound(("m",), maximum=m),) if m else ()
    mode = "grouped" if grouped else "dense" if dense else ""
    return Rule(NAME, tile, fields=(("mode", (mode,)),) if mode else (), bounds=(*most, *bounds))


TUNING = (
    _rule("m16w", 12, grouped=True),
    _rule("m32w", 26, grouped=True),
    _rule("m64w", 64, grouped=True),
    _rule("m128", 320, grouped=True),
    _rule("m256", grouped=True),
    _rule("m32", 32),
    _rule("m64", 64),
    _rule("m32", 128, _TINY),
    _rule("m64", 128, _FOUR_ROWS, _NOT_LONG, dense=True),
    *(_rule("m128n", 128, columns, dense=True) for columns in _NARROW),
    _rule("m128", 128),
    _rule("m128n", 256, _FOUR_ROWS, dense=True),
    _rule("m128", 256, _FEW),
    _rule("m128", 512, _FOUR_ROWS),
    _rule("m256"),
)
SPLITS = (
    SplitRule(NAME, "m32", most=4, units_per_sm=2, part_k=1440),
    SplitRule(NAME, "m64", most=2, units_per_sm=1, part_k=1440),
    SplitRule(NAME, "m128n", most=2, units_per_sm=1, part_k=2048),
    SplitRule(NAME, "m128", most=4, units_per_sm=1, part_k=1024),
    SplitRule(NAME, "m256", most=4, units_per_sm=1, part_k=1440),
)
