# SPDX-License-Identifier: Apache-2.0
"""The GEMM of bf16 by quantized weights on 9.0 compiles to MMAs that need not wait for each other, and to no spills."""

from __future__ import annotations

from pathlib import Path

import pytest
from shipped import artifact

from warpsmith.bundle.elf import read_cubin
from warpsmith.catalog.gemm_mixed import KERNEL, TILES
from warpsmith.catalog.spec import Variant
from warpsmith.compiler.sass import count, spills

LIMIT = 232448  # bytes of shared memory of a block


@pytest.mark.parametrize("variant", KERNEL.variants, ids=lambda v: v.name)
def test_a_variant_compiles_to_what_the_catalog_asks_for(variant: Variant, shared_cache: Path) -> None:
    made = artifact(KERNEL, variant, shared_cache)
    assert "C75" not in made.log  # the compiler says so where it makes every MMA wait
    info = read_cubin(made.cubin)
    assert spills(made.census) == 0
    for pattern in (p for wanted in variant.instructions for p in wanted.patterns):
        assert count(made.census, pattern) > 0, pattern
    assert info.record is not None
    _, shared, threads, stages, waits, *tile = info.record
    shape = TILES[variant.tile]
    assert shared <= LIMIT
    assert stages >= 2
    moves = shape.groups == 2 and shape.blocks == 1  # registers, from a whole warpgroup
    assert (threads, waits) == (128 * shape.groups + (128 if moves else 64), 1)
    assert tile == [shape.m, shape.n, shape.k]
