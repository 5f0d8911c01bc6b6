# SPDX-License-Identifier: Apache-2.0
"""`fused_moe` on a GPU: chosen experts exactly the host's, the layer within its tolerance, in graphs too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import warpsmith as ws
from warpsmith.catalog import CATALOG
from warpsmith.errors import InvalidArgumentError
from warpsmith.evidence.moe_cases import all_moe_cases
from warpsmith.evidence.verify import verify
from warpsmith.reference import moe
from warpsmith.runtime.driver import default_driver
from warpsmith.settings import Settings

from .moe_support import MODELS, make_experts, model_experts, right, routing_of
from .support import DEVICE, download, torch

TOKENS = (0, 1, 2, 3, 17, 64, 129, 1000, 4097)
LIMITS = {torch.bfloat16: 6e-3, torch.float16: 8e-4}
REQUANTIZED = 5e-2
"""With quantized activations a value near the middle of two codes may become either."""


def check(x: Any, logits: Any, layer: ws.Experts, routing: ws.Routing, limit: float | None = None, **given: Any) -> Any:
    """Run a layer twice and compare bits, ids and values."""
    got, again = (ws.fused_moe(x, logits, layer, routing, **given) for _ in range(2))
    assert torch.equal(got.view(torch.int16), again.view(torch.int16))
    ids, weights = ws.route(logits, routing)
    bias = None if routing.bias is None else download(routing.bias)
    wanted, _ = moe.route(
        download(logits), routing.top_k, routing.rule, bias=bias, n_group=routing.n_group, topk_group=routing.topk_group
    )
    np.testing.assert_array_equal(download(ids), wanted)
    assert got.shape == x.shape
    if x.shape[0]:
        options = {name: given[name] for name in given if name == "expert_offset"}
        want = right(x, layer, ids, weights, scales_input=routing.scales_input, **options)
        error = (got.double() - want).norm() / want.norm().clamp(min=1e-30)
        assert error <= (LIMITS[x.dtype] if limit is None else limit)
    return got


def inputs(tokens: int, hidden: int, experts: int, dtype: Any = torch.bfloat16) -> tuple[Any, Any]:
    torch.manual_seed(tokens)
    return torch.randn(tokens, hidden, device=DEVICE).to(dtype), torch.randn(tokens, experts, device=DEVICE)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_and_number_of_tokens(model: str) -> None:
    layer, routing = model_experts(model, "bf16"), routing_of(model)
    for tokens in TOKENS:
        check(*inputs(tokens, layer.hidden, layer.number), layer, routing)


@pytest.mark.parametrize("weights", ["nvfp4", "mxfp4", "mxfp8", "fp8_block_128x128"])
def test_weights_of_every_format(weights: str) -> None:
    for model in ("gpt-oss-120b", "Qwen3-30B-A3B"):
        sizes = MODELS[model]
        rounded = {"hidden": sizes["hidden"] // 128 * 128, "inner": sizes["inner"] // 128 * 128}
        layer = make_experts(8, rounded["hidden"], rounded["inner"], weights)
        for tokens in (1, 17, 129, 1000):
            check(*inputs(tokens, layer.hidden, 8), layer, ws.Routing("topk_softmax", 2))


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        ("nvfp4", "nvfp4"),
        ("mxfp4", "mxfp4"),
        ("mxfp8", "mxfp8"),
        ("mxfp4", "mxfp8"),
        ("fp8_block_128x128", "fp8_block"),
    ],
)
def test_activations_of_every_format(weights: str, activations: str) -> None:
    for options in ({}, {"activation": "geglu"}):
        layer = make_experts(8, 1024, 512, weights, format=activations, **options)
        for tokens in (1, 17, 129, 1000):
            check(*inputs(tokens, 1024, 8), layer, ws.Routing("topk_softmax", 2), REQUANTIZED)
        check(*inputs(40, 1024, 8), layer, ws.Routing("sigmoid_input", 1), REQUANTIZED)


def test_nvfp4_with_scales_of_each_expert() -> None:
    scales = {name: torch.rand(8, device=DEVICE) * 400 + 100 for name in ("a1", "a2")}
    layer = make_experts(8, 1024, 512, "nvfp4", format="nvfp4", **scales)
    check(*inputs(129, 1024, 8), layer, ws.Routing("topk_softmax", 2), REQUANTIZED)


@pytest.mark.parametrize("activation", ["swiglu", "swiglu_oai", "geglu", "geglu_tanh", "relu2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations(activation: str, dtype: Any) -> None:
    weights = "bf16" if dtype is torch.bfloat16 else "fp16"
    layer = make_experts(8, 512, 256, weights, activation=activation, biased=True)
    check(*inputs(77, 512, 8, dtype), layer, ws.Routing("softmax_topk", 3))


@pytest.mark.parametrize("top_k", range(1, 17))
def test_every_top_k(top_k: int) -> None:
    check(*inputs(33, 512, 16), make_experts(16, 512, 256), ws.Routing("softmax_topk_renormalize", top_k))


@pytest.mark.parametrize("kind", ["one", "zipf", "empty"])
def test_skewed_routing(kind: str) -> None:
    layer = make_experts(64, 512, 256)
    for tokens in (5, 1000):
        x, logits = inputs(tokens, 512, 64)
        if kind == "one":
            logits[:, 7] += 100
        elif kind == "zipf":
            logits -= 3 * torch.log(torch.arange(1, 65, device=DEVICE))
        else:
            logits[:, ::2] -= 100
        check(x, logits, layer, ws.Routing("topk_softmax", 1 if kind == "one" else 4))


def test_slices_of_experts_add_up() -> None:
    torch.manual_seed(0)
    whole = make_experts(16, 512, 256)
    x, logits = inputs(300, 512, 16)
    routing, total = ws.Routing("topk_softmax", 4), torch.zeros(300, 512, device=DEVICE, dtype=torch.float64)
    for first, end in ((0, 3), (3, 16)):
        part = ws.Experts(whole.w13[first:end], whole.w2[first:end])
        total += check(x, logits, part, routing, expert_offset=first).double()
    want = ws.fused_moe(x, logits, whole, routing).double()
    assert (total - want).norm() <= 6e-3 * want.norm()


def test_slices_of_the_intermediate_size_add_up() -> None:
    whole = make_experts(8, 512, 256)
    x, logits = inputs(40, 512, 8)
    routing, total = ws.Routing("topk_softmax", 2), torch.zeros(40, 512, device=DEVICE, dtype=torch.float64)
    for part in (slice(0, 96), slice(96, 256)):
        w13 = torch.cat([whole.w13[:, :256][:, part], whole.w13[:, 256:][:, part]], 1)
        total += ws.fused_moe(x, logits, ws.Experts(w13, whole.w2[..., part]), routing).double()
    want = ws.fused_moe(x, logits, whole, routing).double()
    assert (total - want).norm() <= 6e-3 * want.norm()


def test_ids_out_of_range_contribute_nothing() -> None:
    layer, x = make_experts(8, 512, 256), inputs(64, 512, 8)[0]
    ids = torch.randint(0, 8, (64, 4), device=DEVICE, dtype=torch.int32)
    wild = torch.tensor([-1, 8, 2**31 - 1, -(2**31)], device=DEVICE, dtype=torch.int32)
    ids[::3] = wild
    ids[1, 2] = -5
    weights = torch.rand(64, 4, device=DEVICE)
    got = ws.fused_moe(x, None, layer, None, ids=ids, weights=weights)
    want = right(x, layer, ids, weights)
    assert (got[::3] == 0).all()
    assert (got.double() - want).norm() <= LIMITS[x.dtype] * want.norm()


def test_one_graph_serves_every_number_of_tokens() -> None:
    layer, routing, most = make_experts(16, 1024, 512), ws.Routing("topk_softmax", 4), 200
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
            want = right(x[:used], layer, *ws.route(logits[:used], routing))
            assert (out[:used].double() - want).norm() <= LIMITS[x.dtype] * want.norm()


def test_many_tokens_are_counted_in_a_launch_of_their_own() -> None:
    layer, routing = make_experts(32, 256, 128), ws.Routing("topk_softmax", 8)
    check(*inputs(9000, 256, 32), layer, routing)


def test_two_devices_and_a_small_workspace_are_refused() -> None:
    layer, routing = make_experts(8, 512, 256), ws.Routing("topk_softmax", 2)
    x, logits = inputs(9, 512, 8)
    with pytest.raises(InvalidArgumentError, match="x is on cpu"):
        ws.fused_moe(x.cpu(), logits, layer, routing)
    with pytest.raises(InvalidArgumentError, match="expected the same device"):
        ws.fused_moe(x, logits.cpu(), layer, routing)
    with pytest.raises(InvalidArgumentError, match="this call needs"):
        ws.fused_moe(x, logits, layer, routing, workspace=torch.empty(16, device=DEVICE, dtype=torch.uint8))


def test_the_cases_of_verify() -> None:
    outcomes = verify(
        CATALOG, Settings.from_environment(), 0, default_driver(), seed=np.random.SeedSequence().generate_state(1)[0],
        cases=list(all_moe_cases()),
    )  # fmt: skip
    assert [m for o in outcomes for m in o.mismatches] == []
