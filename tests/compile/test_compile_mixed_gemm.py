# SPDX-License-Identifier: Apache-2.0
"""The GEMM of bf16 by quantized weights on 9.0 compiles to MMAs that need not wait for each other, and to no spills."""

from __future__ import annotations

from pathlib import Path

import pytest
from shipped import artifact

from warpsmith.bundle.elf import read_cubin
from warpsmith.catalog.gemm_mixed import KERNEL, TILES
from warpsmith.catalog.gemm_mixed_packed import KERNEL as PACKED
from warpsmith.catalog.gemm_mixed_packed import TILES as PACKED_TILES
from warpsmith.catalog.spec import Kernel, Variant
from warpsmith.compiler.sass import count, spills

LIMIT = 232448  # bytes of shared memory of a block


VARIANTS = [(kernel, v) for kernel in (KERNEL, PACKED) for v in kernel.variants]


@pytest.mark.parametrize(("kernel", "variant"), VARIANTS, ids=lambda x: x.name)
def test_a_variant_compiles_to_what_the_catalog_asks_for(kernel: Kernel, variant: Variant, shared_cache: Path) -> None:
    made = artifact(kernel, variant, shared_cache)
    assert "C75" not in made.log  # the compiler says so where it makes every MMA wait
    info = read_cubin(made.cubin)
    assert spills(made.census) == 0
    for pattern in (p for wanted in variant.instructions for p in wanted.patterns):
        assert count(made.census, pattern) > 0, pattern
    assert info.record is not None
    _, shared, threads, stages, waits, *tile = info.record
    shape = (PACKED_TILES if kernel is PACKED else TILES)[variant.tile]
    assert shared <= LIMIT
    assert stages >= 2
    moves = shape.groups == 2 and shape.blocks == 1  # registers, from a whole warpgroup
    assert (threads, waits) == (128 * shape.groups + (128 if moves else 64), 1)
    assert tile == [shape.m, shape.n, shape.k]
