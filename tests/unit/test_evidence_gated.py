# SPDX-License-Identifier: Apache-2.0
"""What `verify` runs of gated products, with the kernel replaced by one in NumPy: a right one, and wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gemm_emulator
import moe_emulator
import numpy as np
import pytest
from gemm_emulator import memory
from test_evidence_gemm import FACTS, HostBuffer

from warpsmith.arch import parse
from warpsmith.catalog import CATALOG
from warpsmith.catalog.fp4_gemm_gated import KERNELS, PAIRS
from warpsmith.catalog.resolve import resolve
from warpsmith.catalog.spec import CubinId, Problem
from warpsmith.evidence import device, gated
from warpsmith.evidence.gated import GatedCase, gated_cases, run_gated

EMULATED = KERNELS[1]
Spoil = Callable[[Any], None]


@pytest.fixture(autouse=True)
def host_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DeviceBuffer", HostBuffer)
    monkeypatch.setattr(gated, "device_facts", lambda *_: FACTS)
    monkeypatch.setattr(gated, "encode", gemm_emulator.encode)


class HostBench:
    """A bench whose one kernel is that of the emulator; `spoil` changes what it leaves."""

    catalog, device, driver = CATALOG, 0, None
    stream = SimpleNamespace(handle=0, synchronize=lambda: None)

    def __init__(self, spoil: Spoil = lambda _: None) -> None:
        self.spoil = spoil

    def kernels(self, problem: Problem) -> dict[str, Any]:
        choice = resolve(CATALOG, problem, FACTS).choice
        assert choice is not None
        cubin = CubinId(EMULATED.name, choice.variant, parse("sm_90a"))

        def launch(grid: tuple[int, int, int], args: tuple[Any, ...], stream: int) -> None:
            assert stream == 0
            moe_emulator.launch(cubin, grid, args)
            self.spoil(SimpleNamespace(**dict(zip((p.name for p in EMULATED.params), args, strict=True))))

        return {"default": SimpleNamespace(cubin=cubin, launch=launch)}


def cases() -> list[GatedCase]:
    """Of each pair, small ones."""
    found = [c for c in gated_cases() if c.product.n * c.product.k * sum(c.product.rows) < 1 << 23]
    return [c for c in found if c.product.batches < 100]


def test_a_right_kernel_passes() -> None:
    rng, seen = np.random.default_rng(0), set()
    for case in cases():
        for cubin, mismatch, _ in run_gated(HostBench(), case, rng):
            assert mismatch == "", case
            seen.add(cubin.variant.rpartition("_")[0])
    assert len(seen) == len(PAIRS)


def test_cases_are_of_every_activation_bias_and_rounding() -> None:
    for a, b in PAIRS:
        some = [c for c in gated_cases() if (c.product.a, c.product.b) == (a, b)]
        assert len({c.activation for c in some}) == 4
        assert {c.product.out for c in some} == {"bf16", "fp16", "fp32"}
        assert {c.product.bias for c in some} == {"", "bf16", "fp16", "fp32"}
        assert any(c.product.wide for c in some)


def spoil_code(p: Any) -> None:
    memory(p.d + 5 * p.d_row, p.d_row)[:] ^= 0x44


def spoil_scale(p: Any) -> None:
    memory(p.d_scales + 512, 1)[:] ^= 0x08  # the first row of the second group


def spoil_rows(p: Any) -> None:
    memory(p.d + (p.m - 1) * p.d_row, 1)[:] = 0


def spoil_padding(p: Any) -> None:
    memory(p.d_scales + 512 + 3, 1)[:] = 1


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_code, "error"),
        (spoil_scale, "error"),
        (spoil_rows, "belong to no expert"),
        (spoil_padding, "columns of scales that pad are not zero"),
    ],
)
def test_wrong_kernels_are_found(spoil: Spoil, says: str) -> None:
    case = next(c for c in cases() if c.product.a == "mxfp8" and c.product.n == 64)
    mismatches = [m for _, m, _ in run_gated(HostBench(spoil), case, np.random.default_rng(1))]
    assert says in mismatches[0]
