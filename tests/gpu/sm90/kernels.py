# SPDX-License-Identifier: Apache-2.0
"""The GEMM of 9.0, its variants, and their cubins: from a folder, or compiled now."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from warpsmith.arch import Capability, Target
from warpsmith.catalog.source import source_unit
from warpsmith.catalog.spec import CubinId, Kernel, Param, Variant
from warpsmith.compiler.pool import LocalWorkers
from warpsmith.compiler.unit import Compiled, CompileJob

CAPABILITIES = (Capability(9, 0),)
FORMATS = {"bf16": "WS_BF16", "fp16": "WS_FP16", "fp8": "WS_FP8_BLOCK"}


@dataclass(frozen=True)
class Tile:
    """What a block computes; `cluster` blocks, one below the other, share the copies of B."""

    m: int
    n: int
    swap: bool = False
    cluster: int = 1
    share_b: bool | None = None
    buffers: int = 1
    part: int = 0
    groups: int = 2
    groups_k: int = 1
    blocks: int = 1
    band: int = 8

    def macros(self) -> tuple[tuple[str, str], ...]:
        """The macros that say so."""
        names = {"m": "TILE_M", "n": "TILE_N"}
        values = {f.name: getattr(self, f.name) for f in fields(self)} | {"share_b": self.shares_b}
        return tuple((f"WS_{names.get(name, name.upper())}", str(int(value))) for name, value in values.items())

    @property
    def shares_b(self) -> bool:
        """Whether blocks of a cluster share rows of B."""
        return not self.swap if self.share_b is None else self.share_b


TILES = {
    "t128x256c2": Tile(128, 256, cluster=2),
    "t128x256": Tile(128, 256),
    "t128x192c2": Tile(128, 192, cluster=2),
    "t128x192": Tile(128, 192),
    "t128x192b2": Tile(128, 192, buffers=2, part=96),
    "t128x128c2": Tile(128, 128, cluster=2),
    "t128x128": Tile(128, 128),
    "t128x128b2": Tile(128, 128, buffers=2),
    "t128x128c2b2": Tile(128, 128, cluster=2, buffers=2),
    "t256x128c2": Tile(256, 128, cluster=2),
    "t256x128": Tile(256, 128),
    "t128x64": Tile(128, 64),
    "t64x256": Tile(64, 256),
    "t64x128": Tile(64, 128),
    "s64": Tile(64, 128, swap=True),
    "s32": Tile(32, 128, swap=True),
    "s16": Tile(16, 128, swap=True),
    "s8": Tile(8, 128, swap=True),
    "u64": Tile(64, 64, swap=True, groups=1, blocks=2),
    "u64c2": Tile(64, 64, swap=True, groups=1, blocks=2, cluster=2),
    "u64c4": Tile(64, 64, swap=True, groups=1, blocks=2, cluster=4),
    "s64c2": Tile(64, 128, swap=True, cluster=2),
    "u32m2": Tile(32, 64, swap=True, groups=1, blocks=2, cluster=2, share_b=True),
    "u16m4": Tile(16, 64, swap=True, groups=1, blocks=2, cluster=4, share_b=True),
    "t64x32": Tile(64, 32, groups=1, blocks=2),
    "w32m2": Tile(32, 128, swap=True, cluster=2, share_b=True),
    "k64": Tile(64, 64, swap=True, groups_k=2),
    "k32": Tile(32, 64, swap=True, groups_k=2),
    "k32m2": Tile(32, 64, swap=True, groups_k=2, cluster=2, share_b=True),
    "k16": Tile(16, 64, swap=True, groups_k=2),
    "k16m4": Tile(16, 64, swap=True, groups_k=2, cluster=4, share_b=True),
    "k8": Tile(8, 64, swap=True, groups_k=2),
    "u32": Tile(32, 64, swap=True, groups=1, blocks=2),
    "u16": Tile(16, 64, swap=True, groups=1, blocks=2),
    "u8": Tile(8, 64, swap=True, groups=1, blocks=2),
    "v64": Tile(64, 128, swap=True, groups=2, blocks=2),
    "v16": Tile(16, 128, swap=True, groups=2, blocks=2),
    "v8": Tile(8, 128, swap=True, groups=2, blocks=2),
}
_FP8_ONLY = ("b2",)
FP8_TILES = tuple(
    name for name in TILES if not name.startswith(("t256x128", "v64"))
)
PLAIN_TILES = tuple(
    name
    for name in TILES
    if not any(x in name for x in _FP8_ONLY)
)


def _variant(format: str, name: str) -> Variant:
    macros = (
        ("WS_A_FORMAT", FORMATS[format]),
        ("WS_B_FORMAT", FORMATS[format]),
        ("WS_TILE_K", "128" if format == "fp8" else "64"),
        *TILES[name].macros(),
    )
    return Variant(f"{format}_{name}", macros, (), (), name)


_POINTERS = ("a_scales", "b_scales", "d", "bias", "alphas", "a_global_scale", "b_global_scale", "index")
_STRIDES = ("d_row", "d_batch", "a_scale_batch", "b_scale_batch", "bias_batch")
GEMM = Kernel(
    name="sm90_gemm",
    module="gemm",
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
    variants=tuple(
        _variant(format, name) for format in FORMATS for name in (FP8_TILES if format == "fp8" else PLAIN_TILES)
    ),
    feature="a",
)


def compiled(variant: Variant, target: Target) -> Compiled:
    """A variant compiled now, with the compiler's log."""
    with LocalWorkers(1) as workers:
        unit = source_unit(GEMM, variant)
        return workers.call(CompileJob.of(CubinId(GEMM.name, variant.name, target), unit, ""))


def cubin(variant: Variant, target: Target, folder: Path | None = None) -> bytes:
    """A variant's cubin: ``KERNEL.VARIANT.TARGET.cubin`` of the folder, if it is there, or compiled and put there."""
    path = None if folder is None else folder / f"{GEMM.name}.{variant.name}.{target}.cubin"
    if path is not None and path.is_file():
        return path.read_bytes()
    data = compiled(variant, target).cubin
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return data
