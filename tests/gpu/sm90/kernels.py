# SPDX-License-Identifier: Apache-2.0
"""The GEMM of 9.0 and its cubins: from a folder, or compiled now. Variants have short names here: ``fp8_t128x128``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from warpsmith.arch import Target
from warpsmith.catalog.gemm_sm90 import KERNEL, PAIRS, Tile, tile_of
from warpsmith.catalog.source import source_unit
from warpsmith.catalog.spec import CubinId, Variant, pair
from warpsmith.compiler.pool import LocalWorkers
from warpsmith.compiler.unit import CompileJob

_SHORT = {"bf16": "bf16", "fp16": "fp16", "fp8_block": "fp8"}
VARIANTS: dict[str, tuple[Variant, Tile]] = {
    f"{_SHORT[a]}_{variant.tile}": (variant, tile_of(a, variant.tile))
    for a, b in PAIRS
    if a in _SHORT
    for variant in KERNEL.variants
    if variant.name.startswith(pair(a, b))
}


def for_racecheck(variant: Variant) -> Variant:
    """A variant in which every lane arrives at the barriers; racecheck does not follow one that does for its warp."""
    return replace(variant, macros=(*variant.macros, ("WS_EVERY_LANE_ARRIVES", "1")))


def tile(name: str) -> Tile:
    """The tile of a variant."""
    return VARIANTS[name][1]


def activates(name: str) -> bool:
    """Whether a variant has activations in its epilogue."""
    return bool(VARIANTS[name][0].activations)


def cubin(name: str, target: Target, folder: Path | None = None) -> bytes:
    """A variant's cubin: ``NAME.cubin`` of the folder, if it is there, or compiled and put there."""
    path = None if folder is None else folder / f"{name}.cubin"
    if path is not None and path.is_file():
        return path.read_bytes()
    variant = VARIANTS[name][0]
    with LocalWorkers(1) as workers:
        job = CompileJob.of(CubinId(KERNEL.name, variant.name, target), source_unit(KERNEL, variant), "")
        data = workers.call(job).cubin
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return data
