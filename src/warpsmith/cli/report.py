# SPDX-License-Identifier: Apache-2.0
"""What every command does alike: one result on stdout, all else on stderr, errors as messages, the exit status."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from warpsmith.arch import Target
from warpsmith.catalog.spec import CubinId, Finding
from warpsmith.errors import InvalidArgumentError, MissingKernelError, UnsupportedError, WarpsmithError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SCHEMA = 1
FINDING, USAGE, ENVIRONMENT, INTERRUPTED = 1, 2, 3, 130
_WIDE = 200  # columns, where there is no terminal to fit


@dataclass
class Report:
    """What a command has to say; printed when it ends.

    Attributes
    ----------
    targets
        As `target_document` makes them.
    findings
        What is wrong; any makes the exit status 1.
    extra
        Further members of the JSON object.
    text
        What is printed without ``--json``, in order.
    """

    targets: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    text: list[RenderableType] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The JSON object."""
        findings = [f.as_json() for f in self.findings]
        return {"schema": SCHEMA, "targets": self.targets, "findings": findings, **self.extra}


def target_document(
    target: Target, cubins: Iterable[tuple[str, dict[str, Any]]], missing: Iterable[Finding] = ()
) -> dict[str, Any]:
    """One member of ``targets``, from (module, cubin) pairs and the promises that are not kept."""
    modules: dict[str, list[dict[str, Any]]] = {}
    for module, cubin in cubins:
        modules.setdefault(module, []).append(cubin)
    return {
        "target": str(target),
        "modules": [{"name": name, "cubins": members} for name, members in modules.items()],
        "missing": [{"promise": f.subject, "reason": f.message} for f in missing],
    }


def cubin_document(cubin: CubinId) -> dict[str, Any]:
    """A cubin's name as JSON."""
    return {"kernel": cubin.kernel, "variant": cubin.variant, "target": str(cubin.target)}


def console(stderr: bool = False) -> Console:
    """A console that prints text as it is; piped, it does not squeeze tables into 80 columns."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, markup=False, highlight=False, width=None if stream.isatty() else _WIDE)


def say(message: str) -> None:
    """Tell a person something, on stderr."""
    console(stderr=True).print(message, soft_wrap=True)


@contextmanager
def command(as_json: bool) -> Iterator[Report]:
    """Run a command's body; then print its report and end with its status.

    Every deliberate error becomes a message without a traceback; with ``--json`` also the member ``error``.
    """
    report = Report()
    status = 0
    with _warnings_as_messages():
        try:
            yield report
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            status = _failed(report, error)
    _print(report, as_json)
    raise typer.Exit(status or (FINDING if report.findings else 0))


def _failed(report: Report, error: Exception) -> int:
    """Say what went wrong; the exit status for it."""
    name = type(error).__name__
    report.extra["error"] = {"type": name, "message": str(error)}
    if isinstance(error, (WarpsmithError, OSError)):
        say(f"error: {error}")
        if isinstance(error, InvalidArgumentError):
            return USAGE
        return FINDING if isinstance(error, (MissingKernelError, UnsupportedError)) else ENVIRONMENT
    say("".join(traceback.format_exception(error)).rstrip())
    say(
        f"error: {name} was not expected here; this is a bug of Warpsmith or a damaged installation. "
        "`warpsmith doctor` looks for the latter; please report the former with the text above"
    )
    return ENVIRONMENT


def _print(report: Report, as_json: bool) -> None:
    try:
        if as_json:
            sys.stdout.write(json.dumps(report.document(), indent=2) + "\n")
        else:
            _print_text(report)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`: the reader has seen enough, and Python must not complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_text(report: Report) -> None:
    out = console()
    for part in report.text:
        out.print(part, soft_wrap=isinstance(part, str))
    for finding in report.findings:
        out.print(f"FINDING [{finding.code}] {finding.message}", soft_wrap=True)
        if finding.fix:
            out.print(f"    fix: {finding.fix}", soft_wrap=True)


@contextmanager
def _warnings_as_messages() -> Iterator[None]:
    """Warnings on stderr without the line of code that they come from."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield


Advance = Callable[[int, int, str], None]


@contextmanager
def progress(label: str) -> Iterator[Advance]:
    """A progress bar on stderr, where that is a terminal; it is told (done, in all, the last one).

    Until it is first told, it only shows that something goes on.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[last]}", markup=False),
    )
    shown = console(stderr=True)
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as bar:
        task = bar.add_task(label, total=None, last="")

        def advance(done: int, total: int, last: str) -> None:
            bar.update(task, completed=done, total=total, last=last)

        yield advance


def table(*columns: str, rows: Iterable[Iterable[object]], title: str = "") -> RenderableType:
    """A plain table; columns whose name starts with ``#`` are numbers."""
    from rich import box
    from rich.table import Table

    made = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        made.add_column(name.removeprefix("#"), justify="right" if name.startswith("#") else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(str, row))
    return made


def pairs(values: Mapping[str, object]) -> str:
    """``name: value`` lines, aligned."""
    width = max(map(len, values), default=0) + 1
    return "\n".join(f"{name + ':':<{width}} {value}" for name, value in values.items())
