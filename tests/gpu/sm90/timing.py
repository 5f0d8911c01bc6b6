# SPDX-License-Identifier: Apache-2.0
"""Times of variants beside cuBLASLt (through torch): medians of graph replays, operands and results rotated."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .cases import Case
from .gemm import arguments, grid_of, load, tiles_of, units_of
from .kernels import tile
from .problem import DTYPES

ROTATED = 160e6  # bytes, beyond the 60 MB of L2


@dataclass(frozen=True)
class Shape:
    """A problem to time; with groups, m rows in all, divided equally (offsets), or m each (masked)."""

    m: int
    n: int
    k: int
    mode: str = "dense"
    groups: int = 1

    def __str__(self) -> str:
        more = "" if self.mode == "dense" else f" {self.mode} {self.groups}"
        return f"{self.m}x{self.n}x{self.k}{more}"

    @property
    def rows(self) -> int:
        """Rows of D that are computed."""
        return self.m * self.groups if self.mode == "masked" else self.m

    @property
    def flops(self) -> float:
        """Operations."""
        return 2.0 * self.rows * self.n * self.k

    def bytes(self, element: int) -> float:
        """What must be read and written once, D in 16 bits."""
        return element * self.k * (self.rows + self.groups * self.n) + 2.0 * self.rows * self.n


class Operands:
    """Sets of operands and results of a shape, more than L2 holds."""

    def __init__(self, format: str, shape: Shape) -> None:
        self.format, self.shape = format, shape
        self.sets: list[dict[str, Any]] = []
        count = int(min(24, max(2, -(-ROTATED // shape.bytes(1 if format == "fp8" else 2)))))
        for _ in range(count):
            self.sets.append(self._make())

    def _make(self) -> dict[str, Any]:
        shape = self.shape
        batches = shape.groups if shape.mode == "masked" else 1
        a = torch.randn((batches, shape.m, shape.k), device="cuda", dtype=torch.bfloat16)
        b = torch.randn((shape.groups, shape.n, shape.k), device="cuda", dtype=torch.bfloat16)
        found: dict[str, Any] = {"d": torch.empty((batches, shape.m, shape.n), device="cuda", dtype=torch.bfloat16)}
        if self.format == "fp8":
            a, b = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
            found["as"] = torch.rand((batches, shape.k // 128, -(-shape.m // 4) * 4), device="cuda") + 0.5
            found["bs"] = torch.rand((shape.groups, -(-shape.n // 128), shape.k // 128), device="cuda") + 0.5
        elif self.format == "fp16":
            a, b = a.to(torch.float16), b.to(torch.float16)
        if shape.mode == "grouped":
            step = shape.m // shape.groups
            found["index"] = torch.arange(0, shape.m + 1, step, device="cuda", dtype=torch.int32)
        elif shape.mode == "masked":
            found["index"] = torch.full((shape.groups,), shape.m, device="cuda", dtype=torch.int32)
        return found | {"a": a, "b": b}


class Timer:
    """A graph of runs, several times if they are short, to be replayed; `kept` is memory that they use."""

    def __init__(self, runs: list[Callable[[], None]], kept: object = None) -> None:
        self._kept = kept
        for run in runs:
            run()
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for run in runs:
            run()
        end.record()
        torch.cuda.synchronize()
        guess = max(start.elapsed_time(end) * 1e-3, 1e-6)
        repeats = max(1, min(20, round(400e-6 / guess)))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for _ in range(repeats):
                for run in runs:
                    run()
        self._count, self._times = repeats * len(runs), list[Any]()
        self.replays = max(1, min(4, round(6e-3 / guess / repeats)))

    def replay(self) -> None:
        """A few more replays, the first of them not timed: it finds the chip as another kernel left it."""
        self._graph.replay()
        for _ in range(self.replays):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self._graph.replay()
            end.record()
            self._times.append((start, end))

    def seconds(self) -> float:
        """The median time of one run."""
        torch.cuda.synchronize()
        return statistics.median(s.elapsed_time(e) for s, e in self._times) * 1e-3 / self._count


def measure(timers: dict[str, Timer], rounds: int = 7) -> dict[str, float]:
    """Times of all, taken in turns, so that heat and power are the same for each."""
    for _ in range(rounds):
        for timer in timers.values():
            timer.replay()
    return {name: timer.seconds() for name, timer in timers.items()}


def variant_timer(
    variant: str, operands: Operands, splits: int, constant_b: bool, folder: Path | None, sms: int
) -> Timer:
    """Launches of a variant."""
    kernel, shape, block = load(variant, folder), operands.shape, tile(variant)
    case = Case(shape.mode, batches=shape.groups, m=shape.m, n=shape.n, k=shape.k, splits=splits)
    case = replace(case, constant_b=constant_b)
    tiles = tiles_of(variant, case, shape.m, shape.groups)
    grid = grid_of(block, sms * block.blocks, units_of(case, tiles))
    shared: dict[str, Any] = {"arrivals": torch.zeros(tiles, dtype=torch.int32, device="cuda")}
    if splits > 1:
        shared["workspace"] = torch.empty(tiles * (splits & 255) * block.m * block.n, device="cuda")
    launches = []
    for one in operands.sets:
        scales = (one.get("as"), one.get("bs"))
        launches.append(arguments(variant, case, one["a"], one["b"], scales, one["d"], shared | one))

    def run(args: Any) -> Callable[[], None]:
        return lambda: kernel.launch((grid, 1, 1), args, torch.cuda.current_stream().cuda_stream)

    return Timer([run(args) for args in launches], shared)


def peer_timer(operands: Operands) -> Timer | None:
    """cuBLASLt: `torch.mm`, or for fp8 `torch._scaled_mm` with one scale a tensor; None where there is none."""
    if operands.shape.mode != "dense":
        return None
    one_scale = torch.ones((), device="cuda")

    def run(one: dict[str, Any]) -> Callable[[], None]:
        a, b, d = one["a"][0], one["b"][0].T, one["d"][0]
        if operands.format == "fp8":
            return lambda: torch._scaled_mm(a, b, one_scale, one_scale, out_dtype=torch.bfloat16, out=d)
        if operands.format != "bf16":
            d = d.view(DTYPES[operands.format])
        return lambda: torch.mm(a, b, out=d)

    return Timer([run(one) for one in operands.sets])
