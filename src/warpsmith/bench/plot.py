# SPDX-License-Identifier: Apache-2.0
"""Plots of benchmark runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from warpsmith.bench.result import Result, Row
from warpsmith.errors import InvalidArgumentError


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidArgumentError("a plot needs matplotlib: pip install 'warpsmith[bench]'") from error
    return Figure(figsize=(8, 5), layout="constrained")


def draw(result: Result, path: Path) -> None:
    """Draw a run of ``gemm`` or ``quantize``.

    Raises
    ------
    InvalidArgumentError
        If matplotlib is not installed.
    """
    (_products if result.operation == "gemm" else _copies)(result, path)


def _products(result: Result, path: Path) -> None:
    """Draw operations a second over the rows of A; one line a pair of formats, N and K, dotted the best peer's."""
    figure = _figure()
    axes = figure.subplots()
    lines: dict[tuple[str, int, int], list[Row]] = {}
    for row in result.rows:
        if row.bytes:
            lines.setdefault((row.name, row.shape["n"], row.shape["k"]), []).append(row)
    for (name, n, k), rows in lines.items():
        rates = [(r.shape["m"], 2e-6 * r.shape["m"] * n * k, r) for r in sorted(rows, key=lambda r: r.shape["m"])]
        label = f"{name} {n}×{k}"
        line = axes.plot([m for m, _, _ in rates], [w / r.microseconds for _, w, r in rates], marker="o", label=label)
        peers = [(m, w / r.best_peer[1]) for m, w, r in rates if r.best_peer]
        if peers:
            axes.plot(*zip(*peers, strict=True), marker="x", linestyle=":", color=line[0].get_color())
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("M")
    axes.set_ylabel("TFLOP/s")
    axes.set_title(f"gemm, {result.device} (dotted: best peer)")
    axes.legend(fontsize=6)
    figure.savefig(path, dpi=120)


def _copies(result: Result, path: Path) -> None:
    """Draw achieved bandwidth, as a share of a copy's, over the bytes moved; one line a format and layout."""
    figure = _figure()
    axes = figure.subplots()
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
    figure.savefig(path, dpi=120)
