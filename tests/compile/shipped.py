# SPDX-License-Identifier: Apache-2.0
"""Cubins of the shipped catalog, compiled once for all tests of a run."""

from __future__ import annotations

from pathlib import Path

from warpsmith.arch import parse
from warpsmith.bundle.store import Store
from warpsmith.catalog import CATALOG
from warpsmith.catalog.source import source_unit
from warpsmith.catalog.spec import CubinId, Kernel, Variant
from warpsmith.compiler.build import compile_one
from warpsmith.compiler.cache import Artifact, Cache
from warpsmith.compiler.key import compile_key
from warpsmith.compiler.toolchain import find_toolchain


def artifact(kernel: Kernel, variant: Variant, cache: Path, target: str = "sm_90a") -> Artifact:
    """A cubin with its compiler's log and its instructions, once it passed the checks of a build."""
    toolchain, store, built_for = find_toolchain(), Store(cache), parse(target)
    compile_one(CATALOG, CubinId(kernel.name, variant.name, built_for), store, toolchain)
    key = compile_key(toolchain.nvrtc_version, built_for, source_unit(kernel, variant))
    found = Cache(store).get(key, toolchain.disassembler)
    assert found is not None
    return found
