# SPDX-License-Identifier: Apache-2.0
"""Device memory of a case of `fused_moe`, and what is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from warpsmith.evidence.device import Array, Bench, Guarded


class Memory:
    """Device buffers of a case, by name."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._held: dict[str, Guarded] = {}

    def give(self, name: str, data: Array | None) -> int:
        """Upload an array; its address, 0 for none."""
        if data is None or not data.nbytes:
            return 0
        self._held[name] = Guarded(self._bench, data.nbytes, data.tobytes())
        return self._held[name].pointer

    def make(self, name: str, nbytes: int) -> int:
        """A poisoned output; its address."""
        self._held[name] = Guarded(self._bench, nbytes)
        return self._held[name].pointer

    def take(self, name: str, dtype: Any) -> Array:
        """The contents of an output."""
        return self._held[name].read()[0].view(dtype)

    def broken(self) -> str:
        """What was written outside of the buffers."""
        wrong = [name for name, buffer in self._held.items() if not buffer.read()[1]]
        return f"wrote outside of {', '.join(wrong)}" if wrong else ""

    def close(self) -> None:
        """Free all."""
        for buffer in self._held.values():
            buffer.close()


def twice(bench: Bench, memory: Memory, launches: Sequence[Any], names: Sequence[str]) -> str:
    """Run launches twice; says whether outputs differ."""
    seen = []
    for _ in range(2):
        for kernel, grid, args in launches:
            kernel.launch(grid, args, bench.stream.handle)
        bench.stream.synchronize()
        seen.append([memory.take(name, np.uint8).tobytes() for name in names])
    return "" if seen[0] == seen[1] else "two runs gave different bits"


def differs(name: str, got: Array, want: Array) -> str:
    """Empty if equal, else how many are not."""
    if np.array_equal(got, want):
        return ""
    return f"{name}: {int((got != want).sum())} of {want.size} differ from the reference"


def norm_error(got: Array, want: Array) -> float:
    """‖got − want‖ / ‖want‖ over what is a number; NaN must meet NaN."""
    if not np.array_equal(np.isnan(got), np.isnan(want)):
        return float("inf")
    difference, size = np.nan_to_num(got - want), np.nan_to_num(want)
    norm = float(np.linalg.norm(size))
    return float(np.linalg.norm(difference)) / norm if norm else float(np.linalg.norm(difference))
