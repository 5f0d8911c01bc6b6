# SPDX-License-Identifier: Apache-2.0
"""Gated products of 12.x compile to the instructions of the products they are made of, and to no spills."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from warpsmith.arch import parse
from warpsmith.bundle.elf import read_cubin
from warpsmith.catalog.fp4_gemm import KERNELS as PRODUCTS
from warpsmith.catalog.fp4_gemm import SHAPES, TILE_N
from warpsmith.catalog.fp4_gemm_gated import KERNELS
from warpsmith.catalog.source import source_unit
from warpsmith.catalog.spec import CubinId, Kernel, Variant
from warpsmith.compiler.pool import LocalWorkers
from warpsmith.compiler.sass import count, spills
from warpsmith.compiler.unit import CompileJob, InspectJob

TARGET = parse("sm_121a")
LIMIT = 101376  # bytes of shared memory of a block
NATIVE = KERNELS[0]


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalWorkers]:
    with LocalWorkers(1) as pool:
        yield pool


def compiled(workers: LocalWorkers, kernel: Kernel, variant: Variant) -> tuple[Any, Any]:
    made = workers.call(CompileJob.of(CubinId(kernel.name, variant.name, TARGET), source_unit(kernel, variant), ""))
    info = read_cubin(made.cubin)
    return info, workers.call(InspectJob(TARGET, (variant.name,), (info.kernels[0].code,)))[0]


@pytest.mark.parametrize("variant", NATIVE.variants, ids=lambda v: v.name)
def test_a_variant_compiles_to_what_the_catalog_asks_for(workers: LocalWorkers, variant: Variant) -> None:
    info, census = compiled(workers, NATIVE, variant)
    assert spills(census) == 0
    for pattern in (p for wanted in variant.instructions if wanted.applies_to(TARGET) for p in wanted.patterns):
        assert count(census, pattern) > 0, pattern
    shape = SHAPES[variant.tile]
    _, shared, _, stages, waits, m, n, _ = info.record
    assert (m, n, waits) == (shape.m, TILE_N, 1)
    assert shared <= LIMIT
    product, plain = compiled(workers, PRODUCTS[0], PRODUCTS[0].variant(variant.name))
    assert stages == product.record[3]
    mma = variant.instructions[0].patterns[0]
    assert count(census, mma) == count(plain, mma)
