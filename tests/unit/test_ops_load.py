# SPDX-License-Identifier: Apache-2.0
"""`ws.load`: what it brings, what it refuses, and every way in which kernels can be missing, as a user meets them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundle_samples import parts
from driver_fake import FakeApi, FakeDevice
from ops_samples import needs_torch

import warpsmith as ws
from warpsmith.arch import parse
from warpsmith.bundle.writer import write_bundle
from warpsmith.catalog import CATALOG
from warpsmith.catalog.spec import Problem
from warpsmith.compiler import toolchain
from warpsmith.compiler.worker import check_version
from warpsmith.errors import InvalidArgumentError, MissingKernelError
from warpsmith.ops import state
from warpsmith.ops.loading import device_number
from warpsmith.runtime.driver import Driver
from warpsmith.runtime.kernels import Runtime
from warpsmith.settings import Settings

H200 = FakeDevice((9, 0), 132, "NVIDIA H200")
Use = Callable[..., FakeApi]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of every kernel for sm_90a, with cubins that only look right."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "whole", *parts(parse("sm_90a"), catalog=CATALOG))


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Have the operations use a runtime with these settings, on devices that do not exist."""

    def use(*bundle_path: Path, jit: bool = False, devices: tuple[FakeDevice, ...] = (H200,), **api: Any) -> FakeApi:
        driver = FakeApi(devices, **api)
        made = Runtime(Settings(bundle_path=bundle_path, jit=jit), CATALOG, Driver(driver), installed=lambda: ())
        monkeypatch.setattr(state, "_runtime", made)
        return driver

    return use


@pytest.fixture
def fresh_toolchain() -> Iterator[None]:
    """Look for the toolchain anew, in the test and after it."""
    toolchain.find_toolchain.cache_clear()
    yield
    toolchain.find_toolchain.cache_clear()


@pytest.mark.parametrize(
    ("ops", "count"),
    [
        ("dequantize", 12),
        (["dequantize"], 12),
        ("quantize", 24 + 3 + 6 + 3 + 3 + 1),
        (["quantize", "dequantize"], 40 + 12),
        ({"quantize": {"format": "fp8_tensor", "input": "bf16"}}, 1 + 1),
        ({"quantize": {"format": "nvfp4"}}, 6 + 3 + 1),
        ({"quantize": {"format": "nvfp4", "input": "bf16"}}, 2 + 1 + 1),
        ({"quantize": {"format": "mxfp4", "input": "bf16"}}, 2),
        ({"quantize": {"format": "fp8_block_128x128"}}, 3),
        ({"quantize": {"layout": "m_major"}}, 6),
        ({"quantize": {"layout": "128x4", "input": "fp16"}, "dequantize": {"output": "fp16"}}, 6 + 1 + 1 + 4),
        ({"silu_and_mul_quantize": {}}, 24),
        ("global_scale", 3 + 1),
        ("amax_partial", 3),
        (Problem.of("dequantize", {"format": "mxfp4", "output": "bf16", "layout": "linear"}, {"m": 1, "k": 32}), 1),
        ((), 0),
    ],
    ids=str,
)
def test_everything_that_can_be_reached_is_loaded(use: Use, whole: Path, ops: Any, count: int) -> None:
    api = use(whole)
    assert ws.load(ops) == count
    assert len(api.called("cuModuleLoadData")) == count
    assert ws.load(ops) == count
    assert len(api.called("cuModuleLoadData")) == count


@pytest.mark.parametrize("device", [1, "cuda:1"])
def test_kernels_are_loaded_on_the_device_that_is_named(use: Use, whole: Path, device: Any) -> None:
    api = use(whole, devices=(H200, H200))
    ws.load("global_scale", device=device)
    assert {context for (context,) in api.called("cuModuleLoadData")} == {2}


def test_devices_are_named_as_in_torch() -> None:
    assert [device_number(d) for d in (0, 3, "cuda", "cuda:0", "cuda:12")] == [0, 3, 0, 0, 12]


@needs_torch
def test_torchs_own_devices_are_taken() -> None:
    import torch

    assert [device_number(torch.device(d)) for d in ("cuda", "cuda:2")] == [0, 2]


@pytest.mark.parametrize(
    "device", ["cpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1.0", "cuda:²", "CUDA", -1, True, None, 1.0]
)
def test_what_is_no_cuda_device(use: Use, whole: Path, device: Any) -> None:
    use(whole)
    with pytest.raises(InvalidArgumentError, match="is not a CUDA device; expected a number, 'cuda' or 'cuda:1'") as it:
        ws.load("quantize", device=device)
    assert repr(device) in str(it.value)


def test_a_device_that_is_not_there(use: Use, whole: Path) -> None:
    use(whole)
    with pytest.raises(InvalidArgumentError, match=r"there is no CUDA device 1; this process sees 1 device"):
        ws.load("quantize", device=1)


@pytest.mark.parametrize(
    ("ops", "text"),
    [
        ("quantise", "unknown operation 'quantise'; expected one of quantize, silu_and_mul_quantize, dequantize"),
        (["quantize", "multiply"], "unknown operation 'multiply'"),
        ([4], "unknown operation 4"),
        (4, "ops is a int; expected operation names, problems, or a mapping from name to fixed fields"),
        ({"quantize": {"format": "nvfp5"}}, "quantize: format='nvfp5' is unknown; expected one of nvfp4, mxfp4"),
        ({"quantize": {"output": "bf16"}}, "quantize: 'output' cannot be fixed; its fields are format, input, layout"),
        ({"quantize": {"m": 4}}, "quantize: 'm' cannot be fixed; its fields are format, input, layout"),
        ({"global_scale": {"input": "bf16"}}, "global_scale: 'input' cannot be fixed; its fields are none"),
        ({"quantize": "nvfp4"}, "quantize: the fixed fields are a str; expected a mapping from field to value"),
        (
            {"quantize": {"format": "nvfp4", "layout": "m_major"}},
            "quantize: format=nvfp4 with layout=m_major is not a valid combination",
        ),
    ],
    ids=str,
)
def test_what_does_not_exist_cannot_be_loaded(use: Use, whole: Path, ops: Any, text: str) -> None:
    api = use(whole)
    with pytest.raises(InvalidArgumentError) as caught:
        ws.load(ops)
    assert text in str(caught.value)
    assert api.called("cuModuleLoadData") == []


def missing(ops: Any = "global_scale") -> str:
    """The message of the `MissingKernelError` that loading raises."""
    with pytest.raises(MissingKernelError) as caught:
        ws.load(ops)
    return str(caught.value)


def test_nothing_is_loaded_where_anything_is_missing(use: Use, tmp_path: Path) -> None:
    manifest, cubins = parts(parse("sm_90a"), catalog=CATALOG)
    kept = tuple(entry for entry in manifest.cubins if entry.kernel != "dequantize")
    hashes = {entry.sha256 for entry in kept}
    write_bundle(tmp_path / "b", replace(manifest, cubins=kept), {h: d for h, d in cubins.items() if h in hashes})
    api = use(tmp_path / "b")
    text = missing(["quantize", "dequantize"])
    assert "dequantize/nvfp4_bf16@sm_90a" in text
    assert "dequantize/fp8_block_fp32@sm_90a" in text
    assert "amax_partial" not in text
    assert api.called("cuModuleLoadData") == []


def test_compiling_is_forbidden_and_there_is_no_bundle(use: Use) -> None:
    use()
    text = missing()
    assert "NVIDIA H200 (compute capability 9.0)" in text
    assert "global_scale/default@sm_90a: compiling is forbidden by WARPSMITH_JIT=forbid" in text
    assert "amax_partial/bf16@sm_90a" in text
    assert "1. WARPSMITH_BUNDLE_PATH: none" in text
    assert "`warpsmith build --arch 9.0 --out DIR`" in text


@pytest.mark.usefixtures("fresh_toolchain")
def test_nvrtc_is_not_installed(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_from_wheel", lambda *_: None)
    monkeypatch.setattr(toolchain, "_nvrtc_by_pathfinder", lambda: None)
    use(jit=True)
    text = missing()
    assert "compiling is not possible: NVRTC is not installed" in text
    assert "pip install 'warpsmith[build]'" in text


@pytest.mark.usefixtures("fresh_toolchain")
def test_nvrtc_is_version_12(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(nvrtc: Path, _: Path) -> str:
        check_version((12, 9), str(nvrtc))  # what the worker that loads it does
        return "12.9.86"

    monkeypatch.setattr(toolchain, "_find_nvrtc", lambda: Path("/wheel/libnvrtc.so.12"))
    monkeypatch.setattr(toolchain, "_find_nvdisasm", lambda: Path("/wheel/nvdisasm"))
    monkeypatch.setattr(toolchain, "_nvrtc_version", version)
    use(jit=True)
    text = missing()
    assert "compiling is not possible: /wheel/libnvrtc.so.12 is NVRTC 12.9; Warpsmith needs 13.0 or newer" in text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda document: {**document, "schema": 99}, "upgrade warpsmith"),
        (lambda document: {**document, "cubins": 3}, "cubins"),
    ],
    ids=["newer schema", "damaged"],
)
def test_the_bundle_cannot_be_opened(
    use: Use, whole: Path, tmp_path: Path, change: Callable[[Any], Any], text: str
) -> None:
    place = tmp_path / "b"
    shutil.copytree(whole, place)
    manifest = place / "manifest.json"
    manifest.write_text(json.dumps(change(json.loads(manifest.read_text()))))
    use(place)
    with pytest.warns(RuntimeWarning, match="a bundle cannot be used") as warned:
        message = missing()
    assert "1. WARPSMITH_BUNDLE_PATH: not usable: " in message
    for words in (message, str(warned[0].message)):
        assert str(place) in words
        assert text in words
    assert "compiling is forbidden by WARPSMITH_JIT=forbid" in message


def test_a_bundle_cut_short_is_damaged(use: Use, whole: Path, tmp_path: Path) -> None:
    place = tmp_path / "b"
    shutil.copytree(whole, place)
    manifest = place / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-100])
    use(place)
    with pytest.warns(RuntimeWarning, match="a bundle cannot be used"):
        assert f"not usable: {manifest}" in missing()


def test_the_driver_is_too_old(use: Use, whole: Path) -> None:
    use(whole, driver=12080)
    text = missing()
    assert f"{whole} needs a driver for CUDA 13.0 (R580) or newer; this one is for CUDA 12.8" in text
    assert "a driver of R580 or newer" in text


def test_the_environment_is_read_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_runtime", None)
    monkeypatch.setenv("WARPSMITH_JIT", "sometimes")
    with pytest.raises(InvalidArgumentError, match="WARPSMITH_JIT='sometimes' is unknown; expected 'allow'"):
        ws.load("quantize")
    monkeypatch.setenv("WARPSMITH_JIT", "forbid")
    first = state.runtime()
    monkeypatch.setenv("WARPSMITH_JIT", "sometimes")
    assert state.runtime() is first


def test_all_threads_share_one_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: Any) -> object:
        time.sleep(0.05)  # long enough for a race to be lost
        return object()

    monkeypatch.setattr(state, "_runtime", None)
    monkeypatch.setattr(state, "Runtime", slow)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: state.runtime(), range(8)))
    assert len(set(map(id, found))) == 1
