# SPDX-License-Identifier: Apache-2.0
"""What an execution says of a kernel that it emulates, and of none that it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from warpsmith.arch import parse
from warpsmith.catalog import CATALOG
from warpsmith.catalog.spec import CubinId
from warpsmith.evidence.emulation import emulated
from warpsmith.evidence.ledger import COMPILED, EMULATED, EXECUTED, Entry, Record
from warpsmith.evidence.table import render

NATIVE, TWIN = "sm12x_blockscaled_gemm", "sm12x_blockscaled_gemm_emulated"
VARIANT, HERE, THERE = "nvfp4_x_nvfp4_t128", parse("sm_90a"), (parse("sm_120f"), parse("sm_121a"))
ENTRY = Entry(VARIANT, "a" * 64, EXECUTED, "NVIDIA H200", "CUDA 13.0", "2026-11-22", "467fd0c", 17, 1e-3)
RECORD = Record(TWIN, HERE, "nvrtc 13.5.37", (ENTRY,))
DIGESTS = {CubinId(TWIN, VARIANT, HERE): "a" * 64, **{CubinId(NATIVE, VARIANT, t): "b" * 64 for t in THERE}}


def test_an_executed_twin_is_an_emulated_kernel_on_each_of_its_targets() -> None:
    found = emulated(CATALOG, [RECORD], DIGESTS)
    assert [(r.kernel, r.target, r.toolchain) for r in found] == [(NATIVE, t, RECORD.toolchain) for t in THERE]
    for record in found:
        assert record.entries == (replace(ENTRY, cubin="b" * 64, status=EMULATED),)


@pytest.mark.parametrize(
    "record",
    [
        replace(RECORD, entries=(replace(ENTRY, cubin="c" * 64),)),
        replace(RECORD, entries=(replace(ENTRY, status=COMPILED),)),
        replace(RECORD, kernel="quantize"),
    ],
    ids=["stale", "only compiled", "emulates nothing"],
)
def test_nothing_follows_from_what_did_not_run(record: Record) -> None:
    assert emulated(CATALOG, [record], DIGESTS) == ()


def test_nothing_follows_for_another_source() -> None:
    native = CATALOG.kernel(NATIVE)
    other = replace(native.variant(VARIANT), macros=(("WS_TILE_M", "64"),))
    changed = replace(native, variants=tuple(other if v.name == VARIANT else v for v in native.variants))
    catalog = replace(CATALOG, kernels=tuple(changed if k is native else k for k in CATALOG.kernels))
    assert emulated(catalog, [RECORD], DIGESTS) == ()


def test_the_table_says_that_it_is_emulated_and_where() -> None:
    records = (RECORD, *emulated(CATALOG, [RECORD], DIGESTS))
    cubins = [(c.kernel, c.variant, c.target, d) for c, d in DIGESTS.items()]
    lines = render(records, cubins).splitlines()
    assert next(line for line in lines if f"`{NATIVE}`" in line).count("emulated, 17 cases") == 2
    assert "**executed**, 17 cases" in next(line for line in lines if f"`{TWIN}`" in line)
    assert "sm_121a: emulated on NVIDIA H200, driver CUDA 13.0, 2026-11-22; cubins by nvrtc 13.5.37." in lines
