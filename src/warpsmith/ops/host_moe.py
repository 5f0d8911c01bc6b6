# SPDX-License-Identifier: Apache-2.0
"""The MoE operations on NumPy arrays and torch CPU tensors: the reference, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from warpsmith import reference
from warpsmith.ops import host
from warpsmith.ops.gated_order import ungated
from warpsmith.ops.gemm_checks import PLAIN_NAMES
from warpsmith.ops.moe_types import Experts, Routing
from warpsmith.ops.prepared_order import restored
from warpsmith.ops.qtensor import QTensor, dtype_name
from warpsmith.reference import moe
from warpsmith.reference.arithmetic import cast

Array = np.ndarray[Any, Any]


def route(logits: Any, routing: Routing, num_tokens: Any) -> tuple[Any, Any]:
    """Route on the host; arguments are checked."""
    bias = None if routing.bias is None else host.to_numpy(routing.bias)
    ids, weights = moe.route(
        host.to_numpy(logits),
        routing.top_k,
        routing.rule,
        bias=bias,
        n_group=routing.n_group,
        topk_group=routing.topk_group,
        scale=routing.scale,
    )
    beyond = slice(_count(num_tokens, len(ids)), None)
    ids[beyond], weights[beyond] = -1, 0
    return host.like(ids, logits), host.like(weights.astype(np.float32), logits)


def permute(ids: Any, experts: int, expert_offset: int, x: Any, num_tokens: Any) -> tuple[Any, Any, Any, Any]:
    """Sort and gather on the host; rows that belong to no local expert are −1, gathered ones zero."""
    choice = _counted(ids, num_tokens)
    offsets, rows, positions = moe.permute(choice, experts, expert_offset=expert_offset)
    padded = np.full(choice.size, -1, np.int32)
    padded[: len(rows)] = rows
    gathered = None
    if x is not None:
        values = host.to_numpy(x)
        full = np.zeros((choice.size, values.shape[1]), values.dtype)
        full[: len(rows)] = values[rows // choice.shape[1]]
        gathered = host.like(full, x, dtype_name(x))
    return host.like(offsets, ids), host.like(padded, ids), host.like(positions, ids), gathered


def combine(y: Any, weights: Any, positions: Any, tokens: int, top_k: int, out: Any) -> Any:
    """Add the experts' rows on the host; arguments are checked."""
    factors = np.ones((tokens, top_k)) if weights is None else host.to_numpy(weights)
    values = host.to_numpy(y)
    places = np.where(host.to_numpy(positions) < len(values), host.to_numpy(positions), -1)
    result = moe.combine(values.astype(np.float64), factors, places)
    return _finish(result, y, out)


def fused(
    x: Any,
    logits: Any,
    experts: Experts,
    routing: Routing | None,
    ids: Any,
    weights: Any,
    expert_offset: int,
    num_tokens: Any,
    out: Any,
) -> Any:
    """Run a layer on the host; arguments are checked."""
    if logits is not None and routing is not None:
        ids, weights = route(logits, routing, num_tokens)
    name = PLAIN_NAMES[dtype_name(x)]
    rounded, into_first = moe.rounding(name), _between(experts.format, experts.a1, name)
    result = moe.fused_moe(
        host.to_numpy(x),
        _Decoded(experts.w13),
        _Decoded(experts.w2),
        _counted(ids, num_tokens),
        host.to_numpy(weights),
        activation=experts.activation,
        alpha=experts.alpha,
        limit=experts.limit,
        bias13=None if experts.bias13 is None else host.to_numpy(experts.bias13),
        bias2=None if experts.bias2 is None else host.to_numpy(experts.bias2),
        expert_offset=expert_offset,
        scales_input=routing is not None and routing.scales_input,
        first=lambda values, expert: into_first(rounded(values, expert), expert),
        between=_between(experts.format, experts.a2, name),
    )
    return _finish(result, x, out)


class _Decoded:
    """Experts' weights in float64, one expert at a time."""

    def __init__(self, w: Any) -> None:
        self._w = ungated(restored(w)) if isinstance(w, QTensor) else w

    def __len__(self) -> int:
        return int(self._w.shape[0])

    def __getitem__(self, expert: Any) -> Array:
        w = self._w
        if not isinstance(w, QTensor):
            return host.to_numpy(w[expert]).astype(np.float64)
        scale = None
        if w.global_scale is not None:
            scales = host.to_numpy(w.global_scale).reshape(-1)
            scale = scales[expert if scales.size > 1 else 0]
        data, block_scales = host.to_numpy(w.data)[expert], host.to_numpy(w.scales)[expert]
        return reference.decode_float64(
            data, block_scales, w.format, shape=w.shape[1:], scale_layout=w.scale_layout, global_scale=scale,
            packing=w.packing,
        )  # fmt: skip


def _between(format: str | None, scale: Any, name: str) -> moe.Between:
    """What happens to the inputs of a product: a rounding to x's type, or quantizing what that gives."""
    rounded = moe.rounding(name)
    if format is None:
        return rounded
    scales = None if scale is None else host.to_numpy(scale).reshape(-1)

    def quantized(values: Array, expert: int) -> Array:
        factor = None if scales is None else scales[expert if scales.size > 1 else 0]
        codes, block_scales = reference.quantize(values.astype(np.float32), format, global_scale=factor)
        return reference.decode_float64(codes, block_scales, format, shape=values.shape, global_scale=factor)

    return quantized


def _count(num_tokens: Any, tokens: int) -> int:
    return tokens if num_tokens is None else min(max(int(host.to_numpy(num_tokens).reshape(-1)[0]), 0), tokens)


def _counted(ids: Any, num_tokens: Any) -> Array:
    """Ids in NumPy, −1 for tokens that do not count."""
    choice = np.array(host.to_numpy(ids))
    choice[_count(num_tokens, len(choice)) :] = -1
    return choice


def _finish(result: Array, x: Any, out: Any) -> Any:
    name = dtype_name(x)
    rounded = cast(result, PLAIN_NAMES[name])
    if out is None:
        return host.like(rounded, x, name if name == "bfloat16" else "")
    host.to_numpy(out)[...] = rounded
    return out
