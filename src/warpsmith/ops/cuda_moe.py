# SPDX-License-Identifier: Apache-2.0
"""The MoE operations on torch CUDA tensors: check once, plan once, launch many.

A layer is route → sort and gather → grouped product → activation → grouped product → weighted sum, one launch each, or
for a few tokens two launches (`cuda_moe_decode`). All
between x and the result lies in one workspace; what split products need besides is one more piece of memory. Which
tokens an expert gets is known on the device alone, so that grids are made for the most there could be.
"""

from __future__ import annotations

from typing import Any

import torch

from warpsmith.errors import InvalidArgumentError
from warpsmith.ops import cuda_gemm
from warpsmith.ops import cuda_moe_decode as decode
from warpsmith.ops import cuda_moe_prepared as prepared
from warpsmith.ops import moe_args as arguments
from warpsmith.ops.cuda import _remember as remember
from warpsmith.ops.cuda_moe_plan import (
    Plan,
    Step,
    Weights,
    combine_step,
    make_plan,
    permute_steps,
    route_step,
    weights_of,
)
from warpsmith.ops.moe_checks import check_choice, check_layer, check_logits, check_num_tokens, check_result
from warpsmith.ops.moe_types import Experts, Routing

_current_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # a CPU build of torch has none
_plans: dict[tuple[Any, ...], Plan | decode.DecodePlan | prepared.PreparedPlan] = {}
_steps: dict[tuple[Any, ...], Any] = {}


def _key(x: torch.Tensor) -> tuple[Any, ...]:
    return x.dtype, x.shape, x.stride(), x.data_ptr() & 15, x.get_device()


def _pointer(x: torch.Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _rows(x: torch.Tensor) -> torch.Tensor:
    """The matrix itself where kernels can read its rows 16 bytes at a time, or a copy."""
    fits = x.stride(1) == 1 and not (x.data_ptr() | 2 * x.stride(0)) & 15
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def _dense_rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def route(logits: torch.Tensor, routing: Routing, num_tokens: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Route on the GPU; arguments as in `warpsmith.route`."""
    check_logits(logits, routing)
    check_num_tokens(num_tokens, logits)
    shape = logits.shape[0], routing.top_k
    ids = torch.empty(shape, dtype=torch.int32, device=logits.device)
    weights = torch.empty(shape, dtype=torch.float32, device=logits.device)
    if not ids.numel():
        return ids, weights
    logits = _dense_rows(logits)
    bias = None if routing.bias is None else routing.bias.contiguous()
    key = ("route", _key(logits), routing.numbers)
    step: Step = _steps.get(key) or remember(_steps, key, route_step(logits, routing))
    stream = _current_stream(logits.get_device())
    pointers = logits.data_ptr(), _pointer(bias), _pointer(num_tokens), ids.data_ptr(), weights.data_ptr(), 0, 0, 0
    step.run(pointers, stream)
    return ids, weights


def permute(
    ids: torch.Tensor, experts: int, expert_offset: int, x: Any, num_tokens: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Sort and gather on the GPU; arguments are checked, and as in `warpsmith.moe_permute`."""
    device, pairs, top_k = ids.device, ids.numel(), ids.shape[1]
    offsets = torch.empty(experts + 1, dtype=torch.int32, device=device)
    rows, positions = (torch.empty(pairs, dtype=torch.int32, device=device) for _ in range(2))
    gathered = None if x is None else torch.empty((pairs, x.shape[1]), dtype=x.dtype, device=device)
    if not pairs:
        return offsets.zero_(), rows, positions, gathered
    ids = ids.contiguous()
    x = None if x is None else _rows(x)
    index = ids.get_device()
    key = ("permute", index, ids.shape, experts, expert_offset, None if x is None else _key(x))
    steps: tuple[Step | None, Step] | None = _steps.get(key)
    if steps is None:
        sizes = {} if x is None else {"x_row": 2 * x.stride(0), "row": 2 * x.shape[1]}
        made = permute_steps(pairs, index, top_k=top_k, experts=experts, expert_offset=expert_offset, **sizes)
        steps = remember(_steps, key, made)
    count, sort = steps
    counts = None if count is None else torch.empty(sort.grid[0] * experts, dtype=torch.int32, device=device)
    pointers = (
        ids.data_ptr(), _pointer(num_tokens), offsets.data_ptr(), rows.data_ptr(), positions.data_ptr(),
        _pointer(counts), 0, _pointer(x), _pointer(gathered), 0, 0, 0,
    )  # fmt: skip
    stream = _current_stream(index)
    if count is not None:
        count.run(pointers, stream)
    sort.run(pointers, stream)
    return offsets, rows, positions, gathered


def combine(y: torch.Tensor, weights: Any, positions: torch.Tensor, tokens: int, top_k: int, out: Any) -> torch.Tensor:
    """Add the experts' rows on the GPU; arguments are checked, and as in `warpsmith.moe_combine`."""
    hidden = y.shape[1]
    made = torch.empty((tokens, hidden), dtype=y.dtype, device=y.device) if out is None else out
    if not tokens:
        return made
    if not y.shape[0]:
        return made.zero_()
    y = y.contiguous() if not y.data_ptr() & 15 else y.clone(memory_format=torch.contiguous_format)
    weights = None if weights is None else weights.contiguous()
    positions = positions.contiguous()
    index, name = y.get_device(), str(y.dtype).removeprefix("torch.")
    key = ("combine", index, name, tokens, y.shape, top_k)
    step: Step = _steps.get(key) or remember(_steps, key, combine_step(name, tokens, y.shape[0], top_k, hidden, index))
    pointers = y.data_ptr(), _pointer(weights), positions.data_ptr(), made.data_ptr()
    step.run(pointers, _current_stream(index))
    return made


def fused(
    x: torch.Tensor,
    logits: Any,
    experts: Experts,
    routing: Routing | None,
    ids: Any,
    weights: Any,
    expert_offset: int,
    num_tokens: Any,
    out: Any,
    workspace: Any,
) -> torch.Tensor:
    """Run a layer on the GPU; arguments as in `warpsmith.fused_moe`."""
    lies = weights_of(experts)
    others = [None if t is None else _key(t) for t in (logits, ids, weights, num_tokens, out, workspace)]
    rule = None if routing is None else (routing.numbers, None if routing.bias is None else _key(routing.bias))
    key = (_key(x), lies.signature, rule, expert_offset, *others)
    plan = _plans.get(key)
    if plan is None:
        top_k = _check(x, logits, experts, routing, ids, weights, expert_offset, num_tokens, out)
        if not x.shape[0]:
            return torch.empty_like(x) if out is None else out
        fits = _rows(x), None if logits is None else _dense_rows(logits)
        if fits[0] is not x or fits[1] is not logits:
            given = (ids, weights, expert_offset, num_tokens, out, workspace)
            return fused(fits[0], fits[1], experts, routing, *given)
        plan = decode.decode_plan(x, logits, experts, routing, expert_offset)
        plan = plan or prepared.prepared_plan(x, logits, experts, routing, top_k, expert_offset)
        plan = plan or make_plan(x, logits, experts, routing, top_k, expert_offset)
        if workspace is not None:
            _check_workspace(workspace, x, plan.at.total)
        remember(_plans, key, plan)
    made = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    if workspace is None:
        workspace = torch.empty(plan.at.total + plan.extra, dtype=torch.uint8, device=x.device)
        base = workspace.data_ptr()
        extra = base + plan.at.total
    else:
        base, extra = workspace.data_ptr(), 0
        if plan.extra:
            scratch = torch.empty(plan.extra, dtype=torch.uint8, device=x.device)
            extra = scratch.data_ptr()
    bias = 0 if routing is None else _pointer(routing.bias)
    chosen = (0, 0) if ids is None else (ids.data_ptr(), weights.data_ptr())
    sources = x.data_ptr(), _pointer(logits), bias, _pointer(num_tokens)
    stream = _current_stream(x.get_device())
    if isinstance(plan, decode.DecodePlan):
        decode.launch(plan, lies, sources, made.data_ptr(), base, stream)
    elif isinstance(plan, prepared.PreparedPlan):
        prepared.launch(plan, lies, (*sources, *chosen), made.data_ptr(), base, extra, stream)
    else:
        _launch(plan, lies, (*sources, *chosen), made.data_ptr(), base, extra, stream)
    return made


def _launch(plan: Plan, lies: Weights, sources: tuple[int, ...], out: int, base: int, extra: int, stream: int) -> None:
    """Put a layer's launches on a stream."""
    at = plan.at
    x, logits, bias, num_tokens, ids, weights = sources
    offsets, positions, rows = base + at.offsets, base + at.positions, base + at.rows
    a, a_scales, h, act, act_scales = base + at.a, base + at.a_scales, base + at.h, base + at.act, base + at.act_scales
    scratch = extra, extra + plan.arrivals
    if plan.route is not None:
        ids, weights = base + at.ids, base + at.weights
        plan.route.run((logits, bias, num_tokens, ids, weights, 0, 0, 0), stream)
    source, source_scales, gathered = x, 0, a
    if plan.quantize_x is not None:
        source, source_scales = base + at.codes, base + at.x_scales
        plan.quantize_x.run((x, source, source_scales, lies.a1, 0), stream)
    elif plan.quantize_a is not None:
        gathered = base + at.plain
    counts = base + at.counts if plan.counter is not None else 0
    beside = (source_scales, a_scales if source_scales else 0, weights if plan.scales_input else 0)
    sorting = (ids, num_tokens, offsets, rows, positions, counts, scratch[1], source, gathered, *beside)
    if plan.counter is not None:
        plan.counter.run(sorting, stream)
    plan.permute.run(sorting, stream)
    if plan.quantize_a is not None:
        plan.quantize_a.run((gathered, a, a_scales, lies.a1, offsets), stream)
    data, scales, w_bias, factor = lies.w13
    product = act if plan.first_activates else h
    given = (a, data, product, a_scales, scales, w_bias, lies.a1, factor, offsets)
    cuda_gemm.launch_planned(plan.first, given, scratch, stream)
    last = offsets + 4 * plan.layer.experts
    activated = h
    if plan.activate is not None:
        activated = base + at.plain if plan.quantize_act is not None else act
        plan.activate.run((h, activated, last), stream)
    if plan.quantize_act is not None:
        plan.quantize_act.run((activated, act, act_scales, lies.a2, offsets), stream)
    data, scales, w_bias, factor = lies.w2
    y = base + at.y
    given = (act, data, y, act_scales, scales, w_bias, lies.a2, factor, offsets)
    cuda_gemm.launch_planned(plan.second, given, scratch, stream)
    plan.combine.run((y, 0 if plan.scales_input else weights, positions, out), stream)


def _check(
    x: Any,
    logits: Any,
    experts: Experts,
    routing: Any,
    ids: Any,
    weights: Any,
    expert_offset: int,
    num_tokens: Any,
    out: Any,
) -> int:
    """Refuse what does not go together; the choices a token."""
    if logits is not None:
        check_logits(logits, routing)
        tokens, top_k, total, source = logits.shape[0], routing.top_k, logits.shape[1], logits
    else:
        chosen = check_choice(ids, weights)
        tokens, top_k, total, source = chosen.tokens, chosen.top_k, None, ids
        for what, t in (("ids", ids), ("weights", weights)):
            if not t.is_contiguous():
                raise InvalidArgumentError(f"{what} is not contiguous; expected a contiguous tensor")
    check_layer(x, tokens, source, experts, total, expert_offset)
    check_num_tokens(num_tokens, x)
    if routing is not None and routing.bias is not None and not routing.bias.is_contiguous():
        raise InvalidArgumentError("the routing bias is not contiguous; expected a contiguous tensor")
    if out is not None:
        check_result(out, x, tuple(x.shape))
        if out.data_ptr() & 15:
            raise InvalidArgumentError("out does not start at a multiple of 16 bytes")
    return int(top_k)


def _check_workspace(workspace: Any, x: torch.Tensor, need: int) -> None:
    """Refuse a workspace that is too small, elsewhere or not aligned."""
    if not isinstance(workspace, torch.Tensor) or workspace.dtype is not torch.uint8 or not workspace.is_contiguous():
        raise InvalidArgumentError("workspace must be a contiguous uint8 tensor; warpsmith.moe_workspace says how long")
    if workspace.get_device() != x.get_device():
        raise InvalidArgumentError(f"workspace is on {workspace.device} and x on {x.device}; expected the same device")
    if workspace.numel() < need or workspace.data_ptr() & 15:
        raise InvalidArgumentError(
            f"workspace has {workspace.numel()} bytes; this call needs {need}, aligned to 16 (warpsmith.moe_workspace)"
        )


def workspace_bytes(layer: arguments.Layer) -> int:
    """Bytes of the workspace of a call."""
    return arguments.buffers(layer).total
