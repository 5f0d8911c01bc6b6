# SPDX-License-Identifier: Apache-2.0
"""A MoE layer with prepared weights: both products read scales in the layout 128x4, of activations too.

One kernel makes what each of them reads. It quantizes tokens' rows, once each, and writes them to their places; then it
activates and quantizes those of the first product, so that between the products lies one launch for any activation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from warpsmith.catalog.spec import Problem
from warpsmith.ops import cuda_gemm
from warpsmith.ops import moe_args as arguments
from warpsmith.ops.cuda_gated import GatedProduct, gated_product
from warpsmith.ops.cuda_moe_plan import (
    Step,
    Weights,
    combine_step,
    grouped_product,
    layer_of,
    permute_steps,
    route_step,
    weights_of,
)
from warpsmith.ops.gemm_checks import PLAIN_NAMES
from warpsmith.ops.moe_types import Experts, Routing
from warpsmith.ops.qtensor import dtype_name
from warpsmith.ops.state import runtime


class PreparedPlan(NamedTuple):
    """A layer's call; fields as those of `cuda_moe_plan.Plan`. `gather` and `activate` quantize what they make.

    Without `permute`, `route` sorts too: one block routes few tokens in any case. A `first` that is a `GatedProduct`
    activates and quantizes.
    """

    layer: arguments.Layer
    at: arguments.Buffers
    route: Step | None
    counter: Step | None
    permute: Step | None
    gather: Step
    first: cuda_gemm.Planned | GatedProduct
    activate: Step | None
    second: cuda_gemm.Planned
    combine: Step
    arrivals: int
    extra: int
    scales_input: bool


def _several(scale: Any) -> bool:
    return scale is not None and scale.numel() > 1


def prepared_plan(
    x: torch.Tensor, logits: Any, experts: Experts, routing: Routing | None, top_k: int, expert_offset: int
) -> PreparedPlan | None:
    """Plan the call of a layer that has been checked, or None where its weights' scales are linear."""
    if not experts.tiled:
        return None
    device, name, format = x.get_device(), PLAIN_NAMES[dtype_name(x)], str(experts.format)
    layer = layer_of(x.shape[0], top_k, experts)
    w13, w2, bias13, bias2 = weights_of(experts).kept
    rows, hidden, inner = layer.gates * layer.inner, layer.hidden, layer.inner
    gated = gated_product(layer, experts, w13, bias13, name, device) if experts.gated else None
    first = gated or grouped_product(layer, format, experts.a1, w13, rows, hidden, bias13, name, device)[0]
    second, _ = grouped_product(layer, format, experts.a2, w2, hidden, inner, bias2, name, device)
    words = max(first.launch.arrivals, second.launch.arrivals)
    scratch = max(first.launch.workspace, second.launch.workspace)
    local = {"expert_offset": expert_offset, "local_experts": layer.experts}
    route = counter = permute = None
    if logits is not None and routing is not None:
        few = layer.tokens <= arguments.ROUTE_TOKENS and layer.pairs <= arguments.CHUNK and not words
        route = route_step(logits, routing, sorts=few, **(local if few else {}))
    if route is None or not few:
        counter, permute = permute_steps(
            layer.pairs, device, top_k=top_k, experts=layer.experts, expert_offset=expert_offset, zeros=words
        )
    activation = {"activation": experts.activation, "alpha": experts.alpha, "limit": experts.limit}
    activation["gated"] = experts.gated

    def quantizing(columns: int, x_row: int, scale: Any, **options: Any) -> Step:
        fields = {"format": format, "type": name}
        kernel = runtime().prepare(Problem.of("moe_quantize", fields, {"m": layer.pairs, "k": columns}), device)
        several = _several(scale)
        launch = arguments.quantize_launch(layer, columns, x_row=x_row, scale_per_expert=several, **options)
        return Step(kernel, *launch)

    return PreparedPlan(
        layer,
        arguments.buffers(layer),
        route,
        counter,
        permute,
        quantizing(hidden, 2 * x.stride(0), experts.a1, expert_offset=expert_offset),
        first,
        None if gated else quantizing(inner, 2 * rows, experts.a2, **activation),
        second,
        combine_step(dtype_name(x), layer.tokens, layer.pairs, top_k, hidden, device),
        scratch,
        scratch + 4 * words,
        routing is not None and routing.scales_input,
    )


def launch(
    plan: PreparedPlan, lies: Weights, sources: tuple[int, ...], out: int, base: int, extra: int, stream: int
) -> None:
    """Put a layer's launches on a stream; pointers as those of `cuda_moe`."""
    at = plan.at
    x, logits, bias, num_tokens, ids, weights = sources
    offsets, rows, positions = base + at.offsets, base + at.rows, base + at.positions
    a, a_scales, h, act, act_scales = base + at.a, base + at.a_scales, base + at.h, base + at.act, base + at.act_scales
    scratch = extra, extra + plan.arrivals
    if plan.route is not None:
        ids, weights = base + at.ids, base + at.weights
        places = (offsets, rows, positions) if plan.permute is None else (0, 0, 0)
        plan.route.run((logits, bias, num_tokens, ids, weights, *places), stream)
    if plan.permute is not None:
        counts = base + at.counts if plan.counter is not None else 0
        sorting = (ids, num_tokens, offsets, rows, positions, counts, scratch[1], 0, 0, 0, 0, 0)
        if plan.counter is not None:
            plan.counter.run(sorting, stream)
        plan.permute.run(sorting, stream)
    factors = weights if plan.scales_input else 0
    plan.gather.run((x, a, a_scales, lies.a1, offsets, ids, positions, factors), stream)
    data, scales, w_bias, factor = lies.w13
    if isinstance(plan.first, GatedProduct):
        given = (a, data, act, a_scales, scales, w_bias, lies.a1, factor, offsets)
        plan.first.run(given, (act_scales, lies.a2), stream)
    else:
        given = (a, data, h, a_scales, scales, w_bias, lies.a1, factor, offsets)
        cuda_gemm.launch_planned(plan.first, given, scratch, stream)
    if plan.activate is not None:
        plan.activate.run((h, act, act_scales, lies.a2, offsets, 0, 0, 0), stream)
    data, scales, w_bias, factor = lies.w2
    y = base + at.y
    given = (act, data, y, act_scales, scales, w_bias, lies.a2, factor, offsets)
    cuda_gemm.launch_planned(plan.second, given, scratch, stream)
    plan.combine.run((y, 0 if plan.scales_input else weights, positions, out), stream)
