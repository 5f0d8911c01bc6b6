# SPDX-License-Identifier: Apache-2.0
"""Products with an activation on a GPU: in the kernel's epilogue, or in a launch of its own, the same within limits."""

from __future__ import annotations

from typing import Any

import pytest

import warpsmith as ws
from warpsmith.catalog.fused_moe import ACTIVATIONS
from warpsmith.errors import InvalidArgumentError
from warpsmith.reference.moe import activate

from . import need_gpu

need_gpu()
torch = pytest.importorskip("torch")

DEVICE = "cuda:0"
LIMITS = {torch.bfloat16: 6e-3, torch.float16: 8e-4, torch.float32: 1e-5}
EVERY = pytest.mark.parametrize("activation", ACTIVATIONS)


def random(*shape: int, dtype: Any = torch.bfloat16, seed: int = 0) -> Any:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=DEVICE).to(dtype)


def rows_of(activation: str, columns: int) -> int:
    """Rows of B for so many columns of D."""
    return columns if activation == "relu2" else 2 * columns


def expected(a: Any, b: Any, activation: str, bias: Any = None) -> Any:
    """D in float64."""
    product = a.double() @ b.double().transpose(-1, -2)
    product = product if bias is None else product + bias.double()[..., None, :]
    return torch.from_numpy(activate(product.cpu().numpy(), activation)).to(DEVICE)


def assert_near(got: Any, want: Any) -> None:
    assert got.shape == want.shape
    assert (got.double() - want).norm() <= LIMITS[got.dtype] * want.norm()


def fused_there(activation: str) -> bool:
    """Whether this GPU's kernels have it in their epilogue."""
    return torch.cuda.get_device_capability() == (9, 0) and activation != "geglu"


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("m", [1, 13, 30, 50, 100, 300])
def test_every_tile(activation: str, dtype: Any, m: int) -> None:
    for columns, k in ((72, 256), (2048, 512)):
        a, b = random(m, k, dtype=dtype, seed=1), random(rows_of(activation, columns), k, dtype=dtype, seed=2) / k**0.5
        bias = random(b.shape[0], dtype=torch.float32, seed=3)
        for given in (None, bias):
            got = ws.gemm(a, b, bias=given, activation=activation)
            assert got.dtype is dtype
            assert_near(got, expected(a, b, activation, given))
            assert torch.equal(got, ws.gemm(a, b, bias=given, activation=activation))


@EVERY
def test_batches_and_a_float32_result(activation: str) -> None:
    a, b = random(3, 70, 256, seed=1), random(3, rows_of(activation, 136), 256, seed=2) / 16
    bias = random(3, b.shape[1], seed=3)
    assert_near(ws.gemm(a, b, bias=bias, activation=activation), expected(a, b, activation, bias))
    assert_near(ws.gemm(a, b[0], activation=activation), expected(a, b[0], activation))
    if fused_there(activation):
        assert_near(ws.gemm(a, b, activation=activation, out_dtype="float32"), expected(a, b, activation))
    else:
        with pytest.raises(InvalidArgumentError, match="expected bfloat16 or float16"):
            ws.gemm(a, b, activation=activation, out_dtype="float32")


@EVERY
@pytest.mark.parametrize("mode", ["offsets", "counts"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_groups_leave_other_rows_alone(activation: str, mode: str, dtype: Any) -> None:
    b, bias = random(4, rows_of(activation, 264), 192, seed=2) / 14, random(4, rows_of(activation, 264), seed=3)
    if mode == "offsets":
        index, a = torch.tensor([0, 5, 5, 140, 301], dtype=dtype, device=DEVICE), random(310, 192, seed=1)
        parts = [(slice(s, e), a[s:e]) for s, e in ((0, 5), (5, 5), (5, 140), (140, 301))]
    else:
        index, a = torch.tensor([7, 0, 50, 1], dtype=dtype, device=DEVICE), random(4, 50, 192, seed=1)
        parts = [((g, slice(0, n)), a[g, :n]) for g, n in enumerate((7, 0, 50, 1))]
    out = torch.full((*a.shape[:-1], 264), 77.0, dtype=a.dtype, device=DEVICE)
    made = ws.grouped_gemm(a, b, **{mode: index}, bias=bias, activation=activation, out=out)
    assert made is out
    left = torch.ones(out.shape[:-1], dtype=torch.bool, device=DEVICE)
    for g, (part, rows) in enumerate(parts):
        left[part] = False
        if len(rows):
            assert_near(out[part], expected(rows, b[g], activation, bias[g]))
    assert (out[left] == 77).all()


@EVERY
def test_strided_results_and_inputs(activation: str) -> None:
    a, b = random(40, 512, seed=1)[:, 256:], random(rows_of(activation, 128), 256, seed=2) / 16
    out = torch.zeros(40, 200, dtype=a.dtype, device=DEVICE)[:, 8:136]
    assert ws.gemm(a, b, activation=activation, out=out) is out
    assert_near(out, expected(a, b, activation))


def test_quantized_weights() -> None:
    a, w = random(33, 256, seed=1), ws.quantize(random(256, 256, seed=2) / 16, "mxfp8")
    assert_near(ws.gemm(a, w, activation="swiglu"), expected(a, ws.dequantize(w, dtype=torch.float32), "swiglu"))


@EVERY
def test_a_graph_replays_it(activation: str) -> None:
    a, b = random(200, 256, seed=1), random(rows_of(activation, 512), 256, seed=2) / 16
    want = ws.gemm(a, b, activation=activation)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = ws.gemm(a, b, activation=activation)
    graph.replay()
    assert torch.equal(got, want)


def test_numbers_beyond_the_range_and_nan() -> None:
    a, b = torch.eye(64, dtype=torch.bfloat16, device=DEVICE), random(128, 64, seed=2)
    b[:64], b[64:] = 0, 1
    b[0, 0], b[1, 0], b[2, 0], b[3, 0], b[4, 0] = 1e30, -1e30, float("inf"), float("nan"), -200.0
    b[8, 0], b[64 + 8, 0] = 1.0, float("nan")
    for activation in ("swiglu", "geglu_tanh"):
        row = ws.gemm(a, b, activation=activation)[0].tolist()
        assert row[0] == pytest.approx(1e30, rel=1e-2)
        assert row[1] == 0
        assert row[2] == float("inf")
        assert all(x != x for x in (row[3], row[8]))
        assert abs(row[4]) < 1e-30
