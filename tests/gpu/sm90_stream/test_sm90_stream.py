# SPDX-License-Identifier: Apache-2.0
"""The GEMM of few rows against float64: every pair of formats, one block and pairs of blocks, at odd sizes.

Cases of `warpsmith verify`, with what matters to this kernel alone: K that ends within a column of 64 bytes, fewer rows
of B than blocks, groups with more rows of A than it takes at a time, and groups without any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from warpsmith.arch import Capability
from warpsmith.catalog import CATALOG
from warpsmith.catalog.gemm import k_multiple
from warpsmith.catalog.gemm_stream import PAIRS
from warpsmith.evidence.gemm import GemmCase
from warpsmith.evidence.verify import verify
from warpsmith.runtime.device import device_facts
from warpsmith.runtime.driver import default_driver
from warpsmith.settings import Settings


def cases(a: str, b: str) -> Iterator[GemmCase]:
    """Few rows, many of B and of K, and groups of every size."""
    step = k_multiple(a, b)
    base = GemmCase(a, b, 1, 8, step)
    yield base
    yield replace(base, m=8, n=4104, k=-(-1000 // step) * step, out="bf16", tiled_b=True)
    yield replace(base, m=7, n=520, k=-(-4700 // step) * step, out="fp16", bias="fp32", tiled_b=True, padding=32)
    yield replace(base, m=5, n=16384, k=2 * step, out="bf16", bias="bf16")
    yield replace(base, m=3, n=72, k=9 * step, batches=5, scale_each=True, tiled_b=True)
    yield replace(base, m=2, n=136, k=9216)
    rows = (4, 0, 20, 1, 1, 0, 0, 7, 3, 0, 0, 9, 0, 0, 0, 2)
    grouped = replace(base, mode="grouped", batches=16, m=sum(rows), rows=rows, n=776, k=6 * step, scale_each=True)
    yield grouped
    yield replace(grouped, out="bf16", bias="bf16", tiled_b=True, wide=True)
    yield replace(base, mode="masked", batches=4, m=8, rows=(8, 0, 4, 1), n=1000, k=11 * step, tiled_b=True)
    for kind in ("outliers", "zeros", "largest", "subnormal", "not_finite"):
        yield replace(base, m=6, n=200, k=19 * step, kind=kind, tiled_b=kind == "not_finite")


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_few_rows_are_right_in_every_case(a: str, b: str) -> None:
    driver = default_driver()
    if device_facts(0, driver).capability != Capability(9, 0):
        pytest.skip("the kernel is for 9.0")
    outcomes = verify(CATALOG, Settings.from_environment(), 0, driver, seed=1, cases=list(cases(a, b)))
    assert {o.cubin.kernel for o in outcomes} == {"sm90_stream_gemm", "sm90_stream_pair_gemm"}
    assert [m for o in outcomes for m in o.mismatches] == []
