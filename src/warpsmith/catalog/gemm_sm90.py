# SPDX-License-Identifier: Apache-2.0
"""`sm90_gemm`: the GEMM of compute capability 9.0 by `wgmma`. Data only."""

from __future__ import annotations

from typing import NamedTuple

from warpsmith.arch import Capability
from warpsmith.catalog.spec import Instructions, Kernel, Param, Problem, Variant, pair

MODULE = "gemm"
CAPABILITIES = (Capability(9, 0),)
PAIRS = (("bf16", "bf16"), ("fp16", "fp16"), ("fp8_block", "fp8_block_128x128"))
"""(A, B)."""


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
        fp8_block: with 2, a stage's sums are added while the next one's are made.
    """

    m: int
    n: int
    swap: bool = False
    cluster: int = 1
    groups: int = 2
    blocks: int = 1
    buffers: int = 1

    @property
    def box_rows(self) -> tuple[int, int]:
        """Rows of the boxes of the tensor maps of A and of B."""
        return self.m, self.n // self.cluster


TILES = {
    "t128x256": Tile(128, 256),
    "t128x128": Tile(128, 128),
    "t128x64": Tile(128, 64),
    "t64x128": Tile(64, 128),
    "s32": Tile(32, 64, swap=True, cluster=2, groups=1, blocks=2),
    "s16": Tile(16, 128, swap=True),
    "s8": Tile(8, 64, swap=True, groups=1, blocks=2),
}
"""By name: `t` for tiles of many rows of A, `s` (swapped) for few."""
FP8_TILES = {name: tile for name, tile in TILES.items() if tile.n <= 128} | {"t128x128": Tile(128, 128, buffers=2)}
"""Those of fp8_block."""


def tile_of(a: str, name: str) -> Tile:
    """The tile of that name where A is of format `a`."""
    return (FP8_TILES if a == "fp8_block" else TILES)[name]


_WITNESS_ROWS = {"s8": 8, "s16": 16, "s32": 32, "t64x128": 64, "t128x64": 128}

_MMA = {"bf16": r"HGMMA\.64x\d+x16\.F32\.BF16", "fp16": r"HGMMA\.64x\d+x16\.F32$", "fp8_block": r"QGMMA\.64x\d+x32"}
_LOADS = ("UTMALDG\\.3D", "SYNCS\\.ARRIVE", "WARPGROUP\\.DEPBAR", "STSM\\.16", "ACQBULK", "PREEXIT")


def _variant(a: str, b: str, name: str) -> Variant:
    tile, format = tile_of(a, name), pair(a, b)
    macro = f"WS_{a.upper()}"
    sizes = {
        "TILE_M": tile.m,
        "TILE_N": tile.n,
        "TILE_K": 128 if a == "fp8_block" else 64,
        "SWAP": tile.swap,
        "CLUSTER": tile.cluster,
        "GROUPS": tile.groups,
        "BLOCKS": tile.blocks,
        "BUFFERS": tile.buffers,
    }
    problem = {"m": _WITNESS_ROWS.get(name, 4096), "n": 4096, "k": 4096, "batches": 1}
    return Variant(
        name=f"{format}_{name}",
        macros=(
            ("WS_A_FORMAT", macro),
            ("WS_B_FORMAT", macro),
            *((f"WS_{key}", str(int(value))) for key, value in sizes.items()),
        ),
        serves=(("format", (format,)),),
        witnesses=(Problem.of("gemm", {"format": format, "mode": "dense"}, problem),),
        tile=name,
        instructions=(Instructions((_MMA[a], *_LOADS), CAPABILITIES, "a"),),
    )


_POINTERS = ("a_scales", "b_scales", "d", "bias", "alphas", "a_global_scale", "b_global_scale", "index")
_STRIDES = ("d_row", "d_batch", "a_scale_batch", "b_scale_batch", "bias_batch")

KERNEL = Kernel(
    name="sm90_gemm",
    module=MODULE,
    operation="gemm",
    source="gemm/sm90_gemm.cuh",
    entry="ws_sm90_gemm",
    capabilities=CAPABILITIES,
    params=(
        Param("a_map", "tensormap"),
        Param("b_map", "tensormap"),
        *(Param(name, "ptr") for name in (*_POINTERS, "workspace", "arrivals")),
        *(Param(name, "i64") for name in _STRIDES),
        *(Param(name, "u32") for name in ("m", "n", "k", "batches", "splits")),
        Param("alpha", "f32"),
        Param("flags", "u32"),
    ),
    variants=tuple(_variant(a, b, name) for a, b in PAIRS for name in (FP8_TILES if a == "fp8_block" else TILES)),
    feature="a",
)
"""Its row of the catalog."""
