# SPDX-License-Identifier: Apache-2.0
"""The cases of `fused_moe` that `warpsmith verify` runs: NumPy stands in for the kernels, right ones and wrong ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import moe_emulator
import numpy as np
import pytest

from warpsmith.arch import Capability
from warpsmith.catalog import CATALOG, fused_moe, moe_decode, moe_packed
from warpsmith.catalog.resolve import DeviceFacts, resolve
from warpsmith.catalog.spec import Problem
from warpsmith.evidence import moe, moe_memory
from warpsmith.evidence.device import GUARD, POISON
from warpsmith.evidence.moe_cases import ActivationCase, CombineCase, DecodeCase, RouteCase, SortCase, all_moe_cases


class HostBuffer:
    """`Guarded` in host memory."""

    def __init__(self, _: Any, nbytes: int, data: bytes | None = None) -> None:
        self.host = np.full(nbytes + 2 * GUARD, POISON, np.uint8)
        self.inside = slice(GUARD, GUARD + nbytes)
        if data is not None:
            self.host[self.inside] = np.frombuffer(data, np.uint8)
        self.pointer = self.host.ctypes.data + GUARD

    def read(self) -> tuple[np.ndarray, bool]:
        outside = np.concatenate([self.host[:GUARD], self.host[self.inside.stop :]])
        return self.host[self.inside].copy(), bool((outside == POISON).all())

    def close(self) -> None:
        pass


class HostBench:
    """A bench whose kernels are the emulator's; `after` may spoil what they leave."""

    stream = SimpleNamespace(handle=0, synchronize=lambda: None)

    def __init__(self, after: Any = None) -> None:
        self.after = after

    def kernels(self, problem: Problem) -> dict[str, Any]:
        cubin = resolve(CATALOG, problem, DeviceFacts(Capability(9, 0))).choice
        names = [p.name for p in CATALOG.kernel(problem.operation).params]

        def launch(grid: Any, args: tuple[Any, ...], _: int) -> None:
            moe_emulator.launch(cubin, grid, args)
            if self.after is not None:
                self.after(problem.operation, SimpleNamespace(**dict(zip(names, args, strict=True))))

        return {"default": SimpleNamespace(cubin=cubin, launch=launch)}


@pytest.fixture(autouse=True)
def _on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moe_memory, "Guarded", HostBuffer)


def test_right_kernels_pass_and_every_kernel_has_cases() -> None:
    rng, seen = np.random.default_rng(0), set()
    for case in all_moe_cases():
        for cubin, mismatch, _ in moe.run_moe(HostBench(), case, rng):
            assert mismatch == "", case
            seen.add((cubin.kernel, cubin.variant))
    kernels = (*fused_moe.KERNELS, *moe_decode.KERNELS, *moe_packed.KERNELS)
    assert seen == {(kernel.name, variant.name) for kernel in kernels for variant in kernel.variants}


def spoil(name: str, at: int) -> Any:
    """Changes a byte of what a pointer names."""

    def after(_: str, p: Any) -> None:
        address = getattr(p, name, 0)
        if address:
            moe_emulator.memory(address + at, 1)[0] = 0x77

    return after


@pytest.mark.parametrize(
    ("case", "name", "at", "says"),
    [
        (RouteCase("fp32", "topk_softmax", 5, 8, 2), "ids", 4, "ids: 1 of 10 differ"),
        (RouteCase("fp32", "topk_softmax", 5, 8, 2), "weights", 6, "weights: relative error"),
        (RouteCase("fp32", "topk_softmax", 5, 8, 2), "weights", 40, "outside of weights"),
        (SortCase(5, 3, 8, hidden=40), "offsets", 4, "offsets: 1 of 9"),
        (SortCase(5, 3, 8, hidden=40), "positions", 8, "positions: 1 of 15"),
        (SortCase(5, 3, 8, hidden=40), "zeros", 8, "zeros are not 0"),
        (SortCase(5, 3, 8, hidden=40), "a", 8, "gathered rows: 1 of"),
        (SortCase(5, 3, 8, kind="wild", hidden=40), "a", 80 * 15 - 1, "belong to no expert"),
        (ActivationCase("bf16", "swiglu", 3, 8, 5), "act", 16 * 3, "rows that do not exist"),
        (ActivationCase("bf16", "swiglu", 3, 8, 5), "act", 19, "error"),
        (CombineCase("fp16", 4, 2, 8), "out", 3, "error"),
        (DecodeCase("bf16", 2, 2, 4, 32, 8, local=2, offset=1), "act", 19, "error"),
        (DecodeCase("bf16", 2, 2, 4, 32, 8, counted=1), "act", 32, "rows without an expert"),
        (DecodeCase("bf16", 2, 2, 4, 32, 8), "act", 64, "outside of act"),
        (DecodeCase("fp16", 2, 2, 4, 32, 8), "out", 3, "error"),
    ],
)
def test_wrong_results_are_told(case: Any, name: str, at: int, says: str) -> None:
    found = [mismatch for _, mismatch, _ in moe.run_moe(HostBench(spoil(name, at)), case, np.random.default_rng(1))]
    assert any(says in mismatch for mismatch in found), found
