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
        Blocks that share the copies of an operand: of B (tiles one below the other) if `share_b`, else of A (side by
        side).
    share_b
        See `cluster`.
    groups
        Warpgroups that multiply.
    groups_k
        2: they share a tile's K and not the tile.
    blocks
        Blocks that share a multiprocessor.
    """

    m: int
    n: int
    swap: bool = False
    cluster: int = 1
    share_b: bool = True
    groups: int = 2
    groups_k: int = 1
    blocks: int = 1

    @property
    def box_rows(self) -> tuple[int, int]:
        """Rows of the boxes of the tensor maps of A and of B."""
        a = self.m if self.share_b else self.m // self.cluster
        return a, self.n // self.cluster if self.share_b else self.n

    @property
    def cluster_tile(self) -> tuple[int, int]:
        """Rows and columns of D that a cluster computes."""
        return (self.m * self.cluster, self.n) if self.share_b else (self.m, self.n * self.cluster)


TILES = {
    "t128x256": Tile(128, 256),
    "t128x256c2": Tile(128, 256, cluster=2),
    "t128x192": Tile(128, 192),
    "t128x128": Tile(128, 128),
}
"""By name."""

_FEW = ("t64x128", "t128x64", "k64", "k32m2", "k16", "k8")
_NAMES = {
    "bf16": ("t128x256", "t128x256c2", "t128x192", "t128x128", *_FEW),
    "fp16": ("t128x256", "t128x256c2", "t128x192", "t128x128", *_FEW),
    "fp8_block": ("t128x256", "t128x192", "t128x128", *_FEW),
}
_WITNESS_ROWS = {"k8": 8, "k16": 16, "k32m2": 32, "k64": 64, "t64x128": 64, "t128x64": 128}

_MMA = {"bf16": r"HGMMA\.64x\d+x16\.F32\.BF16", "fp16": r"HGMMA\.64x\d+x16\.F32$", "fp8_block": r"QGMMA\.64x\d+x32"}
_LOADS = ("UTMALDG\\.3D", "SYNCS\\.ARRIVE", "WARPGROUP\\.DEPBAR", "STSM\\.16", "ACQBULK", "PREEXIT")


def _variant(a: str, b: str, name: str) -> Variant:
    tile, format = TILES[name], pair(a, b)
    macro = f"WS_{a.upper()}"
    sizes = {
        "TILE_M": tile.m,
        "TILE_N": tile.n,
        "TILE_K": 128 if a == "fp8_block" else 64,
        "SWAP": tile.swap,
        "CLUSTER": tile.cluster,
        "SHARE_B": tile.share_b,
        "GROUPS": tile.groups,
        "GROUPS_K": tile.groups_k,
        "BLOCKS": tile.blocks,
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
    variants=tuple(_variant(a, b, name) for a, b in PAIRS for name in _NAMES[a]),
    feature="a",
)
"""Its row of the catalog."""
