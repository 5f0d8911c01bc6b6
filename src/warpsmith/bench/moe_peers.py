# SPDX-License-Identifier: Apache-2.0
"""Other people's MoE layers, in bf16: quantized weights are dequantized. A peer counts only if its output is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Call = Callable[[], Any]


class Given(NamedTuple):
    """What a peer gets: one set of inputs, our choice of experts, weights in bf16, our layer and its format."""

    format: str
    x: Any
    logits: Any
    ids: Any
    weights: Any
    w13: Any
    w2: Any
    layer: Any
    routing: Any


class Peer(NamedTuple):
    """A peer for one set of inputs: what is timed, and the layer's result by its means."""

    timed: Call
    result: Call


def _routed(logits: Any, routing: Any) -> tuple[Any, Any]:
    """(weights, ids) of a rule in torch operations."""
    import torch

    if routing.rule != "sigmoid_bias_grouped":
        weights, ids = torch.topk(torch.softmax(logits.float(), -1), routing.top_k)
        return weights / weights.sum(-1, keepdim=True), ids
    scores = torch.sigmoid(logits.float())
    choice = scores + routing.bias
    if routing.n_group > 1:
        groups = choice.view(len(choice), routing.n_group, -1)
        best = groups.topk(2, dim=-1).values.sum(-1).topk(routing.topk_group, dim=-1).indices
        taken = torch.zeros_like(groups[..., 0], dtype=torch.bool).scatter(1, best, value=True)
        choice = groups.masked_fill(~taken[..., None], float("-inf")).view_as(choice)
    ids = choice.topk(routing.top_k, dim=-1).indices
    weights = scores.gather(1, ids)
    return weights / weights.sum(-1, keepdim=True) * routing.scale, ids


def torch_grouped(g: Given) -> Peer:
    """The whole layer in torch: routing, sort, `torch._grouped_mm` twice, biases, activation, weighted sum."""
    import torch

    tokens, experts = g.logits.shape
    top_k, layer = g.routing.top_k, g.layer

    def activation(gate: Any, up: Any) -> Any:
        if layer.activation != "swiglu_oai":
            return torch.nn.functional.silu(gate) * up
        gate, up = gate.clamp(max=layer.limit), up.clamp(-layer.limit, layer.limit)
        return gate * torch.sigmoid(layer.alpha * gate) * (up + 1)

    def run() -> Any:
        weights, ids = _routed(g.logits, g.routing)
        flat = ids.reshape(-1)
        order = torch.argsort(flat, stable=True)
        ends = torch.cumsum(torch.nn.functional.one_hot(flat, experts).sum(0), 0).to(torch.int32)
        h = torch._grouped_mm(g.x[order // top_k], g.w13.transpose(1, 2), offs=ends)
        h = h if layer.bias13 is None else h + layer.bias13[flat[order]]
        y = torch._grouped_mm(activation(*h.chunk(2, dim=-1)), g.w2.transpose(1, 2), offs=ends)
        y = y if layer.bias2 is None else y + layer.bias2[flat[order]]
        places = torch.empty_like(order)
        places[order] = torch.arange(tokens * top_k, device=g.x.device)
        return (y[places].view(tokens, top_k, -1) * weights[..., None].to(g.x.dtype)).sum(1)

    return Peer(run, run)


def sglang_products(g: Given) -> Peer | None:
    """The two products of sglang's Triton kernel, in the configuration that it chooses; None if it is not installed.

    Sorting, activation and sum are not timed: what is left is less than its layer takes.
    """
    if g.format != "bf16" or g.layer.bias13 is not None:
        return None
    try:
        from sglang.srt.layers.moe.fused_moe_triton import fused_moe_triton_config as configs
        from sglang.srt.layers.moe.fused_moe_triton import fused_moe_triton_kernels as kernels
    except Exception:
        return None
    import torch
    import triton.language as tl

    x, ids, w13, w2 = g.x, g.ids, g.w13, g.w2
    tokens, top_k = ids.shape
    config = configs.try_get_optimal_moe_config(w13.shape, w2.shape, top_k, None, tokens)
    places, experts, padded = _aligned(ids, w13.shape[0], config["BLOCK_SIZE_M"])
    h = torch.empty(tokens, top_k, w13.shape[1], device=x.device, dtype=x.dtype)
    act = torch.empty(tokens * top_k, w2.shape[2], device=x.device, dtype=x.dtype)
    y = torch.empty(tokens, top_k, w2.shape[1], device=x.device, dtype=x.dtype)

    def product(a: Any, w: Any, out: Any, choices: int) -> None:
        kernels.invoke_fused_moe_kernel(
            a, w, None, out, None, None, None, g.weights, ids, places, experts, padded, choices == 1, choices, config,
            compute_type=tl.bfloat16, use_fp8_w8a8=False, use_int8_w8a8=False, use_int8_w8a16=False,
            use_int4_w4a16=False, per_channel_quant=False,
        )  # fmt: skip

    def products() -> Any:
        product(x, w13, h, top_k)
        product(act, w2, y, 1)
        return y

    def result() -> Any:
        product(x, w13, h, top_k)
        gate, up = h.view(tokens * top_k, -1).chunk(2, dim=-1)
        act.copy_(torch.nn.functional.silu(gate) * up)
        product(act, w2, y, 1)
        return y.sum(1)

    return Peer(products, result)


def _aligned(ids: Any, experts: int, block: int) -> tuple[Any, Any, Any]:
    """Pairs sorted by expert, each expert's padded to whole blocks; the expert of each block; how many in all."""
    import torch

    flat = ids.reshape(-1).long()
    counts = torch.bincount(flat, minlength=experts)
    starts = (-(-counts // block) * block).cumsum(0)
    total = int(starts[-1])
    starts = torch.cat([starts.new_zeros(1), starts[:-1]])
    order = torch.argsort(flat, stable=True)
    rank = torch.arange(len(flat), device=ids.device) - (counts.cumsum(0) - counts)[flat[order]]
    places = torch.full((total,), len(flat), dtype=torch.int32, device=ids.device)
    places[starts[flat[order]] + rank] = order.int()
    owners = torch.repeat_interleave(torch.arange(experts, device=ids.device), -(-counts // block))
    return places, owners.int(), torch.tensor([total], dtype=torch.int32, device=ids.device)


PEERS: dict[str, Callable[[Given], Peer | None]] = {
    "torch grouped": torch_grouped,
    "sglang Triton, products alone": sglang_products,
}
"""By name; one that is not installed gives None."""
