# SPDX-License-Identifier: Apache-2.0
"""What `verify` runs of `gemm`, with the kernel replaced by one in NumPy: a right one passes, a wrong one does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gemm_emulator
import numpy as np
import pytest

from warpsmith.arch import Capability, parse
from warpsmith.catalog import CATALOG
from warpsmith.catalog.fp4_gemm import PAIRS as BLOCK_SCALED
from warpsmith.catalog.gemm import PAIRS, WHOLE_SCALED
from warpsmith.catalog.gemm_stream import PAIRS as STREAMED
from warpsmith.catalog.resolve import DeviceFacts, resolve
from warpsmith.catalog.spec import CubinId, Problem
from warpsmith.evidence import device, gemm_launches
from warpsmith.evidence.gemm import GemmCase, Product, all_gemm_cases, compare, emulated_cases, gemm_cases, stream_cases
from warpsmith.evidence.gemm_launches import run_gemm

FACTS = DeviceFacts(Capability(9, 0), 132)
PORTABLE = DeviceFacts(Capability(8, 0), 132)
Launch = Callable[[str, tuple[int, int, int], tuple[Any, ...]], None]


class HostBuffer:
    """A `DeviceBuffer` on the host."""

    def __init__(self, driver: object, number: int, nbytes: int) -> None:
        assert driver is None
        assert number == 0
        self._memory = np.zeros(nbytes + 256, np.uint8)
        skip = -self._memory.ctypes.data % 256
        self._view = self._memory[skip : skip + nbytes]
        self.pointer = self._view.ctypes.data

    def write(self, data: Any) -> None:
        self._view[:] = data

    def read(self) -> bytes:
        return self._view.tobytes()

    def close(self) -> None:
        self._view = self._memory[:0]


class HostBench:
    """A bench whose kernels are those of the emulator, or a broken one."""

    catalog, device, driver = CATALOG, 0, None
    stream = SimpleNamespace(handle=0, synchronize=lambda: None)

    def __init__(self, variants: tuple[str, ...], launch: Launch, row: str) -> None:
        self.variants, self._launch, self._row = variants, launch, row

    def kernels(self, problem: Problem) -> dict[str, Any]:
        def kernel(variant: str) -> Any:
            def launch(grid: tuple[int, int, int], args: tuple[Any, ...], stream: int) -> None:
                assert stream == 0
                self._launch(variant, grid, args)

            return SimpleNamespace(cubin=CubinId(self._row, variant, parse("sm_90a")), launch=launch)

        facts = PORTABLE if self._row == "sm80_gemm" else FACTS
        choice = resolve(CATALOG, problem, facts).choice
        assert choice is not None
        assert choice.kernel == self._row
        return {variant: kernel(variant) for variant in self.variants}


@pytest.fixture(autouse=True)
def host_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DeviceBuffer", HostBuffer)
    monkeypatch.setattr(gemm_launches, "device_facts", lambda *_: FACTS)
    monkeypatch.setattr(gemm_launches, "encode", gemm_emulator.encode)


def run(
    case: GemmCase, launch: Launch = gemm_emulator.launch, tile: str = "rows16", row: str = "sm80_gemm"
) -> Iterator[tuple[str, float]]:
    pair = WHOLE_SCALED[0] if (case.a, case.b) in WHOLE_SCALED else (case.a, case.b)
    bench: Any = HostBench((f"{pair[0]}_x_{pair[1]}_{tile}",), launch, row)
    for _, mismatch, error in run_gemm(bench, case, np.random.default_rng(7)):
        yield mismatch, error


def served_by(case: GemmCase) -> str:
    fields = {"format": case.format, "mode": case.mode, "layout": case.layout, "path": case.path}
    dims = {"m": case.size.rows, "n": case.n, "k": case.k, "batches": case.batches}
    choice = resolve(CATALOG, Problem.of("gemm", fields, dims), FACTS).choice
    assert choice is not None
    return choice.kernel


def small(case: GemmCase) -> bool:
    return case.m * case.n * case.k * case.batches < 4e7 and case.batches < 10


@pytest.mark.parametrize(("a", "b"), PAIRS, ids=lambda f: f)
def test_a_right_kernel_passes_every_case(a: str, b: str) -> None:
    ran = [case for case in gemm_cases(a, b) if small(case)]
    assert len(ran) >= 14
    for case in ran:
        for mismatch, error in run(case):
            assert mismatch == "", case
            assert error <= 3e-3


@pytest.mark.parametrize(("a", "b"), STREAMED, ids=lambda f: f)
def test_the_kernel_for_few_rows_is_given_what_it_needs(a: str, b: str) -> None:
    ran = [case for case in (*gemm_cases(a, b), *stream_cases(a, b)) if small(case)]
    kernels = [served_by(case) for case in ran]
    assert kernels.count("sm90_stream_gemm") >= 8
    assert kernels.count("sm90_stream_pair_gemm") >= 1
    for case, kernel in zip(ran, kernels, strict=True):
        if "stream" in kernel:
            assert [mismatch for mismatch, _ in run(case, tile="stream", row=kernel)] == [""], case


@pytest.mark.parametrize(("a", "b"), BLOCK_SCALED, ids=lambda f: f)
def test_a_right_kernel_that_takes_maps_passes_every_case(a: str, b: str) -> None:
    ran = [case for case in emulated_cases(a, b) if small(case)]
    assert len(ran) >= 14
    for case in ran:
        for mismatch, error in run(case, gemm_emulator.launch_maps, "s16", gemm_emulator.MAP_KERNEL.name):
            assert mismatch == "", case
            assert error <= 3e-3


def changed(**changes: Callable[[Any], Any]) -> Launch:
    """The emulator with some of its arguments changed first."""

    def launch(variant: str, grid: tuple[int, int, int], values: tuple[Any, ...]) -> None:
        given = dict(zip(gemm_emulator.NAMES, values, strict=True))
        gemm_emulator.launch(variant, grid, tuple(changes.get(n, lambda v: v)(v) for n, v in given.items()))

    return launch


def leaves_arrivals(variant: str, grid: tuple[int, int, int], values: tuple[Any, ...]) -> None:
    gemm_emulator.launch(variant, grid, values)
    gemm_emulator.memory(dict(zip(gemm_emulator.NAMES, values, strict=True))["arrivals"], 1, np.uint32)[0] = 1


CASE = GemmCase("bf16", "nvfp4", 5, 24, 512, batches=2, scale_each=True, splits=2, padding=16, bias="fp32")
GROUPED = GemmCase("bf16", "mxfp8", 12, 24, 96, mode="grouped", batches=3, rows=(4, 0, 5))
WRONG = {
    "nothing": (CASE, lambda *_: None, "error"),
    "a row short": (CASE, changed(m=lambda m: m - 1), "error"),
    "another batch's B": (CASE, changed(b_batch=lambda _: 0), "error"),
    "no scale of its own": (CASE, changed(flags=lambda f: f & ~(1 << 10)), "error"),
    "no bias": (CASE, changed(flags=lambda f: f & ~(3 << 4)), "error"),
    "a wider row": (CASE, changed(n=lambda n: n + 4), "wrote between rows"),
    "arrivals": (CASE, leaves_arrivals, "arrivals are not 0 again"),
    "rows of no group": (GROUPED, changed(flags=lambda f: f & ~3, batches=lambda _: 1), "belong to nothing"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_is_seen(name: str) -> None:
    case, launch, says = WRONG[name]
    assert any(says in mismatch for mismatch, _ in run(case, launch))  # type: ignore[arg-type]


def test_nan_is_seen_where_it_should_not_be_and_where_it_is_missing() -> None:
    case = replace(CASE, batches=1)
    want, written = np.ones((1, 2, 8)), np.ones((1, 2), bool)
    bad = want.copy()
    bad[0, 1, 3] = np.nan
    assert compare(case, bad, want, want, written)[0].startswith("NaN at 1 places")
    assert compare(case, want, bad, bad, written)[0].startswith("NaN at 1 places")
    assert compare(case, bad, bad, bad, written) == ("", 0.0)
    assert compare(case, want * (1 + 3e-6), want, want, written)[0] != ""
    assert compare(case, want, want * 0, want * 0, written)[0] != ""


def test_cancelling_operands_cancel() -> None:
    case = GemmCase("bf16", "bf16", 3, 8, 64, kind="cancelling")
    product = Product(case, np.random.default_rng(1))
    want, measure = product.expected()
    assert np.abs(want).max() < 1e-9 * np.abs(measure).max()
    memory = product.b.memory[..., :128].view(gemm_emulator.TYPES[0]).astype(np.float64)
    assert np.array_equal(memory, product.b.values)


def test_every_variant_is_run() -> None:
    pairs = {(case.a, case.b) for case in all_gemm_cases()}
    assert pairs == set(PAIRS)
    modes = {(case.mode, case.out) for case in all_gemm_cases()}
    assert modes >= {("dense", out) for out in ("bf16", "fp16", "fp32")} | {("grouped", "fp32"), ("masked", "bf16")}


def test_a_forced_tile_is_forced_where_it_exists_and_nowhere_else() -> None:
    forced = replace(CATALOG, tuning=device._forcing(CATALOG, "rows8"))
    for format, tile in (("bf16_x_nvfp4", "rows8"), ("fp16_x_nvfp4", "large")):
        problem = CATALOG.operation("gemm").problem({"format": format, "m": 4096})
        choice = resolve(forced, problem, PORTABLE).choice
        assert choice is not None
        assert choice.variant == f"{format}_{tile}"


def test_splits_are_bounded_by_the_tiles_of_k() -> None:
    case = replace(CASE, splits=3, k=512)
    product = Product(case, np.random.default_rng(1))
    kernel = CATALOG.kernel("sm80_gemm")
    assert gemm_launches.plan(case, product, kernel, "bf16_x_nvfp4_rows8", 132).grid[1] == 1


def test_a_kernel_may_have_sums_of_fewer_bits_than_fp32() -> None:
    case = GemmCase("fp8_block", "fp8_block_128x128", 4, 8, 128)
    want = np.ones((1, 4, 8))
    got, written = (want * 1.0005).astype(np.float32), np.ones((1, 4), bool)
    assert "exceeds" in compare(case, got, want, want, written)[0]
    assert compare(case, got, want, want, written, 1e-3)[0] == ""
    assert "exceeds" in compare(case, (want * 1.002).astype(np.float32), want, want, written, 1e-3)[0]
