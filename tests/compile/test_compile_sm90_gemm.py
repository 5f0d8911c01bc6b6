# SPDX-License-Identifier: Apache-2.0
"""The GEMM of 9.0 compiles to asynchronous MMAs that run one after the other without waits, and to no spills."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from shipped import artifact

from warpsmith.arch import parse
from warpsmith.bundle.elf import read_cubin
from warpsmith.catalog import CATALOG
from warpsmith.catalog.gemm_sm90 import KERNEL
from warpsmith.catalog.source import source_unit
from warpsmith.catalog.spec import CubinId, Variant
from warpsmith.compiler.build import compile_one
from warpsmith.compiler.pool import LocalWorkers
from warpsmith.compiler.sass import count, spills
from warpsmith.compiler.unit import CompileJob
from warpsmith.errors import CompileError

LIMIT = 232448  # bytes of shared memory of a block


@pytest.mark.parametrize("variant", KERNEL.variants, ids=lambda v: v.name)
def test_a_variant_compiles_to_what_the_catalog_asks_for(variant: Variant, shared_cache: Path) -> None:
    made = artifact(KERNEL, variant, shared_cache)
    assert "C75" not in made.log  # the compiler says so where it makes every MMA wait, or ignores setmaxnreg
    assert spills(made.census) == 0
    for pattern in (p for wanted in variant.instructions for p in wanted.patterns):
        assert count(made.census, pattern) > 0, pattern


def test_the_largest_tile_compiles_in_seconds() -> None:
    start = time.monotonic()
    compile_one(CATALOG, CubinId(KERNEL.name, "bf16_x_bf16_t128x256", parse("sm_90a")), None)
    assert time.monotonic() - start < 30  # 2 s on an idle core


def test_the_record_says_what_a_block_needs(shared_cache: Path) -> None:
    for name in ("bf16_x_bf16_t128x256", "fp8_block_x_fp8_block_128x128_t128x128"):
        info = read_cubin(artifact(KERNEL, KERNEL.variant(name), shared_cache).cubin)
        assert info.record is not None
        _, shared, threads, _, waits, *tile = info.record
        assert shared <= LIMIT
        assert (threads, waits) == (384, 1)
        assert tile[:2] == [int(x) for x in name.rpartition("_t")[2].split("x")]


def test_other_targets_are_refused() -> None:
    variant = KERNEL.variants[0]
    job = CompileJob.of(CubinId(KERNEL.name, variant.name, parse("sm_90")), source_unit(KERNEL, variant), "")
    with LocalWorkers(1) as workers, pytest.raises(CompileError, match="sm_90a"):
        workers.call(job)
