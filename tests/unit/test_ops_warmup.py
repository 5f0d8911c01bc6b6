# SPDX-License-Identifier: Apache-2.0
"""`ws.warmup`: exactly what a models file's sizes reach on each device, all or nothing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundle_samples import parts
from driver_fake import FakeApi, FakeDevice

import warpsmith as ws
from warpsmith.arch import parse
from warpsmith.bundle.writer import write_bundle
from warpsmith.catalog import CATALOG
from warpsmith.catalog.shapes import read_models
from warpsmith.catalog.spec import Problem
from warpsmith.errors import InvalidArgumentError, MissingKernelError
from warpsmith.ops import state
from warpsmith.runtime.driver import Driver
from warpsmith.runtime.kernels import Runtime
from warpsmith.settings import Settings

H200 = FakeDevice((9, 0), 132, "NVIDIA H200")
SLICE = FakeDevice((9, 0), 16, "a slice of an H200")
GB10 = FakeDevice((12, 1), 48, "NVIDIA GB10")
EXAMPLE = Path(__file__).parents[2] / "examples" / "models.json"
Use = Callable[..., FakeApi]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of every kernel for sm_90a, with cubins that only look right."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "whole", *parts(parse("sm_90a"), catalog=CATALOG))


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    def use(*bundle_path: Path, devices: tuple[FakeDevice, ...] = (H200,)) -> FakeApi:
        driver = FakeApi(devices)
        made = Runtime(Settings(bundle_path=bundle_path, jit=False), CATALOG, Driver(driver), installed=lambda: ())
        monkeypatch.setattr(state, "_runtime", made)
        return driver

    return use


def models(folder: Path, operation: str, fields: dict[str, Any], **dims: Any) -> Path:
    path = folder / "models.json"
    asked = {"operation": operation, "fields": fields, "dims": dims}
    path.write_text(json.dumps({"schema": 1, "models": [{"name": "m", "operations": [asked]}]}))
    return path


def loaded(api: FakeApi) -> int:
    return len(api.called("cuModuleLoadData"))


def test_a_models_file_brings_what_its_sizes_reach_and_no_request_finds_anything_missing(use: Use, whole: Path) -> None:
    api = use(whole)
    count = ws.warmup(EXAMPLE)
    assert count == loaded(api) == 8
    assert ws.warmup(str(EXAMPLE)) == count
    run = state.runtime()
    for model in read_models(EXAMPLE.read_bytes(), CATALOG):
        for shapes in model.shapes:
            for fields in shapes.combinations(CATALOG.operation(shapes.operation)):
                for sizes in itertools.product(*({low, (low + high) // 2, high} for _, low, high in shapes.dims)):
                    dims = {name: size for (name, _, _), size in zip(shapes.dims, sizes, strict=True)}
                    run.prepare(Problem.of(shapes.operation, fields, dims), 0)
    assert loaded(api) == count


def test_only_what_the_device_at_hand_picks_is_loaded(use: Use, whole: Path, tmp_path: Path) -> None:
    fields = {"format": "mxfp4", "input": "bf16", "layout": "linear"}
    file = models(tmp_path, "quantize", fields, m=1024, k=2048)  # few bytes for 132 multiprocessors, many for 16
    api = use(whole, devices=(H200, SLICE))
    assert ws.warmup(file, device=0) == 1
    assert ws.warmup(file, device="cuda:1") == 1
    picked = {(index, cubin.variant) for index, cubin in state.runtime()._kernels}
    assert picked == {(0, "mxfp4_bf16_p1"), (1, "mxfp4_bf16_p4")}
    assert {context for (context,) in api.called("cuModuleLoadData")} == {1, 2}


def test_the_default_global_scale_comes_along(use: Use, whole: Path, tmp_path: Path) -> None:
    fields = {"format": "nvfp4", "input": "bf16", "layout": "128x4"}
    use(whole)
    assert ws.warmup(models(tmp_path, "quantize", fields, m=1, k=4096)) == 3
    kernels = {cubin.kernel for _, cubin in state.runtime()._kernels}
    assert kernels == {"quantize", "amax_partial", "global_scale"}
    use(whole)
    assert ws.warmup(Problem.of("quantize", fields, {"m": 1, "k": 4096})) == 3


def test_problems_are_decided_on_once(use: Use, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = use(whole, devices=(H200, H200))
    problem = CATALOG.operation("gemm").problem({"format": "bf16_x_nvfp4", "m": 8})
    assert ws.warmup([problem, "dequantize"], device=[0, 1, 0]) == 2 * (1 + 12)
    run = state.runtime()
    monkeypatch.setattr(run, "locate", lambda *_: pytest.fail("it was searched for again"))
    api.capturing = True
    assert run.prepare(problem, 1).cubin.kernel == "sm90_stream_gemm"


def test_nothing_is_loaded_where_anything_is_missing_on_any_device(use: Use, tmp_path: Path) -> None:
    manifest, cubins = parts(parse("sm_90a"), catalog=CATALOG)
    kept = tuple(entry for entry in manifest.cubins if entry.kernel != "silu_and_mul_quantize")
    hashes = {entry.sha256 for entry in kept}
    write_bundle(tmp_path / "b", replace(manifest, cubins=kept), {h: d for h, d in cubins.items() if h in hashes})
    api = use(tmp_path / "b", devices=(H200, GB10))
    with pytest.raises(MissingKernelError) as caught:
        ws.warmup(EXAMPLE, device=[0, 1])
    text = str(caught.value)
    assert "silu_and_mul_quantize/fp8_block_bf16_p1@sm_90a" in text
    assert "silu_and_mul_quantize/fp8_block_bf16_p4@sm_90a" in text
    assert "quantize/mxfp8_bf16_p1@sm_121a: compiling is forbidden" in text
    assert "no usable kernels for" in text.split("\n\n")[1]
    assert loaded(api) == 0
    assert ws.warmup("dequantize") == 12


def test_what_a_device_does_not_support_is_a_reason(use: Use, whole: Path, tmp_path: Path) -> None:
    reason = "does not multiply"
    promises = tuple(
        p._replace(kernel=None, reason=reason) if (p.operation, p.format) == ("gemm", "bf16_x_bf16") else p
        for p in CATALOG.promises
    )
    api = use(whole)
    object.__setattr__(state.runtime(), "catalog", replace(CATALOG, promises=promises))
    file = models(tmp_path, "gemm", {"format": ["bf16_x_bf16", "fp16_x_fp16"]}, m=1, n=64, k=64, batches=1)
    with pytest.raises(MissingKernelError, match=f"unsupported: {reason}"):
        ws.warmup(file)
    assert loaded(api) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the models file .*models.json: No such file"),
        ("{", "the models file is not JSON"),
        ('{"schema": 1, "models": [{"name": "m", "operations": [{"operation": "add"}]}]}', "unknown operation 'add'"),
    ],
)
def test_a_file_that_is_none_is_refused(use: Use, whole: Path, tmp_path: Path, text: str | None, message: str) -> None:
    use(whole)
    file = tmp_path / "models.json"
    if text is not None:
        file.write_text(text)
    for given in (file, str(file)):
        with pytest.raises(InvalidArgumentError, match=message):
            ws.warmup(given)


@pytest.mark.parametrize("device", ["cpu", [0, "cpu"], (None,)])
def test_what_is_no_cuda_device(use: Use, whole: Path, device: Any) -> None:
    api = use(whole)
    with pytest.raises(InvalidArgumentError, match="is not a CUDA device"):
        ws.warmup("dequantize", device=device)
    assert loaded(api) == 0
