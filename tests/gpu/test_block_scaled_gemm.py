# SPDX-License-Identifier: Apache-2.0
"""`gemm` and `grouped_gemm` by the kernels of `fp4_gemm`: on 12.x as they are, on 9.0 with their MMA in software."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import warpsmith as ws
from warpsmith.catalog import CATALOG
from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.fp4_gemm import KERNELS, PAIRS
from warpsmith.catalog.gemm import EMULATED_PATH
from warpsmith.errors import InvalidArgumentError
from warpsmith.evidence.gemm import emulated_cases
from warpsmith.evidence.verify import verify
from warpsmith.runtime.device import device_facts
from warpsmith.runtime.driver import default_driver
from warpsmith.settings import Settings

from . import need_gpu

need_gpu()
torch = pytest.importorskip("torch")
if all(device_facts(0).capability not in k.capabilities for k in KERNELS):
    pytest.skip("the kernels are for 9.0, 12.0 and 12.1", allow_module_level=True)

DEVICE = "cuda:0"
LIMITS = {"bfloat16": 3e-3, "float16": 4e-4, "float32": 1.3e-5}
EVERY_PAIR = pytest.mark.parametrize(("a_format", "b_format"), PAIRS)


@pytest.fixture(autouse=True)
def kernel_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Have products take the emulated path; the kernels that they took."""
    from warpsmith.ops import cuda_gemm

    monkeypatch.setattr(cuda_gemm, "_plans", {})
    monkeypatch.setattr(cuda_gemm, "DEFAULT_PATH", EMULATED_PATH)
    used: set[str] = set()
    yield used
    planned = [plan.planned for plan in cuda_gemm._plans.values() if plan.planned is not None]
    used |= {one.kernel.cubin.kernel for one in planned}
    assert used <= {k.name for k in KERNELS}


def values(format: str, *shape: int, seed: int, offsets: Any = None) -> ws.QTensor:
    """A random operand on the host, with tiled scales."""
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))
    return ws.quantize(x, format, scale_layout=FORMATS[format].layouts[-1], offsets=offsets)


def weights(a_format: str, b_format: str, *shape: int, seed: int) -> ws.QTensor:
    return ws.prepare_weight(values(b_format, *shape, seed=seed), a_format)


def moved(x: Any) -> Any:
    """A copy on the GPU."""
    if not isinstance(x, ws.QTensor):
        return None if x is None else x.to(DEVICE)
    parts = {name: moved(getattr(x, name)) for name in ("global_scale", "offsets")}
    data, scales = x.data.to(DEVICE), x.scales.to(DEVICE)
    return ws.QTensor(data, scales, x.format, x.shape, scale_layout=x.scale_layout, packing=x.packing, **parts)


def assert_near(got: Any, want: Any) -> None:
    error = (got.double().cpu() - want.double()).norm() / want.double().norm()
    assert error <= LIMITS[str(got.dtype).removeprefix("torch.")]


@pytest.mark.parametrize("m", [1, 3, 16, 30, 50, 100, 700])
@EVERY_PAIR
def test_every_pair_and_small_tile(a_format: str, b_format: str, m: int) -> None:
    k = 1024 + 128
    a, b = values(a_format, m, k, seed=m), weights(a_format, b_format, 136, k, seed=2)
    bias = torch.randn(136)
    want = ws.gemm(a, b, bias=bias, out_dtype="float32")
    for dtype in LIMITS:
        assert_near(ws.gemm(moved(a), moved(b), bias=bias.to(DEVICE), out_dtype=dtype), want)


@EVERY_PAIR
def test_a_large_product(a_format: str, b_format: str) -> None:
    m, n, k = 8192, 4096, 256  # four waves of the largest tile on any device
    a, b = values(a_format, m, k, seed=1), weights(a_format, b_format, n, k, seed=2)
    left, right = (ws.dequantize(moved(x), torch.float32).double() for x in (a, b))
    got = ws.gemm(moved(a), moved(b), out_dtype="float32")
    error = (got.double() - left @ right.t()).norm() / got.double().norm()
    assert float(error) <= LIMITS["float32"]


@pytest.mark.parametrize("m", [1, 5, 128, 130])
@EVERY_PAIR
def test_batches(a_format: str, b_format: str, m: int) -> None:
    a = values(a_format, 2, 3, m, 384, seed=1)
    one = values(a_format, m, 384, seed=4)
    shared, own = (weights(a_format, b_format, *s, seed=len(s)) for s in ((72, 384), (2, 3, 72, 384)))
    bias = torch.randn(2, 3, 72)
    for x, y, z in ((a, shared, None), (a, shared, bias), (a, own, None), (one, own, bias)):
        want = ws.gemm(x, y, bias=z, out_dtype="float32")
        assert_near(ws.gemm(moved(x), moved(y), bias=moved(z), out_dtype="float32"), want)


def test_out_in_parts_of_a_tensor() -> None:
    a, b = values("nvfp4", 4, 5, 256, seed=1), values("nvfp4", 264, 256, seed=2)
    out = torch.full((4, 9, 300), 7.0, device=DEVICE)
    target = out[:, :5, :264]
    assert ws.gemm(moved(a), moved(b), out=target) is target
    assert_near(target, ws.gemm(a, b, out_dtype="float32"))
    assert (out[:, 5:] == 7).all()
    assert (out[..., 264:] == 7).all()


@pytest.mark.parametrize("wide", [torch.int32, torch.int64])
@EVERY_PAIR
def test_groups_and_masks(a_format: str, b_format: str, wide: Any) -> None:
    k = 384
    counts = torch.tensor([0, 1, 130, 0, 40], dtype=wide)
    offsets = torch.cat([torch.zeros(1, dtype=wide), counts.cumsum(0).to(wide)])
    b = weights(a_format, b_format, 5, 72, k, seed=2)
    bias = torch.randn(5, 72)
    a = values(a_format, 180, k, seed=1, offsets=offsets)
    out = torch.full((180, 72), 7.0, device=DEVICE)
    ws.grouped_gemm(moved(a), moved(b), bias=bias.to(DEVICE), out=out)
    assert_near(out[:171], ws.grouped_gemm(a, b, bias=bias, out_dtype="float32")[:171])
    assert (out[171:] == 7).all()
    a = values(a_format, 5, 130, k, seed=1)
    out = torch.zeros(5, 130, 72, device=DEVICE)
    ws.grouped_gemm(moved(a), moved(b), counts=counts.to(DEVICE), bias=bias.to(DEVICE), out=out)
    assert_near(out, ws.grouped_gemm(a, b, counts=counts, bias=bias, out_dtype="float32"))


@pytest.mark.parametrize("rows", [[0, 500, 600, 700], [5, 3, 9, -4], [-(2**40), 2**40, 7, 7], [0, 4, 4, 8]])
def test_wrong_offsets_on_the_device_cause_no_fault(rows: list[int]) -> None:
    a, b = moved(values("fp8_block", 64, 256, seed=1)), moved(values("fp8_block_128x128", 3, 64, 256, seed=2))
    memory = torch.full((3 * 64, 64), 7.0, device=DEVICE)
    ws.grouped_gemm(a, b, offsets=torch.tensor(rows, device=DEVICE), out=memory[64:128])
    torch.cuda.synchronize()
    assert (memory[:64] == 7).all()
    assert (memory[128:] == 7).all()
    plain = ws.dequantize(a, torch.float32)
    for group, (first, end) in enumerate(pairwise(min(max(r, 0), 64) for r in rows)):
        if end > first:
            right = ws.dequantize(b, torch.float32)[group]
            assert_near(memory[64 + first : 64 + end], (plain[first:end] @ right.t()).cpu())


def test_global_scales_divide_the_product() -> None:
    x, y = torch.randn(3, 40, 256), torch.randn(3, 72, 256)
    a = ws.quantize(x, "nvfp4", scale_layout="128x4", global_scale=3.0)
    each = torch.tensor([1.0, 7.0, 0.5])
    parts = [ws.quantize(w, "nvfp4", scale_layout="128x4", global_scale=float(s)) for w, s in zip(y, each, strict=True)]
    data, scales = (torch.stack([getattr(q, name) for q in parts]) for name in ("data", "scales"))
    b = ws.QTensor(data, scales, "nvfp4", (3, 72, 256), scale_layout="128x4", global_scale=each)
    assert_near(ws.gemm(moved(a), moved(b), out_dtype="float32"), ws.gemm(a, b, out_dtype="float32"))
    a = ws.QTensor(a.data, a.scales, "nvfp4", a.shape, scale_layout="128x4", global_scale=torch.zeros(1))
    assert bool(ws.gemm(moved(a), moved(b)).isnan().all())


def test_prepared_weights_stay_what_they_were() -> None:
    w = values("mxfp4", 3, 200, 320, seed=1)
    on_gpu = ws.prepare_weight(moved(w), "mxfp8", interleaved=True)
    on_host = ws.prepare_weight(w, "mxfp8", interleaved=True)
    assert on_gpu.packing == "mxfp8"
    for part in ("data", "scales"):
        assert torch.equal(getattr(on_gpu, part).cpu().view(torch.uint8), getattr(on_host, part).view(torch.uint8))
    rows = ws.dequantize(moved(w), torch.float32)
    assert torch.equal(ws.dequantize(on_gpu, torch.float32), torch.cat([rows[:, 0::2], rows[:, 1::2]], 1))


def split_operands(seed: int) -> tuple[Any, Any]:
    """Operands whose product is split along K."""
    return moved(values("nvfp4", 8, 8192, seed=seed)), moved(values("nvfp4", 256, 8192, seed=seed + 1))


def test_a_graph_and_streams_give_the_same_bits() -> None:
    from warpsmith.ops import cuda_gemm

    operands = [split_operands(seed) for seed in (1, 3)]
    wanted = [ws.gemm(a, b, out_dtype="float32") for a, b in operands]
    assert all(plan.planned.launch.arrivals for plan in cuda_gemm._plans.values())
    streams = [torch.cuda.Stream() for _ in operands]
    graphs = []
    for stream, (a, b) in zip(streams, operands, strict=True):
        stream.wait_stream(torch.cuda.current_stream())
        graph, out = torch.cuda.CUDAGraph(), torch.zeros(8, 256, device=DEVICE)
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(3):
                ws.gemm(a, b, out=out)
        graphs.append((graph, out))
    torch.cuda.synchronize()
    for _ in range(20):
        found = []
        for stream, (graph, out), (a, b) in zip(streams, graphs, operands, strict=True):
            with torch.cuda.stream(stream):
                out.fill_(float("nan"))
                graph.replay()
                found.append(ws.gemm(a, b, out_dtype="float32"))
        torch.cuda.synchronize()
        for want, got, (_, out) in zip(wanted, found, graphs, strict=True):
            assert torch.equal(got, want)
            assert torch.equal(out, want)
    assert all(int(words.abs().sum()) == 0 for words in cuda_gemm._arrivals.values())


def test_prepared_weights_are_refused_beside_others() -> None:
    b = moved(weights("mxfp8", "mxfp4", 64, 256, seed=1))
    linear = moved(ws.quantize(torch.randn(4, 256), "mxfp8"))
    for a, says in (
        (torch.randn(4, 256, device=DEVICE).bfloat16(), "prepared for mxfp8 activations, and a is bf16"),
        (moved(values("mxfp4", 4, 256, seed=2)), "prepared for mxfp8 activations, and a is mxfp4"),
        (linear, "beside prepared weights they have to be 128x4"),
    ):
        with pytest.raises(InvalidArgumentError, match=says):
            ws.gemm(a, b)


@EVERY_PAIR
def test_verify_finds_nothing_wrong(a_format: str, b_format: str) -> None:
    cases = list(emulated_cases(a_format, b_format))
    outcomes = verify(CATALOG, Settings.from_environment(), 0, default_driver(), seed=1, cases=cases)
    assert [m for o in outcomes for m in o.mismatches] == []
    assert all(0 < o.worst < 3e-3 for o in outcomes)
    assert {o.cubin.kernel for o in outcomes} <= {k.name for k in KERNELS}
    assert len(outcomes) == len([v for v in KERNELS[0].variants if v.name.startswith(f"{a_format}_x_{b_format}_")])
