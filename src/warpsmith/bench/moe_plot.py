# SPDX-License-Identifier: Apache-2.0
"""Plots of MoE benchmark runs: time against tokens for each model."""

from __future__ import annotations

from pathlib import Path

from warpsmith.bench.result import Result
from warpsmith.errors import InvalidArgumentError

_COLUMNS = 3


def draw(result: Result, path: Path) -> None:
    """Draw the time of a layer over its tokens, beside its floor and peers; one panel a model and format.

    Raises
    ------
    InvalidArgumentError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidArgumentError("a plot needs matplotlib: pip install 'warpsmith[bench]'") from error
    layers = [row for row in result.rows if row.floor]
    names = list(dict.fromkeys(row.name for row in layers))
    lines = -(-len(names) // _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 3.2 * lines), layout="constrained")
    panels = figure.subplots(lines, _COLUMNS, squeeze=False).reshape(-1)
    for panel, name in zip(panels, names, strict=False):
        rows = [row for row in layers if row.name == name]
        tokens = [row.shape["tokens"] for row in rows]
        panel.plot(tokens, [row.microseconds for row in rows], marker="o", label="warpsmith")
        for peer in dict.fromkeys(p for row in rows for p in row.peers):
            having = [row for row in rows if peer in row.peers]
            times = [row.peers[peer] for row in having]
            panel.plot([row.shape["tokens"] for row in having], times, marker="x", linestyle=":", label=peer)
        panel.plot(tokens, [row.floor for row in rows], color="black", linewidth=0.8, label="floor")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("tokens")
        panel.set_ylabel("µs")
        panel.legend(fontsize=7)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    figure.suptitle(f"MoE layer, logits to output, {result.device}", fontsize=10)
    figure.savefig(path, dpi=120)
