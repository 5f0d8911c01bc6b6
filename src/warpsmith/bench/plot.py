# SPDX-License-Identifier: Apache-2.0
"""Plots of benchmark runs."""

from __future__ import annotations

from pathlib import Path

from warpsmith.bench import gemm_plot, moe_plot
from warpsmith.bench.chart import figure
from warpsmith.bench.result import Result


def draw(result: Result, path: Path) -> None:
    """Draw a run; of ``gemm`` two files, the second one with ``-ratios`` after its name.

    Raises
    ------
    InvalidArgumentError
        If matplotlib is not installed.
    """
    if result.operation == "quantize":
        _copies(result, path)
    elif result.operation == "gemm":
        gemm_plot.products(result, path)
        gemm_plot.ratios(result, path.with_stem(f"{path.stem}-ratios"))
    else:
        moe_plot.draw(result, path)


def _copies(result: Result, path: Path) -> None:
    """Draw achieved bandwidth, as a share of a copy's, over the bytes moved; one line a format and layout."""
    whole = figure(8, 5)
    axes = whole.subplots()
    for name in dict.fromkeys(row.name for row in result.rows if row.bytes):
        rows = sorted((r for r in result.rows if r.name == name), key=lambda r: r.bytes)
        line = axes.plot(
            [r.bytes / 1e6 for r in rows], [r.floor / r.microseconds for r in rows], marker="o", label=name
        )
        peers = [(r.bytes / 1e6, r.floor / r.best_peer[1]) for r in rows if r.best_peer]
        if peers:
            axes.plot(*zip(*peers, strict=True), marker="x", linestyle=":", color=line[0].get_color())
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("bytes moved, MB")
    axes.set_ylabel("share of copy bandwidth")
    axes.set_title(f"quantize, {result.device} (dotted: best peer)")
    axes.legend(fontsize=8)
    whole.savefig(path, dpi=120)
