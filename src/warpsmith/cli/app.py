# SPDX-License-Identifier: Apache-2.0
"""The list of commands. What only some of them need is imported when they run, so that ``--help`` is fast."""

from __future__ import annotations

from typing import Annotated

import typer

from warpsmith._version import __version__
from warpsmith.cli import audit, bench, build, doctor, inspect, plan, resolve, verify

app = typer.Typer(
    name="warpsmith",
    help="LLM-inference kernels for NVIDIA GPUs: built ahead of time, dispatched from one catalog.",
    epilog="Exit status: 0 success, 1 a finding, 2 bad usage, 3 an internal or environment error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"warpsmith {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
) -> None:
    """LLM-inference kernels for NVIDIA GPUs: built ahead of time, dispatched from one catalog."""


app.command("doctor")(doctor.doctor)
app.command("plan")(plan.plan)
app.command("build")(build.build)
app.command("audit")(audit.audit)
app.command("resolve")(resolve.resolve)
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)
app.command("bench")(bench.bench)
