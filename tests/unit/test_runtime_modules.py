# SPDX-License-Identifier: Apache-2.0
"""Loading: a cubin is held against the catalog first, and a capture elsewhere does not stop it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bundle_samples import FakeCubin
from driver_fake import CUresult, CUstreamCaptureMode, FakeApi, FakeDevice

from warpsmith.arch import Capability, parse
from warpsmith.bundle.elf import RECORD_MAGIC
from warpsmith.catalog.spec import CubinId, Kernel, Param
from warpsmith.errors import DriverError, ElfError, NotLoadedError
from warpsmith.runtime.driver import Driver
from warpsmith.runtime.launch import PreparedKernel
from warpsmith.runtime.modules import load_kernel

GB10 = Capability(12, 1)
PARAMS = (Param("x", "ptr"), Param("map", "tensormap"), Param("n", "i32"))
GOOD = FakeCubin(params=PARAMS)
ROW = Kernel("k", "m", "o", "k.cuh", "ws_k", (GB10,), PARAMS, ())


def load(api: FakeApi, fake: FakeCubin = GOOD, *, device: int = 0, capability: Capability = GB10) -> PreparedKernel:
    """Load a cubin under the name k/v@sm_121a."""
    cubin = CubinId("k", "v", parse("sm_121a"))
    return load_kernel(Driver(api), device, capability, ROW, cubin, fake.file(), "bundle B")


def test_shared_memory_is_raised_and_the_code_loaded_before_the_first_launch() -> None:
    api = FakeApi((FakeDevice(), FakeDevice()))
    kernel = load(api, device=1)
    assert kernel.device_index == 1
    assert api.called("cuModuleLoadData") == [(2,)]  # under device 1's context
    assert api.called("cuModuleGetFunction") == [(b"ws_k",)]
    assert api.called("cuFuncSetAttribute") == [(8, 4096)]
    assert len(api.called("cuFuncLoad")) == 1
    assert api.cuCtxGetCurrent()[1] == 0


def test_without_dynamic_shared_memory_nothing_is_raised() -> None:
    api = FakeApi()
    load(api, replace(GOOD, record=(RECORD_MAGIC, 0, 256, 0, 0, 0, 0, 0)))
    assert api.called("cuFuncSetAttribute") == []


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        (replace(GOOD, target="sm_120f"), "its target is sm_120f, but sm_121a, running on 12.1 was expected"),
        (replace(GOOD, entry="ws_other"), r"its list of kernels is \['ws_other'\], but \['ws_k'\]"),
        (replace(GOOD, twins=("ws_second",)), r"its list of kernels is \['ws_k', 'ws_second'\]"),
        (replace(GOOD, params=PARAMS[:2]), r"its parameter list \(offset, size\) is .* was expected"),
        (replace(GOOD, params=(*PARAMS[:2], Param("n", "i64"))), "its parameter list"),
        (replace(GOOD, record=None), "its record is None, but eight words that start with 0x57530001"),
        (replace(GOOD, record=(1, 0, 256, 0, 0, 0, 0, 0)), "its record is"),
    ],
    ids=["target", "entry", "two kernels", "fewer parameters", "a wider parameter", "no record", "another record"],
)
def test_a_cubin_that_is_not_what_the_catalog_says_is_never_loaded(fake: FakeCubin, message: str) -> None:
    api = FakeApi()
    with pytest.raises(ElfError, match=rf"k/v@sm_121a from bundle B is not loaded: {message}"):
        load(api, fake)
    assert api.calls == []


def test_a_cubin_for_another_device_is_never_loaded() -> None:
    api = FakeApi()
    with pytest.raises(ElfError, match=r"its target is sm_121a, but sm_121a, running on 12\.0 was expected"):
        load(api, capability=Capability(12, 0))
    assert api.calls == []


def test_bytes_that_are_no_cubin_are_named_with_their_origin() -> None:
    with pytest.raises(ElfError, match="k/v@sm_121a from bundle B: not an ELF file"):
        load_kernel(Driver(FakeApi()), 0, GB10, ROW, CubinId("k", "v", parse("sm_121a")), b"hello", "bundle B")


def test_loading_works_while_a_stream_captures() -> None:
    api = FakeApi(capturing=True)
    kernel = load(api)
    assert api.mode() == CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
    kernel.launch((1, 1, 1), (1, bytes(128), 2), 0)
    assert len(api.launches) == 1


def test_where_the_driver_still_refuses_the_error_says_to_load_earlier() -> None:
    api = FakeApi(capturing=True, refuse_relaxed=True)
    with pytest.raises(
        NotLoadedError, match=r"k/v@sm_121a cannot be loaded while a CUDA graph is .* ws\.load\(\.\.\.\)"
    ):
        load(api)
    assert api.mode() == CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
    assert api.cuCtxGetCurrent()[1] == 0


@pytest.mark.parametrize("name", ["cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute", "cuFuncLoad"])
def test_any_other_refusal_is_a_driver_error_that_names_the_cubin(name: str) -> None:
    api = FakeApi(fail={name: CUresult.CUDA_ERROR_INVALID_IMAGE})
    with pytest.raises(DriverError, match=f"{name}, to load k/v@sm_121a on device 0: CUDA_ERROR_INVALID_IMAGE"):
        load(api)
