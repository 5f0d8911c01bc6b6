# SPDX-License-Identifier: Apache-2.0
"""The kernels of `fused_moe`, and of row quantization, in NumPy: host memory by the arguments of a launch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gemm_emulator
import ml_dtypes
import numpy as np
from gemm_emulator import memory

from warpsmith import reference
from warpsmith.catalog import CATALOG, moe_decode, moe_packed
from warpsmith.catalog import fused_moe as module
from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.spec import operands
from warpsmith.ops import moe_args
from warpsmith.ops import quantization_args as quantizing
from warpsmith.ops.gated_order import parted
from warpsmith.ops.gemm_map_args import GLOBAL_D_PER_BATCH
from warpsmith.ops.prepared_order import restored
from warpsmith.ops.qtensor import QTensor
from warpsmith.reference import moe
from warpsmith.reference.layouts import index_128x4

TYPES = {"bf16": np.dtype(ml_dtypes.bfloat16), "fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}
RULES = {number: name for name, number in module.RULES.items()}
ACTIVATIONS = {number: name for name, number in module.ACTIVATIONS.items()}


def launch(cubin: Any, grid: tuple[int, int, int], values: tuple[Any, ...]) -> None:
    """What the kernel of a cubin does."""
    if cubin.kernel == "sm80_gemm":
        gemm_emulator.launch(cubin.variant, grid, values)
        return
    names = [p.name for p in CATALOG.kernel(cubin.kernel).params]
    KERNELS[cubin.kernel](cubin.variant, grid, SimpleNamespace(**dict(zip(names, values, strict=True))))


def _route(variant: str, grid: tuple[int, int, int], p: Any) -> None:
    assert p.offsets or grid[0] * moe_args.ROUTE_TOKENS >= p.tokens
    kind, shape = TYPES[variant], (p.tokens, p.top_k)
    logits = np.stack([memory(p.logits + t * p.row_bytes, p.experts, kind) for t in range(p.tokens)])
    ids, weights = moe.route(
        logits, p.top_k, RULES[p.rule], bias=memory(p.bias, p.experts, np.float32) if p.bias else None,
        n_group=p.n_group, topk_group=p.topk_group, scale=p.scale,
    )  # fmt: skip
    if p.num_tokens:
        count = max(int(memory(p.num_tokens, 1, np.int32)[0]), 0)
        ids[count:], weights[count:] = -1, 0
    memory(p.ids, ids.size, np.int32).reshape(shape)[:] = ids
    memory(p.weights, ids.size, np.float32).reshape(shape)[:] = weights
    if p.offsets:
        assert (grid[0], ids.size <= moe_args.CHUNK) == (1, True)
        offsets, rows, positions = moe.permute(ids, p.local_experts, expert_offset=p.expert_offset)
        for to, values in ((p.offsets, offsets), (p.rows, rows), (p.positions, positions)):
            memory(to, len(values), np.int32)[:] = values


def _count(_: str, grid: tuple[int, int, int], p: Any) -> None:
    assert grid[0] == -(-p.pairs // moe_args.CHUNK)
    memory(p.counts, grid[0] * p.local_experts, np.uint32)[:] = 1


def _permute(_: str, grid: tuple[int, int, int], p: Any) -> None:
    assert grid[0] == -(-p.pairs // moe_args.CHUNK)
    if p.counts:
        assert (memory(p.counts, grid[0] * p.local_experts, np.uint32) == 1).all()
    memory(p.zeros, p.zero_words, np.uint32)[:] = 0
    ids = memory(p.ids, p.pairs, np.int32).copy()
    if p.num_tokens:
        ids[max(int(memory(p.num_tokens, 1, np.int32)[0]), 0) * p.top_k :] = -1
    offsets, rows, positions = moe.permute(ids, p.local_experts, expert_offset=p.expert_offset)
    memory(p.offsets, len(offsets), np.int32)[:] = offsets
    memory(p.rows, len(rows), np.int32)[:] = rows
    memory(p.positions, p.pairs, np.int32)[:] = positions
    kind = TYPES["fp16" if p.flags & moe_args.ROWS_FP16 else "bf16"]
    for row, pair in enumerate(rows if p.x else ()):
        token = int(pair) // p.top_k
        source, target = memory(p.x + token * p.x_row, p.row_bytes), memory(p.a + row * p.row_bytes, p.row_bytes)
        target[:] = source
        if p.weights:
            target.view(kind)[:] = source.view(kind).astype(np.float32) * memory(p.weights, p.pairs, np.float32)[pair]
        if p.scale_pitch:
            for block, scale in enumerate(memory(p.x_scales + token * p.scale_bytes, p.scale_bytes // 4, np.float32)):
                memory(p.a_scales + 4 * (block * p.scale_pitch + row), 1, np.float32)[:] = scale
        elif p.scale_bytes:
            memory(p.a_scales + row * p.scale_bytes, p.scale_bytes)[:] = memory(
                p.x_scales + token * p.scale_bytes, p.scale_bytes
            )


def _activation(variant: str, grid: tuple[int, int, int], p: Any) -> None:
    assert grid[0] >= 1
    rows, inner, kind = int(memory(p.last_offset, 1, np.int32)[0]), 8 * p.units, TYPES[variant]
    assert rows <= p.most_rows
    name = ACTIVATIONS[p.activation]
    width = inner * (1 if name in module.UNGATED else 2)
    h = memory(p.h, rows * width, kind).reshape(rows, width)
    act = moe.activate(h.astype(np.float64), name, alpha=p.alpha, limit=p.limit)
    memory(p.act, rows * inner, kind)[:] = act.astype(kind).reshape(-1)


def _combine(variant: str, grid: tuple[int, int, int], p: Any) -> None:
    tokens, hidden, kind = grid[0], 8 * p.units, TYPES[variant]
    pairs = tokens * p.top_k
    weights = memory(p.weights, pairs, np.float32) if p.weights else np.ones(pairs)
    positions = memory(p.positions, pairs, np.int32)
    y = memory(p.y, p.rows * hidden, kind).reshape(p.rows, hidden)
    out = moe.combine(y.astype(np.float64), weights.reshape(tokens, p.top_k), positions)
    for t in range(tokens):
        memory(p.out + t * p.out_row, hidden, kind)[:] = out[t].astype(kind)


def _quantize(variant: str, grid: tuple[int, int, int], p: Any, *, silu: bool = False) -> None:
    format, _, rest = variant.rpartition("_")[0].rpartition("_")
    spec, kind, k = FORMATS[format], TYPES[rest], quantizing.ELEMENTS * p.units
    assert grid[2] == p.batches == 1
    ends = memory(p.offsets, p.groups + 1, np.int32) if p.groups else np.array([0, p.m])
    for g in range(len(ends) - 1):
        scale = None
        if p.global_scale:
            per_group = p.flags & quantizing.SCALE_PER_GROUP
            scale = memory(p.global_scale, len(ends), np.float32)[g if per_group else 0]
        for i in range(int(ends[g]), int(ends[g + 1])):
            x = memory(p.x + i * p.row_stride * kind.itemsize, k * (2 if silu else 1), kind)[None]
            function = reference.silu_and_mul_quantize if silu else reference.quantize
            codes, scales = function(x, format, global_scale=scale)
            width = spec.data_columns(k)
            memory(p.codes + i * width, width)[:] = codes[0]
            if p.flags & quantizing.LAYOUT_M_MAJOR:
                for block, value in enumerate(scales.reshape(-1)):
                    memory(p.scales + 4 * (block * p.scale_pitch + i), 1, np.float32)[:] = value
            else:
                memory(p.scales + i * scales.nbytes, scales.nbytes)[:] = scales.view(np.uint8).reshape(-1)


def _moe_quantize(variant: str, grid: tuple[int, int, int], p: Any) -> None:
    format, _, rest = variant.rpartition("_")
    kind, k = TYPES[rest], quantizing.ELEMENTS * p.units
    assert grid[0] >= 1
    name = ACTIVATIONS.get(p.activation, "")
    assert not (name and p.ids)
    rows_of = {}  # tokens' places
    if not name:
        positions = memory(p.positions, p.most_rows * p.top_k, np.int32)
        rows_of = {int(row): pair for pair, row in enumerate(positions) if row >= 0}
        ids = memory(p.ids, positions.size, np.int32)
    ends = memory(p.offsets, p.groups + 1, np.int32)
    for g in range(p.groups):
        scale = None
        if p.global_scale:
            per_group = p.flags & quantizing.SCALE_PER_GROUP
            scale = memory(p.global_scale, p.groups if per_group else 1, np.float32)[g if per_group else 0]
        start = (int(ends[g]) + 127 * g) // 128 * 128
        rows = range(int(ends[g]), int(ends[g + 1]))
        if not rows:
            continue
        if name:
            width = k * (1 if name in module.UNGATED else 2)
            h = np.stack([memory(p.x + row * p.x_row, width, kind) for row in rows]).astype(np.float64)
            h = np.ascontiguousarray(parted(h.T).T) if p.flags & moe_args.MIXED_COLUMNS else h
            x = moe.activate(h, name, alpha=p.alpha, limit=p.limit).astype(np.float32)
        else:
            pairs = [rows_of[row] for row in rows]
            assert all(ids[pair] - p.expert_offset == g for pair in pairs)
            x = np.stack([memory(p.x + pair // p.top_k * p.x_row, k, kind) for pair in pairs])
            if p.weights:
                factors = [memory(p.weights + 4 * pair, 1, np.float32) for pair in pairs]
                x = (x.astype(np.float32) * np.stack(factors)).astype(kind)
        _write_blocks(x, format, scale, p.codes + rows.start * FORMATS[format].data_columns(k), p.scales, start)


def _write_blocks(x: np.ndarray, format: str, scale: Any, codes_at: int, scales_at: int, start: int) -> None:
    """Quantize a group's rows, whose scales begin at row `start` of the grouped layout 128x4."""
    codes, scales = reference.quantize(x, format, global_scale=scale)
    memory(codes_at, codes.size)[:] = codes.view(np.uint8).reshape(-1)
    pitch = -(-scales.shape[1] // 4) * 4
    padded = np.zeros((len(x), pitch), np.uint8)
    padded[:, : scales.shape[1]] = scales.view(np.uint8)
    at = index_128x4(start + np.arange(len(x))[:, None], np.arange(pitch), pitch)
    memory(scales_at, int(at.max()) + 1)[at] = padded


def _gated(variant: str, grid: tuple[int, int, int], p: Any) -> None:
    """What `sm12x_gated_gemm` does: the product into memory of its own, then its activation and blocks."""
    format = operands(variant)[0]
    kind = gemm_emulator.TYPES[p.flags >> 2 & 3]
    assert p.n % 64 == 0
    assert p.flags & 3 == 1
    sums = np.zeros((p.m, p.n), kind)
    product = {**vars(p), "d": sums.ctypes.data, "d_row": sums.strides[0]}
    gemm_emulator.launch_maps(variant, grid, tuple(product[name] for name in gemm_emulator.MAP_NAMES))
    ends = memory(p.index, p.batches + 1, np.int32)
    for g in range(p.batches):
        first, end = int(ends[g]), int(ends[g + 1])
        if first == end:
            continue
        h = np.ascontiguousarray(parted(sums[first:end].astype(np.float64).T).T)
        x = moe.activate(h, ACTIVATIONS[p.activation], alpha=p.activation_alpha, limit=p.limit).astype(np.float32)
        scale = None
        if p.d_global_scale:
            several = p.flags & GLOBAL_D_PER_BATCH
            scale = memory(p.d_global_scale, p.batches if several else 1, np.float32)[g if several else 0]
        assert p.d_row == FORMATS[format].data_columns(p.n // 2)
        _write_blocks(x, format, scale, p.d + first * p.d_row, p.d_scales, (first + 127 * g) // 128 * 128)


def _silu_and_mul_quantize(variant: str, grid: tuple[int, int, int], p: Any) -> None:
    _quantize(variant, grid, p, silu=True)


def _decode_choice(p: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Local experts of all pairs, whether they are here, and weights."""
    kind = TYPES[moe_decode.LOGIT_TYPES[p.flags & 3]]
    logits = np.stack([memory(p.logits + t * p.logits_row, p.experts, kind) for t in range(p.tokens)])
    ids, weights = moe.route(
        logits, p.top_k, RULES[p.rule], bias=memory(p.route_bias, p.experts, np.float32) if p.route_bias else None,
        n_group=p.n_group, topk_group=p.topk_group, scale=p.scale,
    )  # fmt: skip
    count = max(int(memory(p.num_tokens, 1, np.int32)[0]), 0) if p.num_tokens else p.tokens
    local = ids.astype(np.int64) - p.expert_offset
    here = (local >= 0) & (local < p.local_experts) & (np.arange(p.tokens) < count)[:, None]
    return local, here, weights


def _bias(p: Any, width: int) -> np.ndarray:
    kind = moe_decode.BIAS_TYPES[p.flags >> moe_decode.BIAS_SHIFT & 3]
    if not kind:
        return np.zeros((p.local_experts, width))
    return memory(p.bias, p.local_experts * width, TYPES[kind]).reshape(-1, width).astype(np.float64)


def _decode_up(variant: str, grid: tuple[int, int, int], p: Any) -> None:
    kind, tile = variant.split("_t")
    assert grid[0] >= 1
    assert p.tokens <= int(tile)
    assert p.hidden <= moe_decode.MAX_HIDDEN
    local, here, _ = _decode_choice(p)
    w13 = memory(p.w13, p.local_experts * 2 * p.inner * p.hidden, TYPES[kind]).reshape(p.local_experts, -1, p.hidden)
    act, bias = memory(p.act, p.tokens * p.top_k * p.inner, TYPES[kind]).reshape(-1, p.inner), _bias(p, 2 * p.inner)
    for t, j in np.argwhere(here).tolist():
        x, e = memory(p.x + t * p.x_row, p.hidden, TYPES[kind]).astype(np.float64), local[t, j]
        h = w13[e].astype(np.float64) @ x + bias[e]
        made = moe.activate(h[None], ACTIVATIONS[p.activation], alpha=p.alpha, limit=p.limit)
        act[t * p.top_k + j] = made[0].astype(TYPES[kind])


def _decode_down(variant: str, grid: tuple[int, int, int], p: Any) -> None:
    kind, tile = variant.split("_t")
    assert p.tokens <= int(tile)
    assert grid[0] * moe_decode.MOST_ROWS >= p.hidden
    local, here, weights = _decode_choice(p)
    w2 = memory(p.w2, p.local_experts * p.hidden * p.inner, TYPES[kind]).reshape(-1, p.hidden, p.inner)
    act, bias = memory(p.act, p.tokens * p.top_k * p.inner, TYPES[kind]).reshape(-1, p.inner), _bias(p, p.hidden)
    out = np.zeros((p.tokens, p.hidden))
    for t, j in np.argwhere(here).tolist():
        e = local[t, j]
        out[t] += weights[t, j] * (w2[e].astype(np.float64) @ act[t * p.top_k + j].astype(np.float64) + bias[e])
    memory(p.out, out.size, TYPES[kind])[:] = out.astype(TYPES[kind]).reshape(-1)


def _packed(codes: int, scales: int, shape: tuple[int, int, int], format: str) -> np.ndarray:
    """Values of weights in the order for few rows, but for global scales, as their kernels multiply them."""
    experts, n, k = shape
    block = FORMATS[format].block[1]
    data = memory(codes, experts * n * k // 2, np.dtype(np.uint8)).reshape(experts, n, k // 2)
    small = memory(scales, experts * n * k // block, np.dtype(np.uint8)).reshape(experts, n, k // block)
    ones = np.ones(experts, np.float32)
    w = restored(QTensor(data, small, format, shape, global_scale=ones, packing="bf16"))
    return reference.decode_float64(w.data, w.scales, format, shape=shape) / moe_packed.TOO_SMALL[format]


def _scales_of_experts(p: Any, name: str, several: int, format: str) -> np.ndarray:
    found = memory(getattr(p, name), p.local_experts if p.flags & several else 1, np.dtype(np.float32))
    return np.broadcast_to(moe_packed.TOO_SMALL[format] / found.astype(np.float64), p.local_experts)


def _packed_up(variant: str, grid: tuple[int, int, int], p: Any) -> None:
    format, tile = variant.split("_t")
    assert grid[0] >= 1
    assert p.tokens <= int(tile)
    assert p.hidden <= moe_packed.MAX_HIDDEN
    local, here, weights = _decode_choice(p)
    w13 = _packed(p.w13, p.scales, (p.local_experts, 2 * p.inner, p.hidden), format)
    first, second = (
        _scales_of_experts(p, name, bit, format)
        for name, bit in zip(("global_scale", "global_scale2"), moe_packed.OWN_SCALES, strict=True)
    )
    act, bias = memory(p.act, p.tokens * p.top_k * p.inner, TYPES["bf16"]).reshape(-1, p.inner), _bias(p, 2 * p.inner)
    for t, j in np.argwhere(here).tolist():
        x, e = memory(p.x + t * p.x_row, p.hidden, TYPES["bf16"]).astype(np.float64), local[t, j]
        h = w13[e] @ x * first[e] + bias[e]
        made = moe.activate(h[None], ACTIVATIONS[p.activation], alpha=p.alpha, limit=p.limit)
        factor = weights[t, j] * second[e] * moe_packed.LIFT[format]
        act[t * p.top_k + j] = (made[0] * factor).astype(TYPES["bf16"])


def _packed_down(variant: str, grid: tuple[int, int, int], p: Any) -> None:
    format, tile = variant.split("_t")
    assert p.tokens <= int(tile)
    assert grid[0] % moe_packed.CLUSTER == 0
    assert grid[0] // moe_packed.CLUSTER * moe_packed.MOST_ROWS >= p.hidden
    local, here, weights = _decode_choice(p)
    w2 = _packed(p.w2, p.scales, (p.local_experts, p.hidden, p.inner), format)
    act, bias = memory(p.act, p.tokens * p.top_k * p.inner, TYPES["bf16"]).reshape(-1, p.inner), _bias(p, p.hidden)
    out = np.zeros((p.tokens, p.hidden))
    for t, j in np.argwhere(here).tolist():
        e = local[t, j]
        row = act[t * p.top_k + j].astype(np.float64) / moe_packed.LIFT[format]
        out[t] += w2[e] @ row + weights[t, j] * bias[e]
    memory(p.out, out.size, TYPES["bf16"])[:] = out.astype(TYPES["bf16"]).reshape(-1)


KERNELS = {
    "moe_packed_up": _packed_up,
    "moe_packed_down": _packed_down,
    "sm12x_gated_gemm": _gated,
    "sm12x_gated_gemm_emulated": _gated,
    "moe_route": _route,
    "moe_count": _count,
    "moe_permute": _permute,
    "moe_activation": _activation,
    "moe_quantize": _moe_quantize,
    "moe_combine": _combine,
    "moe_decode_up": _decode_up,
    "moe_decode_down": _decode_down,
    "quantize": _quantize,
    "silu_and_mul_quantize": _silu_and_mul_quantize,
}
