# SPDX-License-Identifier: Apache-2.0
"""``warpsmith verify``: run every kernel on the GPU at hand against the reference, and write what came of it."""

from __future__ import annotations

import secrets
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from warpsmith.catalog import CATALOG
from warpsmith.catalog.spec import Finding
from warpsmith.cli.report import Report, command, progress, say, table
from warpsmith.settings import Settings

if TYPE_CHECKING:
    from warpsmith.arch import Target
    from warpsmith.evidence.verify import Outcome

_BUNDLE = typer.Option("--bundle", help="Verify these cubins; by default the kernels are built first.")
_OUT = typer.Option("--out", help="Write evidence files into this folder.")
_DEVICE = typer.Option("--device", min=0, help="Number of the CUDA device.")
_SEED = typer.Option("--seed", help="Seed of the random inputs.", show_default="a fresh one")
_COMMIT = typer.Option("--commit", help="The source revision to write into the evidence.")
_JSON = typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")


def verify(
    bundle: Annotated[Path | None, _BUNDLE] = None,
    out: Annotated[Path | None, _OUT] = None,
    device: Annotated[int, _DEVICE] = 0,
    seed: Annotated[int | None, _SEED] = None,
    commit: Annotated[str, _COMMIT] = "",
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Run every kernel on the GPU at hand against the reference; NumPy and cuda.bindings are enough."""
    with command(json) as report:
        from warpsmith.runtime.device import device_facts
        from warpsmith.runtime.driver import default_driver

        driver = default_driver()
        facts = device_facts(device, driver)
        chosen = secrets.randbelow(1 << 32) if seed is None else seed
        say(f"{facts.name}, compute capability {facts.capability}, driver {facts.driver}, seed {chosen}")
        settings = replace(Settings.from_environment(), jit=False, tuning_path=None)
        with tempfile.TemporaryDirectory(prefix="warpsmith-verify-") as scratch:
            from warpsmith.arch import default_target

            path = bundle or _build(Path(scratch), default_target(facts.capability), settings)
            _run(report, replace(settings, bundle_path=(path,)), path, device, chosen, out, commit)


def _build(folder: Path, target: Target, settings: Settings) -> Path:
    from warpsmith.bundle.store import Store
    from warpsmith.compiler.build import build

    store = Store(settings.cache_dir, lambda key, reason: say(f"warning: compile cache entry {key} {reason}"))
    with progress(f"build {target}") as advance:
        return build(CATALOG, [target], folder, store=store, progress=advance).bundles[0]


def _run(report: Report, settings: Settings, path: Path, device: int, seed: int, out: Path | None, commit: str) -> None:
    from warpsmith.evidence.record import records
    from warpsmith.evidence.verify import verify as run
    from warpsmith.runtime.device import device_facts
    from warpsmith.runtime.driver import default_driver

    driver = default_driver()
    facts = device_facts(device, driver)
    with progress("verify") as advance:
        outcomes = run(CATALOG, settings, device, driver, seed=seed, progress=advance)
    report.findings = [_finding(outcome) for outcome in outcomes if outcome.mismatches]
    rows: dict[str, list[int]] = {}
    for outcome in outcomes:
        tally = rows.setdefault(outcome.cubin.kernel, [0, 0, 0])
        tally[0] += 1
        tally[1] += outcome.cases
        tally[2] += len(outcome.mismatches)
    report.text = [table("kernel", "#cubins", "#cases", "#mismatches", rows=[(k, *tally) for k, tally in rows.items()])]
    report.extra["verify"] = {
        "device": facts.name,
        "capability": str(facts.capability),
        "seed": seed,
        "kernels": {k: dict(zip(("cubins", "cases", "mismatches"), t, strict=True)) for k, t in rows.items()},
    }
    if out is not None:
        written = records(out, path, outcomes, facts, commit)
        report.text.append(f"{len(written)} evidence files in {out}")
        report.extra["evidence"] = [str(p) for p in written]


def _finding(outcome: Outcome) -> Finding:
    shown = "; ".join(outcome.mismatches[:3])
    count = len(outcome.mismatches)
    return Finding(
        "mismatch",
        str(outcome.cubin),
        f"{outcome.cubin}: {count} of {outcome.cases} cases differ from the reference: {shown}",
        "do not use this cubin; please report it with the seed, the device and the driver",
    )
