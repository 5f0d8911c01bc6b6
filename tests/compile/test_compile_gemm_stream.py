# SPDX-License-Identifier: Apache-2.0
"""The GEMM of few rows compiles to what the catalog asks for, without spills, and fits a block of 9.0."""

from __future__ import annotations

from pathlib import Path

import pytest

from warpsmith.arch import parse
from warpsmith.bundle.store import Store
from warpsmith.catalog import CATALOG
from warpsmith.catalog.gemm_stream import KERNELS
from warpsmith.catalog.spec import CubinId
from warpsmith.compiler.build import compile_one

CUBINS = [
    CubinId(kernel.name, variant.name, parse("sm_90a"))
    for kernel in KERNELS
    for variant in kernel.variants
    if variant.name.startswith(("bf16_x_", "fp16_x_fp16"))
]


@pytest.mark.parametrize("cubin", CUBINS, ids=str)
def test_a_cubin_is_what_the_catalog_says(cubin: CubinId, shared_cache: Path) -> None:
    compile_one(CATALOG, cubin, Store(shared_cache))  # raises where it is not
