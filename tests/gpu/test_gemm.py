# SPDX-License-Identifier: Apache-2.0
"""`gemm` and `grouped_gemm` on a GPU: the host's product within the tolerances, on streams and in graphs too."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import warpsmith as ws
from warpsmith.arch import default_target
from warpsmith.catalog import CATALOG
from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.gemm import PAIRS, k_multiple
from warpsmith.catalog.gemm_sm90 import FP8_TOLERANCE
from warpsmith.catalog.plan import plan
from warpsmith.errors import InvalidArgumentError
from warpsmith.evidence.gemm import gemm_cases
from warpsmith.evidence.verify import verify
from warpsmith.runtime.driver import default_driver
from warpsmith.settings import Settings

from . import need_gpu

need_gpu()
torch = pytest.importorskip("torch")

DEVICE = "cuda:0"
LIMITS = {"bfloat16": 3e-3, "float16": 4e-4, "float32": 1.3e-5}
EVERY_PAIR = pytest.mark.parametrize(("a_format", "b_format"), PAIRS)


def values(format: str, *shape: int, seed: int, **options: Any) -> Any:
    """A random operand on the host."""
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))
    if format in ("bf16", "fp16"):
        return x.bfloat16() if format == "bf16" else x.half()
    return ws.quantize(x, format, **options)


def moved(x: Any) -> Any:
    """An operand on the GPU."""
    if not isinstance(x, ws.QTensor):
        return None if x is None else x.to(DEVICE)
    parts = {name: moved(getattr(x, name)) for name in ("global_scale", "offsets")}
    return ws.QTensor(moved(x.data), moved(x.scales), x.format, x.shape, scale_layout=x.scale_layout, **parts)


def tiled(format: str) -> dict[str, str]:
    """The last scale layout of a format, as an option."""
    return {"scale_layout": FORMATS[format].layouts[-1]} if format in FORMATS else {}


def assert_near(got: Any, want: Any, limit: float | None = None, a_format: str = "") -> None:
    error = (got.double().cpu() - want.double()).norm() / want.double().norm()
    sums = FP8_TOLERANCE if a_format.startswith("fp8") else 0.0  # those of 9.0's tensor cores
    assert error <= (max(sums, LIMITS[str(got.dtype).removeprefix("torch.")]) if limit is None else limit)


@pytest.mark.parametrize("m", [1, 3, 16, 40, 300])
@EVERY_PAIR
def test_every_pair_and_tile(a_format: str, b_format: str, m: int) -> None:
    k = 2048 + k_multiple(a_format, b_format)
    a, b = values(a_format, m, k, seed=m, **tiled(a_format)), values(b_format, 136, k, seed=2, **tiled(b_format))
    bias = torch.randn(136)
    want = ws.gemm(a, b, bias=bias, out_dtype="float32")
    for dtype in LIMITS:
        got = ws.gemm(moved(a), moved(b), bias=bias.to(DEVICE), out_dtype=dtype)
        assert_near(got, want, a_format=a_format)


@pytest.mark.parametrize("layout", ["linear", "128x4"])
@pytest.mark.parametrize("m", [1, 5, 128])
def test_batches(m: int, layout: str) -> None:
    a = values("mxfp8", 2, 3, m, 256, seed=1, scale_layout=layout)
    shared = values("mxfp8", 72, 256, seed=2, scale_layout=layout)
    own = values("mxfp8", 2, 3, 72, 256, seed=3, scale_layout=layout)
    for b in (shared, own):
        assert_near(ws.gemm(moved(a), moved(b), out_dtype="float32"), ws.gemm(a, b, out_dtype="float32"))


def test_views_and_out() -> None:
    a = torch.randn(4, 9, 512).bfloat16()
    b = torch.randn(512, 264).bfloat16()
    out = torch.full((4, 9, 300), 7.0, device=DEVICE)
    on_device = a.to(DEVICE), b.to(DEVICE)
    for start in (0, 3):  # in place, and off the alignment of 16 bytes
        (left, right), (x, y) = (
            (first[:, :5, start : start + 256], second.t()[:, start : start + 256])
            for first, second in ((a, b), on_device)
        )
        target = out[:, :5, :264]
        assert ws.gemm(x, y, out=target) is target
        assert_near(target, ws.gemm(left, right, out_dtype="float32"))
        assert (out[:, 5:] == 7).all()
        assert (out[..., 264:] == 7).all()


@pytest.mark.parametrize("wide", [torch.int32, torch.int64])
@EVERY_PAIR
def test_groups_and_masks(a_format: str, b_format: str, wide: Any) -> None:
    k = 3 * k_multiple(a_format, b_format)
    counts = torch.tensor([0, 1, 130, 0, 40], dtype=wide)
    offsets = torch.cat([torch.zeros(1, dtype=wide), counts.cumsum(0).to(wide)])
    grouping = {"offsets": offsets} if a_format in FORMATS and not FORMATS[a_format].whole else {}
    b = values(b_format, 5, 72, k, seed=2, **tiled(b_format))
    bias = torch.randn(5, 72)
    a = values(a_format, 180, k, seed=1, **tiled(a_format), **grouping)
    index = moved(a).offsets if grouping else offsets.to(DEVICE)
    out = torch.full((180, 72), 7.0, device=DEVICE)
    device_a = moved(a)
    ws.grouped_gemm(device_a, moved(b), offsets=device_a.offsets if grouping else index, bias=bias.to(DEVICE), out=out)
    want = ws.grouped_gemm(a, b, offsets=offsets, bias=bias, out_dtype="float32")
    assert_near(out[:171], want[:171], a_format=a_format)
    assert (out[171:] == 7).all()
    a = values(a_format, 5, 130, k, seed=1, **tiled(a_format))
    out = torch.zeros(5, 130, 72, device=DEVICE)
    ws.grouped_gemm(moved(a), moved(b), counts=counts.to(DEVICE), bias=bias.to(DEVICE), out=out)
    assert_near(out, ws.grouped_gemm(a, b, counts=counts, bias=bias, out_dtype="float32"), a_format=a_format)


@pytest.mark.parametrize("offsets", [[0, 500, 600, 700], [5, 3, 9, -4], [-(2**40), 2**40, 7, 7], [0, 4, 4, 8]])
def test_wrong_offsets_on_the_device_cause_no_fault(offsets: list[int]) -> None:
    a, b = torch.randn(64, 256).bfloat16().to(DEVICE), torch.randn(3, 64, 256).bfloat16().to(DEVICE)
    memory = torch.full((3 * 64, 64), 7.0, device=DEVICE)
    ws.grouped_gemm(a, b, offsets=torch.tensor(offsets, device=DEVICE), out=memory[64:128])
    torch.cuda.synchronize()
    assert (memory[:64] == 7).all()
    assert (memory[128:] == 7).all()
    groups = list(pairwise(min(max(o, 0), 64) for o in offsets))
    for group, (first, end) in enumerate(groups):
        if end > first:
            assert_near(memory[64 + first : 64 + end], ws.gemm(a[first:end].cpu(), b[group].cpu(), out_dtype="float32"))


def split_operands(seed: int) -> tuple[Any, Any]:
    """Operands whose product is split along K."""
    return moved(values("bf16", 8, 8192, seed=seed)), moved(values("nvfp4", 256, 8192, seed=seed + 1))


def test_the_same_call_gives_the_same_bits() -> None:
    a, b = split_operands(1)
    first = ws.gemm(a, b, out_dtype="float32")
    assert all(torch.equal(ws.gemm(a, b, out_dtype="float32"), first) for _ in range(50))


def test_streams_do_not_disturb_each_other() -> None:
    operands = [split_operands(seed) for seed in (1, 3, 5)]
    wanted = [ws.gemm(a, b, out_dtype="float32") for a, b in operands]
    streams = [torch.cuda.Stream() for _ in operands]
    torch.cuda.synchronize()
    results: list[list[Any]] = [[] for _ in operands]
    for _ in range(40):
        for stream, (a, b), into in zip(streams, operands, results, strict=True):
            with torch.cuda.stream(stream):
                into.append(ws.gemm(a, b, out_dtype="float32"))
    torch.cuda.synchronize()
    for want, into in zip(wanted, results, strict=True):
        assert all(torch.equal(got, want) for got in into)


def test_a_graph_replays_beside_other_work() -> None:
    from warpsmith.ops import cuda_gemm

    (a, b), (other_a, other_b) = split_operands(1), split_operands(3)
    want, other = ws.gemm(a, b, out_dtype="float32"), ws.gemm(other_a, other_b, out_dtype="float32")
    capture_stream = torch.cuda.Stream()
    capture_stream.wait_stream(torch.cuda.current_stream())
    graphs = []
    for _ in range(2):
        graph, out = torch.cuda.CUDAGraph(), torch.zeros_like(want)
        with torch.cuda.graph(graph, stream=capture_stream):
            for _ in range(5):
                ws.gemm(a, b, out=out)
        graphs.append((graph, out))
    streams = [torch.cuda.Stream() for _ in graphs]
    torch.cuda.synchronize()
    for _ in range(20):
        for (graph, out), stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                out.fill_(float("nan"))
                graph.replay()
        with torch.cuda.stream(capture_stream):
            mine = ws.gemm(other_a, other_b, out_dtype="float32")
        torch.cuda.synchronize()
        assert torch.equal(mine, other)
        assert all(torch.equal(out, want) for _, out in graphs)
    assert all(int(words.abs().sum()) == 0 for words in cuda_gemm._arrivals.values())


def test_bad_calls_are_refused_before_anything_runs() -> None:
    a, b = torch.randn(8, 64).bfloat16().to(DEVICE), torch.randn(16, 64).bfloat16().to(DEVICE)
    for call, says in (
        (lambda: ws.gemm(a, b.cpu()), "a is on cuda:0 and b on cpu"),
        (lambda: ws.gemm(a, b, out=torch.empty(8, 16)), "out is on cpu"),
        (lambda: ws.gemm(a, b, bias=torch.zeros(16)), "bias is on cpu"),
        (lambda: ws.gemm(a, b, out=a[:, :16]), "shares memory with a"),
        (lambda: ws.grouped_gemm(a, b[None], offsets=torch.tensor([0, 8])), "offsets is on cpu"),
        (lambda: ws.gemm(a.half(), b), "neither of bf16 and fp16"),
    ):
        with pytest.raises(InvalidArgumentError, match=says):
            call()


def test_a_large_product() -> None:
    a, b = torch.randn(4096, 4096, device=DEVICE).bfloat16(), torch.randn(4096, 4096, device=DEVICE).bfloat16()
    want = a.double() @ b.double().t()
    got = ws.gemm(a, b, out_dtype="float32")
    assert float((got.double() - want).norm() / want.norm()) <= LIMITS["float32"]


def test_explain_names_what_runs_and_load_loads_every_tile() -> None:
    decision = ws.explain("gemm", format="bf16_x_nvfp4", m=16, n=4096, k=4096)
    assert decision.choice is not None
    assert decision.choice.kernel == CATALOG.promise("gemm", "bf16_x_nvfp4", decision.device.capability).kernel
    capability = decision.device.capability
    served = plan(CATALOG, [default_target(capability)]).cubins
    tiles = [c for c in served if c.variant.startswith("bf16_x_nvfp4_")]
    assert ws.load({"gemm": {"format": "bf16_x_nvfp4"}}) == len(tiles)


@pytest.mark.parametrize(("a", "b"), [("bf16", "bf16"), ("bf16", "nvfp4"), ("fp8_block", "fp8_block_128x128")])
def test_verify_finds_nothing_wrong(a: str, b: str) -> None:
    outcomes = verify(CATALOG, Settings.from_environment(), 0, default_driver(), seed=1, cases=list(gemm_cases(a, b)))
    assert [m for o in outcomes for m in o.mismatches] == []
    assert all(0 < o.worst < 3e-3 for o in outcomes)
