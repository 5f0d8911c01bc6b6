# SPDX-License-Identifier: Apache-2.0
"""Layers of a few tokens on 9.0: what is launched, and where they are composed as others are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import moe_emulator
import pytest

import warpsmith as ws
from warpsmith.arch import Capability
from warpsmith.catalog import CATALOG
from warpsmith.catalog.moe_decode import MAX_HIDDEN
from warpsmith.catalog.resolve import DeviceFacts, resolve

torch = pytest.importorskip("torch")

H, INNER = 40, 48
TOP2 = ws.Routing("topk_softmax", 2)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, tuple[int, int, int]]]:
    """Kernel, variant and grid of every launch; NumPy computes."""
    from warpsmith.ops import cuda_gemm, cuda_moe, cuda_moe_decode

    facts, found = DeviceFacts(Capability(9, 0), 7), []

    def prepare(problem: Any, device: int) -> Any:
        assert device == -1
        cubin = resolve(CATALOG, problem, facts).choice

        def launch(grid: tuple[int, int, int], given: tuple[Any, ...], stream: int) -> None:
            assert stream == 7
            found.append((cubin.kernel, cubin.variant, grid))
            moe_emulator.launch(cubin, grid, given)

        return SimpleNamespace(cubin=cubin, launch=launch)

    monkeypatch.setattr(cuda_moe_decode, "runtime", lambda: SimpleNamespace(prepare=prepare))
    monkeypatch.setattr(cuda_gemm, "_facts", lambda _: facts)
    monkeypatch.setattr(cuda_moe, "_current_stream", lambda _: 7)
    monkeypatch.setattr(cuda_moe, "_plans", {})
    return found


def random(*shape: int, seed: int = 0, dtype: Any = None) -> Any:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype or torch.bfloat16)


def experts(number: int = 6, hidden: int = H, gates: int = 2, dtype: Any = None, **options: Any) -> ws.Experts:
    w13 = random(number, gates * INNER, hidden, seed=1, dtype=dtype) / 6
    return ws.Experts(w13, random(number, hidden, INNER, seed=2, dtype=dtype) / 6, **options)


def run(x: Any, logits: Any, layer: ws.Experts, routing: ws.Routing = TOP2, **options: Any) -> Any:
    from warpsmith.ops import cuda_moe

    names = ("ids", "weights", "expert_offset", "num_tokens", "out", "workspace")
    given = {"expert_offset": 0, **options}
    return cuda_moe.fused(x, logits, layer, routing, *(given.get(name) for name in names))


def assert_near(got: Any, want: Any) -> None:
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    assert (got.double() - want.double()).norm() <= 1e-2 * want.double().norm()


@pytest.mark.parametrize(("tokens", "tile"), [(1, "t2"), (2, "t2"), (3, "t8"), (4, "t8")])
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_two_launches_compute_the_reference(launched: Any, tokens: int, tile: str, kind: str) -> None:
    dtype = torch.bfloat16 if kind == "bf16" else torch.float16
    biases = {"bias13": random(6, 2 * INNER, seed=4, dtype=torch.float32), "bias2": random(6, H, seed=5)}
    layer = experts(dtype=dtype, activation="swiglu_oai", **biases)
    x, logits = random(tokens, H, dtype=dtype), random(tokens, 6, seed=3)
    assert_near(run(x, logits, layer), ws.fused_moe(x, logits, layer, TOP2))
    names = ("moe_decode_up", "moe_decode_down")
    assert launched == [(name, f"{kind}_{tile}", (7, 1, 1)) for name in names]


def test_many_columns_have_blocks_enough_for_their_rows(launched: Any) -> None:
    x, logits, layer = random(1, 1024), random(1, 3, seed=3), experts(3, 1024)
    assert_near(run(x, logits, layer), ws.fused_moe(x, logits, layer, TOP2))
    assert [grid[0] for _, _, grid in launched] == [7, 16]


def test_rules_slices_strides_and_fewer_tokens(launched: Any) -> None:
    layer, count = experts(), torch.tensor([4], dtype=torch.int32)
    bias = torch.arange(18) / 10
    grouped = ws.Routing("sigmoid_bias_grouped", 2, scale=2.5, n_group=3, topk_group=2, bias=bias)
    x, logits = random(7, 2 * H)[:, :H], random(7, 40, seed=3)[:, :18]
    work = torch.empty(ws.moe_workspace(7, layer, 2), dtype=torch.uint8)
    for routing in (TOP2, grouped, ws.Routing("softmax_topk", 2)):
        for given in ({}, {"expert_offset": 10}, {"num_tokens": count}, {"workspace": work}):
            options: dict[str, Any] = dict(given)
            got = run(x, logits, layer, routing, **options)
            options.pop("workspace", None)
            assert_near(got, ws.fused_moe(x, logits, layer, routing, **options))
    assert len(launched) == 24


def test_other_layers_are_composed(launched: Any) -> None:
    from warpsmith.ops.cuda_moe_decode import decode_plan

    x, logits = random(2, H), random(2, 6, seed=3)
    assert decode_plan(x, logits, experts(), TOP2, 0) is not None
    strided = experts(hidden=2 * H)
    strided = ws.Experts(strided.w13[..., :H], experts().w2)
    wide = random(2, MAX_HIDDEN + 8)
    assert decode_plan(x, None, experts(), None, 0) is None
    assert decode_plan(x, logits, experts(), ws.Routing("sigmoid_input", 1), 0) is None
    assert decode_plan(x, logits, experts(gates=1, activation="relu2"), TOP2, 0) is None
    assert decode_plan(random(9, H), random(9, 6), experts(), TOP2, 0) is None
    assert decode_plan(wide, logits, experts(1, MAX_HIDDEN + 8), TOP2, 0) is None
    assert decode_plan(x, logits, strided, TOP2, 0) is None
    quantized = ws.Experts(ws.quantize(random(6, 2 * 64, 64), "mxfp8"), ws.quantize(random(6, 64, 64), "mxfp8"))
    assert decode_plan(random(2, 64), logits, quantized, TOP2, 0) is None
    assert launched == []


def packed(format: str, **options: Any) -> tuple[ws.Experts, ws.Experts]:
    """A layer of quantized weights, and the same prepared for few rows."""
    parts = {"w13": random(5, 2 * 128, 192, seed=1) / 14, "w2": random(5, 192, 128, seed=2) / 11}
    weights = {name: ws.quantize(w, format) for name, w in parts.items()}
    few = {name: ws.prepare_weight(w, "bf16", few_rows=True) for name, w in weights.items()}
    return ws.Experts(**weights, **options), ws.Experts(**few, **options)


@pytest.mark.parametrize(("tokens", "tile"), [(1, "t2"), (2, "t2"), (3, "t8"), (4, "t8")])
@pytest.mark.parametrize("format", ["nvfp4", "mxfp4"])
def test_two_launches_read_weights_prepared_for_few_rows(launched: Any, format: str, tokens: int, tile: str) -> None:
    biases = {"bias13": random(5, 2 * 128, seed=4), "bias2": random(5, 192, seed=5, dtype=torch.float32)}
    layer, few = packed(format, activation="swiglu_oai", **biases)
    x, logits = random(tokens, 192), random(tokens, 5, seed=3)
    assert_near(run(x, logits, few), ws.fused_moe(x, logits, layer, TOP2))
    grids = {"moe_packed_up": 7, "moe_packed_down": 6}
    assert launched == [(name, f"{format}_{tile}", (blocks, 1, 1)) for name, blocks in grids.items()]


def test_which_layers_of_prepared_weights_have_two_launches() -> None:
    from warpsmith.ops.cuda_moe_decode import _kernels

    layer, few = packed("mxfp4")
    other = packed("nvfp4")[1]
    x = random(1, 192)
    assert _kernels(x, few.w13, few.w2) is not None
    assert _kernels(x.half(), few.w13, few.w2) is None
    assert _kernels(x, few.w13, layer.w2) is None
    assert _kernels(x, layer.w13, layer.w2) is None
    assert _kernels(x, few.w13, other.w2) is None
    assert _kernels(x, random(5, 2 * 128, 192), few.w2) is None
