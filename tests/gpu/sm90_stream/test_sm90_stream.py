# SPDX-License-Identifier: Apache-2.0
"""The GEMM of few rows against float64: every pair of formats, one block and pairs of blocks, at odd sizes.

Cases of `warpsmith verify`, with what matters to this kernel alone: K that ends within a column of 64 bytes, fewer rows
of B than blocks, groups with more rows of A than it takes at a time, and groups without any.
"""

from __future__ import annotations

import pytest

from gpu import need_gpu
from warpsmith.arch import Capability
from warpsmith.catalog import CATALOG
from warpsmith.catalog.gemm_stream import PAIRS
from warpsmith.evidence.gemm import gemm_cases, stream_cases
from warpsmith.evidence.verify import verify
from warpsmith.runtime.device import device_facts
from warpsmith.runtime.driver import default_driver
from warpsmith.settings import Settings

need_gpu()


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_few_rows_are_right_in_every_case(a: str, b: str) -> None:
    driver = default_driver()
    if device_facts(0, driver).capability != Capability(9, 0):
        pytest.skip("the kernel is for 9.0")
    outcomes = verify(
        CATALOG, Settings.from_environment(), 0, driver, seed=1, cases=[*gemm_cases(a, b), *stream_cases(a, b)]
    )
    assert {o.cubin.kernel for o in outcomes} >= {"sm90_stream_gemm", "sm90_stream_pair_gemm"}
    assert [m for o in outcomes for m in o.mismatches] == []
