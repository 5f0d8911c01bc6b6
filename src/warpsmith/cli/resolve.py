# SPDX-License-Identifier: Apache-2.0
"""``warpsmith resolve``: what dispatch would run, and why not something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from warpsmith.arch import Capability
from warpsmith.catalog import CATALOG
from warpsmith.catalog.resolve import DeviceFacts
from warpsmith.catalog.spec import Finding, Problem
from warpsmith.cli.bundles import open_all
from warpsmith.cli.inspect import entry_document
from warpsmith.cli.options import ArchOption, JsonOption, capabilities
from warpsmith.cli.report import Report, command, cubin_document, table, target_document
from warpsmith.errors import BundleError, InvalidArgumentError
from warpsmith.settings import Settings

if TYPE_CHECKING:
    from warpsmith.runtime.kernels import Runtime
    from warpsmith.runtime.search import Located

_OPERATION = typer.Argument(metavar="OP", help=f"An operation: {', '.join(o.name for o in CATALOG.operations)}.")
_BUNDLE = typer.Option("--bundle", help="Look into this bundle alone, and compile nothing.", show_default=False)
_SMS = typer.Option("--sm-count", min=1, help="The device's multiprocessors; tile choice depends on them.")
_OPTION = typer.Option("-p", metavar="KEY=VALUE", help="A field or dimension of the problem; may be repeated.")
_FIELD = typer.Option(help="The same as -p of that name.", show_default="the operation's own")


def resolve(
    operation: Annotated[str, _OPERATION],
    arch: ArchOption = "",
    bundle: Annotated[Path | None, _BUNDLE] = None,
    sm_count: Annotated[int, _SMS] = 48,
    option: Annotated[list[str] | None, _OPTION] = None,
    format: Annotated[str | None, _FIELD] = None,
    input: Annotated[str | None, _FIELD] = None,
    output: Annotated[str | None, _FIELD] = None,
    layout: Annotated[str | None, _FIELD] = None,
    m: Annotated[str | None, _FIELD] = None,
    k: Annotated[str | None, _FIELD] = None,
    json: JsonOption = False,
) -> None:
    """The cubin that would run on a device, where it comes from, and every rejection's reason. Needs no GPU."""
    with command(json) as report:
        settings = Settings.from_environment()
        direct = {"format": format, "input": input, "output": output, "layout": layout, "m": m, "k": k}
        problem = CATALOG.operation(operation).problem(_given(option or [], direct))
        report.extra["decisions"] = []
        runtime = _runtime(report, settings, bundle)
        for capability in capabilities(arch, settings):
            located = runtime.locate(problem, DeviceFacts(capability, sm_count))
            _describe(report, located, problem, capability)


def _given(options: list[str], direct: dict[str, str | None]) -> dict[str, str | int]:
    """The problem's options in one mapping; one that is given twice has to be the same."""
    found: dict[str, str | int] = {name: value for name, value in direct.items() if value is not None}
    for text in options:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise InvalidArgumentError(f"-p {text!r} is not of the form KEY=VALUE")
        if found.setdefault(name, value) != value:
            raise InvalidArgumentError(f"{name} is given twice, as {found[name]!r} and as {value!r}")
    return found


def _runtime(report: Report, settings: Settings, bundle: Path | None) -> Runtime:
    """Dispatch as a process with these settings has it, or as one with a bundle and nothing else."""
    from warpsmith.runtime.jit import Jit
    from warpsmith.runtime.kernels import Runtime

    if bundle is None:
        return Runtime(settings, CATALOG)

    class Forbidden(Jit):
        """The compiler that is not asked."""

        def refusal(self) -> str | None:
            return "nothing is compiled with --bundle"

    opened, findings = open_all(bundle)
    report.findings += findings
    alone = replace(settings, bundle_path=tuple(b.path for b in opened), jit=False)
    return Runtime(alone, CATALOG, installed=list, jit=Forbidden(alone, CATALOG))


def _describe(report: Report, located: Located, problem: Problem, capability: Capability) -> None:
    decision = located.decision
    choice: dict[str, Any] | None = None
    if decision.choice is not None:
        choice = {**cubin_document(decision.choice), "from": located.origin}
        if located.bundle is not None and located.entry is not None:
            choice |= entry_document(located.bundle, located.entry)
            _verify(report, located)
        module = CATALOG.kernel(decision.choice.kernel).module
        report.targets.append(target_document(decision.choice.target, [(module, choice)]))
    else:
        reason = decision.unsupported or "no usable cubin; the rejections say why"
        code = "unsupported" if decision.unsupported else "kernel-missing"
        fix = f"warpsmith build --arch {capability} --out DIR, then --bundle DIR or WARPSMITH_BUNDLE_PATH=DIR"
        subject = f"{problem.operation}/{problem.format}@{capability}"
        report.findings.append(
            Finding(code, subject, f"{problem} on {capability}: {reason}", "" if decision.unsupported else fix)
        )
    rejections = [{"subject": r.subject, "reason": r.reason} for r in decision.rejections]
    report.extra["decisions"].append(
        {
            "operation": problem.operation,
            "problem": {**dict(problem.fields), **dict(problem.dims)},
            "capability": str(capability),
            "choice": choice,
            "unsupported": decision.unsupported,
            "rejections": rejections,
        }
    )
    report.text.append(f"{problem} on {capability}: " + (f"runs {decision.choice}" if choice else "runs nothing"))
    if choice is not None:
        report.text.append(f"from {located.origin}" + (f", {choice['file']}" if "file" in choice else ""))
    if rejections:
        report.text.append(table("not", "because", rows=[(r.subject, r.reason) for r in decision.rejections]))


def _verify(report: Report, located: Located) -> None:
    """The bytes that would run have to be the ones that the manifest names."""
    if located.bundle is None or located.entry is None:
        return
    try:
        located.bundle.cubin(located.entry)
    except BundleError as error:
        fix = "install or build the bundle again"
        report.findings.append(Finding("digest-mismatch", str(located.decision.choice), str(error), fix))
