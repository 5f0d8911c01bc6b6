# SPDX-License-Identifier: Apache-2.0
"""What the README says of hardware is what the ledger carries, and what it calls compiled does compile."""

from __future__ import annotations

from pathlib import Path

from warpsmith.arch import default_target
from warpsmith.bundle.store import Store
from warpsmith.catalog import CATALOG
from warpsmith.catalog.plan import plan
from warpsmith.compiler.build import build
from warpsmith.evidence.ledger import EMULATED, EXECUTED, ledger_path, read_all
from warpsmith.evidence.table import SHOWN, current, replaced

README = Path(__file__).parents[2] / "README.md"


def test_every_shown_target_builds_whole(shared_cache: Path, tmp_path: Path) -> None:
    targets = [default_target(c) for c in SHOWN]
    report = build(CATALOG, targets, tmp_path, store=Store(shared_cache))
    assert report.findings == ()
    assert len(report.bundles) == len(SHOWN)
    assert report.compiled + report.cached == len(plan(CATALOG, targets).cubins)


def test_the_readme_claims_what_the_ledger_carries(shared_cache: Path) -> None:
    text = README.read_text(encoding="utf-8")
    assert replaced(text, current(shared_cache)) == text, "run: python -m warpsmith.evidence.table README.md"


def test_the_ledger_holds_runs_without_an_error() -> None:
    records = read_all(ledger_path())
    assert records
    for record in records:
        kernel = CATALOG.kernel(record.kernel)
        emulated = kernel.name in {k.emulates for k in CATALOG.kernels}
        for entry in record.entries:
            assert entry.status == (EMULATED if emulated else EXECUTED)
            assert entry.cases > 0
            if kernel.module == "fused_moe":
                continue
            assert entry.worst <= {"gemm": 3e-3, "gated_gemm": 1e-2}.get(kernel.operation, 0)
