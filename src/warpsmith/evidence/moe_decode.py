# SPDX-License-Identifier: Apache-2.0
"""What `warpsmith verify` runs of a MoE layer's two decode kernels: each by itself, against float64.

The first one's rows are made of the reference's experts, so that a wrong choice shows as a wrong row or as one that is
missing. The second one gets rows that the first one did not make.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from warpsmith.catalog import fused_moe as module
from warpsmith.catalog.moe_decode import DOWN, UP
from warpsmith.catalog.spec import CubinId, Problem
from warpsmith.evidence.cases import DTYPES
from warpsmith.evidence.device import POISON, Array, Bench
from warpsmith.evidence.moe_cases import DecodeCase
from warpsmith.evidence.moe_memory import Memory, differs, norm_error, twice
from warpsmith.ops import moe_decode_args as decode
from warpsmith.reference import moe

LIMITS = {"bf16": 3e-3, "fp16": 4e-4}
BLOCKS, ALPHA, LIMIT, SCALE = 11, 1.702, 7.0, 2.5


@dataclass
class DecodeLayer:
    """A case's inputs, and what its tokens are routed to; `here` are the pairs whose expert is here."""

    x: Array
    logits: Array
    route_bias: Array | None
    w13: Array
    w2: Array
    bias13: Array | None
    bias2: Array | None
    ids: Array
    weights: Array
    count: Array | None
    here: Array = field(init=False)
    local: Array = field(init=False)

    def place(self, offset: int) -> None:
        """Number the local experts."""
        self.local = self.ids.astype(np.int64) - offset
        self.here = (self.ids >= 0) & (self.local >= 0) & (self.local < len(self.w13))


def make_layer(case: DecodeCase, rng: np.random.Generator, weights: tuple[Array, Array] | None = None) -> DecodeLayer:
    """A case's inputs, with weights given or drawn."""
    kind = DTYPES[case.dtype]

    def draw(*shape: int, over: float = 1.0, dtype: Any = kind) -> Array:
        return np.asarray((rng.standard_normal(shape) / over).astype(dtype))

    x, logits = draw(case.tokens, case.hidden), draw(case.tokens, case.experts, dtype=DTYPES[case.logits])
    grouped = case.rule == "sigmoid_bias_grouped"
    route_bias = draw(case.experts, over=3, dtype=np.float32) if grouped else None
    ids, factors = moe.route(logits, case.top_k, case.rule, bias=route_bias, scale=SCALE)
    count = None if case.counted is None else np.array([case.counted], np.int32)
    if case.counted is not None:
        ids[max(case.counted, 0) :], factors[max(case.counted, 0) :] = -1, 0
    bias13, bias2 = (
        draw(case.local, n, dtype=DTYPES[case.bias]) if case.bias else None for n in (2 * case.inner, case.hidden)
    )
    given = weights or (
        draw(case.local, 2 * case.inner, case.hidden, over=case.hidden**0.5),
        draw(case.local, case.hidden, case.inner, over=case.inner**0.5),
    )
    layer = DecodeLayer(x, logits, route_bias, *given, bias13, bias2, ids, factors, count)
    layer.place(case.offset)
    return layer


def product(rows: Array, w: Array, bias: Array | None, layer: DecodeLayer) -> Array:
    """Rows [tokens, top_k, K] times the matrices of their experts, in float64; zero where there is none."""
    out = np.zeros((*layer.ids.shape, w.shape[1]))
    for t, j in np.argwhere(layer.here):
        e = layer.local[t, j]
        out[t, j] = w[e].astype(np.float64) @ rows[t, j].astype(np.float64)
        if bias is not None:
            out[t, j] += bias[e].astype(np.float64)
    return out


def route_with(case: DecodeCase, layer: DecodeLayer, memory: Memory) -> tuple[decode.Router, tuple[int, ...]]:
    """How a case's tokens are routed, and pointers to logits, routing bias and number of tokens."""
    router = decode.Router(
        case.logits, case.experts * layer.logits.itemsize, case.tokens, case.experts, case.top_k,
        module.RULES[case.rule], 1, 1, SCALE, case.offset, case.local,
    )  # fmt: skip
    return router, (
        memory.give("logits", layer.logits),
        memory.give("route_bias", layer.route_bias),
        memory.give("num_tokens", layer.count),
    )


def run_decode(bench: Bench, case: DecodeCase, rng: np.random.Generator) -> Iterator[tuple[CubinId, str, float]]:
    """Run a case; for each of both cubins, a mismatch in words and the error."""
    layer, memory = make_layer(case, rng), Memory(bench)
    router, routing = route_with(case, layer, memory)
    yield _up(bench, case, layer, memory, router, routing)
    yield _down(bench, case, layer, memory, router, routing, rng)
    memory.close()


def _kernel(bench: Bench, case: DecodeCase, operation: str) -> Any:
    n, k = (case.inner, case.hidden) if operation == UP else (case.hidden, case.inner)
    problem = Problem.of(operation, {"type": case.dtype}, {"m": case.tokens, "n": n, "k": k})
    return next(iter(bench.kernels(problem).values()))


def _up(
    bench: Bench, case: DecodeCase, layer: DecodeLayer, memory: Memory, router: decode.Router, routing: tuple[int, ...]
) -> tuple[CubinId, str, float]:
    kernel, kind = _kernel(bench, case, UP), DTYPES[case.dtype]
    launch = decode.up_launch(
        router, x_row=2 * case.hidden, hidden=case.hidden, inner=case.inner,
        activation=module.ACTIVATIONS[case.activation], alpha=ALPHA, limit=LIMIT, bias=case.bias, blocks=BLOCKS,
    )  # fmt: skip
    given = memory.give("x", layer.x), memory.give("w13", layer.w13), memory.give("bias13", layer.bias13)
    act = memory.make("act", 2 * case.tokens * case.top_k * case.inner)
    problems = [twice(bench, memory, [(kernel, launch.grid, (*given, *routing, act, *launch.tail))], ["act"])]
    got = memory.take("act", kind).reshape(*layer.ids.shape, case.inner)
    rows = np.broadcast_to(layer.x[:, None], (*layer.ids.shape, case.hidden))
    h = product(rows, layer.w13, layer.bias13, layer)
    want = moe.activate(h, case.activation, alpha=ALPHA, limit=LIMIT)
    error = norm_error(got[layer.here].astype(np.float64), want[layer.here])
    problems += [memory.broken(), "" if error <= LIMITS[case.dtype] else f"error {error:.2e}"]
    rest = np.ascontiguousarray(got[~layer.here]).view(np.uint8)
    problems.append(differs("rows without an expert", rest, np.full_like(rest, POISON)))
    return kernel.cubin, "; ".join(p for p in problems if p), error


def _down(
    bench: Bench, case: DecodeCase, layer: DecodeLayer, memory: Memory, router: decode.Router, routing: tuple[int, ...],
    rng: np.random.Generator,
) -> tuple[CubinId, str, float]:  # fmt: skip
    kernel, kind = _kernel(bench, case, DOWN), DTYPES[case.dtype]
    launch = decode.down_launch(router, hidden=case.hidden, inner=case.inner, bias=case.bias, blocks=BLOCKS)
    act = rng.standard_normal((*layer.ids.shape, case.inner)).astype(kind)
    act[~layer.here] = np.nan
    given = memory.give("rows", act), memory.give("w2", layer.w2), memory.give("bias2", layer.bias2)
    out = memory.make("out", 2 * case.tokens * case.hidden)
    problems = [twice(bench, memory, [(kernel, launch.grid, (*given, *routing, out, *launch.tail))], ["out"])]
    y = product(act, layer.w2, layer.bias2, layer)
    want = (y * np.where(layer.here, layer.weights, 0)[..., None]).sum(1)
    error = norm_error(memory.take("out", kind).astype(np.float64).reshape(want.shape), want)
    problems += [memory.broken(), "" if error <= LIMITS[case.dtype] else f"error {error:.2e}"]
    return kernel.cubin, "; ".join(p for p in problems if p), error
