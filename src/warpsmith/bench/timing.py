# SPDX-License-Identifier: Apache-2.0
"""Timing on a GPU, the same way for every operation and peer.

Each measurement is a CUDA graph of many calls over rotating inputs and outputs, so that neither the host nor the L2
cache is what is measured; the figure is the median over replays.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

REPLAYS = 25
_TARGET_GRAPH_MS = 4.0


def rotation(bytes_per_set: int, l2_bytes: int, free_bytes: int) -> int:
    """How many sets of buffers to rotate: at least twice the L2 in all, within a quarter of the free memory."""
    wanted = -(-2 * l2_bytes // max(bytes_per_set, 1)) + 1
    return max(2, min(wanted, 64, free_bytes // 4 // max(bytes_per_set, 1)))


def gpu_time(calls: Sequence[Callable[[], Any]], replays: int = REPLAYS) -> float:
    """Median time of one call on the GPU, in microseconds.

    Parameters
    ----------
    calls
        One callable a set of buffers; they are captured in turn, as often as fills about 4 ms.
    replays
        Number of timed graph replays.
    """
    import torch

    kept = [call() for call in calls]  # loads, allocates and warms up outside of the capture
    torch.cuda.synchronize()
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for call in calls:
        kept.append(call())
    stop.record()
    torch.cuda.synchronize()
    rough_ms = max(float(start.elapsed_time(stop)) / len(calls), 1e-3)
    rounds = max(1, min(40, int(_TARGET_GRAPH_MS / (rough_ms * len(calls)))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            kept = [call() for call in calls]
    for _ in range(3):
        graph.replay()
    times: list[float] = []
    for _ in range(replays):
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e3 / (rounds * len(calls)))
    del kept
    return statistics.median(times)


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
