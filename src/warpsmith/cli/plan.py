# SPDX-License-Identifier: Apache-2.0
"""``warpsmith plan``: what would be built."""

from __future__ import annotations

from warpsmith.arch import Target
from warpsmith.catalog import CATALOG
from warpsmith.catalog.plan import Plan, check
from warpsmith.catalog.plan import plan as make_plan
from warpsmith.catalog.selection import Selection
from warpsmith.catalog.spec import Catalog, Finding
from warpsmith.cli.options import (
    ArchOption,
    FormatsOption,
    JsonOption,
    ModelsOption,
    ModulesOption,
    selection,
    targets,
)
from warpsmith.cli.report import Report, command, cubin_document, table, target_document
from warpsmith.settings import Settings


def plan(
    arch: ArchOption = "",
    modules: ModulesOption = "",
    formats: FormatsOption = "",
    models: ModelsOption = None,
    json: JsonOption = False,
) -> None:
    """Modules and cubins of each target, and the promises that would not be kept, with the reason."""
    with command(json) as report:
        wanted = targets(arch, Settings.from_environment())
        chosen = selection(CATALOG, modules, formats, models)
        planned, findings = order(CATALOG, wanted, chosen)
        report.findings += findings
        describe(report, CATALOG, planned, chosen)


def order(catalog: Catalog, wanted: tuple[Target, ...], chosen: Selection) -> tuple[Plan, list[Finding]]:
    """The plan, and everything that speaks against building it."""
    planned = make_plan(catalog, wanted, chosen)
    return planned, list(dict.fromkeys([*check(catalog, ()), *planned.missing]))


def describe(report: Report, catalog: Catalog, planned: Plan, chosen: Selection) -> None:
    """Put a plan into a report."""
    rows = []
    for target in planned.targets:
        cubins = planned.for_target(target)
        missing = make_plan(catalog, [target], chosen).missing
        document = target_document(
            target, [(catalog.kernel(c.kernel).module, cubin_document(c)) for c in cubins], missing
        )
        report.targets.append(document)
        for module in document["modules"]:
            kernels = ", ".join(dict.fromkeys(c["kernel"] for c in module["cubins"]))
            serves = ", ".join(map(str, target.serves))
            rows.append((target, serves, module["name"], len(module["cubins"]), kernels))
    report.text.append(table("target", "runs on", "module", "#cubins", "kernels", rows=rows))
