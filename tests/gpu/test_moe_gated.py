# SPDX-License-Identifier: Apache-2.0
"""Layers with a gated w13: the first product activates and quantizes.

On 12.x by its tensor cores; on 9.0, where products ask for it, by the same source with the MMA in software, or else
composed. A layer gives the bits of the same layer without the gated order: the same sums are rounded, activated and
quantized alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import warpsmith as ws
from warpsmith.arch import Capability
from warpsmith.catalog import CATALOG
from warpsmith.catalog.gemm import DEFAULT_PATH, EMULATED_PATH
from warpsmith.evidence.gated import gated_cases
from warpsmith.evidence.moe_cases import quantize_rows_cases
from warpsmith.evidence.verify import verify
from warpsmith.ops import moe_args
from warpsmith.runtime.device import device_facts
from warpsmith.runtime.driver import default_driver
from warpsmith.settings import Settings

from .moe_support import MODELS, make_experts, routing_of
from .support import DEVICE, torch

CAPABILITY = device_facts(0).capability
PAIRS = [("nvfp4", "nvfp4"), ("mxfp4", "mxfp4"), ("mxfp8", "mxfp8"), ("mxfp4", "mxfp8")]
EVERY_PAIR = pytest.mark.parametrize(("weights", "activations"), PAIRS)
NAMES = ("activation", "bias13", "bias2", "alpha", "limit", "format", "a1", "a2")


@pytest.fixture(params=[DEFAULT_PATH, EMULATED_PATH] if Capability(9, 0) == CAPABILITY else [DEFAULT_PATH])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What products ask for."""
    from warpsmith.ops import cuda_gemm, cuda_moe

    monkeypatch.setattr(cuda_moe, "_plans", {})
    monkeypatch.setattr(cuda_gemm, "DEFAULT_PATH", request.param)
    return str(request.param)


def both(layer: ws.Experts) -> tuple[ws.Experts, ws.Experts]:
    """The layer with prepared weights, and with a gated w13."""
    options = {name: getattr(layer, name) for name in NAMES}
    w2 = ws.prepare_weight(layer.w2, layer.format)
    w13 = (ws.prepare_weight(layer.w13, layer.format, gated=gated) for gated in (False, True))
    return tuple(ws.Experts(w, w2, **options) for w in w13)


def fused_here(layer: ws.Experts, path: str) -> bool:
    """Whether the first product is to activate and quantize."""
    mixed = layer.w13.format != layer.format
    return CAPABILITY.major == 12 or (Capability(9, 0) == CAPABILITY and (mixed or path == EMULATED_PATH))


def between(layer: ws.Experts, tokens: int, top_k: int, work: Any) -> tuple[Any, Any]:
    """The codes and scales of the activations in a workspace, poison included."""
    from warpsmith.ops.cuda_moe_plan import layer_of

    at = moe_args.buffers(layer_of(tokens, top_k, layer))
    return work[at.act : at.act_scales], work[at.act_scales : at.plain]


def check(x: Any, logits: Any, layer: ws.Experts, routing: ws.Routing, path: str, **given: Any) -> None:
    """Run both layers on poisoned workspaces; compare bits of the result, and of all that lies between the products."""
    from warpsmith.ops import cuda_moe
    from warpsmith.ops.cuda_gated import GatedProduct

    if layer.w13.format != layer.format and CAPABILITY not in (Capability(9, 0), (12, 0), (12, 1)):
        pytest.skip("prepared mxfp4 weights are read on 9.0, 12.0 and 12.1")
    found = []
    for one in both(layer):
        need = ws.moe_workspace(x.shape[0], one, routing.top_k)
        work = torch.full((need,), 0xFF, device=DEVICE, dtype=torch.uint8)
        out = ws.fused_moe(x, logits, one, routing, workspace=work, **given)
        found.append((out, *between(one, x.shape[0], routing.top_k, work)))
    fused = [isinstance(p.first, GatedProduct) for p in cuda_moe._plans.values()]
    assert any(fused) == fused_here(layer, path)
    for name, composed, gated in zip(("result", "codes", "scales"), *found, strict=True):
        wrong = int((composed.view(torch.uint8) != gated.view(torch.uint8)).sum())
        assert wrong == 0, f"{name}: {wrong} of {composed.numel()} differ"
    assert torch.isfinite(found[0][0]).all()


def inputs(tokens: int, hidden: int, experts: int, dtype: Any = torch.bfloat16) -> tuple[Any, Any]:
    torch.manual_seed(tokens)
    return torch.randn(tokens, hidden, device=DEVICE).to(dtype), torch.randn(tokens, experts, device=DEVICE)


@EVERY_PAIR
def test_every_number_of_tokens(weights: str, activations: str, path: str) -> None:
    layer = make_experts(8, 1024, 480, weights, format=activations)
    for tokens in (1, 3, 17, 129, 1000):
        check(*inputs(tokens, 1024, 8), layer, ws.Routing("topk_softmax", 2), path)
    check(*inputs(40, 1024, 8, torch.float16), layer, ws.Routing("topk_softmax", 2), path)
    check(*inputs(9000, 1024, 8), layer, ws.Routing("topk_softmax", 8), path)


@EVERY_PAIR
@pytest.mark.parametrize("model", ["gpt-oss-120b", "Qwen3-30B-A3B"])
def test_models(weights: str, activations: str, path: str, model: str) -> None:
    sizes = MODELS[model]
    number = min(sizes["experts"], 32)
    oss = model.startswith("gpt-oss")
    options: dict[str, Any] = {"activation": "swiglu_oai", "biased": True} if oss else {}
    layer = make_experts(number, sizes["hidden"], sizes["inner"], weights, format=activations, **options)
    for tokens in (1, 129):
        check(*inputs(tokens, layer.hidden, number), layer, routing_of(model), path)


@EVERY_PAIR
def test_every_activation_and_weights_of_the_input(weights: str, activations: str, path: str) -> None:
    for activation in ("swiglu", "swiglu_oai", "geglu", "geglu_tanh"):
        layer = make_experts(8, 512, 352, weights, format=activations, activation=activation, biased=True)
        check(*inputs(77, 512, 8), layer, ws.Routing("softmax_topk", 3), path)
    layer = make_experts(8, 512, 352, weights, format=activations)
    check(*inputs(40, 512, 8), layer, ws.Routing("sigmoid_input", 1), path)


def test_nvfp4_with_scales_of_each_expert_and_a_slice_of_them(path: str) -> None:
    scales = {name: torch.rand(8, device=DEVICE) * 400 + 100 for name in ("a1", "a2")}
    layer = make_experts(8, 1024, 512, "nvfp4", format="nvfp4", **scales)
    check(*inputs(129, 1024, 8), layer, ws.Routing("topk_softmax", 2), path)
    layer = make_experts(5, 512, 256, "nvfp4", format="nvfp4")
    check(*inputs(300, 512, 16), layer, ws.Routing("topk_softmax", 4), path, expert_offset=3)


@EVERY_PAIR
@pytest.mark.parametrize("kind", ["one", "zipf", "empty"])
def test_skewed_routing(weights: str, activations: str, path: str, kind: str) -> None:
    layer = make_experts(64, 512, 256, weights, format=activations)
    for tokens in (5, 1000):
        x, logits = inputs(tokens, 512, 64)
        if kind == "one":
            logits[:, 7] += 100
        elif kind == "zipf":
            logits -= 3 * torch.log(torch.arange(1, 65, device=DEVICE))
        else:
            logits[:, ::2] -= 100
        check(x, logits, layer, ws.Routing("topk_softmax", 1 if kind == "one" else 4), path)


@EVERY_PAIR
def test_one_graph_serves_every_number_of_tokens(weights: str, activations: str, path: str) -> None:
    """The workspace is all ones before each replay: padding that is never written must not show."""
    composed, gated = both(make_experts(16, 1024, 352, weights, format=activations))
    most, routing = 200, ws.Routing("topk_softmax", 4)
    x, logits = inputs(most, 1024, 16)
    count = torch.tensor([most], device=DEVICE, dtype=torch.int32)
    work = torch.empty(ws.moe_workspace(most, gated, 4), device=DEVICE, dtype=torch.uint8)
    out = torch.empty_like(x)

    def run(layer: ws.Experts) -> Any:
        return ws.fused_moe(x, logits, layer, routing, num_tokens=count, out=out, workspace=work)

    run(gated)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(gated)
    for tokens in (most, 1, 0, 37, 128, most + 100):
        count.fill_(tokens)
        x.normal_()
        logits.normal_()
        want = run(composed).clone()
        out.fill_(7)
        work.fill_(0xFF)
        graph.replay()
        assert torch.equal(out.view(torch.int16), want.view(torch.int16)), path


def test_dequantized_rows_are_those_of_the_gate_then_those_of_up() -> None:
    for weights, activations in PAIRS:
        w13 = ws.quantize(torch.randn(2, 192, 160, device=DEVICE, dtype=torch.bfloat16), weights)
        gated = ws.prepare_weight(w13, activations, gated=True)
        assert torch.equal(ws.dequantize(gated), ws.dequantize(w13))


def test_the_cases_of_verify() -> None:
    mixed = [case for case in quantize_rows_cases() if case.mixed]
    outcomes = verify(
        CATALOG, Settings.from_environment(), 0, default_driver(), seed=np.random.SeedSequence().generate_state(1)[0],
        cases=[*gated_cases(), *mixed],
    )  # fmt: skip
    assert [m for o in outcomes for m in o.mismatches] == []
    assert sum("gated_gemm" in o.cubin.kernel for o in outcomes) == 12
