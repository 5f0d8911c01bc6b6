# SPDX-License-Identifier: Apache-2.0
"""Layers with prepared weights: on 12.x by its tensor cores, on 9.0 by the same source with the MMA in software.

Where a layer has a portable kernel too, 9.0 takes that one; both are run there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import warpsmith as ws
from warpsmith.arch import Capability
from warpsmith.catalog import CATALOG, fp4_gemm
from warpsmith.catalog.gemm import DEFAULT_PATH, EMULATED_PATH
from warpsmith.evidence.moe_cases import quantize_rows_cases
from warpsmith.evidence.verify import verify
from warpsmith.runtime.device import device_facts
from warpsmith.runtime.driver import default_driver
from warpsmith.settings import Settings

from .moe_support import MODELS, make_experts, right, routing_of
from .support import DEVICE, torch

TOKENS = (0, 1, 3, 17, 129, 1000)
LIMIT = 5e-2
"""With quantized activations a value near the middle of two codes may become either; or as far as 1.25 times what the
layer is off with its weights as they were quantized."""
PAIRS = [("nvfp4", "nvfp4"), ("mxfp4", "mxfp4"), ("mxfp8", "mxfp8"), ("mxfp4", "mxfp8")]
EVERY_PAIR = pytest.mark.parametrize(("weights", "activations"), PAIRS)
CAPABILITY = device_facts(0).capability
BLOCK_SCALED = {k.name for k in fp4_gemm.KERNELS}


@pytest.fixture(params=[DEFAULT_PATH, EMULATED_PATH] if Capability(9, 0) == CAPABILITY else [DEFAULT_PATH])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What products ask for. The block-scaled kernels are the ones then used, on 12.x always."""
    from warpsmith.ops import cuda_gemm, cuda_moe
    from warpsmith.ops.cuda_moe_prepared import PreparedPlan

    monkeypatch.setattr(cuda_moe, "_plans", {})
    monkeypatch.setattr(cuda_gemm, "DEFAULT_PATH", request.param)
    yield request.param
    if request.param == EMULATED_PATH or CAPABILITY.major == 12:
        plans = [p for p in cuda_moe._plans.values() if isinstance(p, PreparedPlan)]
        used = {product.kernel.cubin.kernel for p in plans for product in (p.first, p.second)}
        assert used <= BLOCK_SCALED


def served(weights: str, activations: str, path: str) -> None:
    """Skip what the device has no kernel for: mxfp8 by packed mxfp4 is one of the few, and has one path."""
    packed = weights != activations
    if packed and CAPABILITY not in {c for k in fp4_gemm.KERNELS for c in k.capabilities}:
        pytest.skip("prepared mxfp4 weights are read on 9.0, 12.0 and 12.1")
    if packed and path == EMULATED_PATH:
        pytest.skip("on 9.0 there is one path for it")


def prepared(layer: ws.Experts) -> ws.Experts:
    """The layer with its weights prepared."""
    w13, w2 = (ws.prepare_weight(w, layer.format) for w in (layer.w13, layer.w2))
    names = ("activation", "bias13", "bias2", "alpha", "limit", "format", "a1", "a2")
    return ws.Experts(w13, w2, **{name: getattr(layer, name) for name in names})


def inputs(tokens: int, hidden: int, experts: int, dtype: Any = torch.bfloat16) -> tuple[Any, Any]:
    torch.manual_seed(tokens)
    return torch.randn(tokens, hidden, device=DEVICE).to(dtype), torch.randn(tokens, experts, device=DEVICE)


def check(x: Any, logits: Any, layer: ws.Experts, routing: ws.Routing, **given: Any) -> Any:
    """Run the prepared layer twice; compare bits, and with the value of the layer as it was quantized."""
    ready = prepared(layer)
    got, again = (ws.fused_moe(x, logits, ready, routing, **given) for _ in range(2))
    assert torch.equal(got.view(torch.int16), again.view(torch.int16))
    assert (got.shape, got.dtype) == (x.shape, x.dtype)
    if x.shape[0]:
        ids, weights = ws.route(logits, routing)
        options = {name: given[name] for name in given if name == "expert_offset"}
        want = right(x, layer, ids, weights, scales_input=routing.scales_input, **options)
        linear = ws.fused_moe(x, logits, layer, routing, **given)
        least = max(LIMIT * want.norm(), 1.25 * (linear.double() - want).norm())
        assert (got.double() - want).norm() <= least
    return got


@EVERY_PAIR
def test_every_number_of_tokens(weights: str, activations: str, path: str) -> None:
    served(weights, activations, path)
    layer = make_experts(8, 1024, 512, weights, format=activations)
    for tokens in TOKENS:
        check(*inputs(tokens, 1024, 8), layer, ws.Routing("topk_softmax", 2))
    check(*inputs(40, 1024, 8, torch.float16), layer, ws.Routing("topk_softmax", 2))


@EVERY_PAIR
@pytest.mark.parametrize("model", ["gpt-oss-120b", "Qwen3-30B-A3B"])
def test_models(weights: str, activations: str, path: str, model: str) -> None:
    """gpt-oss's H and I are 90 blocks of 32: the scales of a row are padded."""
    served(weights, activations, path)
    sizes = MODELS[model]
    number = min(sizes["experts"], 32)
    options: dict[str, Any] = {}
    if model.startswith("gpt-oss"):
        options = {"activation": "swiglu_oai", "biased": True}
    layer = make_experts(number, sizes["hidden"], sizes["inner"], weights, format=activations, **options)
    for tokens in (1, 129):
        check(*inputs(tokens, layer.hidden, number), layer, routing_of(model))


@EVERY_PAIR
def test_every_activation_and_weights_of_the_input(weights: str, activations: str, path: str) -> None:
    served(weights, activations, path)
    for activation in ("swiglu_oai", "geglu", "geglu_tanh", "relu2"):
        layer = make_experts(8, 512, 352, weights, format=activations, activation=activation, biased=True)
        check(*inputs(77, 512, 8), layer, ws.Routing("softmax_topk", 3))
    layer = make_experts(8, 512, 352, weights, format=activations)
    check(*inputs(40, 512, 8), layer, ws.Routing("sigmoid_input", 1))


def test_nvfp4_with_scales_of_each_expert(path: str) -> None:
    assert path
    scales = {name: torch.rand(8, device=DEVICE) * 400 + 100 for name in ("a1", "a2")}
    layer = make_experts(8, 1024, 512, "nvfp4", format="nvfp4", **scales)
    check(*inputs(129, 1024, 8), layer, ws.Routing("topk_softmax", 2))


@EVERY_PAIR
@pytest.mark.parametrize("kind", ["one", "zipf", "empty"])
def test_skewed_routing(weights: str, activations: str, path: str, kind: str) -> None:
    served(weights, activations, path)
    layer = make_experts(64, 512, 256, weights, format=activations)
    for tokens in (5, 1000):
        x, logits = inputs(tokens, 512, 64)
        if kind == "one":
            logits[:, 7] += 100
        elif kind == "zipf":
            logits -= 3 * torch.log(torch.arange(1, 65, device=DEVICE))
        else:
            logits[:, ::2] -= 100
        check(x, logits, layer, ws.Routing("topk_softmax", 1 if kind == "one" else 4))


def test_a_slice_of_experts(path: str) -> None:
    assert path
    layer = make_experts(5, 512, 256, "nvfp4", format="nvfp4")
    check(*inputs(300, 512, 16), layer, ws.Routing("topk_softmax", 4), expert_offset=3)


@EVERY_PAIR
def test_one_graph_serves_every_number_of_tokens(weights: str, activations: str, path: str) -> None:
    """The workspace is all ones before each replay: padding that is never written must not show."""
    served(weights, activations, path)
    linear, most, routing = make_experts(16, 1024, 352, weights, format=activations), 200, ws.Routing("topk_softmax", 4)
    layer = prepared(linear)
    x, logits = inputs(most, 1024, 16)
    count = torch.tensor([most], device=DEVICE, dtype=torch.int32)
    work = torch.empty(ws.moe_workspace(most, layer, 4), device=DEVICE, dtype=torch.uint8)
    out = torch.empty_like(x)

    def run() -> None:
        ws.fused_moe(x, logits, layer, routing, num_tokens=count, out=out, workspace=work)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for tokens in (most, 1, 0, 37, 128, most + 100):
        count.fill_(tokens)
        x.normal_()
        logits.normal_()
        out.fill_(7)
        work.fill_(0xFF)
        graph.replay()
        used = min(tokens, most)
        assert (out[used:] == 0).all()
        if used:
            want = right(x[:used], linear, *ws.route(logits[:used], routing))
            assert (out[:used].double() - want).norm() <= LIMIT * want.norm()


def test_many_tokens_are_counted_in_a_launch_of_their_own(path: str) -> None:
    assert path
    layer = make_experts(32, 256, 128, "nvfp4", format="nvfp4")
    check(*inputs(9000, 256, 32), layer, ws.Routing("topk_softmax", 8))


def test_the_cases_of_verify() -> None:
    outcomes = verify(
        CATALOG, Settings.from_environment(), 0, default_driver(), seed=np.random.SeedSequence().generate_state(1)[0],
        cases=list(quantize_rows_cases()),
    )  # fmt: skip
    assert [m for o in outcomes for m in o.mismatches] == []
