# SPDX-License-Identifier: Apache-2.0
"""``warpsmith audit``: proof that bundles are complete and intact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from warpsmith.catalog import CATALOG
from warpsmith.cli.bundles import BundleArgument, open_all
from warpsmith.cli.inspect import describe
from warpsmith.cli.options import ArchOption, JsonOption, capabilities
from warpsmith.cli.report import command, progress
from warpsmith.settings import Settings

_KEY = typer.Option(
    "--key",
    metavar="FILE",
    help="The public key that has to have signed them.",
    show_default="WARPSMITH_REQUIRE_SIGNATURE",
)


def audit(
    bundle: BundleArgument, arch: ArchOption = "", key: Annotated[Path | None, _KEY] = None, json: JsonOption = False
) -> None:
    """Prove, without a GPU, that bundles hold all that dispatch can reach on the devices, intact.

    A capability in --arch (12.0) means that device; a target or generation (120f, 12x) all devices it runs on. Without
    --arch and WARPSMITH_ARCH_LIST: all that the bundles' targets run on.
    """
    with command(json) as report:
        settings = Settings.from_environment()
        devices = capabilities(arch, settings) if arch or settings.arch_list else None
        opened, report.findings = open_all(bundle)
        from warpsmith.bundle.audit import audit as run
        from warpsmith.bundle.signature import read_public_key

        wanted = key or settings.require_signature
        trusted = read_public_key(wanted) if wanted else None

        with progress("auditing"):
            report.findings += run(opened, devices, CATALOG, trusted)
        for one in opened:
            describe(report, one)
        served = devices or sorted({c for one in opened for c in one.manifest.target.serves})
        report.extra["audited"] = {"bundles": [str(b.path) for b in opened], "capabilities": [str(c) for c in served]}
        cubins = sum(len(b.manifest.cubins) for b in opened)
        verdict = f"{len(report.findings)} findings" if report.findings else "complete and intact"
        report.text = [f"{bundle}: {cubins} cubins, for {', '.join(map(str, served)) or 'no device'}: {verdict}"]
