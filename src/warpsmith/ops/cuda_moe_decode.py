# SPDX-License-Identifier: Apache-2.0
"""A MoE layer of a few tokens in two launches, where the catalog has kernels for that.

The first one routes and makes the activations, the second one routes again while the first is at work, and makes the
result. Nothing is sorted or gathered.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from warpsmith.catalog import CATALOG, moe_decode, moe_packed
from warpsmith.catalog.formats import STREAMED
from warpsmith.catalog.fused_moe import ACTIVATIONS, RULES, UNGATED
from warpsmith.catalog.moe_decode import LAYERS
from warpsmith.catalog.moe_packed import LAYERS as PACKED_LAYERS
from warpsmith.catalog.resolve import resolve
from warpsmith.catalog.spec import Problem
from warpsmith.ops import cuda_gemm
from warpsmith.ops import moe_args as arguments
from warpsmith.ops import moe_decode_args as decode
from warpsmith.ops.cuda_moe_plan import Step, Weights, layer_of, weights_of
from warpsmith.ops.gemm_checks import OUT_NAMES, PLAIN_NAMES
from warpsmith.ops.moe_types import Experts, Routing
from warpsmith.ops.qtensor import QTensor, dtype_name
from warpsmith.ops.state import runtime
from warpsmith.tuning import Bound


class DecodePlan(NamedTuple):
    """A layer's call in two launches; `at` is where buffers start in its workspace, `extra` what it needs besides.

    `packed` says that weights are 4-bit codes in the order for few rows.
    """

    at: arguments.Buffers
    up: Step
    down: Step
    packed: bool
    extra: int = 0


class _Kernels(NamedTuple):
    """The operations of both launches, the field that says which variant, and the layers that run them."""

    operations: tuple[str, str]
    field: tuple[str, str]
    layers: tuple[tuple[Bound, ...], ...]


def _kernels(x: torch.Tensor, w13: Any, w2: Any) -> _Kernels | None:
    """The kernels for these weights, if there are any."""
    name = PLAIN_NAMES[dtype_name(x)]
    if not isinstance(w13, QTensor) and not isinstance(w2, QTensor):
        contiguous = w13.is_contiguous() and w2.is_contiguous()
        return _Kernels((moe_decode.UP, moe_decode.DOWN), ("type", name), LAYERS) if contiguous else None
    if any(not isinstance(w, QTensor) or w.packing != STREAMED for w in (w13, w2)) or w13.format != w2.format:
        return None
    operations = moe_packed.UP, moe_packed.DOWN
    return _Kernels(operations, ("format", w13.format), PACKED_LAYERS) if name == STREAMED else None


def decode_plan(
    x: torch.Tensor, logits: Any, experts: Experts, routing: Routing | None, expert_offset: int
) -> DecodePlan | None:
    """Plan the call of a layer that has been checked, or None where there are no kernels for it."""
    w13, w2 = weights_of(experts).kept[:2]
    if logits is None or routing is None or routing.scales_input or experts.activation in UNGATED or experts.format:
        return None
    kernels = _kernels(x, w13, w2)
    if kernels is None:
        return None
    tokens, hidden, inner = x.shape[0], experts.hidden, experts.inner
    facts = cuda_gemm._facts(x.get_device())
    sizes = {"tokens": tokens, "hidden": hidden}
    if not any(all(bound.holds(sizes, facts.sm_count) for bound in bounds) for bounds in kernels.layers):
        return None
    problems = [
        Problem.of(operation, dict([kernels.field]), {"m": tokens, "n": n, "k": k})
        for operation, n, k in zip(kernels.operations, (inner, hidden), (hidden, inner), strict=True)
    ]
    if any(resolve(CATALOG, problem, facts).choice is None for problem in problems):
        return None
    up, down = (runtime().prepare(problem, x.get_device()) for problem in problems)
    packed = kernels.operations[0] == moe_packed.UP
    first, second = _launches(x, logits, experts, routing, expert_offset, facts.sm_count, packed)
    at = arguments.buffers(layer_of(tokens, routing.top_k, experts))
    return DecodePlan(at, Step(up, *first), Step(down, *second), packed)


def _launches(
    x: torch.Tensor, logits: Any, experts: Experts, routing: Routing, expert_offset: int, blocks: int, packed: bool
) -> tuple[arguments.Launch, arguments.Launch]:
    tokens, (w13, w2, *biases) = x.shape[0], weights_of(experts).kept[:4]
    router = decode.Router(
        OUT_NAMES[dtype_name(logits)],
        logits.stride(0) * logits.element_size() if tokens > 1 else 0,
        tokens,
        logits.shape[1],
        routing.top_k,
        RULES[routing.rule],
        routing.n_group,
        routing.topk_group,
        float(routing.scale),
        expert_offset,
        experts.number,
    )
    types = ["" if b is None else OUT_NAMES[dtype_name(b)] for b in biases]
    sizes = {"hidden": experts.hidden, "inner": experts.inner, "blocks": blocks}
    first = decode.up_launch(
        router,
        x_row=2 * x.stride(0),
        activation=ACTIVATIONS[experts.activation],
        alpha=experts.alpha,
        limit=experts.limit,
        bias=types[0],
        own_scales=(packed and _several(w13), packed and _several(w2)),
        **sizes,
    )
    plan_down = decode.packed_down_launch if packed else decode.down_launch
    return first, plan_down(router, bias=types[1], **sizes)


def _several(w: QTensor) -> bool:
    return w.global_scale is not None and w.global_scale.numel() > 1


def launch(plan: DecodePlan, lies: Weights, sources: tuple[int, ...], out: int, base: int, stream: int) -> None:
    """Put a layer's launches on a stream; `sources` are pointers to x, logits, routing bias and number of tokens."""
    x, *router = sources
    act = base + plan.at.act
    codes, scales, bias, factor = lies.w13
    codes2, scales2, bias2, factor2 = lies.w2
    if plan.packed:
        plan.up.run((x, codes, scales, factor, factor2, bias, *router, act), stream)
        plan.down.run((act, codes2, scales2, bias2, *router, out), stream)
    else:
        plan.up.run((x, codes, bias, *router, act), stream)
        plan.down.run((act, codes2, bias2, *router, out), stream)
