# SPDX-License-Identifier: Apache-2.0
"""`sm90_gemm` of the module `gemm`: the GEMM of compute capability 9.0 by `wgmma`. Data only.

``docs/kernels/sm90_gemm.md`` has the contract, and the timings that tiles and splits were chosen by.
"""

from __future__ import annotations

from typing import NamedTuple

from warpsmith.arch import Capability
from warpsmith.catalog.fp4_gemm import PARAMS
from warpsmith.catalog.gemm import MODULE, PLAIN, TILED_LAYOUT, WHOLE_SCALED, format_macro, served, witness
from warpsmith.catalog.spec import Instructions, Kernel, Param, Problem, Variant, pair
from warpsmith.tuning import Bound, Rule
from warpsmith.tuning.splits import SplitRule

CAPABILITIES = (Capability(9, 0),)
PAIRS = (("bf16", "bf16"), ("fp16", "fp16"), ("fp8_block", "fp8_block_128x128"), WHOLE_SCALED[0])
"""(A, B); the last one's kernel serves `WHOLE_SCALED`."""

FP8_TOLERANCE = 1e-3
"""The FP8 tensor cores of 9.0 add 128 products in fewer bits than fp32 has: ``docs/numerics.md``."""


ACTIVATIONS = ("swiglu", "swiglu_oai", "geglu_tanh", "relu2")
"""What the epilogue computes of 16-bit operands: all but geglu, whose erf is too long to be there."""
GATE_PARAMS = ("gate_slope", "gate_cube", "gate_limit", "up_offset")
"""Of g · sigmoid(g · (slope + cube · g²)) · (u + offset), with g at most the limit and u within it."""


class Tile(NamedTuple):
    """What a block of `sm90_gemm` computes, and with what.

    Attributes
    ----------
    m, n
        Tile of D. A stage of the pipeline has 128 bytes of K.
    swap
        Whether rows of B are the 64-row operand of the MMA, for few rows of A.
    cluster
        Blocks, with tiles one below the other, that share the copies of B.
    groups
        Warpgroups that multiply.
    blocks
        Blocks that share a multiprocessor.
    buffers
        fp8_block, fp8_row: with 2, a stage's sums are added while the next one's are made.
    parts
        Blocks of a cluster that divide the K of a tile.
    period
        fp8_row: stages whose sums the tensor cores make; in fp32 they are added to those before. 0: all of them.
    """

    m: int
    n: int
    swap: bool = False
    cluster: int = 1
    groups: int = 2
    blocks: int = 1
    buffers: int = 1
    parts: int = 1
    period: int = 0

    @property
    def box_rows(self) -> tuple[int, int]:
        """Rows of the boxes of the tensor maps of A and of B."""
        return self.m, self.n // self.cluster


TILES = {
    "t128x256": Tile(128, 256),
    "t128x224": Tile(128, 224),
    "t128x128": Tile(128, 128),
    "t128x64": Tile(128, 64),
    "t64x128": Tile(64, 128),
    "t64x64": Tile(64, 64, groups=1),
    "t64x64k2": Tile(64, 64, groups=1, parts=2),
    "s192": Tile(192, 64, swap=True),
    "s136": Tile(136, 256, swap=True),
    "s128k2": Tile(128, 64, swap=True, groups=1, parts=2),
    "s32": Tile(32, 64, swap=True, groups=1, blocks=2),
    "s32k2": Tile(32, 64, swap=True, groups=1, blocks=2, parts=2),
    "s16": Tile(16, 128, swap=True),
    "s16k2": Tile(16, 64, swap=True, groups=1, blocks=2, parts=2),
    "s8": Tile(8, 64, swap=True, groups=1, blocks=2),
    "s8k2": Tile(8, 64, swap=True, groups=1, blocks=2, parts=2),
}
"""By name: `t` for tiles whose rows of A are the 64-row operand, `s` (swapped) for others, `k2` for two parts of K."""
_SIXTEEN_BITS_ALONE = ("t128x256", "t128x224", "s136", "s192", "s128k2")
_EIGHT_BITS_ALONE = {"t128x64k2": Tile(128, 64, parts=2)}
FP8_TILES = {
    name: tile._replace(buffers=1 if name == "s32" else 2)
    for name, tile in (TILES | _EIGHT_BITS_ALONE).items()
    if name not in _SIXTEEN_BITS_ALONE
}
"""Those of fp8_block."""
ROW_TILES = {
    name: tile._replace(period=1, buffers=1 if tile.swap else 2)
    for name, tile in (TILES | _EIGHT_BITS_ALONE).items()
    if name not in (*_SIXTEEN_BITS_ALONE, "s32k2")
}
"""Those of fp8_row and fp8_tensor."""
_PRODUCT_ALONE = ("s128k2", "s136", "s192", "t128x224")
"""Tiles without activations: beside them ptxas makes the MMAs of the first two wait for each other (C7514)."""


def tiles_of(a: str) -> dict[str, Tile]:
    """The tiles where A is of format `a`, by name."""
    if a == "fp8_row":
        return ROW_TILES
    return FP8_TILES if a == "fp8_block" else TILES


def tile_of(a: str, name: str) -> Tile:
    """The tile of that name where A is of format `a`."""
    return tiles_of(a)[name]


_WITNESS_ROWS = {
    "t128x224": 570,
    "s136": 800,
    "s192": 192,
    "t128x64": 128,
    "t128x64k2": 128,
    "s128k2": 128,
    "t64x128": 64,
    "t64x64": 64,
    "t64x64k2": 64,
    "s32": 32,
    "s32k2": 32,
    "s16": 16,
}
_WITNESS_ROWS |= {"s16k2": 16, "s8": 8, "s8k2": 8}
_NARROW, _WIDE, _TWO_WAVES_OF_48 = 1024, 16384, 80 * 48
"""Columns: few for any GPU; more than any rule's; and for the multiprocessors that witnesses are resolved for."""
_LARGE = 4096
_COLUMNS = {
    "s136": _TWO_WAVES_OF_48,
    "s192": _TWO_WAVES_OF_48,
    "t128x224": 32 * 224,
    "t128x64k2": 1536,
    "s128k2": 1536,
    "t64x64": 2 * _LARGE,
}

_MMA = {"bf16": r"HGMMA\.64x\d+x16\.F32\.BF16", "fp16": r"HGMMA\.64x\d+x16\.F32$", "fp8": r"QGMMA\.64x\d+x32"}
_LOADS = ("UTMALDG\\.3D", "SYNCS\\.ARRIVE", "WARPGROUP\\.DEPBAR", "STSM\\.16", "ACQBULK", "PREEXIT")


def _witnesses(a: str, format: str, name: str) -> tuple[Problem, ...]:
    """A problem that the tile is chosen for: with 16-bit operands t128x128 is for groups alone."""
    found = witness(format, _WITNESS_ROWS.get(name, _LARGE))
    sizes = {"n": _COLUMNS.get(name, _NARROW if tile_of(a, name).parts > 1 else _WIDE)}
    found = found._replace(dims=tuple((d, sizes.get(d, size)) for d, size in found.dims))
    if name == "t128x128" and a in PLAIN:
        dims = {**dict(found.dims), "m": 128, "batches": 8}
        found = Problem.of("gemm", {**dict(found.fields), "mode": "grouped"}, dims)
    return (found,)


def _variant(a: str, b: str, name: str) -> Variant:
    tile, format = tile_of(a, name), pair(a, b)
    macro = format_macro(a)
    sizes = {
        "TILE_M": tile.m,
        "TILE_N": tile.n,
        "TILE_K": 64 if a in PLAIN else 128,
        "SWAP": tile.swap,
        "CLUSTER": tile.cluster,
        "GROUPS": tile.groups,
        "BLOCKS": tile.blocks,
        "BUFFERS": tile.buffers,
        "PARTS": tile.parts,
        **({"PERIOD": tile.period} if tile.period else {}),
    }
    activations = ACTIVATIONS if a in PLAIN and name not in _PRODUCT_ALONE else ()
    if a in PLAIN and not activations:
        sizes["ACTIVATES"] = 0
    return Variant(
        name=f"{format}_{name}",
        macros=(
            ("WS_A_FORMAT", macro),
            ("WS_B_FORMAT", macro),
            *((f"WS_{key}", str(int(value))) for key, value in sizes.items()),
        ),
        serves=(("format", served(a, b)), ("layout", (TILED_LAYOUT,))),
        witnesses=tuple(problem for one in served(a, b) for problem in _witnesses(a, one, name)),
        tile=name,
        instructions=(Instructions((_MMA[a if a in PLAIN else "fp8"], *_LOADS), CAPABILITIES, "a"),),
        activations=activations,
        tolerance=0.0 if a in PLAIN else FP8_TOLERANCE,
    )


KERNEL = Kernel(
    name="sm90_gemm",
    module=MODULE,
    operation="gemm",
    source="gemm/sm90_gemm.cuh",
    entry="ws_sm90_gemm",
    capabilities=CAPABILITIES,
    params=(*PARAMS, *(Param(name, "f32") for name in GATE_PARAMS), Param("d_map", "tensormap")),
    variants=tuple(_variant(a, b, name) for a, b in PAIRS for name in tiles_of(a)),
    feature="a",
)
"""Its row of the catalog."""

_PLAIN = tuple(pair(a, b) for a, b in PAIRS if a in PLAIN)
_DENSE = (("mode", ("dense",)),)
_GROUPED = (("format", _PLAIN), ("mode", ("grouped",)))
Fields = tuple[tuple[str, tuple[str, ...]], ...]


def _rule(tile: str, *bounds: Bound, m: int = 0, n: int = 0, fields: Fields = ()) -> Rule:
    most = (Bound((name,), maximum=most) for name, most in (("m", m), ("n", n)) if most)
    return Rule(KERNEL.name, tile, fields=fields, bounds=(*most, *bounds))


_FEW = Bound(("n", "batches"), maximum=32, per_sm=True)
"""Two blocks for each 64 columns have a multiprocessor each: parts of K, or tiles of rows."""
_SMALL = Bound(("m", "n", "batches"), maximum=512, per_sm=True)
"""Likewise for each tile of 16 × 64."""
_NOT_MANY = Bound(("n", "batches"), maximum=192, per_sm=True)
"""Three tiles of 64 columns for each multiprocessor."""
_LONG, _HALF_LONG, _LONGER = (Bound(("k",), minimum=k) for k in (1024, 2048, 4096))
_TWO_WAVES = (Bound(("m",), 6 * 128 + 1, 6 * 136), Bound(("n", "batches"), 65, 85, per_sm=True))
"""Six rows of tiles of 136 × 256 are two waves, seven of 128 × 256 more."""
_ONE_WAVE = (Bound(("m",), 4 * 128 + 1, 4 * 136), Bound(("n", "batches"), 52, 64, per_sm=True))
"""Four such rows are one wave, five of 128 × 256 more."""
_HALF_FULL = tuple(Bound(("m", "n", "batches"), 32768 * w + 10923, 32768 * w + 16384, per_sm=True) for w in (1, 3))
"""The last wave of tiles of 128 × 256 would be a third to half full: too much for the tail's splits."""
_MORE_THAN_128 = Bound(("m",), 129, 192)
_MORE_THAN_32 = Bound(("m",), 33, 64)
_NEARLY_ENOUGH = Bound(("n", "batches"), minimum=24, per_sm=True)
"""With two parts of K, tiles of 192 × 64 have most multiprocessors."""
_NEARLY_FULL = tuple(Bound(("m", "n", "batches"), 28672 * w - 3840, 28672 * w, per_sm=True) for w in (1, 2, 3, 4))
"""So many waves of tiles of 128 × 224, of which the last one lacks an eighth of its tiles at most."""
_BY_224 = Bound(("n",), 32 * 224 - 111, 32 * 224)
_MORE_THAN_64 = Bound(("m",), 65, 128)
_HALF_A_WAVE = Bound(("m", "n", "batches"), maximum=16384, per_sm=True)
"""Tiles of 128 × 256 would leave half the multiprocessors without any."""
_SIXTEEN_BITS = (("format", _PLAIN),)
_BLOCKS = (("format", (pair("fp8_block", "fp8_block_128x128"),)),)
_GROUPED_BLOCKS = _BLOCKS + _GROUPED[1:]
_NOT_WHOLE = (("format", (*_PLAIN, *_BLOCKS[0][1])),)
_WHOLE = (("format", tuple(pair(a, b) for a, b in WHOLE_SCALED)),)

_ROW_TUNING = (
    _rule("s8k2", _FEW, _LONG, m=8, fields=_WHOLE + _DENSE),
    _rule("s8", m=8, fields=_WHOLE),
    _rule("s16k2", _FEW, _LONG, m=16, fields=_WHOLE + _DENSE),
    _rule("s16", m=16, fields=_WHOLE),
    _rule("s32", m=32, fields=_WHOLE),
    _rule("t64x64k2", _FEW, _HALF_LONG, m=64, fields=_WHOLE + _DENSE),
    _rule("t64x64", _NOT_MANY, m=64, fields=_WHOLE + _DENSE),
    _rule("t64x128", m=64, fields=_WHOLE),
    _rule("t128x64k2", _FEW, _LONGER, m=128, fields=_WHOLE + _DENSE),
    _rule("t128x64", m=128, fields=_WHOLE + _DENSE),
    _rule("t128x64", _FEW, m=256, fields=_WHOLE + _DENSE),
    _rule("t128x128", fields=_WHOLE),
)
TUNING = (
    *_ROW_TUNING,
    _rule("s8", m=4, fields=_GROUPED),
    _rule("s16", m=12, fields=_GROUPED),
    _rule("t64x128", m=64, fields=_GROUPED),
    _rule("t128x128", m=192, fields=_GROUPED),
    _rule("s8", m=4, fields=_GROUPED_BLOCKS),
    _rule("s16", m=10, fields=_GROUPED_BLOCKS),
    _rule("t64x128", m=56, fields=_GROUPED_BLOCKS),
    _rule("t128x128", fields=_GROUPED_BLOCKS),
    _rule("s8k2", _FEW, _LONG, m=8, fields=_DENSE),
    _rule("s8", m=8),
    _rule("s16k2", _FEW, _LONG, m=16, fields=_DENSE),
    _rule("s16", m=16),
    _rule("s32k2", _FEW, _LONGER, m=32, fields=_NOT_WHOLE + _DENSE),
    _rule("s16k2", _SMALL, _LONG, m=128, fields=_DENSE),
    _rule("t64x64k2", _MORE_THAN_32, _FEW, _HALF_LONG, fields=_SIXTEEN_BITS + _DENSE),
    _rule("s32", m=32),
    _rule("t64x64k2", _FEW, _HALF_LONG, m=64, fields=_BLOCKS + _DENSE),
    _rule("t64x64k2", _LONGER, m=128, n=1024, fields=_NOT_WHOLE + _DENSE),
    _rule("s32", m=64, n=4096, fields=_DENSE),
    _rule("s32", m=128, n=1024, fields=_DENSE),
    _rule("t64x64", _NOT_MANY, m=64, fields=_DENSE),
    _rule("t64x128", m=64),
    _rule("s128k2", _MORE_THAN_64, _FEW, _LONGER, fields=_SIXTEEN_BITS + _DENSE),
    _rule("t128x64k2", _MORE_THAN_64, _FEW, _LONGER, fields=_BLOCKS + _DENSE),
    _rule("t128x64", m=128, fields=_DENSE),
    _rule("s192", _MORE_THAN_128, _NEARLY_ENOUGH, _LONGER, fields=_SIXTEEN_BITS + _DENSE),
    _rule("t128x64", _FEW, m=256, fields=_DENSE),
    _rule("s192", _MORE_THAN_128, fields=_SIXTEEN_BITS + _DENSE),
    _rule("s136", *_ONE_WAVE, fields=_SIXTEEN_BITS + _DENSE),
    _rule("s136", *_TWO_WAVES, fields=_SIXTEEN_BITS + _DENSE),
    *(_rule("t128x224", some, _BY_224, fields=_SIXTEEN_BITS + _DENSE) for some in _NEARLY_FULL),
    *(_rule("t128x128", some, fields=_SIXTEEN_BITS + _DENSE) for some in _HALF_FULL),
    _rule("t128x128", m=128),
    _rule("t128x128", _HALF_A_WAVE, fields=_DENSE),
    _rule("t128x256", fields=_SIXTEEN_BITS),
    _rule("t128x128"),
)
SPLITS = (
    SplitRule(KERNEL.name, "s32", most=2, units_per_sm=2, part_k=2048),
    SplitRule(KERNEL.name, "t64x128", most=2, units_per_sm=1, part_k=2048),
    SplitRule(KERNEL.name, "t128x64", most=2, units_per_sm=1, part_k=2048),
    SplitRule(KERNEL.name, "s192", most=2, units_per_sm=1, part_k=2048),
    SplitRule(KERNEL.name, "t128x256", tail=3, part_k=128),
    SplitRule(KERNEL.name, "t128x128", tail=4, part_k=1024, waves=40),
)
