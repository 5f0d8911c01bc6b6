# SPDX-License-Identifier: Apache-2.0
"""What `warpsmith verify` runs of the module `fused_moe`: each kernel by itself, against the reference.

Chosen experts, sorted places and gathered rows must be the reference's exactly; weights, activations and sums be within
the error of their arithmetic. Each launch runs twice and must give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from warpsmith.catalog import fused_moe as module
from warpsmith.catalog.spec import CubinId, Problem
from warpsmith.evidence.cases import DTYPES
from warpsmith.evidence.device import POISON, Array, Bench
from warpsmith.evidence.moe_cases import (
    ActivationCase,
    CombineCase,
    DecodeCase,
    MoeCase,
    PackedCase,
    QuantizeRowsCase,
    RouteCase,
    SortCase,
)
from warpsmith.evidence.moe_decode import run_decode
from warpsmith.evidence.moe_memory import Memory, differs, norm_error, twice
from warpsmith.evidence.moe_packed import run_packed
from warpsmith.evidence.moe_quantize import run_quantize_rows
from warpsmith.ops import moe_args as arguments
from warpsmith.reference import moe
from warpsmith.runtime.launch import PreparedKernel

_WEIGHT_LIMIT = 4e-6  # of the weights, relative to each
LIMITS = {"bf16": 3e-3, "fp16": 4e-4}


def run_moe(bench: Bench, case: MoeCase, rng: np.random.Generator) -> Iterator[tuple[CubinId, str, float]]:
    """Run a case; for each cubin that served it, a mismatch in words and the error."""
    if isinstance(case, RouteCase):
        yield from _run_route(bench, case, rng)
    elif isinstance(case, SortCase):
        yield from _run_sort(bench, case, rng)
    elif isinstance(case, ActivationCase):
        yield from _run_activation(bench, case, rng)
    elif isinstance(case, QuantizeRowsCase):
        yield from run_quantize_rows(bench, case, rng)
    elif isinstance(case, PackedCase):
        yield from run_packed(bench, case, rng)
    elif isinstance(case, DecodeCase):
        yield from run_decode(bench, case, rng)
    else:
        yield from _run_combine(bench, case, rng)


def _kernel(bench: Bench, operation: str, fields: dict[str, str], dims: dict[str, int]) -> PreparedKernel:
    return next(iter(bench.kernels(Problem.of(operation, fields, dims)).values()))


def _logits(case: RouteCase, rng: np.random.Generator) -> Array:
    values = rng.standard_normal((case.tokens, case.experts))
    if case.kind == "ties":
        values = np.round(values * 2) / 2
    elif case.kind == "large":
        values *= 40
    elif case.kind == "not_finite":
        values = np.where(rng.random(values.shape) < 0.02, rng.choice([np.nan, np.inf, -np.inf], values.shape), values)
    return values.astype(DTYPES[case.dtype])


def _run_route(bench: Bench, case: RouteCase, rng: np.random.Generator) -> Iterator[tuple[CubinId, str, float]]:
    logits, memory, shape = _logits(case, rng), Memory(bench), (case.tokens, case.top_k)
    bias = rng.standard_normal(case.experts).astype(np.float32) / 3 if case.biased else None
    options: dict[str, Any] = {"n_group": case.n_group, "topk_group": case.topk_group, "scale": 2.5}
    ids, weights = moe.route(logits, case.top_k, case.rule, bias=bias, **options)
    count = None if case.counted is None else np.array([case.counted], np.int32)
    if case.counted is not None:
        ids[case.counted :], weights[case.counted :] = -1, 0
    offsets, rows, positions = moe.permute(ids, max(case.local, 1), expert_offset=case.offset)
    kernel = _kernel(bench, "moe_route", {"input": case.dtype}, {"m": case.tokens, "experts": case.experts})
    launch = arguments.route_launch(
        case.tokens, case.experts, row_bytes=case.experts * logits.itemsize, top_k=case.top_k,
        rule=module.RULES[case.rule], expert_offset=case.offset, local_experts=case.local, sorts=case.local > 0,
        **options,
    )  # fmt: skip
    inputs = memory.give("logits", logits), memory.give("bias", bias), memory.give("num_tokens", count)
    names = {"ids": ids.nbytes, "weights": 4 * ids.size}
    if case.local:
        names |= {"offsets": offsets.nbytes, "rows": 4 * ids.size, "positions": 4 * ids.size}
    outputs = [memory.make(name, size) for name, size in names.items()]
    args = (*inputs, *outputs, *(0,) * (5 - len(outputs)), *launch.tail)
    problems = [twice(bench, memory, [(kernel, launch.grid, args)], list(names)), memory.broken()]
    problems.append(differs("ids", memory.take("ids", np.int32).reshape(shape), ids))
    got = memory.take("weights", np.float32).astype(np.float64).reshape(shape)
    error = _relative(got, weights)
    problems.append("" if error <= _WEIGHT_LIMIT else f"weights: relative error {error:.2e}")
    if case.local:
        problems += _misplaced(memory, offsets, rows, positions)
    memory.close()
    yield kernel.cubin, "; ".join(p for p in problems if p), error


def _relative(got: Array, want: Array) -> float:
    """The largest error relative to its value, or to 1e-12 where that is larger; NaN must meet NaN."""
    if not np.array_equal(np.isnan(got), np.isnan(want)):
        return float("inf")
    known = ~np.isnan(want)
    return float((np.abs(got - want)[known] / np.maximum(np.abs(want)[known], 1e-12)).max(initial=0.0))


def _misplaced(memory: Memory, offsets: Array, rows: Array, positions: Array) -> list[str]:
    return [
        differs("offsets", memory.take("offsets", np.int32), offsets),
        differs("rows", memory.take("rows", np.int32)[: len(rows)], rows),
        differs("positions", memory.take("positions", np.int32), positions),
    ]


def _ids(case: SortCase, rng: np.random.Generator) -> Array:
    shape, low, high = (case.tokens, case.top_k), case.offset, case.offset + case.experts
    if case.kind == "one":
        return np.full(shape, low, np.int32)
    if case.kind == "zipf":
        return ((rng.zipf(1.3, shape) - 1) % (high + 1)).astype(np.int32)
    if case.kind == "wild":
        wild = [-1, low - 1, low, high - 1, high, 2**31 - 1, -(2**31)]
        return rng.choice(np.array(wild, np.int64), shape).astype(np.int32)
    return rng.integers(0, high + 3, shape).astype(np.int32)


def _run_sort(bench: Bench, case: SortCase, rng: np.random.Generator) -> Iterator[tuple[CubinId, str, float]]:
    ids, memory, pairs = _ids(case, rng), Memory(bench), case.tokens * case.top_k
    kind = DTYPES[case.scaled or "bf16"]
    x = rng.standard_normal((case.tokens, case.hidden)).astype(kind)
    scales = rng.integers(0, 256, (case.tokens, case.scale_bytes), np.uint8)
    weights = rng.random((case.tokens, case.top_k)).astype(np.float32) if case.scaled else None
    counted = ids.copy()
    count = None if case.counted is None else np.array([case.counted], np.int32)
    if case.counted is not None:
        counted[case.counted :] = -1
    offsets, rows, positions = moe.permute(counted, case.experts, expert_offset=case.offset)
    sizes: dict[str, Any] = {
        "top_k": case.top_k, "experts": case.experts, "expert_offset": case.offset, "zeros": 37,
        "x_row": 2 * case.hidden, "row": 2 * case.hidden, "scales": case.scale_bytes, "fp16": case.scaled == "fp16",
        "pitch": pairs + 3 if case.m_major else 0,
    }  # fmt: skip
    given = memory.give("ids", ids), memory.give("num_tokens", count)
    inputs = memory.give("x", x), memory.give("x_scales", scales), memory.give("weights", weights)
    chunks = -(-pairs // arguments.CHUNK)
    made = [
        memory.make(n, size) for n, size in (("offsets", offsets.nbytes), ("rows", 4 * pairs), ("positions", 4 * pairs))
    ]
    counts, zeros = memory.make("counts", 4 * chunks * case.experts), memory.make("zeros", 4 * 37)
    a, a_scales = (
        memory.make("a", 2 * pairs * case.hidden),
        memory.make("a_scales", max((pairs + 3) * case.scale_bytes, 1)),
    )
    kernel = _kernel(bench, "moe_permute", {}, {"pairs": pairs})
    counter = _kernel(bench, "moe_count", {}, {"pairs": pairs})
    first = arguments.permute_launch(pairs, counts=True, **sizes)
    second = arguments.permute_launch(pairs, **sizes)
    names = ["offsets", "rows", "positions", "zeros", "a"]
    for with_counts in (False, True):
        beside = (zeros, inputs[0], a, inputs[1], a_scales, inputs[2])
        args = (*given, *made, counts if with_counts else 0, *beside, *second.tail)
        launches = [(kernel, second.grid, args)]
        if with_counts:
            launches.insert(0, (counter, first.grid, (*given, *made, counts, *beside, *first.tail)))
        problems = [twice(bench, memory, launches, names), memory.broken()]
        problems += _misplaced(memory, offsets, rows, positions)
        if memory.take("zeros", np.uint8).any():
            problems.append("zeros are not 0")
        problems += _misgathered(case, memory, x, scales, weights, rows)
        for used in (counter, kernel) if with_counts else (kernel,):
            yield used.cubin, "; ".join(p for p in problems if p), 0.0
    memory.close()


def _misgathered(
    case: SortCase, memory: Memory, x: Array, scales: Array, weights: Array | None, rows: Array
) -> list[str]:
    want = x[rows // case.top_k]
    if weights is not None:
        want = (want.astype(np.float32) * weights.reshape(-1)[rows, None]).astype(x.dtype)
    got = memory.take("a", np.uint8)
    used = want.nbytes
    problems = [differs("gathered rows", got[:used], np.ascontiguousarray(want).view(np.uint8).reshape(-1))]
    if (got[used:] != POISON).any():
        problems.append("wrote rows that belong to no expert")
    if case.m_major:
        blocks = memory.take("a_scales", np.uint32).reshape(case.scale_bytes // 4, -1)
        wanted = np.ascontiguousarray(scales[rows // case.top_k]).view(np.uint32).T
        problems.append(differs("gathered scales", blocks[:, : len(rows)], wanted))
    elif case.scale_bytes:
        wanted = scales[rows // case.top_k].reshape(-1)
        problems.append(differs("gathered scales", memory.take("a_scales", np.uint8)[: wanted.size], wanted))
    return problems


def _run_activation(
    bench: Bench, case: ActivationCase, rng: np.random.Generator
) -> Iterator[tuple[CubinId, str, float]]:
    kind, memory = DTYPES[case.dtype], Memory(bench)
    gates = 1 if case.activation in module.UNGATED else 2
    h = (rng.standard_normal((case.most, gates * case.inner)) * 4).astype(kind)
    h[: case.rows : 7, 3] = np.nan
    want = moe.activate(h[: case.rows].astype(np.float64), case.activation, alpha=1.702, limit=7.0)
    kernel = _kernel(bench, "moe_activation", {"type": case.dtype}, {"m": case.most, "k": case.inner})
    number = module.ACTIVATIONS[case.activation]
    launch = arguments.activation_launch(case.most, case.inner, number, 1.702, 7.0)
    act = memory.make("act", 2 * case.most * case.inner)
    rows = memory.give("rows", np.array([case.rows], np.int32))
    args = (memory.give("h", h), act, rows, *launch.tail)
    problems = [twice(bench, memory, [(kernel, launch.grid, args)], ["act"]), memory.broken()]
    got = memory.take("act", kind).reshape(case.most, case.inner)
    if (np.ascontiguousarray(got[case.rows :]).view(np.uint8) != POISON).any():
        problems.append("wrote rows that do not exist")
    error = norm_error(got[: case.rows].astype(np.float64), want)
    problems.append("" if error <= LIMITS[case.dtype] else f"error {error:.2e}")
    memory.close()
    yield kernel.cubin, "; ".join(p for p in problems if p), error


def _run_combine(bench: Bench, case: CombineCase, rng: np.random.Generator) -> Iterator[tuple[CubinId, str, float]]:
    kind, memory, pairs = DTYPES[case.dtype], Memory(bench), case.tokens * case.top_k
    rows = max(pairs - 2, 1)
    y = rng.standard_normal((rows, case.hidden)).astype(kind)
    weights = rng.random((case.tokens, case.top_k)).astype(np.float32)
    positions = np.full(pairs, -1, np.int32)
    positions[rng.permutation(pairs)[:rows]] = rng.permutation(rows)
    want = moe.combine(y.astype(np.float64), weights if case.weighted else np.ones_like(weights), positions)
    kernel = _kernel(bench, "moe_combine", {"type": case.dtype}, {"m": case.tokens, "k": case.hidden})
    launch = arguments.combine_launch(case.tokens, rows, case.top_k, case.hidden)
    pointers: tuple[int, ...] = memory.give("y", y), memory.give("weights", weights if case.weighted else None)
    args = (
        *pointers,
        memory.give("positions", positions),
        memory.make("out", 2 * case.tokens * case.hidden),
        *launch.tail,
    )
    problems = [twice(bench, memory, [(kernel, launch.grid, args)], ["out"]), memory.broken()]
    error = norm_error(memory.take("out", kind).astype(np.float64).reshape(want.shape), want)
    problems.append("" if error <= LIMITS[case.dtype] else f"error {error:.2e}")
    memory.close()
    yield kernel.cubin, "; ".join(p for p in problems if p), error
