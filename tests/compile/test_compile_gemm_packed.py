# SPDX-License-Identifier: Apache-2.0
"""The GEMM by weights prepared for few rows compiles to what the catalog asks for, without spills, on 9.0."""

from __future__ import annotations

from pathlib import Path

import pytest

from warpsmith.arch import parse
from warpsmith.bundle.store import Store
from warpsmith.catalog import CATALOG
from warpsmith.catalog.gemm_packed import KERNELS
from warpsmith.catalog.spec import CubinId
from warpsmith.compiler.build import compile_one

CUBINS = [CubinId(k.name, v.name, parse("sm_90a")) for k in KERNELS for v in k.variants]


@pytest.mark.parametrize("cubin", CUBINS, ids=str)
def test_a_cubin_is_what_the_catalog_says(cubin: CubinId, shared_cache: Path) -> None:
    compile_one(CATALOG, cubin, Store(shared_cache))  # raises where it is not
