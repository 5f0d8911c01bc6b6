# SPDX-License-Identifier: Apache-2.0
"""What the plots share: a figure, one look a name, labels at the ends of lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from warpsmith.errors import InvalidArgumentError

OURS, FLOOR = "Warpsmith", "floor"
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_KNOWN = {
    "torch.mm bf16": "cuBLASLt bf16",
    "cuBLASLt FP8, one scale a tensor": "cuBLASLt FP8*",
    "torch grouped": "torch",
    "sglang Triton, products alone": "Triton*",
}


class Line(NamedTuple):
    """A line of a panel; without points it is left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def figure(width: float, height: float) -> Any:
    """An empty figure, in inches.

    Raises
    ------
    InvalidArgumentError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidArgumentError("a plot needs matplotlib: pip install 'warpsmith[bench]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def short(name: str) -> str:
    """A peer's name as plots write it."""
    return _KNOWN.get(name, name)


def look(name: str) -> dict[str, Any]:
    """Colour and stroke of a name; the same in every panel."""
    if name == OURS:
        return {"color": "black", "linewidth": 2.0, "marker": "o", "markersize": 3.5, "zorder": 3}
    if name == FLOOR:
        return {"color": "0.6", "linewidth": 1.0, "linestyle": "--"}
    order = ("cuBLASLt bf16", "cuBLASLt FP8*", "Triton", "FlashInfer", "torch", "Triton*")
    color = _COLORS[order.index(name) % len(_COLORS) if name in order else -1]
    return {"color": color, "linewidth": 1.2, "marker": ".", "markersize": 5}


def panel(axes: Any, title: str, lines: Sequence[Line], *, x: str, y: str) -> None:
    """Draw lines over logarithmic axes, each named at its right end."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    drawn = [line for line in lines if line.x]
    for line in drawn:
        axes.plot(line.x, line.y, **look(line.name))
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(visible=True, which="major", color="0.92", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if not drawn:
        return
    ticks: list[float] = []
    for value in sorted({value for line in drawn for value in line.x}, reverse=True):
        if not ticks or value * 3 < ticks[-1]:
            ticks.append(value)
    axes.set_xticks(ticks, [f"{t:.0f}" for t in ticks])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    right = max(line.x[-1] for line in drawn)
    axes.set_xlim(min(line.x[0] for line in drawn) / 1.3, right * max((right / drawn[0].x[0]) ** 0.3, 1.5))
    ends = [math.log(line.y[-1] / low) / math.log(high / low) for line in drawn]
    for line, end, place in zip(drawn, ends, spread(ends, 0.065), strict=True):
        style = {"fontsize": 7.5, "va": "center", "color": look(line.name)["color"]}
        height = low * (high / low) ** place
        moved = abs(place - end) > 0.02
        leader = {"arrowstyle": "-", "color": style["color"], "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 0}
        axes.annotate(
            line.name, (line.x[-1], line.y[-1]), xytext=(right * 1.25, height), textcoords="data", **style,
            arrowprops=leader if moved else None,
        )  # fmt: skip


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Places within a height of 1, moved apart by at least `gap`, in their order, about where they were."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for _ in range(200):
        for i in range(len(moved) - 1):
            lacking = gap - (moved[i + 1] - moved[i])
            if lacking > 1e-9:
                moved[i] -= lacking / 2
                moved[i + 1] += lacking / 2
    beyond = max(moved[-1] - 0.97, 0.0) if moved else 0.0
    found = [0.0] * len(places)
    for i, place in zip(order, moved, strict=True):
        found[i] = place - beyond
    return found
