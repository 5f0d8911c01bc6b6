# SPDX-License-Identifier: Apache-2.0
"""`warpsmith.ops.cuda_gemm` on torch's CPU tensors, before a runtime that only notes what it should launch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gemm_emulator
import pytest

from warpsmith.arch import Capability
from warpsmith.catalog import CATALOG
from warpsmith.catalog.resolve import DeviceFacts, resolve
from warpsmith.catalog.spec import Problem

FACTS = DeviceFacts(Capability(9, 0), 132)
PORTABLE = DeviceFacts(Capability(8, 0), 132)
"""A device that `sm80_gemm` serves with every product."""


class Notes:
    """A runtime whose kernels note their launches: (variant, grid, arguments by name)."""

    driver = None

    def __init__(self, facts: DeviceFacts | None = None) -> None:
        self.facts = facts
        self.problems: list[Problem] = []
        self.computes = False
        self.launches: list[tuple[str, tuple[int, ...], dict[str, Any]]] = []

    def prepare(self, problem: Problem, device: int) -> Any:
        assert device == -1  # the number of a CPU tensor
        self.problems.append(problem)
        choice = resolve(CATALOG, problem, self.facts or FACTS).choice
        assert choice is not None
        row = CATALOG.kernel(choice.kernel)

        def launch(grid: tuple[int, int, int], given: tuple[Any, ...], stream: int) -> None:
            assert stream in (2, 7, 8)
            if self.computes:
                compute = gemm_emulator.launch_maps if row.takes_maps else gemm_emulator.launch
                compute(choice.variant, grid, given)
            names = [p.name for p in row.params]
            self.launches.append((choice.variant, grid, dict(zip(names, given, strict=True))))

        return SimpleNamespace(cubin=choice, shared_memory=50000, launch=launch)

    @property
    def last(self) -> dict[str, Any]:
        """The arguments of the last launch."""
        return self.launches[-1][2]


def without_device(monkeypatch: pytest.MonkeyPatch, facts: DeviceFacts | None = None) -> Any:
    """`warpsmith.ops.cuda_gemm` with empty tables, stream 7, and no device behind it."""
    from warpsmith.ops import cuda_gemm
    from warpsmith.runtime import tensor_map

    monkeypatch.setattr(tensor_map, "encode", gemm_emulator.encode)
    monkeypatch.setattr(cuda_gemm, "_plans", {})
    monkeypatch.setattr(cuda_gemm, "_arrivals", {})
    monkeypatch.setattr(cuda_gemm, "_current_stream", lambda _: 7)
    monkeypatch.setattr(cuda_gemm, "_facts", lambda _: facts or FACTS)
    monkeypatch.setattr(cuda_gemm.torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(cuda_gemm.torch.cuda, "current_device", lambda: -1)
    return cuda_gemm
