# SPDX-License-Identifier: Apache-2.0
"""``warpsmith bench``: figures beside the floor and other people's code, in one run on the GPU at hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from warpsmith.cli.options import FormatsOption, words
from warpsmith.cli.report import command, say, table
from warpsmith.errors import InvalidArgumentError

if TYPE_CHECKING:
    from warpsmith.bench.result import Result, Row

OPERATIONS = ("quantize", "gemm", "moe", "blocks")

_OPERATION = typer.Argument(metavar="OP", help=f"One of: {', '.join(OPERATIONS)}.")
_OUT = typer.Option("--out", help="Write the run as JSON into this file.")
_PLOT = typer.Option("--plot", help="Draw the run into this PNG file (needs matplotlib).")
_SHAPES = typer.Option(
    "--shapes",
    help="Sizes, separated by spaces: MxK; of gemm MxNxK; of moe and blocks tokens.",
    show_default="real models' sizes",
)
_TUNE = typer.Option("--tune", help="Time every tile of gemm, and write the table that WARPSMITH_TUNING_PATH takes.")
_MODELS = typer.Option(
    "--models", help="Models whose layers moe or blocks measures, separated by spaces.", show_default="all"
)
_JSON = typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")


def bench(
    operation: Annotated[str, _OPERATION],
    shapes: Annotated[str, _SHAPES] = "",
    formats: FormatsOption = "",
    models: Annotated[str, _MODELS] = "",
    out: Annotated[Path | None, _OUT] = None,
    plot: Annotated[Path | None, _PLOT] = None,
    tune: Annotated[Path | None, _TUNE] = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Measure an operation on the GPU at hand, beside its floor and its peers; blocks: MoE blocks of transformers."""
    with command(json) as report:
        if operation not in OPERATIONS:
            raise InvalidArgumentError(f"there is no benchmark of {operation!r}; expected {', '.join(OPERATIONS)}")
        if tune is not None and operation != "gemm":
            raise InvalidArgumentError(f"--tune is for gemm; {operation} has no tiles to time")
        if operation == "gemm":
            result = _gemm(shapes, formats, tune)
        elif operation == "quantize":
            result = _quantize(shapes, formats)
        else:
            result = _layers(operation, shapes, formats, models)
        if out is not None:
            out.write_text(result.to_json(), encoding="utf-8")
            say(f"wrote {out}")
        if plot is not None:
            from warpsmith.bench.plot import draw

            draw(result, plot)
            say(f"wrote {plot}")
        report.extra["bench"] = {"device": result.device, "rows": [_row(row) for row in result.rows]}
        report.text = [
            f"{result.device}, driver {result.driver}; {result.clocks}",
            table("what", "shape", "#µs", "#floor µs", "#best peer µs", "#peer / ours", rows=map(_cells, result.rows)),
            *result.notes,
        ]


def _quantize(shapes: str, formats: str) -> Result:
    from warpsmith.bench import quantize
    from warpsmith.catalog.formats import FORMATS, get_format

    chosen = [get_format(name).name for name in words(formats)] or list(FORMATS)
    sizes = [_size(word, 2) for word in words(shapes)] or quantize.SHAPES
    return quantize.run([(m, k) for m, k in sizes], chosen)


def _gemm(shapes: str, formats: str, tune: Path | None) -> Result:
    from warpsmith import tuning
    from warpsmith.bench import gemm
    from warpsmith.catalog import CATALOG
    from warpsmith.catalog.spec import operands

    known, asked = CATALOG.operation("gemm").formats, words(formats)
    for name in asked:
        if not any(name in (pair, *operands(pair)) for pair in known):
            raise InvalidArgumentError(f"unknown format {name!r}; expected an operand's, or one of {', '.join(known)}")
    chosen = [pair for pair in known if {pair, *operands(pair)} & set(asked)]
    sizes = [_size(word, 3) for word in words(shapes)]
    result, rules = gemm.run([(m, n, k) for m, n, k in sizes], chosen, tune=tune is not None)
    if tune is not None:
        tune.write_text(tuning.dump(rules), encoding="utf-8")
        say(f"wrote {tune}: {len(rules)} rules")
    return result


def _layers(operation: str, shapes: str, formats: str, models: str) -> Result:
    from warpsmith.bench import blocks, moe
    from warpsmith.catalog.formats import get_format

    tokens = words(shapes)
    for word in tokens:
        if not word.isdigit() or int(word) < 1:
            raise InvalidArgumentError(f"cannot read {word!r} as a number of tokens; write 1, 64, 2048")
    chosen = [name if name in ("bf16", *moe.PAIRS, *moe.FEW_ROWS) else get_format(name).name for name in words(formats)]
    if operation == "blocks":
        if chosen:
            raise InvalidArgumentError("the blocks of transformers are compared in bf16; leave --formats out")
        return blocks.run(words(models), [int(word) for word in tokens] or blocks.TOKENS)
    return moe.run(words(models), [int(word) for word in tokens] or moe.TOKENS, chosen)


def _size(word: str, count: int) -> tuple[int, ...]:
    parts = word.lower().split("x")
    if len(parts) != count or not all(p.isdigit() and int(p) for p in parts):
        form, example = ("MxK", "4096x7168") if count == 2 else ("MxNxK", "16x7168x2048")
        raise InvalidArgumentError(f"cannot read {word!r} as a size; write {form}, for example {example}")
    return tuple(int(p) for p in parts)


def _row(row: Row) -> dict[str, object]:
    return {
        "name": row.name,
        "shape": row.shape,
        "microseconds": row.microseconds,
        "floor": row.floor,
        "peers": row.peers,
        "details": row.details,
    }


def _cells(row: Row) -> tuple[str, ...]:
    shape = "×".join(map(str, row.shape.values()))
    peer = row.best_peer
    best, ratio = (f"{peer[1]:.2f} ({peer[0]})", f"{peer[1] / row.microseconds:.2f}") if peer else ("", "")
    return row.name, shape, f"{row.microseconds:.2f}", f"{row.floor:.2f}" if row.floor else "", best, ratio
