# SPDX-License-Identifier: Apache-2.0
"""The tables and plots of the documentation, made from the runs that are committed beside it.

``python -m warpsmith.bench.report docs`` rewrites, in each Markdown file of a folder, what stands between
``<!-- bench/NAME.json: begin -->`` and ``<!-- bench/NAME.json: end -->``, and draws bench/NAME.png; ``--check``
compares the text alone. A run comes from ``warpsmith bench OP --out docs/bench/NAME.json``.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from warpsmith.bench.chart import short
from warpsmith.bench.moe_products import PRODUCTS
from warpsmith.bench.plot import draw
from warpsmith.bench.result import Result, Row, read
from warpsmith.errors import InvalidArgumentError

_PART = re.compile(r"(<!-- (bench/[\w-]+\.json): begin -->\n).*?(<!-- \2: end -->)", re.DOTALL)
_TOKENS = (1, 8, 64, 512, 2048, 8192)


def replaced(text: str, folder: Path) -> str:
    """A document with each marked part made anew from its run; parts whose run is not there are left alone."""

    def part(found: re.Match[str]) -> str:
        run = folder / found[2]
        return f"{found[1]}{render(read(run), found[2])}\n{found[3]}" if run.exists() else found[0]

    return _PART.sub(part, text)


def render(result: Result, path: str) -> str:
    """What is said of a run: where it was made, its tables, which peers do not count.

    Raises
    ------
    InvalidArgumentError
        If there is no table for the operation.
    """
    tables = {"gemm": _gemm, "moe": _moe, "blocks": _blocks}
    if result.operation not in tables:
        raise InvalidArgumentError(f"{path} is a run of {result.operation!r}; there are tables for {', '.join(tables)}")
    told = [f"- Not counted: {note}" for note in dict.fromkeys(result.notes)]
    stem = path.removesuffix(".json")
    plots = {
        "gemm": [f"![TFLOP/s over M]({stem}.png)", f"![best peer's time over ours]({stem}-ratios.png)"],
        "moe": [f"![time over tokens, a panel a model]({stem}.png)"],
    }  # fmt: skip
    parts = [_where(result, path), *plots.get(result.operation, []), *tables[result.operation](result)]
    return "\n\n".join([*parts, *(["\n".join(told)] if told else [])])


def _where(result: Result, path: str) -> str:
    most = [
        f"{word} {result.ceilings[key] / 1e12:.{digits}f} {unit}"
        for key, word, digits, unit in (
            ("copy_bytes_per_second", "copy", 2, "TB/s"),
            ("bf16_operations_per_second", "bf16 8192³ by cuBLASLt", 0, "TFLOP/s"),
            ("fp8_operations_per_second", "FP8 8192³ by cuBLASLt, one scale a tensor,", 0, "TFLOP/s"),
        )
        if key in result.ceilings
    ]
    versions = [f"{n} {v}" for n, v in result.versions.items() if n != "python" and not v.startswith("not available")]
    place = ", ".join(
        [result.device, f"driver {result.driver}", *([result.clocks] if result.clocks else []), *versions]
    )
    said = f"`warpsmith bench {result.operation}`, {result.date}: {place}. Measured beside it: {', '.join(most)}."
    return f"{said} [The run]({path})."


def _gemm(result: Result) -> list[str]:
    parts = []
    rows = [row for row in result.rows if not row.name.startswith("host:")]
    for name in dict.fromkeys(row.name for row in rows):
        given = [row for row in rows if row.name == name]
        peers = list(dict.fromkeys(peer for row in given for peer in row.peers))
        dense = any("dense" in row.details for row in given)
        head = [
            "groups × rows × N × K" if dense else "M×N×K", "µs", "TFLOP/s", "floor: bytes, operations, µs",
            *(f"{short(peer)}, µs" for peer in peers), *(["dense, µs", "dense / ours"] if dense else []),
            "best peer / ours",
        ]  # fmt: skip
        lines = [[*_product(row), *(_time(row.peers.get(p)) for p in peers), *_ends(row, dense)] for row in given]
        parts.append(f"**{name.replace('_x_', ' × ')}**{_mean(given)}\n\n{_table(head, lines)}")
    for row in result.rows:
        if row.name.startswith("host:"):
            others = (f"{time:.1f} µs {peer}" for peer, time in row.peers.items())
            parts.append(f"Host, a call: {'; '.join([f'{row.microseconds:.1f} µs ({row.name[6:]})', *others])}.")
    return parts


def _product(row: Row) -> list[str]:
    work = 2e-6 * math.prod(row.shape.values())
    floors = [row.details[f"floor of {what}"] for what in ("bytes", "operations") if f"floor of {what}" in row.details]
    return [
        "×".join(map(str, row.shape.values())), _time(row.microseconds), f"{work / row.microseconds:.0f}",
        ", ".join(map(_time, floors or [row.floor])),
    ]  # fmt: skip


def _ends(row: Row, dense: bool) -> list[str]:
    best = [f"{row.best_peer[1] / row.microseconds:.2f}" if row.best_peer else ""]
    if not dense:
        return best
    return [_time(row.details["dense"]), f"{row.details['dense'] / row.microseconds:.2f}", *best]


def _mean(rows: Sequence[Row]) -> str:
    """How many times longer than ours each peer takes, in geometric mean, and at least and at most."""
    told = []
    for peer in dict.fromkeys(peer for row in rows for peer in row.peers):
        ratios = [row.peers[peer] / row.microseconds for row in rows if peer in row.peers]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        told.append(f"{short(peer)} {mean:.2f} ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} shapes)")
    return f": time over ours in geometric mean: {'; '.join(told)}" if told else ""


def _moe(result: Result) -> list[str]:
    layers = [row for row in result.rows if not row.name.startswith("host:")]
    tokens = [t for t in _TOKENS if any(row.shape["tokens"] == t for row in layers)]
    places = {(row.name, row.shape["tokens"]): row for row in layers}
    lines = [
        [name, *(_layer(places.get((name, t))) for t in tokens)] for name in dict.fromkeys(row.name for row in layers)
    ]
    parts = [_table(["layer, weights", *map(str, tokens)], lines)]
    hosts = [row.microseconds for row in result.rows if row.name.startswith("host:")]
    if hosts:
        parts.append(f"Host, a call with `out` and workspace given: {min(hosts):.0f} to {max(hosts):.0f} µs.")
    return parts


def _layer(row: Row | None) -> str:
    """Time, the floor's share of it, that of the two products alone, and how many times longer each peer takes."""
    if row is None:
        return ""
    peers = (f"{time / row.microseconds:.2f}× {short(peer)}" for peer, time in row.peers.items())
    alone = [f"products {row.details[PRODUCTS] / row.microseconds:.2f}"] if PRODUCTS in row.details else []
    return " ".join([_time(row.microseconds), f"({row.floor / row.microseconds:.2f})", *alone, *peers])


def _blocks(result: Result) -> list[str]:
    peers = list(dict.fromkeys(peer for row in result.rows for peer in row.peers))
    ours = ("Warpsmith, µs", "best of theirs / ours", "Warpsmith in a CUDA graph, µs", "difference")
    lines = [
        [
            row.name, str(row.shape["tokens"]), *(_time(row.peers.get(peer)) for peer in peers),
            _time(row.microseconds), f"{row.best_peer[1] / row.microseconds:.1f}" if row.best_peer else "",
            _time(row.details["in a CUDA graph"]), f"{row.details['difference']:.1e}",
        ]
        for row in result.rows
    ]  # fmt: skip
    return [_table(["block", "tokens", *(f"{peer}, µs" for peer in peers), *ours], lines)]


def _time(microseconds: float | None) -> str:
    if microseconds is None:
        return ""
    return f"{microseconds:.1f}" if microseconds < 100 else f"{microseconds:.0f}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = "|" + " --- |" * len(head)
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)])


def main(arguments: Sequence[str] | None = None, *, plot: Callable[[Result, Path], None] = draw) -> int:
    """Rewrite or check the documents of a folder."""
    parser = argparse.ArgumentParser(prog="python -m warpsmith.bench.report", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    stale, runs = [], set()
    for path in sorted(given.folder.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        wanted = replaced(text, given.folder)
        runs |= {found[2] for found in _PART.finditer(text) if (given.folder / found[2]).exists()}
        if wanted != text:
            stale.append(str(path))
            if not given.check:
                path.write_text(wanted, encoding="utf-8")
    if given.check:
        if stale:
            fix = f"run python -m warpsmith.bench.report {given.folder}"
            sys.stderr.write(f"{', '.join(stale)}: not what the runs in bench/ say; {fix}\n")
        return int(bool(stale))
    for run in sorted(runs):
        result = read(given.folder / run)
        if result.operation != "blocks":
            plot(result, (given.folder / run).with_suffix(".png"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
