# SPDX-License-Identifier: Apache-2.0
"""The portable GEMM compiles for old and new targets to what the catalog asks for, and fits them all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from warpsmith.arch import parse
from warpsmith.bundle.reader import open_bundle
from warpsmith.bundle.store import Store
from warpsmith.catalog import CATALOG
from warpsmith.catalog.plan import Selection
from warpsmith.catalog.spec import CubinId, Instructions
from warpsmith.compiler.build import build, compile_one
from warpsmith.errors import CubinCheckError

SMALLEST = 99 * 1024  # shared memory of a block on 8.6, 8.9 and 12.x
FP8 = Selection(modules=("gemm",), formats=("fp8_block",))


@pytest.mark.parametrize("target", ["sm_80", "sm_121a"])
def test_a_format_builds_every_tile_of_the_pairs_it_is_in(target: str, tmp_path: Path, shared_cache: Path) -> None:
    report = build(CATALOG, [parse(target)], tmp_path, selection=FP8, store=Store(shared_cache))
    assert report.findings == ()
    entries = open_bundle(report.bundles[0]).manifest.cubins
    assert {e.variant for e in entries} == {f"fp8_block_x_fp8_block_128x128_{t}" for t in ("rows16", "rows64")}
    for entry in entries:
        assert entry.stack == 0
        assert entry.static_shared + entry.dynamic_shared <= SMALLEST
        assert sum(count for opcode, count in entry.instructions if opcode.startswith("HMMA.16816.F32")) > 0


def test_another_mma_than_the_catalog_asks_for_is_refused() -> None:
    kernel = CATALOG.kernel("sm80_gemm")
    variant = kernel.variant("fp16_x_fp16_rows16")
    wanted = replace(variant, instructions=(Instructions((r"HMMA\.16816\.F32\.BF16",), kernel.capabilities),))
    changed = replace(CATALOG, kernels=(replace(kernel, variants=(wanted,)),))
    with pytest.raises(CubinCheckError, match="HMMA"):
        compile_one(changed, CubinId("sm80_gemm", variant.name, parse("sm_80")), None)
