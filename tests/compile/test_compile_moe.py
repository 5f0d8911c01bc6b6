# SPDX-License-Identifier: Apache-2.0
"""The kernels of `fused_moe` compile for old and new targets to what the catalog asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from warpsmith.arch import parse
from warpsmith.bundle.reader import open_bundle
from warpsmith.bundle.store import Store
from warpsmith.catalog import CATALOG, moe_decode, moe_packed
from warpsmith.catalog.fused_moe import KERNELS
from warpsmith.catalog.plan import Selection
from warpsmith.compiler.build import build

WAITS = 1  # the flag of a kernel that waits for the launch before it
MODULE = Selection(modules=("fused_moe",))
PACKED = (moe_packed.UP, moe_packed.DOWN)
DECODE = (moe_decode.UP, moe_decode.DOWN, *PACKED)


@pytest.mark.parametrize(("target", "flags"), [("sm_80", 0), ("sm_90a", WAITS), ("sm_121a", WAITS)])
def test_every_kernel_builds_without_spills_and_waits_where_it_can(
    target: str, flags: int, tmp_path: Path, shared_cache: Path
) -> None:
    report = build(CATALOG, [parse(target)], tmp_path, selection=MODULE, store=Store(shared_cache))
    assert report.findings == ()
    entries = [e for e in open_bundle(report.bundles[0]).manifest.cubins if e.kernel not in DECODE]
    assert {(e.kernel, e.variant) for e in entries} == {(k.name, v.name) for k in KERNELS for v in k.variants}
    for entry in entries:
        assert (entry.stack, entry.dynamic_shared, entry.flags) == (0, 0, flags)
        assert entry.static_shared < 16 << 10


def test_both_decode_kernels_fit_a_multiprocessor_together_where_tokens_are_two(
    tmp_path: Path, shared_cache: Path
) -> None:
    report = build(CATALOG, [parse("sm_90a")], tmp_path, selection=MODULE, store=Store(shared_cache))
    entries = [e for e in open_bundle(report.bundles[0]).manifest.cubins if e.kernel in DECODE]
    assert {(e.kernel, e.variant) for e in entries} == {
        (k.name, v.name) for k in (*moe_decode.KERNELS, *moe_packed.KERNELS) for v in k.variants
    }
    assert all((e.stack, e.flags) == (0, WAITS) for e in entries)
    for type in ("bf16", "fp16", "nvfp4", "mxfp4"):
        both = [e for e in entries if e.variant == f"{type}_t2"]
        assert sum(e.static_shared + e.dynamic_shared + 1024 for e in both) <= 228 << 10
        assert all(e.registers <= 64 for e in both)


def test_blocks_of_the_packed_decode_kernels_share_a_multiprocessor(tmp_path: Path, shared_cache: Path) -> None:
    report = build(CATALOG, [parse("sm_90a")], tmp_path, selection=MODULE, store=Store(shared_cache))
    sizes = {
        (e.kernel, e.variant): e.static_shared + e.dynamic_shared + 1024
        for e in open_bundle(report.bundles[0]).manifest.cubins
    }
    for format in moe_packed.WEIGHTS:
        up, down = (sizes[name, f"{format}_t2"] for name in PACKED)
        # The driver makes as much shared memory as two blocks of the first kernel take: all of it, or up to 196 KB.
        assert 196 << 10 < 2 * up <= 228 << 10 or up + down <= 196 << 10
