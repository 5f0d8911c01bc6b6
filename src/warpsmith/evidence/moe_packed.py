# SPDX-License-Identifier: Apache-2.0
"""What `warpsmith verify` runs of a MoE layer's two decode kernels for weights in the order for few rows.

Each by itself, against float64, as in ``evidence/moe_decode.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from warpsmith import reference
from warpsmith.catalog import fused_moe as module
from warpsmith.catalog.formats import get_format
from warpsmith.catalog.moe_packed import DOWN, LIFT, TOO_SMALL, UP
from warpsmith.catalog.spec import CubinId, Problem
from warpsmith.evidence.cases import DTYPES
from warpsmith.evidence.device import POISON, Array, Bench
from warpsmith.evidence.moe_cases import PackedCase
from warpsmith.evidence.moe_decode import ALPHA, BLOCKS, LIMIT, LIMITS, DecodeLayer, make_layer, product, route_with
from warpsmith.evidence.moe_memory import Memory, differs, norm_error, twice
from warpsmith.ops import moe_decode_args as decode
from warpsmith.ops.prepared_order import few_rows_weight
from warpsmith.ops.qtensor import QTensor
from warpsmith.reference import moe


class _Weights(NamedTuple):
    """A prepared matrix, and the values of its experts."""

    prepared: QTensor
    values: Array

    @property
    def factors(self) -> Array:
        """What products of what the kernel multiplies are multiplied by, for each expert."""
        scales = self.prepared.global_scale.astype(np.float64)
        return np.broadcast_to(TOO_SMALL[self.prepared.format] / scales, len(self.values))

    @property
    def several(self) -> bool:
        return bool(self.prepared.global_scale.size > 1)


def _weights(case: PackedCase, n: int, k: int, each: bool, rng: np.random.Generator) -> _Weights:
    """Random codes and scales, values about 1 / √k; `each` nvfp4 expert has a global scale, or all have one."""
    spec = get_format(case.format)
    shape, blocks = (case.local, n, k), (case.local, n, k // spec.block[1])
    codes = rng.integers(0, 256, (case.local, n, k // 2), np.uint8)
    low, high = (0x20, 0x40) if case.format == "nvfp4" else (110, 126)
    scales = rng.integers(low, high, blocks, np.uint8)
    values = reference.decode_float64(codes, scales, case.format, shape=shape)
    factor = None
    if case.format == "nvfp4":
        factor = (rng.integers(1, 9, case.local if each else 1) * k**0.5 / 2).astype(np.float32)
        values = values / factor.reshape(-1, 1, 1)
    made = few_rows_weight(QTensor(codes, scales, case.format, shape, global_scale=factor), codes, scales)
    return _Weights(made, values)


def run_packed(bench: Bench, case: PackedCase, rng: np.random.Generator) -> Iterator[tuple[CubinId, str, float]]:
    """Run a case; for each of both cubins, a mismatch in words and the error."""
    w13 = _weights(case, 2 * case.inner, case.hidden, True, rng)
    w2 = _weights(case, case.hidden, case.inner, False, rng)
    layer, memory = make_layer(case, rng, (w13.values, w2.values)), Memory(bench)
    router, routing = route_with(case, layer, memory)
    yield _up(bench, case, layer, (w13, w2), memory, router, routing)
    yield _down(bench, case, layer, w2, memory, router, routing, rng)
    memory.close()


def _kernel(bench: Bench, case: PackedCase, operation: str) -> Any:
    n, k = (case.inner, case.hidden) if operation == UP else (case.hidden, case.inner)
    problem = Problem.of(operation, {"format": case.format}, {"m": case.tokens, "n": n, "k": k})
    return next(iter(bench.kernels(problem).values()))


def _up(
    bench: Bench, case: PackedCase, layer: DecodeLayer, weights: tuple[_Weights, _Weights], memory: Memory,
    router: decode.Router, routing: tuple[int, ...],
) -> tuple[CubinId, str, float]:  # fmt: skip
    (w13, w2), kernel = weights, _kernel(bench, case, UP)
    launch = decode.up_launch(
        router, x_row=2 * case.hidden, hidden=case.hidden, inner=case.inner,
        activation=module.ACTIVATIONS[case.activation], alpha=ALPHA, limit=LIMIT, bias=case.bias, blocks=BLOCKS,
        own_scales=(w13.several, w2.several),
    )  # fmt: skip
    given = (
        memory.give("x", layer.x),
        memory.give("w13", w13.prepared.data),
        memory.give("scales13", w13.prepared.scales),
        memory.give("factor13", w13.prepared.global_scale),
        memory.give("factor2", w2.prepared.global_scale),
        memory.give("bias13", layer.bias13),
    )
    act = memory.make("act", 2 * case.tokens * case.top_k * case.inner)
    problems = [twice(bench, memory, [(kernel, launch.grid, (*given, *routing, act, *launch.tail))], ["act"])]
    got = memory.take("act", DTYPES["bf16"]).reshape(*layer.ids.shape, case.inner)
    rows = np.broadcast_to(layer.x[:, None], (*layer.ids.shape, case.hidden))
    want = moe.activate(product(rows, w13.values, layer.bias13, layer), case.activation, alpha=ALPHA, limit=LIMIT)
    want = want * (layer.weights * w2.factors[np.where(layer.here, layer.local, 0)])[..., None] * LIFT[case.format]
    error = norm_error(got[layer.here].astype(np.float64), want[layer.here])
    problems += [memory.broken(), "" if error <= LIMITS["bf16"] else f"error {error:.2e}"]
    rest = np.ascontiguousarray(got[~layer.here]).view(np.uint8)
    problems.append(differs("rows without an expert", rest, np.full_like(rest, POISON)))
    return kernel.cubin, "; ".join(p for p in problems if p), error


def _down(
    bench: Bench, case: PackedCase, layer: DecodeLayer, w2: _Weights, memory: Memory, router: decode.Router,
    routing: tuple[int, ...], rng: np.random.Generator,
) -> tuple[CubinId, str, float]:  # fmt: skip
    kernel, kind = _kernel(bench, case, DOWN), DTYPES["bf16"]
    launch = decode.packed_down_launch(router, hidden=case.hidden, inner=case.inner, bias=case.bias, blocks=BLOCKS)
    act = (rng.standard_normal((*layer.ids.shape, case.inner)) * LIFT[case.format]).astype(kind)
    act[~layer.here] = np.nan
    given = (
        memory.give("rows", act),
        memory.give("w2", w2.prepared.data),
        memory.give("scales2", w2.prepared.scales),
        memory.give("bias2", layer.bias2),
    )
    out = memory.make("out", 2 * case.tokens * case.hidden)
    problems = [twice(bench, memory, [(kernel, launch.grid, (*given, *routing, out, *launch.tail))], ["out"])]
    y = product(act, w2.values / w2.factors.reshape(-1, 1, 1), None, layer) / LIFT[case.format]
    if layer.bias2 is not None:
        y += layer.weights[..., None] * layer.bias2.astype(np.float64)[np.where(layer.here, layer.local, 0)]
    want = np.where(layer.here[..., None], y, 0).sum(1)
    error = norm_error(memory.take("out", kind).astype(np.float64).reshape(want.shape), want)
    problems += [memory.broken(), "" if error <= LIMITS["bf16"] else f"error {error:.2e}"]
    return kernel.cubin, "; ".join(p for p in problems if p), error
