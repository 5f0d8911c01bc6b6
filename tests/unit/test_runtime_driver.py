# SPDX-License-Identifier: Apache-2.0
"""The driver shell: errors that say what was tried, contexts put back, capture modes restored, forks noticed."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable

import pytest
from driver_fake import CUresult, CUstreamCaptureMode, FakeApi, FakeDevice

from warpsmith.errors import DriverError, InvalidArgumentError
from warpsmith.runtime.driver import Driver, default_driver, version_text

TWO = (FakeDevice(), FakeDevice())
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")


def in_child(action: Callable[[], object]) -> str:
    """What an action returns or raises in a forked process, as text."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that other threads run is part of some tests
        child = os.fork()
    if child == 0:
        signal.alarm(10)  # a child that hangs answers nothing
        try:
            text = str(action())
        except BaseException as error:  # the child must not get back into pytest
            text = f"{type(error).__name__}: {error}"
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


def test_importing_the_runtime_does_not_import_the_bindings() -> None:
    program = (
        "import sys, warpsmith.runtime.kernels, warpsmith.runtime.memory\n"
        "assert not {'cuda.bindings.driver', 'torch', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_failed_call_names_what_was_tried_and_the_drivers_words() -> None:
    driver = Driver(FakeApi(fail={"cuMemAlloc": CUresult.CUDA_ERROR_OUT_OF_MEMORY}))
    with pytest.raises(DriverError) as caught:
        driver.call("cuMemAlloc", 16, tried="allocate 16 bytes")
    assert str(caught.value) == (
        "cuMemAlloc, to allocate 16 bytes: CUDA_ERROR_OUT_OF_MEMORY (cuda error out of memory); "
        "free GPU memory, or use a smaller problem"
    )


def test_an_error_without_a_name_is_given_by_its_number() -> None:
    class Nameless(FakeApi):
        def cuGetErrorName(self, error: CUresult) -> tuple[CUresult, bytes]:  # noqa: ARG002
            return CUresult.CUDA_ERROR_INVALID_VALUE, b""

    with pytest.raises(DriverError, match=r"to allocate: CUDA error 500 \(cuda error not found\)"):
        Driver(Nameless(fail={"cuMemAlloc": CUresult.CUDA_ERROR_NOT_FOUND})).call("cuMemAlloc", 1, tried="allocate")


def test_no_gpu_is_an_error_that_says_where_to_look() -> None:
    driver = Driver(FakeApi(fail={"cuInit": CUresult.CUDA_ERROR_NO_DEVICE}))
    with pytest.raises(DriverError, match=r"initialise the CUDA driver: CUDA_ERROR_NO_DEVICE .*CUDA_VISIBLE_DEVICES"):
        driver.device(0)


def test_without_bindings_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(DriverError, match=r"pip install 'cuda-bindings>=12.9.4,<14'"):
        Driver().initialise()


def test_without_libcuda_the_error_says_so() -> None:
    class Absent(FakeApi):
        def cuInit(self, Flags: int) -> tuple[CUresult]:  # noqa: ARG002
            raise RuntimeError("Failed to dlopen libcuda.so.1")

    with pytest.raises(DriverError, match=r"cuInit: .* \(Failed to dlopen libcuda.so.1\); install the NVIDIA driver"):
        Driver(Absent()).initialise()


def test_the_driver_is_initialised_once() -> None:
    api = FakeApi()
    driver = Driver(api)
    for _ in range(3):
        assert driver.device_count() == 1
    assert api.called("cuInit") == [(0,)]


@pytest.mark.parametrize("index", [-1, 2, 7])
def test_a_device_that_is_not_there_is_named(index: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"there is no CUDA device {index}; this process sees 2 devices"):
        Driver(FakeApi(TWO)).device(index)


def test_a_context_is_retained_once_by_all_threads() -> None:
    api = FakeApi(TWO)
    driver = Driver(api)
    threads = [threading.Thread(target=driver.context, args=(1,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert api.called("cuDevicePrimaryCtxRetain") == [(1,)]


def test_the_callers_context_is_put_back_even_after_an_error() -> None:
    api = FakeApi(TWO)
    driver = Driver(api)
    api.cuCtxSetCurrent(1)
    with pytest.raises(ValueError, match="in the block"), driver.current(1):  # noqa: PT012
        assert api.cuCtxGetCurrent()[1] == 2
        raise ValueError("in the block")
    assert api.cuCtxGetCurrent()[1] == 1
    pushes = len(api.called("cuCtxPushCurrent"))
    with driver.current(0):
        assert api.cuCtxGetCurrent()[1] == 1
    assert len(api.called("cuCtxPushCurrent")) == pushes  # it was current already


def test_the_capture_mode_is_relaxed_within_and_restored_after() -> None:
    api = FakeApi()
    api.cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    with pytest.raises(ValueError, match="in the block"), Driver(api).capture_tolerant():  # noqa: PT012
        assert api.mode() == CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        raise ValueError("in the block")
    assert api.mode() == CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


@needs_fork
def test_after_a_fork_the_child_is_told_and_the_parent_goes_on() -> None:
    driver = Driver(FakeApi())
    driver.context(0)
    for action in (driver.version, driver.device_count, lambda: driver.context(0), driver.check_process):
        answer = in_child(action)
        assert answer.startswith("DriverError: CUDA cannot be used in this process: it was forked")
        assert "spawn" in answer
    assert driver.context(0) == 1


@needs_fork
def test_a_fork_before_the_first_use_does_no_harm() -> None:
    driver = Driver(FakeApi())
    assert in_child(lambda: driver.context(0)) == "1"


@needs_fork
def test_a_child_does_not_wait_for_a_lock_that_the_parent_held() -> None:
    driver = Driver(FakeApi())
    release, held = threading.Event(), threading.Event()

    def hold() -> None:
        with driver._lock:
            held.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    try:
        assert in_child(lambda: driver.context(0)) == "1"
    finally:
        release.set()
        thread.join()


def test_versions_read_as_people_write_them() -> None:
    assert [version_text(v) for v in (12080, 13000, 13050)] == ["CUDA 12.8", "CUDA 13.0", "CUDA 13.5"]
    assert default_driver() is default_driver()


def test_the_fake_has_the_bindings_own_functions_and_arguments() -> None:
    bindings = pytest.importorskip("cuda.bindings.driver")
    names = [name for name in dir(FakeApi) if name.startswith("cu")]
    assert len(names) > 30
    for name in names:
        real = list(inspect.signature(getattr(bindings, name)).parameters)
        assert list(inspect.signature(getattr(FakeApi(), name)).parameters) == real, name


@pytest.mark.parametrize("name", [n for n in vars(FakeApi()) if n.startswith("CU")])
def test_the_fakes_constants_are_the_bindings_own(name: str) -> None:
    bindings = pytest.importorskip("cuda.bindings.driver")
    for member in getattr(getattr(FakeApi(), name), "__members__", ()):
        assert int(getattr(getattr(bindings, name), member)) == int(getattr(getattr(FakeApi(), name), member)), member
