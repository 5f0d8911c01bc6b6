# SPDX-License-Identifier: Apache-2.0
"""`fused_moe` of up to eight tokens, which has kernels of its own on 9.0: every rule, type and odd size."""

from __future__ import annotations

from typing import Any

import pytest

import warpsmith as ws

from .moe_support import MODELS, make_experts, model_experts, right, routing_of
from .support import DEVICE, torch

cuda_moe = pytest.importorskip("warpsmith.ops.cuda_moe")
cuda_moe_decode = pytest.importorskip("warpsmith.ops.cuda_moe_decode")
LIMITS = {torch.bfloat16: 6e-3, torch.float16: 8e-4}
ALL_TOKENS = (1, 2, 3, 5, 8)


@pytest.fixture(autouse=True)
def _all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those too that are composed because that is faster."""
    monkeypatch.setattr(cuda_moe_decode, "LAYERS", ((),))
    monkeypatch.setattr(cuda_moe, "_plans", {})


def check(x: Any, logits: Any, layer: ws.Experts, routing: ws.Routing, **given: Any) -> Any:
    """A layer's value by its own kernels, the same twice, beside that in float64."""
    plan = cuda_moe_decode.decode_plan(x, logits, layer, routing, given.get("expert_offset", 0))
    if plan is None:
        pytest.skip("no decode kernels for this device")
    got, again = (ws.fused_moe(x, logits, layer, routing, **given) for _ in range(2))
    assert torch.equal(got.view(torch.int16), again.view(torch.int16))
    options = {name: given[name] for name in given if name == "expert_offset"}
    want = right(x, layer, *ws.route(logits, routing), **options)
    assert (got.double() - want).norm() <= LIMITS[x.dtype] * want.norm().clamp(min=1e-30)
    return got


def inputs(tokens: int, hidden: int, experts: int, dtype: Any = torch.bfloat16, kind: Any = None) -> tuple[Any, Any]:
    torch.manual_seed(tokens)
    logits = torch.randn(tokens, experts, device=DEVICE).to(kind or torch.float32)
    return torch.randn(tokens, hidden, device=DEVICE).to(dtype), logits


@pytest.mark.parametrize("model", [m for m in MODELS if MODELS[m]["rule"] != "sigmoid_input"])
def test_every_model(model: str) -> None:
    layer, routing = model_experts(model, "bf16"), routing_of(model)
    for tokens in ALL_TOKENS:
        check(*inputs(tokens, layer.hidden, layer.number), layer, routing)


@pytest.mark.parametrize("activation", ["swiglu", "swiglu_oai", "geglu", "geglu_tanh"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_biases_and_types_of_logits(activation: str, dtype: Any) -> None:
    weights = "bf16" if dtype is torch.bfloat16 else "fp16"
    layer = make_experts(8, 512, 256, weights, activation=activation, biased=True)
    for kind in (torch.bfloat16, torch.float16, torch.float32):
        for tokens in ALL_TOKENS:
            check(*inputs(tokens, 512, 8, dtype, kind), layer, ws.Routing("softmax_topk", 3, scale=2.0))


@pytest.mark.parametrize(("hidden", "inner"), [(8, 8), (40, 1032), (1032, 24), (2880, 136), (7168, 8)])
def test_odd_sizes(hidden: int, inner: int) -> None:
    layer = make_experts(5, hidden, inner, biased=True)
    for tokens in ALL_TOKENS:
        check(*inputs(tokens, hidden, 5), layer, ws.Routing("topk_softmax", 2))


@pytest.mark.parametrize("experts", [1, 33, 160, 512])
def test_numbers_of_experts_and_choices(experts: int) -> None:
    layer = make_experts(experts, 64, 32)
    for top_k in {1, min(experts, 5), min(experts, 16)}:
        for tokens in ALL_TOKENS:
            check(*inputs(tokens, 64, experts), layer, ws.Routing("topk_softmax", top_k))


def test_all_tokens_at_one_expert() -> None:
    layer = make_experts(16, 512, 256)
    x, logits = inputs(8, 512, 16)
    logits[:, 7] += 100
    check(x, logits, layer, ws.Routing("topk_softmax", 1))


def test_slices_of_experts() -> None:
    whole = make_experts(16, 512, 256)
    x, logits = inputs(8, 512, 16)
    routing, total = ws.Routing("topk_softmax", 4), torch.zeros(8, 512, device=DEVICE, dtype=torch.float64)
    for first, end in ((0, 1), (1, 9), (9, 16)):
        part = ws.Experts(whole.w13[first:end], whole.w2[first:end])
        total += check(x, logits, part, routing, expert_offset=first).double()
    want = ws.fused_moe(x, logits, whole, routing).double()
    assert (total - want).norm() <= 6e-3 * want.norm()


def test_weights_that_are_not_finite_stay_with_their_expert() -> None:
    layer = make_experts(4, 512, 256)
    layer.w13[3], layer.w2[3] = torch.nan, torch.inf
    x, logits = inputs(8, 512, 4)
    logits[:, 3] -= 100
    logits[5, 3] += 200
    got = ws.fused_moe(x, logits, layer, ws.Routing("topk_softmax", 2))
    assert got[5].isnan().all()
    assert torch.cat([got[:5], got[6:]]).isfinite().all()


def test_a_graph_of_fewer_tokens_in_a_row_with_itself() -> None:
    layer, routing = make_experts(16, 1024, 512), ws.Routing("topk_softmax", 4)
    x, logits = inputs(8, 1024, 16)
    count = torch.tensor([8], device=DEVICE, dtype=torch.int32)
    work = torch.empty(ws.moe_workspace(8, layer, 4), device=DEVICE, dtype=torch.uint8)
    first, second = torch.empty_like(x), torch.empty_like(x)

    def run() -> None:
        ws.fused_moe(x, logits, layer, routing, num_tokens=count, out=first, workspace=work)
        ws.fused_moe(first, logits, layer, routing, num_tokens=count, out=second, workspace=work)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for tokens in (8, 1, 0, 5, 100, -3):
        count.fill_(tokens)
        x.normal_()
        logits.normal_()
        work.fill_(0xFF)
        graph.replay()
        used = max(min(tokens, 8), 0)
        assert (first[used:] == 0).all()
        assert (second[used:] == 0).all()
        if used:
            choice = ws.route(logits[:used], routing)
            for got, given in ((first, x), (second, first)):
                want = right(given[:used], layer, *choice)
                assert (got[:used].double() - want).norm() <= LIMITS[x.dtype] * want.norm()


def test_it_agrees_with_the_composed_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, routing = make_experts(32, 1024, 768), ws.Routing("softmax_topk_renormalize", 8)
    x, logits = inputs(7, 1024, 32)
    mine = check(x, logits, layer, routing)
    monkeypatch.setattr(cuda_moe_decode, "decode_plan", lambda *_: None)
    monkeypatch.setattr(cuda_moe, "_plans", {})
    composed = ws.fused_moe(x, logits, layer, routing)
    assert (mine.double() - composed.double()).norm() <= 6e-3 * composed.double().norm()
