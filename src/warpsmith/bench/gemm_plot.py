# SPDX-License-Identifier: Apache-2.0
"""Plots of a run of ``gemm``: operations a second over M, and how each shape stands to its best peer."""

from __future__ import annotations

from pathlib import Path

from warpsmith.bench.chart import FLOOR, OURS, Line, figure, panel, short
from warpsmith.bench.gemm import WEIGHTS
from warpsmith.bench.result import Result, Row

FORMATS = {"bf16_x_bf16": "bf16", "fp8_block_x_fp8_block_128x128": "FP8 blocks"}
_NOTE = "cuBLASLt FP8*: one scale a tensor, less work than FP8 blocks. Dashed: the larger of the two floors."


def products(result: Result, path: Path) -> None:
    """Draw TFLOP/s over M for each of `WEIGHTS`, ours and each peer's; a row of panels a format."""
    rows = {
        format: {w: [r for r in _dense(result, format) if (r.shape["n"], r.shape["k"]) == w] for w in WEIGHTS}
        for format in FORMATS
    }
    present = [format for format in FORMATS if any(len(of) > 1 for of in rows[format].values())]
    whole = figure(12, 3.6 * max(len(present), 1))
    grid = whole.subplots(max(len(present), 1), len(WEIGHTS), squeeze=False)
    for line, format in zip(grid, present, strict=False):
        for axes, weights in zip(line, WEIGHTS, strict=True):
            given = sorted(rows[format][weights], key=lambda row: row.shape["m"])
            panel(axes, f"{FORMATS[format]}, N×K = {weights[0]}×{weights[1]}", _lines(given), x="M", y="TFLOP/s")
    whole.suptitle(f"gemm on {result.device}, {result.date}", fontsize=10)
    whole.supxlabel(_NOTE, fontsize=7.5)
    whole.savefig(path, dpi=120)


def ratios(result: Result, path: Path) -> None:
    """Draw the best peer's time over ours, a line a shape; right of 1 ours is faster."""
    whole = figure(11, 7.2)
    for axes, format in zip(whole.subplots(1, len(FORMATS)), FORMATS, strict=True):
        rows = sorted(
            (r for r in _dense(result, format) if r.best_peer), key=lambda r: (r.shape["n"], r.shape["k"], r.shape["m"])
        )
        names = ["×".join(map(str, row.shape.values())) for row in rows]
        for i, row in enumerate(rows):
            if row.best_peer is not None:
                ratio = row.best_peer[1] / row.microseconds
                axes.plot([1, ratio], [i, i], color="#0072B2" if ratio >= 1 else "#D55E00", linewidth=2.5, marker="")
                text = f"{ratio:.2f}  {short(row.best_peer[0])}"
                axes.annotate(
                    text, (max(ratio, 1), i), xytext=(4, 0), textcoords="offset points", fontsize=7, va="center"
                )
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(rows)), names, fontsize=7)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_xscale("log")
        low, high = min(axes.get_xlim()[0], 0.7), max(axes.get_xlim()[1], 1.3)
        axes.set_xlim(low, high * (high / low) ** 0.3)
        ticks = [t for t in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0) if low <= t <= high]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        axes.set_title(FORMATS[format], fontsize=9)
        axes.set_xlabel("time of the best peer / ours", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    whole.suptitle(f"gemm beside the best peer of each M×N×K, {result.device}, {result.date}", fontsize=10)
    whole.savefig(path, dpi=120)


def _dense(result: Result, format: str) -> list[Row]:
    return [row for row in result.rows if row.name == format and "m" in row.shape]


def _lines(rows: list[Row]) -> list[Line]:
    """Ours, the floor and each peer's, in TFLOP/s."""

    def rate(row: Row, microseconds: float) -> float:
        return 2e-6 * row.shape["m"] * row.shape["n"] * row.shape["k"] / microseconds

    def line(name: str, times: list[tuple[Row, float]]) -> Line:
        return Line(name, [row.shape["m"] for row, _ in times], [rate(row, time) for row, time in times])

    peers = dict.fromkeys(name for row in rows for name in row.peers)
    own = [line(OURS, [(row, row.microseconds) for row in rows])]
    theirs = [line(short(p), [(row, row.peers[p]) for row in rows if p in row.peers]) for p in peers]
    if len(peers) > 1 and any("FP8" in p for p in peers):  # beside FP8 the bf16 product is another instruction
        theirs = [one for one in theirs if one.name != "cuBLASLt bf16"]
    return [line(FLOOR, [(row, row.floor) for row in rows if row.floor]), *theirs, *own]
