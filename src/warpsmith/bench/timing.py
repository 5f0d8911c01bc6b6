# SPDX-License-Identifier: Apache-2.0
"""Timing on a GPU, the same way for every operation and peer.

Each measurement is a CUDA graph of many calls over rotating inputs and outputs, so that neither the host nor the L2
cache is what is measured; the figure is the median over replays. What is compared takes turns: a GPU under load lowers
its clock, so that whoever is timed first, on a cool chip, would win up to a tenth.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

REPLAYS = 25
_ROUNDS, _IN_A_TURN = 9, 2
_TARGET_GRAPH_MS = 4.0


def rotation(bytes_per_set: int, l2_bytes: int, free_bytes: int) -> int:
    """How many sets of buffers to rotate: at least twice the L2 in all, within a quarter of the free memory."""
    wanted = -(-2 * l2_bytes // max(bytes_per_set, 1)) + 1
    return max(2, min(wanted, 64, free_bytes // 4 // max(bytes_per_set, 1)))


class Graph:
    """A CUDA graph of many calls, to be replayed and timed.

    Parameters
    ----------
    calls
        One callable a set of buffers; they are captured in turn, as often as fills about 4 ms.
    """

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        import torch

        self._kept = [call() for call in calls]  # loads, allocates and warms up outside of the capture
        torch.cuda.synchronize()
        start, stop = _events()
        start.record()
        for call in calls:
            self._kept.append(call())
        stop.record()
        torch.cuda.synchronize()
        rough_ms = max(float(start.elapsed_time(stop)) / len(calls), 1e-3)
        rounds = max(1, min(40, int(_TARGET_GRAPH_MS / (rough_ms * len(calls)))))
        self._graph, self._calls = torch.cuda.CUDAGraph(), rounds * len(calls)
        with torch.cuda.graph(self._graph):
            for _ in range(rounds):
                self._kept = [call() for call in calls]
        self.times: list[float] = []

    def replay(self, timed: int, untimed: int = 1) -> None:
        """Replay without a pause, the first times without a look at the clock; `times` gets microseconds of a call."""
        for _ in range(untimed):
            self._graph.replay()
        pairs = [_events() for _ in range(timed)]
        for start, stop in pairs:
            start.record()
            self._graph.replay()
            stop.record()
        pairs[-1][1].synchronize()
        self.times += [start.elapsed_time(stop) * 1e3 / self._calls for start, stop in pairs]


def _events() -> tuple[Any, Any]:
    import torch

    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def gpu_time(calls: Sequence[Callable[[], Any]], replays: int = REPLAYS) -> float:
    """Median time of one call on the GPU, in microseconds; `calls` as of `Graph`."""
    graph = Graph(calls)
    graph.replay(replays, untimed=3)
    return statistics.median(graph.times)


def by_turns(
    contenders: Mapping[str, Sequence[Callable[[], Any]]], failed: Callable[[str, Exception], None]
) -> dict[str, float]:
    """Median times of one call of each contender, in microseconds, replayed by turns in an order drawn anew each round.

    One whose capture fails is left out, and `failed` told.
    """
    graphs: dict[str, Graph] = {}
    for name, calls in contenders.items():
        try:
            graphs[name] = Graph(calls)
        except Exception as error:
            failed(name, error)
    order, draw = list(graphs), random.Random(0)  # noqa: S311 - an order, no secret
    for _ in range(_ROUNDS):
        draw.shuffle(order)
        for name in order:
            graphs[name].replay(_IN_A_TURN)
    return {name: statistics.median(graph.times) for name, graph in graphs.items()}


def host_time(call: Callable[[], Any], calls: int = 400, repeats: int = 15) -> float:
    """Median host time of one call in microseconds, with the GPU kept busy but never waited for inside a batch."""
    import torch

    for _ in range(20):
        call()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) * 1e6 / calls)
    torch.cuda.synchronize()
    return statistics.median(times)


def copy_bandwidth(n_bytes: int = 1 << 30) -> float:
    """Bytes per second of a device-to-device copy, read and written bytes counted.

    Not captured: as a node of a graph, the same copy was seen to run a third slower.
    """
    import torch

    source = torch.empty(n_bytes, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times: list[float] = []
    for _ in range(20):
        start.record()
        target.copy_(source)
        stop.record()
        stop.synchronize()
        times.append(float(start.elapsed_time(stop)) * 1e-3)
    return 2 * n_bytes / statistics.median(times[5:])
