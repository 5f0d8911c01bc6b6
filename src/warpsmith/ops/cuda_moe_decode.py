# SPDX-License-Identifier: Apache-2.0
"""A MoE layer of a few tokens in two launches, where the catalog has kernels for that.

The first one routes and makes the activations, the second one routes again while the first is at work, and makes the
result. Nothing is sorted or gathered.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from warpsmith.catalog import CATALOG
from warpsmith.catalog.fused_moe import ACTIVATIONS, RULES, UNGATED
from warpsmith.catalog.moe_decode import DOWN, LAYERS, UP
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


class DecodePlan(NamedTuple):
    """A layer's call in two launches; `at` is where buffers start in its workspace, `extra` what it needs besides."""

    at: arguments.Buffers
    up: Step
    down: Step
    extra: int = 0


def decode_plan(
    x: torch.Tensor, logits: Any, experts: Experts, routing: Routing | None, expert_offset: int
) -> DecodePlan | None:
    """Plan the call of a layer that has been checked, or None where there are no kernels for it."""
    w13, w2, bias13, bias2 = weights_of(experts).kept
    if logits is None or routing is None or routing.scales_input or experts.activation in UNGATED:
        return None
    if isinstance(w13, QTensor) or isinstance(w2, QTensor) or not (w13.is_contiguous() and w2.is_contiguous()):
        return None
    tokens, hidden, inner = x.shape[0], experts.hidden, experts.inner
    facts, fields = cuda_gemm._facts(x.get_device()), {"type": PLAIN_NAMES[dtype_name(x)]}
    sizes = {"tokens": tokens, "hidden": hidden}
    if not any(all(bound.holds(sizes, facts.sm_count) for bound in bounds) for bounds in LAYERS):
        return None
    problems = [
        Problem.of(operation, fields, {"m": tokens, "n": n, "k": k})
        for operation, n, k in ((UP, inner, hidden), (DOWN, hidden, inner))
    ]
    if any(resolve(CATALOG, problem, facts).choice is None for problem in problems):
        return None
    up, down = (runtime().prepare(problem, x.get_device()) for problem in problems)
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
    types = ["" if b is None else OUT_NAMES[dtype_name(b)] for b in (bias13, bias2)]
    first = decode.up_launch(
        router,
        x_row=2 * x.stride(0),
        hidden=hidden,
        inner=inner,
        activation=ACTIVATIONS[experts.activation],
        alpha=experts.alpha,
        limit=experts.limit,
        bias=types[0],
        blocks=facts.sm_count,
    )
    second = decode.down_launch(router, hidden=hidden, inner=inner, bias=types[1], blocks=facts.sm_count)
    at = arguments.buffers(layer_of(tokens, routing.top_k, experts))
    return DecodePlan(at, Step(up, *first), Step(down, *second))


def launch(plan: DecodePlan, lies: Weights, sources: tuple[int, ...], out: int, base: int, stream: int) -> None:
    """Put a layer's launches on a stream; `sources` are pointers to x, logits, routing bias and number of tokens."""
    x, *router = sources
    act = base + plan.at.act
    plan.up.run((x, lies.w13[0], lies.w13[2], *router, act), stream)
    plan.down.run((act, lies.w2[0], lies.w2[2], *router, out), stream)
