# SPDX-License-Identifier: Apache-2.0
"""``warpsmith build``: compile, check, write, audit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from warpsmith.catalog import CATALOG
from warpsmith.cli.elsewhere import CacheOption, ReleaseOption, SchedulerOption, store_and_executor
from warpsmith.cli.inspect import describe
from warpsmith.cli.options import (
    ArchOption,
    FormatsOption,
    JsonOption,
    ModelsOption,
    ModulesOption,
    selection,
    targets,
)
from warpsmith.cli.plan import order
from warpsmith.cli.report import command, progress, say
from warpsmith.settings import Settings

if TYPE_CHECKING:
    from warpsmith.bundle.signature import SigningKey

_OUT = typer.Option("--out", help="Where the bundles go: DIR/<target>/, or wheels.", show_default=False)
_WHEEL = typer.Option("--wheel", help="Write installable wheels in place of directories, and an index of them.")
_SIGN = typer.Option("--sign", metavar="KEY", help="Sign with this Ed25519 private key (PEM).", show_default=False)
_JOBS = typer.Option("--jobs", min=1, help="Compile workers at most.", show_default="what cores and memory bear")


def build(
    out: Annotated[Path, _OUT],
    arch: ArchOption = "",
    modules: ModulesOption = "",
    formats: FormatsOption = "",
    models: ModelsOption = None,
    wheel: Annotated[bool, _WHEEL] = False,
    jobs: Annotated[int | None, _JOBS] = None,
    sign: Annotated[Path | None, _SIGN] = None,
    cache: CacheOption = "",
    release: ReleaseOption = False,
    scheduler: SchedulerOption = "",
    json: JsonOption = False,
) -> None:
    """Compile the plan, check every cubin, write one bundle for each target, and audit what was written."""
    with command(json) as report:
        settings = Settings.from_environment()
        signing = _signing(sign)
        wanted, chosen = targets(arch, settings), selection(CATALOG, modules, formats, models)
        planned, report.findings = order(CATALOG, wanted, chosen)
        if report.findings:
            say("error: nothing was built: the catalog does not keep its promises")
            return
        from warpsmith.bundle.reader import open_bundle
        from warpsmith.compiler.build import build as run

        label = f"{len(planned.cubins)} cubins for {', '.join(map(str, planned.targets))}"
        elsewhere = store_and_executor(settings, cache, release, scheduler, jobs)
        with elsewhere as (store, executor), progress(label) as advance:
            made = run(
                CATALOG,
                wanted,
                out,
                selection=chosen,
                jobs=jobs,
                store=store,
                executor=executor,
                wheel=wheel,
                signing=signing,
                progress=advance,
            )
        report.findings = list(made.findings)
        for path in made.bundles:
            describe(report, open_bundle(path))
        report.extra["build"] = {
            "bundles": [str(path) for path in made.bundles],
            "compiled": made.compiled,
            "cached": made.cached,
            "seconds": round(made.seconds, 3),
        }
        report.text = [f"{path}" for path in made.bundles]
        for target in report.targets:
            say(f"{target['target']}: {target['bytes']} bytes of cubins, stored in {target['stored_bytes']}")
        say(f"{made.compiled} cubins compiled, {made.cached} from the cache, in {made.seconds:.1f} s")


def _signing(path: Path | None) -> SigningKey | None:
    """The key, read before anything is compiled."""
    if path is None:
        return None
    from warpsmith.bundle.signature import read_signing_key

    return read_signing_key(path)
