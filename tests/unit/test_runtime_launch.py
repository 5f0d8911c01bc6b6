# SPDX-License-Identifier: Apache-2.0
"""The launch: what the driver reads is what was given, from every thread, on every device; errors name the kernel."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from bundle_samples import FakeCubin
from driver_fake import CUresult, FakeApi, FakeDevice
from hypothesis import given
from hypothesis import strategies as st
from test_runtime_driver import in_child, needs_fork

from warpsmith.arch import Capability, parse
from warpsmith.bundle.elf import RECORD_MAGIC
from warpsmith.catalog.spec import CubinId, Kernel, Param
from warpsmith.errors import DriverError, InvalidArgumentError
from warpsmith.runtime.driver import Driver
from warpsmith.runtime.launch import PreparedKernel
from warpsmith.runtime.modules import load_kernel

GB10 = Capability(12, 1)
CUBIN = CubinId("k", "v", parse("sm_121a"))
PARAMS = (Param("x", "ptr"), Param("scale", "f32"), Param("n", "i64"), Param("shift", "i32"), Param("flags", "u32"))
ARGS = (0x7F00_0000_1000, 0.5, -3, -7, 0xFFFFFFFF)
BYTES = tuple(struct.pack(f"<{code}", value) for code, value in zip("QfqiI", ARGS, strict=True))
VALUES: dict[str, tuple[str, st.SearchStrategy[Any]]] = {
    "ptr": ("<Q", st.integers(0, 2**64 - 1)),
    "i64": ("<q", st.integers(-(2**63), 2**63 - 1)),
    "i32": ("<i", st.integers(-(2**31), 2**31 - 1)),
    "u32": ("<I", st.integers(0, 2**32 - 1)),
    "f32": ("<f", st.floats(width=32)),
    "tensormap": ("<128s", st.binary(min_size=128, max_size=128)),
}


def prepare(
    api: FakeApi,
    params: Sequence[Param] = PARAMS,
    *,
    device: int = 0,
    driver: Driver | None = None,
    flags: int = 0,
    shared: int = 4096,
) -> PreparedKernel:
    """A kernel with some parameters, loaded."""
    record = (RECORD_MAGIC, shared, 256, 3, flags, 0, 0, 0)
    data = FakeCubin(params=tuple(params), record=record).file()
    row = Kernel("k", "m", "o", "k.cuh", "ws_k", (GB10,), tuple(params), ())
    return load_kernel(driver or Driver(api), device, GB10, row, CUBIN, data, "a test")


def test_the_driver_sees_what_was_given() -> None:
    api = FakeApi()
    kernel = prepare(api)
    kernel.launch((5, 6, 7), ARGS, 0x55)
    (launch,) = api.launches
    assert (launch.kernel, launch.device) == ("ws_k", 0)
    assert (launch.grid, launch.block) == ((5, 6, 7), (256, 1, 1))
    assert (launch.shared, launch.stream, launch.overlaps) == (4096, 0x55, False)
    assert launch.args == BYTES
    assert (kernel.threads, kernel.shared_memory, kernel.stages, kernel.waits) == (256, 4096, 3, False)


@given(st.data())
def test_parameters_of_every_kind_and_order_arrive(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=24))
    args = tuple(data.draw(VALUES[kind][1]) for kind in kinds)
    api = FakeApi()
    kernel = prepare(api, [Param(f"p{i}", kind) for i, kind in enumerate(kinds)])
    for _ in range(2):
        kernel.launch((1, 1, 1), args, 0)
    want = tuple(struct.pack(VALUES[kind][0], value) for kind, value in zip(kinds, args, strict=True))
    assert [launch.args for launch in api.launches] == [want, want]


@pytest.mark.parametrize(("flags", "overlaps"), [(0, False), (1, True), (2, False), (3, True)])
def test_a_launch_overlaps_only_where_the_kernel_waits(flags: int, overlaps: bool) -> None:
    api = FakeApi()
    kernel = prepare(api, flags=flags)
    for stream in (0, 7):
        kernel.launch((1, 1, 1), ARGS, stream)
    assert [(launch.overlaps, launch.stream) for launch in api.launches] == [(overlaps, 0), (overlaps, 7)]


def test_a_thread_that_never_touched_cuda_can_launch_and_is_left_as_everyone_thinks_it_is() -> None:
    api = FakeApi((FakeDevice(), FakeDevice()))
    driver = Driver(api)
    kernels = [prepare(api, device=i, driver=driver) for i in (1, 0)]
    current = []

    def work() -> None:
        for kernel in kernels:
            kernel.launch((1, 1, 1), ARGS, 0)
            current.append(int(api.cuCtxGetCurrent()[1]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [launch.device for launch in api.launches] == [1, 0]
    # Without a context a thread is on device 0 for the CUDA runtime, and so for torch: making that one current is
    # nothing new to them, making device 1 current would be.
    assert current == [0, 1]


def test_the_callers_current_device_is_left_alone() -> None:
    api = FakeApi((FakeDevice(), FakeDevice()))
    driver = Driver(api)
    first, second = (prepare(api, device=i, driver=driver) for i in (0, 1))
    for mine in (1, 2):
        api.cuCtxSetCurrent(mine)
        first.launch((1, 1, 1), ARGS, 0)
        second.launch((1, 1, 1), ARGS, 0)
        assert api.cuCtxGetCurrent()[1] == mine
    assert [launch.device for launch in api.launches] == [0, 1, 0, 1]


def test_a_launch_is_one_driver_call_where_the_context_is_current() -> None:
    api = FakeApi()
    kernel = prepare(api)
    api.cuCtxSetCurrent(1)
    kernel.launch((1, 1, 1), ARGS, 0)
    api.calls.clear()
    kernel.launch((1, 1, 1), ARGS, 0)
    assert api.calls == []  # besides cuCtxGetCurrent and the launch itself, which are not listed


def test_threads_do_not_see_each_others_arguments() -> None:
    api = FakeApi(on_launch=lambda: time.sleep(0.0002))
    kernel = prepare(api)
    api.launches.clear()

    def work(number: int) -> None:
        for step in range(40):
            kernel.launch((number + 1, step + 1, 1), (number, 0.0, number, step, 0), number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [(number, step) for number in range(8) for step in range(40)]
    assert sorted((launch.stream, launch.grid[1] - 1) for launch in api.launches) == every
    for launch in api.launches:
        number, step = launch.stream, launch.grid[1] - 1
        assert launch.grid == (number + 1, step + 1, 1)
        want = [struct.pack(f"<{c}", v) for c, v in zip("QfqiI", (number, 0.0, number, step, 0), strict=True)]
        assert list(launch.args) == want


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (ARGS[:4], r"k/v@sm_121a takes 5 arguments \(x: ptr, .*flags: u32\), but 4 were given"),
        ((*ARGS, 1), "takes 5 arguments .* but 6 were given"),
        ((None, *ARGS[1:]), "argument 'x' must be a device address, but None was given"),
        ((-1, *ARGS[1:]), "argument 'x' must be a device address, but -1 was given"),
        ((1, "a", *ARGS[2:]), "argument 'scale' must be a number, but 'a' was given"),
        ((1, 1e300, *ARGS[2:]), r"argument 'scale' must be a number, but 1e\+300 was given"),
        ((1, 0.5, 2**63, 1, 1), "argument 'n' must be a whole number that fits 64 bits, but 9223372036854775808"),
        ((1, 0.5, 1, 2**31, 1), "argument 'shift' must be a whole number that fits 32 bits, but 2147483648"),
        ((1, 0.5, 1, 1, -1), "argument 'flags' must be a whole number from 0 to 4294967295, but -1"),
        ((1, 0.5, 1.5, 1, 1), "argument 'n' must be a whole number that fits 64 bits, but 1.5"),
    ],
)
def test_arguments_that_do_not_fit_are_named(args: tuple[Any, ...], message: str) -> None:
    api = FakeApi()
    with pytest.raises(InvalidArgumentError, match=message):
        prepare(api).launch((1, 1, 1), args, 0)
    assert api.launches == []


@pytest.mark.parametrize(
    ("grid", "stream"), [((1, 1), 0), ((1, 1, -1), 0), ((1, 1, 2**32), 0), ((1, 1, 1), None), (3, 0), ((1, 1, 1), -1)]
)
def test_a_grid_or_stream_that_is_none_is_refused(grid: Any, stream: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="grid must be three whole numbers below 2"):
        prepare(FakeApi()).launch(grid, ARGS, stream)


def test_a_refused_launch_says_what_was_launched_how() -> None:
    api = FakeApi()
    kernel = prepare(api, shared=2048)
    with pytest.raises(DriverError) as caught:
        kernel.launch((0, 2, 3), ARGS, 0x55)
    assert str(caught.value) == (
        "cuLaunchKernelEx, to launch k/v@sm_121a on device 0 with grid (0, 2, 3), block (256, 1, 1), "
        "2048 bytes of dynamic shared memory, stream 0x55: CUDA_ERROR_INVALID_VALUE (cuda error invalid value)"
    )
    kernel.launch((1, 2, 3), ARGS, 0)  # the thread's memory is as good as before


def test_the_error_of_an_earlier_kernel_is_explained() -> None:
    api = FakeApi()
    kernel = prepare(api)
    api.fail["cuLaunchKernelEx"] = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(
        DriverError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS .*a kernel launched earlier .*not necessarily this"
    ):
        kernel.launch((1, 1, 1), ARGS, 0)


@needs_fork
def test_a_forked_child_cannot_launch_what_its_parent_loaded() -> None:
    api = FakeApi()
    kernel = prepare(api)
    kernel.launch((1, 1, 1), ARGS, 0)
    answer = in_child(lambda: kernel.launch((1, 1, 1), ARGS, 0))
    assert answer.startswith("DriverError: CUDA cannot be used in this process: it was forked")
    kernel.launch((1, 1, 1), ARGS, 0)
    assert len(api.launches) == 2
