# SPDX-License-Identifier: Apache-2.0
"""Grouped and masked products beside the dense product of as many rows, which is what they are held against."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from warpsmith.bench import ceilings
from warpsmith.bench.gemm_peers import FP8_BLOCKS, SAME, SAME_SCALE, failure
from warpsmith.bench.result import Row
from warpsmith.bench.timing import by_turns

SHAPES = ((8, 512, 4096, 7168), (32, 128, 4096, 7168), (16, 256, 7168, 2048), (8, 64, 4096, 7168))
"""Groups, rows a group, N, K."""
FORMATS = ("bf16_x_bf16", FP8_BLOCKS)
_OURS, _DENSE = "ours", "dense"
_SETS = 2
"""The weights of a few groups are far larger than the L2."""


def rows(most: dict[str, float], notes: list[str]) -> list[Row]:
    """Contiguous and masked groups of `SHAPES`, all of them of one size."""
    return [
        _row(format, mode, shape, most, notes)
        for format in FORMATS
        for shape in SHAPES
        for mode in ("grouped", "masked")
    ]


def _row(format: str, mode: str, shape: tuple[int, int, int, int], most: dict[str, float], notes: list[str]) -> Row:
    import torch

    groups, each, n, k = shape
    m = groups * each
    ours: list[Callable[[], Any]] = []
    peer: list[Callable[[], Any]] = []
    dense: list[Callable[[], Any]] = []
    for _ in range(_SETS):
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(groups, n, k, device="cuda", dtype=torch.bfloat16)
        ours.append(_product(format, mode, x, w))
        peer.append(_torch(x, w))
        dense.append(_dense(format, x, w[0]))
    blocks = format == FP8_BLOCKS
    moved = (m * k + groups * n * k) * (1 if blocks else 2) + 2 * m * n
    floors = ceilings.floors(most, moved, 2 * m * n * k, ceilings.FP8 if blocks else ceilings.BF16)
    contenders = {_OURS: ours, _DENSE: dense}
    what = f"{format} {mode} {groups}×{each}×{n}×{k}"
    try:
        mine, theirs = (one().reshape(m, n).float() for one in (ours[0], peer[0]))
        difference = float((mine - theirs).norm() / theirs.norm())
        if difference <= (SAME_SCALE if blocks else SAME):
            contenders["torch._grouped_mm bf16"] = peer
        else:
            notes.append(f"torch._grouped_mm, {what}: its result differs by {difference:.1e}; not counted")
    except Exception as error:
        notes.append(failure("torch._grouped_mm", what, error))
    times = by_turns(contenders, lambda name, error: notes.append(failure(name, what, error)))
    details = {**floors, _DENSE: times.pop(_DENSE)}
    told = {"groups": groups, "rows": each, "n": n, "k": k}
    return Row(f"{format} {mode}", told, times.pop(_OURS), max(floors.values()), moved, times, details)


def _quantized(format: str, x: Any, w: Any) -> tuple[Any, Any]:
    import warpsmith as ws

    if format != FP8_BLOCKS:
        return x, w
    return ws.quantize(x, "fp8_block", scale_layout="m_major"), ws.quantize(w, "fp8_block_128x128")


def _product(format: str, mode: str, x: Any, w: Any) -> Callable[[], Any]:
    import torch

    import warpsmith as ws

    groups, n = w.shape[:2]
    each = len(x) // groups
    if mode == "masked":
        x = x.view(groups, each, -1)
        index = {"counts": torch.full((groups,), each, device="cuda", dtype=torch.int32)}
    else:
        index = {"offsets": torch.arange(0, len(x) + 1, each, device="cuda", dtype=torch.int32)}
    a, b = _quantized(format, x, w)
    return partial(
        ws.grouped_gemm, a, b, out=torch.empty(*x.shape[:-1], n, device="cuda", dtype=torch.bfloat16), **index
    )


def _dense(format: str, x: Any, w: Any) -> Callable[[], Any]:
    import torch

    import warpsmith as ws

    a, b = _quantized(format, x, w)
    return partial(ws.gemm, a, b, out=torch.empty(len(x), len(w), device="cuda", dtype=torch.bfloat16))


def _torch(x: Any, w: Any) -> Callable[[], Any]:
    import torch

    each = len(x) // len(w)
    ends = torch.arange(each, len(x) + 1, each, device="cuda", dtype=torch.int32)
    return partial(torch._grouped_mm, x, w.transpose(1, 2), offs=ends)
