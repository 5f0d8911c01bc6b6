# SPDX-License-Identifier: Apache-2.0
"""The GEMM of 9.0 compiles to asynchronous MMAs that run one after the other without waits, and to no spills."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from warpsmith.arch import parse
from warpsmith.bundle.elf import read_cubin
from warpsmith.catalog.gemm_sm90 import KERNEL
from warpsmith.catalog.source import source_unit
from warpsmith.catalog.spec import CubinId, Variant
from warpsmith.compiler.pool import LocalWorkers
from warpsmith.compiler.sass import count, spills
from warpsmith.compiler.unit import Compiled, CompileJob, InspectJob
from warpsmith.errors import CompileError

TARGET = parse("sm_90a")
LIMIT = 232448  # bytes of shared memory of a block


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalWorkers]:
    with LocalWorkers(1) as pool:
        yield pool


def compiled(workers: LocalWorkers, variant: Variant, target: str = "sm_90a") -> Compiled:
    job = CompileJob.of(CubinId(KERNEL.name, variant.name, parse(target)), source_unit(KERNEL, variant), "")
    return workers.call(job)


@pytest.mark.parametrize("variant", KERNEL.variants, ids=lambda v: v.name)
def test_a_variant_compiles_to_what_the_catalog_asks_for(workers: LocalWorkers, variant: Variant) -> None:
    start = time.monotonic()
    made = compiled(workers, variant)
    elapsed = time.monotonic() - start
    assert "C75" not in made.log  # the compiler says so where it makes every MMA wait, or ignores setmaxnreg
    kernel = read_cubin(made.cubin).kernels[0]
    census = workers.call(InspectJob(TARGET, (variant.name,), (kernel.code,)))[0]
    assert spills(census) == 0
    for pattern in (p for wanted in variant.instructions for p in wanted.patterns):
        assert count(census, pattern) > 0, pattern
    assert elapsed < 30  # 2 s on an idle core


def test_the_record_says_what_a_block_needs(workers: LocalWorkers) -> None:
    for name in ("bf16_x_bf16_t128x256", "fp8_block_x_fp8_block_128x128_t128x128"):
        info = read_cubin(compiled(workers, KERNEL.variant(name)).cubin)
        assert info.record is not None
        _, shared, threads, _, waits, *tile = info.record
        assert shared <= LIMIT
        assert (threads, waits) == (384, 1)
        assert tile[:2] == [int(x) for x in name.rpartition("_t")[2].split("x")]


def test_other_targets_are_refused(workers: LocalWorkers) -> None:
    with pytest.raises(CompileError, match="sm_90a"):
        compiled(workers, KERNEL.variants[0], "sm_90")
