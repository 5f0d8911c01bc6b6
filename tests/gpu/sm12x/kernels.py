# SPDX-License-Identifier: Apache-2.0
"""The kernels under test, their variants, and their cubins: from a folder, or compiled now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from warpsmith.arch import Target
from warpsmith.catalog import CATALOG, fp4_gemm
from warpsmith.catalog.source import source_unit
from warpsmith.catalog.spec import CubinId, Kernel, Param, Variant, pair
from warpsmith.compiler.pool import LocalWorkers
from warpsmith.compiler.unit import CompileJob

CAPABILITIES = (*fp4_gemm.EMULATED_ON, *fp4_gemm.CAPABILITIES)
PROBE_KINDS = ("nvfp4", "mxfp4", "e4m3_e4m3", "e4m3_e2m1", "e2m1_e4m3")
"""In the order of MmaKind."""


PAIRS = {
    "nvfp4": ("nvfp4", "nvfp4"),
    "mxfp4": ("mxfp4", "mxfp4"),
    "mxfp8": ("mxfp8", "mxfp8"),
    "mxfp8_mxfp4": ("mxfp8", "mxfp4"),
    "fp8_block": ("fp8_block", "fp8_block"),
}


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
_EMULATED = CATALOG.kernel("sm12x_blockscaled_gemm_emulated")
_NAMES = dict(zip((pair(a, b) for a, b in fp4_gemm.PAIRS), PAIRS, strict=True))


def _short(variant: Variant) -> Variant:
    """The variant by the name of its pair in `PAIRS`, and its tile."""
    return replace(variant, name=f"{_NAMES[variant.name.rpartition('_')[0]]}_{variant.tile}")


GEMM = replace(
    _EMULATED,
    name=_EMULATED.emulates,
    capabilities=CAPABILITIES,
    variants=tuple(_short(v) for v in _EMULATED.variants),
)
"""Both kernels of the catalog at once: they are one program."""


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
