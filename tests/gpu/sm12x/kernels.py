# SPDX-License-Identifier: Apache-2.0
"""The kernels under test, their variants, and their cubins: from a folder, or compiled now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from warpsmith.arch import Capability, Target
from warpsmith.catalog.source import source_unit
from warpsmith.catalog.spec import CubinId, Kernel, Param, Variant
from warpsmith.compiler.pool import LocalWorkers
from warpsmith.compiler.unit import CompileJob

CAPABILITIES = (Capability(9, 0), Capability(12, 0), Capability(12, 1))
PROBE_KINDS = ("nvfp4", "mxfp4", "e4m3_e4m3", "e4m3_e2m1", "e2m1_e4m3")
"""In the order of MmaKind."""


@dataclass(frozen=True)
class Shape:
    """A tile of the GEMM: K of a stage for 4-bit formats; half of it for the others."""

    m: int
    k: int
    warps_m: int
    warps_n: int
    swap: bool


TILES = {
    "t256": Shape(256, 128, 4, 2, False),
    "t128": Shape(128, 128, 2, 4, False),
    "s64": Shape(64, 256, 2, 4, True),
    "s32": Shape(32, 256, 1, 4, True),
    "s16": Shape(16, 256, 1, 4, True),
    "s8": Shape(8, 256, 1, 4, True),
}
PAIRS = {
    "nvfp4": ("nvfp4", "nvfp4"),
    "mxfp4": ("mxfp4", "mxfp4"),
    "mxfp8": ("mxfp8", "mxfp8"),
    "mxfp8_mxfp4": ("mxfp8", "mxfp4"),
    "fp8_block": ("fp8_block", "fp8_block"),
}


def _gemm_variant(pair: str, tile: str) -> Variant:
    a, b = PAIRS[pair]
    shape = TILES[tile]
    k = shape.k if a in ("nvfp4", "mxfp4") else shape.k // 2
    sizes = {"TILE_M": shape.m, "TILE_N": 128, "TILE_K": k, "WARPS_M": shape.warps_m, "WARPS_N": shape.warps_n}
    macros = (
        ("WS_A_FORMAT", f"WS_{a.upper()}"),
        ("WS_B_FORMAT", f"WS_{b.upper()}"),
        *((f"WS_{name}", str(value)) for name, value in sizes.items()),
        ("WS_SWAP", str(int(shape.swap))),
    )
    return Variant(f"{pair}_{tile}", macros, (), (), tile)


PROBE = Kernel(
    name="mma_probe",
    module="verify",
    operation="mma",
    source="verify/mma_probe.cuh",
    entry="ws_mma_probe",
    capabilities=CAPABILITIES,
    params=(*(Param(name, "ptr") for name in ("a", "b", "scales", "c", "selectors", "d")), Param("cases", "i32")),
    variants=tuple(Variant(name, (("WS_MMA_KIND", str(i)),), (), ()) for i, name in enumerate(PROBE_KINDS)),
    feature="f",
)
_POINTERS = ("a_scales", "b_scales", "d", "bias", "alphas", "a_global_scale", "b_global_scale", "index")
_STRIDES = ("d_row", "d_batch", "a_scale_batch", "b_scale_batch", "bias_batch")
GEMM = Kernel(
    name="sm12x_blockscaled_gemm",
    module="fp4_gemm",
    operation="gemm",
    source="fp4_gemm/sm12x_blockscaled_gemm.cuh",
    entry="ws_sm12x_blockscaled_gemm",
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
        _gemm_variant(pair, tile) for pair in PAIRS for tile in TILES if (pair, tile) != ("fp8_block", "t256")
    ),
    feature="f",
    may_spill=True,  # on 9.0
)


def for_racecheck(variant: Variant) -> Variant:
    """A variant of the GEMM in which every lane arrives at the barriers; racecheck does not follow one for a warp."""
    return replace(variant, name=f"{variant.name}_race", macros=(*variant.macros, ("WS_EVERY_LANE_ARRIVES", "1")))


def cubin(kernel: Kernel, variant: Variant, target: Target, folder: Path | None = None) -> bytes:
    """A variant's cubin: ``KERNEL.VARIANT.TARGET.cubin`` of the folder, if it is there, or compiled and put there."""
    path = None if folder is None else folder / f"{kernel.name}.{variant.name}.{target}.cubin"
    if path is not None and path.is_file():
        return path.read_bytes()
    with LocalWorkers(1) as workers:
        unit = source_unit(kernel, variant)
        data = workers.call(CompileJob.of(CubinId(kernel.name, variant.name, target), unit, "")).cubin
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return data
