# SPDX-License-Identifier: Apache-2.0
"""The GEMM of bf16 by quantized weights on 9.0 compiles to MMAs that the compiler does not make wait, and to no spills."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from warpsmith.arch import parse
from warpsmith.bundle.elf import read_cubin
from warpsmith.catalog.gemm_mixed import KERNEL, TILES
from warpsmith.catalog.source import source_unit
from warpsmith.catalog.spec import CubinId, Variant
from warpsmith.compiler.pool import LocalWorkers
from warpsmith.compiler.sass import count, spills
from warpsmith.compiler.unit import CompileJob, InspectJob

TARGET = parse("sm_90a")
LIMIT = 232448  # bytes of shared memory of a block


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalWorkers]:
    with LocalWorkers(1) as pool:
        yield pool


@pytest.mark.parametrize("variant", KERNEL.variants, ids=lambda v: v.name)
def test_a_variant_compiles_to_what_the_catalog_asks_for(workers: LocalWorkers, variant: Variant) -> None:
    made = workers.call(CompileJob.of(CubinId(KERNEL.name, variant.name, TARGET), source_unit(KERNEL, variant), ""))
    assert "C75" not in made.log  # the compiler says so where it makes every MMA wait
    info = read_cubin(made.cubin)
    census = workers.call(InspectJob(TARGET, (variant.name,), (info.kernels[0].code,)))[0]
    assert spills(census) == 0
    for pattern in (p for wanted in variant.instructions for p in wanted.patterns):
        assert count(census, pattern) > 0, pattern
    assert info.record is not None
    _, shared, threads, stages, waits, *tile = info.record
    shape = TILES[variant.tile]
    assert shared <= LIMIT
    assert stages >= 2
    moves = shape.groups == 2 and shape.blocks == 1  # registers, from a whole warpgroup
    assert (threads, waits) == (128 * shape.groups + (128 if moves else 64), 1)
    assert tile == [shape.m, shape.n, shape.k]
