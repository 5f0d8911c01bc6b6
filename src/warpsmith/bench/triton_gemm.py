# SPDX-License-Identifier: Apache-2.0
"""The product in Triton, as a peer of `gemm`: bf16 and fp16, and FP8 blocks. Importing this module needs Triton.

Triton compiles a configuration in a second or so; the few that are tried serve every size of their class.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import triton
import triton.language as tl

from warpsmith.bench.timing import gpu_time

NAME = "triton"
TOLERANCE = 1e-2
"""How far a peer's D may be from ours, in the norm, to count."""

_TRIAL_REPLAYS = 5


class Config(NamedTuple):
    """Tile of D, K of a step, warps and depth of the pipeline."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


_FEW_ROWS = (
    Config(16, 64, 128, 4, 5),
    Config(16, 128, 128, 4, 4),
    Config(64, 64, 128, 4, 4),
    Config(64, 128, 64, 4, 4),
)
_MANY_ROWS = (
    Config(64, 128, 64, 4, 4),
    Config(128, 128, 64, 4, 4),
    Config(128, 256, 64, 8, 3),
    Config(128, 256, 64, 8, 4),
)
_BLOCK_FEW = (Config(16, 64, 128, 4, 5), Config(64, 64, 128, 4, 4))
_BLOCK_MANY = (Config(64, 128, 128, 4, 4), Config(128, 128, 128, 4, 3), Config(128, 128, 128, 8, 3))


@triton.jit  # type: ignore[untyped-decorator]
def _place(m: tl.tensor, n: tl.tensor, TILE_M: tl.constexpr, TILE_N: tl.constexpr) -> tl.tuple:
    """Rows and columns of the program's tile: bands of 8 rows of tiles are walked column by column."""
    tile_rows = tl.cdiv(m, TILE_M)
    tile_columns = tl.cdiv(n, TILE_N)
    band = tl.program_id(0) // (8 * tile_columns)
    in_band = tl.program_id(0) % (8 * tile_columns)
    height = min(tile_rows - 8 * band, 8)
    row = (8 * band + in_band % height) * TILE_M
    column = in_band // height * TILE_N
    return row + tl.arange(0, TILE_M), column + tl.arange(0, TILE_N), column


@triton.jit  # type: ignore[untyped-decorator]
def _store(d: tl.tensor, sums: tl.tensor, rows: tl.tensor, columns: tl.tensor, m: tl.tensor, n: tl.tensor) -> None:
    inside = (rows < m)[:, None] & (columns < n)[None, :]
    tl.store(d + rows[:, None] * n + columns[None, :], sums.to(d.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _plain(
    a: tl.tensor,
    b: tl.tensor,
    d: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
) -> None:
    """D [m, n] = A [m, k] · B [n, k]ᵀ; k is a multiple of TILE_K."""
    rows, columns, _ = _place(m, n, TILE_M, TILE_N)
    ks = tl.arange(0, TILE_K)
    a += (rows % m)[:, None] * k + ks[None, :]
    b += (columns % n)[None, :] * k + ks[:, None]
    sums = tl.zeros((TILE_M, TILE_N), dtype=tl.float32)
    for _i in range(k // TILE_K):
        sums = tl.dot(tl.load(a), tl.load(b), sums)
        a += TILE_K
        b += TILE_K
    _store(d, sums, rows, columns, m, n)


@triton.jit  # type: ignore[untyped-decorator]
def _blocks(
    a: tl.tensor,
    b: tl.tensor,
    d: tl.tensor,
    a_scales: tl.tensor,
    b_scales: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    pitch: tl.tensor,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
) -> None:
    """The same of e4m3, with fp32 scales: A's [k / 128, pitch], B's [⌈n / 128⌉, k / 128]; TILE_K is 128."""
    rows, columns, column = _place(m, n, TILE_M, TILE_N)
    ks = tl.arange(0, TILE_K)
    a += (rows % m)[:, None] * k + ks[None, :]
    b += (columns % n)[None, :] * k + ks[:, None]
    a_scales += rows % m
    b_scales += column // 128 * (k // 128)
    sums = tl.zeros((TILE_M, TILE_N), dtype=tl.float32)
    for _i in range(k // TILE_K):
        scales = tl.load(a_scales) * tl.load(b_scales)
        sums += tl.dot(tl.load(a), tl.load(b)) * scales[:, None]
        a += TILE_K
        b += TILE_K
        a_scales += pitch
        b_scales += 1
    _store(d, sums, rows, columns, m, n)


def measure(format: str, sets: Sequence[tuple[Any, Any, Any]]) -> dict[str, float]:
    """Time the fastest configuration over the operands of a benchmark.

    Parameters
    ----------
    format
        The pair, ``bf16_x_bf16``.
    sets
        A, B and D as `warpsmith.gemm` takes them; A's scales of FP8 blocks are m_major.

    Returns
    -------
    dict
        `NAME` → microseconds; empty where Triton has nothing for the pair or the size, or gives another D than ours.
    """
    kernel = {"bf16_x_bf16": _plain, "fp16_x_fp16": _plain, "fp8_block_x_fp8_block_128x128": _blocks}.get(format)
    if kernel is None:
        return {}
    m, k = sets[0][0].shape
    few, many = (_BLOCK_FEW, _BLOCK_MANY) if kernel is _blocks else (_FEW_ROWS, _MANY_ROWS)
    configs = [c for c in (few if m <= 64 else many) if k % c.k == 0]
    trials = []
    for config in configs:
        calls = [partial(_launch, kernel, config, *operands) for operands in sets]
        if _agrees(calls[0], *sets[0]):
            trials.append((gpu_time(calls, _TRIAL_REPLAYS), calls))
    return {NAME: gpu_time(min(trials, key=lambda trial: trial[0])[1])} if trials else {}


def _launch(kernel: Any, config: Config, a: Any, b: Any, d: Any) -> None:
    import torch

    (m, k), n = a.shape, b.shape[0]
    grid = (triton.cdiv(m, config.m) * triton.cdiv(n, config.n),)
    options = {"num_warps": config.warps, "num_stages": config.stages}
    if kernel is _plain:
        kernel[grid](a, b, d, m, n, k, *config[:3], **options)
        return
    codes = [x.data.view(torch.float8_e4m3fn) for x in (a, b)]
    kernel[grid](*codes, d, a.scales, b.scales, m, n, k, a.scales.shape[-1], *config[:3], **options)


def _agrees(call: Any, a: Any, b: Any, d: Any) -> bool:
    """Whether a call fits the GPU's shared memory, and computes what `warpsmith.gemm` does."""
    import torch

    import warpsmith as ws

    ours = ws.gemm(a, b, out=torch.empty_like(d)).float()
    try:
        call()
    except triton.OutOfResources:
        return False
    return bool((d.float() - ours).norm() <= TOLERANCE * ours.norm())
