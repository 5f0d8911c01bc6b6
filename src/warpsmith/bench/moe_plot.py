# SPDX-License-Identifier: Apache-2.0
"""Plots of MoE benchmark runs: time against tokens for each model."""

from __future__ import annotations

from pathlib import Path

from warpsmith.bench.chart import FLOOR, OURS, Line, figure, panel, short
from warpsmith.bench.result import Result, Row

_COLUMNS = 3


def draw(result: Result, path: Path) -> None:
    """Draw the time of a layer over its tokens, beside its floor and peers; one panel a model and format.

    Raises
    ------
    InvalidArgumentError
        If matplotlib is not installed.
    """
    layers = [row for row in result.rows if not row.name.startswith("host:")]
    names = list(dict.fromkeys(row.name for row in layers))
    lines = -(-len(names) // _COLUMNS)
    whole = figure(12, 3.3 * max(lines, 1))
    panels = whole.subplots(max(lines, 1), _COLUMNS, squeeze=False).reshape(-1)
    for axes, name in zip(panels, names, strict=False):
        panel(axes, name, _lines([row for row in layers if row.name == name]), x="tokens", y="µs")
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    whole.suptitle(f"MoE layer, logits to output, on {result.device}, {result.date}", fontsize=10)
    if any("products alone" in peer for row in layers for peer in row.peers):
        whole.supxlabel("Triton*: sglang's two products alone, without sorting, activation and sum.", fontsize=7.5)
    whole.savefig(path, dpi=120)


def _lines(rows: list[Row]) -> list[Line]:
    def line(name: str, times: list[tuple[Row, float]]) -> Line:
        return Line(name, [row.shape["tokens"] for row, _ in times], [time for _, time in times])

    peers = dict.fromkeys(peer for row in rows for peer in row.peers)
    return [
        line(FLOOR, [(row, row.floor) for row in rows if row.floor]),
        *(line(short(p), [(row, row.peers[p]) for row in rows if p in row.peers]) for p in peers),
        line(OURS, [(row, row.microseconds) for row in rows]),
    ]
