# SPDX-License-Identifier: Apache-2.0
"""`fused_moe` of up to eight tokens with weights prepared for few rows, in two launches on 9.0."""

from __future__ import annotations

from typing import Any

import pytest

import warpsmith as ws

from .moe_support import MODELS, make_experts, model_experts, right, routing_of
from .support import DEVICE, torch

cuda_moe = pytest.importorskip("warpsmith.ops.cuda_moe")
cuda_moe_decode = pytest.importorskip("warpsmith.ops.cuda_moe_decode")
if torch.cuda.get_device_capability() != (9, 0):
    pytest.skip("such weights are read on compute capability 9.0", allow_module_level=True)

LIMIT = 6e-3
FORMATS = ("nvfp4", "mxfp4")
ALL_TOKENS = (1, 2, 3, 5, 8)
NAMES = ("activation", "alpha", "limit", "bias13", "bias2")


@pytest.fixture(autouse=True)
def _all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those too that are composed because that is faster."""
    monkeypatch.setattr(cuda_moe_decode, "PACKED_LAYERS", ((),))
    monkeypatch.setattr(cuda_moe, "_plans", {})


def prepared(layer: ws.Experts) -> ws.Experts:
    w13, w2 = (ws.prepare_weight(w, "bf16", few_rows=True) for w in (layer.w13, layer.w2))
    return ws.Experts(w13, w2, **{name: getattr(layer, name) for name in NAMES})


def inputs(tokens: int, hidden: int, experts: int, kind: Any = None) -> tuple[Any, Any]:
    torch.manual_seed(tokens)
    logits = torch.randn(tokens, experts, device=DEVICE).to(kind or torch.float32)
    return torch.randn(tokens, hidden, device=DEVICE).bfloat16(), logits


def check(x: Any, logits: Any, layer: ws.Experts, few: ws.Experts, routing: ws.Routing, **given: Any) -> Any:
    """A layer's value by its own kernels, the same twice, beside that in float64."""
    plan = cuda_moe_decode.decode_plan(x, logits, few, routing, given.get("expert_offset", 0))
    assert plan is not None
    assert plan.packed
    got, again = (ws.fused_moe(x, logits, few, routing, **given) for _ in range(2))
    assert torch.equal(got.view(torch.int16), again.view(torch.int16))
    want = right(x, layer, *ws.route(logits, routing), **given)
    assert (got.double() - want).norm() <= LIMIT * want.norm().clamp(min=1e-30)
    return got


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("model", ["gpt-oss-120b", "Qwen3-30B-A3B", "Qwen3-235B-A22B", "Mixtral-8x7B"])
def test_every_model(model: str, format: str) -> None:
    sizes = MODELS[model]
    options = {"activation": "swiglu_oai", "biased": True} if model.startswith("gpt-oss") else {}
    layer = make_experts(min(sizes["experts"], 16), sizes["hidden"], sizes["inner"], format, **options)
    few, routing = prepared(layer), routing_of(model)
    for tokens in ALL_TOKENS:
        check(*inputs(tokens, layer.hidden, layer.number), layer, few, routing)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("activation", ["swiglu", "swiglu_oai", "geglu", "geglu_tanh"])
def test_activations_rules_and_types_of_logits(activation: str, format: str) -> None:
    layer = make_experts(8, 512, 192, format, activation=activation, biased=True)
    few, bias = prepared(layer), torch.randn(8, device=DEVICE) / 10
    for kind in (torch.bfloat16, torch.float16, torch.float32):
        for tokens in ALL_TOKENS:
            given = *inputs(tokens, 512, 8, kind), layer, few
            check(*given, ws.Routing("softmax_topk", 3, scale=2.0))
            check(*given, ws.Routing("sigmoid_bias_grouped", 2, n_group=4, topk_group=2, scale=2.5, bias=bias))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("experts", [1, 33, 160, 512])
def test_numbers_of_experts_and_choices(experts: int, format: str) -> None:
    layer = make_experts(experts, 64, 64, format)
    few = prepared(layer)
    for top_k in {1, min(experts, 5), min(experts, 16)}:
        for tokens in ALL_TOKENS:
            check(*inputs(tokens, 64, experts), layer, few, ws.Routing("topk_softmax", top_k))


@pytest.mark.parametrize("format", FORMATS)
def test_slices_of_experts(format: str) -> None:
    x, logits = inputs(8, 512, 16)
    routing = ws.Routing("topk_softmax", 4)
    for first, end in ((0, 1), (1, 9), (9, 16)):
        part = make_experts(end - first, 512, 256, format, biased=True)
        check(x, logits, part, prepared(part), routing, expert_offset=first)


def test_scales_of_a_wide_range() -> None:
    layer = make_experts(4, 512, 256, "mxfp4")
    exponents = torch.randint(-60, 1, layer.w13.scales.shape, device=DEVICE)
    scales = (layer.w13.scales.view(torch.uint8).int() + exponents).clamp(min=1).to(torch.uint8)
    wide = ws.QTensor(layer.w13.data, scales.view(layer.w13.scales.dtype), "mxfp4", layer.w13.shape)
    layer = ws.Experts(wide, layer.w2)
    few, routing = prepared(layer), ws.Routing("topk_softmax", 2)
    for tokens in ALL_TOKENS:
        check(*inputs(tokens, 512, 4), layer, few, routing)


def test_a_graph_of_fewer_tokens_in_a_row_with_itself() -> None:
    layer = model_experts("gpt-oss-120b", "mxfp4")
    few, routing = prepared(layer), ws.Routing("topk_softmax", 4)
    x, logits = inputs(8, layer.hidden, layer.number)
    count = torch.tensor([8], device=DEVICE, dtype=torch.int32)
    work = torch.empty(ws.moe_workspace(8, few, 4), device=DEVICE, dtype=torch.uint8)
    first, second = torch.empty_like(x), torch.empty_like(x)

    def run() -> None:
        ws.fused_moe(x, logits, few, routing, num_tokens=count, out=first, workspace=work)
        ws.fused_moe(first, logits, few, routing, num_tokens=count, out=second, workspace=work)

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
                assert (got[:used].double() - want).norm() <= LIMIT * want.norm()


def test_it_agrees_with_the_composed_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    few, routing = prepared(make_experts(32, 1024, 768, "mxfp4")), ws.Routing("softmax_topk_renormalize", 8)
    x, logits = inputs(7, 1024, 32)
    mine = ws.fused_moe(x, logits, few, routing)
    monkeypatch.setattr(cuda_moe_decode, "decode_plan", lambda *_: None)
    monkeypatch.setattr(cuda_moe, "_plans", {})
    composed = ws.fused_moe(x, logits, few, routing)
    assert (mine.double() - composed.double()).norm() <= 6e-3 * composed.double().norm()
