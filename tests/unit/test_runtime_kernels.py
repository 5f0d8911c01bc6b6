# SPDX-License-Identifier: Apache-2.0
"""Kernels are loaded once a device, by whichever thread is first; damage, captures and forks are met with an answer."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_samples import parts, sample_bundle, sources
from driver_fake import FakeApi, FakeDevice
from runtime_samples import FORBIDDEN, GB10, FakeJit, runtime
from synthetic import problem
from test_runtime_driver import in_child, needs_fork

from warpsmith.arch import parse
from warpsmith.bundle.reader import Bundle, open_bundle
from warpsmith.bundle.writer import write_bundle
from warpsmith.catalog.spec import CubinId
from warpsmith.errors import (
    BundleError,
    DigestError,
    MissingKernelError,
)

ARGS = (1, 2, 3, 4)


@pytest.fixture(autouse=True)
def _sources(monkeypatch: pytest.MonkeyPatch) -> None:
    sources(monkeypatch)


def damage(bundle: Bundle, *, missing: bool) -> None:
    """Flip a byte of each cubin, or remove it."""
    for file in (bundle.path / "cubins").iterdir():
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.unlink()
        if not missing:
            file.write_bytes(data)


@pytest.mark.parametrize(("missing", "error"), [(False, DigestError), (True, BundleError)])
def test_a_damaged_cubin_is_an_error_and_never_compiled_around(
    tmp_path: Path, missing: bool, error: type[BundleError]
) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("sm_121a"))
    damage(bundle, missing=missing)
    jit = FakeJit()
    run = runtime(bundle.path, jit=jit)
    with pytest.raises(error, match=str(bundle.path)):
        run.prepare(problem(), 0)
    with pytest.raises(error, match=str(bundle.path)):
        run.load([problem()], 0)
    assert jit.compiled == []


def test_a_kernel_is_loaded_once_a_device_and_launches(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("sm_121a"))
    api = FakeApi((FakeDevice(), FakeDevice()))
    run = runtime(bundle.path, api=api)
    first = run.prepare(problem(m=1), 0)
    assert run.prepare(problem(m=1), 0) is first
    assert run.prepare(problem(m=2), 0) is first  # another problem, the same cubin
    second = run.prepare(problem(m=1), 1)
    assert second is not first
    assert len(api.called("cuModuleLoadData")) == 2
    for kernel in (first, second):
        kernel.launch((1, 1, 1), ARGS, 0)
    assert [launch.device for launch in api.launches] == [0, 1]


def test_the_memory_of_problems_is_bounded(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("sm_121a"))
    api = FakeApi()
    run = runtime(bundle.path, api=api)
    for m in range(1, 5000):
        run.prepare(problem(m=m), 0)
    assert len(run._prepared) <= 4096
    assert len(api.called("cuModuleLoadData")) == 2  # a small tile and a large one


def test_threads_that_need_the_same_kernel_load_it_once(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("sm_121a"))
    api = FakeApi((FakeDevice(), FakeDevice()))
    run = runtime(bundle.path, api=api)
    problems = [problem(m, format=f) for m in (1, 65536) for f in ("f4", "f8")]
    barrier = threading.Barrier(8)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            barrier.wait()
            for step in range(8):
                kernel = run.prepare(problems[(number + step) % 4], step // 4)
                kernel.launch((1, 1, 1), ARGS, number)
        except BaseException as error:  # a thread's error would be lost
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(api.called("cuModuleLoadData")) == 8  # four kernels on two devices
    assert len(api.launches) == 64


def test_a_slow_compile_does_not_hold_up_other_kernels(tmp_path: Path) -> None:
    started, release = threading.Event(), threading.Event()

    class Slow(FakeJit):
        def compile(self, cubins: Sequence[CubinId]) -> Mapping[CubinId, bytes]:
            started.set()
            assert release.wait(10)
            return super().compile(cubins)

    bundle = sample_bundle(tmp_path / "b", parse("sm_120f"))
    api = FakeApi((FakeDevice((12, 0)), FakeDevice((9, 0))))
    run = runtime(bundle.path, jit=Slow(), api=api)
    thread = threading.Thread(target=run.prepare, args=(problem(), 1))
    thread.start()
    try:
        assert started.wait(10)
        run.prepare(problem(), 0).launch((1, 1, 1), ARGS, 0)
        assert thread.is_alive()
    finally:
        release.set()
        thread.join()
    assert len(api.launches) == 1


def test_load_brings_all_and_compiles_together() -> None:
    jit = FakeJit()
    api = FakeApi()
    run = runtime(jit=jit, api=api)
    problems = [problem(1), problem(65536), problem(2), problem(1)]
    kernels = run.load(problems, 0)
    assert [k.cubin.variant for k in kernels] == ["f4_bf16_small", "f4_bf16_large", "f4_bf16_small"]
    assert jit.compiled == [["scale_native/f4_bf16_small@sm_121a", "scale_native/f4_bf16_large@sm_121a"]]
    assert len(api.called("cuModuleLoadData")) == 2
    api.calls.clear()
    assert run.prepare(problem(2), 0) is kernels[0]
    assert run.load(problems, 0) == kernels
    assert (api.called("cuModuleLoadData"), len(jit.compiled)) == ([], 1)


def test_load_brings_nothing_if_anything_is_missing_and_says_everything(tmp_path: Path) -> None:
    manifest, cubins = parts(parse("sm_121a"))
    kept = tuple(c for c in manifest.cubins if "f8" not in c.variant)
    write_bundle(tmp_path / "b", replace(manifest, cubins=kept), {c.sha256: cubins[c.sha256] for c in kept})
    api = FakeApi()
    run = runtime(tmp_path / "b", jit=FakeJit(FORBIDDEN), api=api)
    with pytest.raises(MissingKernelError) as caught:
        run.load([problem(1), *(problem(m, format="f8") for m in (1, 2, 3, 65536))], 0)
    text = str(caught.value)
    assert text.startswith("no usable kernels for 4 problems on NVIDIA GB10")
    assert "  scale(format=f8, input=bf16, layout=linear, k=1024, m=1) and 2 more like it\n" in text
    for variant in ("f8_bf16_small", "f8_bf16_large"):
        assert f"scale_native/{variant}@sm_121a: {tmp_path / 'b'} does not have it" in text
    assert text.count("searched, in this order:") == 1
    assert api.called("cuModuleLoadData") == []


def test_a_kernel_can_be_compiled_and_loaded_while_a_stream_captures() -> None:
    api = FakeApi(capturing=True)
    runtime(jit=FakeJit(), api=api).prepare(problem(), 0).launch((1, 1, 1), ARGS, 0)
    assert len(api.launches) == 1


@needs_fork
def test_after_a_fork_nothing_can_be_prepared_or_launched_but_deciding_works(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("sm_121a"))
    run = runtime(bundle.path)
    kernel = run.prepare(problem(), 0)
    for action in (
        lambda: run.prepare(problem(), 0),
        lambda: run.load([problem()], 0),
        lambda: kernel.launch((1, 1, 1), ARGS, 0),
    ):
        assert in_child(action).startswith("DriverError: CUDA cannot be used in this process: it was forked")
    assert in_child(lambda: run.decide(problem(), GB10).choice) == "scale_native/f4_bf16_small@sm_121a"
    assert run.prepare(problem(), 0) is kernel


@needs_fork
def test_a_runtime_made_before_a_fork_serves_a_child_that_is_the_first_to_use_cuda(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("sm_121a"))
    run = runtime(bundle.path)
    assert in_child(lambda: run.prepare(problem(), 0).cubin) == "scale_native/f4_bf16_small@sm_121a"


def test_opening_bundles_writes_nothing(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("sm_121a"))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    runtime(open_bundle(bundle.path).path).prepare(problem(), 0)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
