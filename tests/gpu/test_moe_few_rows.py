# SPDX-License-Identifier: Apache-2.0
"""`fused_moe` with 4-bit weights in the order for few rows, on a GPU of compute capability 9.0."""

from __future__ import annotations

from typing import Any

import pytest

import warpsmith as ws

from .moe_support import MODELS, make_experts, right
from .support import DEVICE, torch

if torch.cuda.get_device_capability() != (9, 0):
    pytest.skip("such weights are read on compute capability 9.0", allow_module_level=True)

LIMIT = 6e-3
NAMES = ("activation", "alpha", "limit", "bias13", "bias2")


def prepared(layer: ws.Experts) -> ws.Experts:
    w13, w2 = (ws.prepare_weight(w, "bf16", few_rows=True) for w in (layer.w13, layer.w2))
    return ws.Experts(w13, w2, **{name: getattr(layer, name) for name in NAMES})


def inputs(tokens: int, hidden: int, experts: int) -> tuple[Any, Any]:
    torch.manual_seed(tokens)
    return torch.randn(tokens, hidden, device=DEVICE).to(torch.bfloat16), torch.randn(tokens, experts, device=DEVICE)


@pytest.mark.parametrize("weights", ["nvfp4", "mxfp4"])
@pytest.mark.parametrize("model", ["gpt-oss-120b", "Qwen3-30B-A3B"])
def test_layers_are_right(model: str, weights: str) -> None:
    sizes = MODELS[model]
    options = {"activation": "swiglu_oai", "biased": True} if model.startswith("gpt-oss") else {}
    layer = make_experts(8, sizes["hidden"], sizes["inner"], weights, **options)
    few, routing = prepared(layer), ws.Routing("topk_softmax", 2)
    for tokens in (0, 1, 3, 8, 64, 300, 1000):
        x, logits = inputs(tokens, layer.hidden, 8)
        got, again = (ws.fused_moe(x, logits, few, routing) for _ in range(2))
        assert torch.equal(got.view(torch.int16), again.view(torch.int16))
        if tokens:
            want = right(x, layer, *ws.route(logits, routing))
            assert (got.double() - want).norm() <= LIMIT * want.norm()


def test_a_graph_replays_to_the_same_bits() -> None:
    few, routing = prepared(make_experts(8, 2880, 2880, "mxfp4")), ws.Routing("topk_softmax", 2)
    x, logits = inputs(5, 2880, 8)
    want = ws.fused_moe(x, logits, few, routing)
    out, graph = torch.empty_like(want), torch.cuda.CUDAGraph()
    ws.fused_moe(x, logits, few, routing, out=out)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        ws.fused_moe(x, logits, few, routing, out=out)
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out.view(torch.int16), want.view(torch.int16))
