# SPDX-License-Identifier: Apache-2.0
"""A peer written in Triton: D = A · Bᵀ by tensor descriptors, bfloat16 or FP8 in blocks, the fastest of some tiles.

Imported where Triton is installed alone. K is not split.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor


class Tile(NamedTuple):
    """A configuration of the kernel."""

    m: int
    n: int
    k: int
    stages: int
    warps: int


SMALL = (Tile(16, 64, 256, 4, 4), Tile(16, 128, 128, 5, 4), Tile(64, 64, 128, 5, 4))
MIDDLE = (Tile(64, 64, 128, 4, 4), Tile(64, 128, 128, 3, 4), Tile(128, 128, 64, 4, 4))
LARGE = (Tile(128, 256, 64, 3, 8), Tile(128, 128, 64, 4, 8), Tile(128, 128, 64, 4, 4))
SMALL_BLOCKS = (Tile(16, 64, 128, 6, 4), Tile(16, 128, 128, 5, 4), Tile(64, 64, 128, 5, 4))
MIDDLE_BLOCKS = (Tile(64, 64, 128, 5, 4), Tile(64, 128, 128, 4, 4), Tile(128, 128, 128, 4, 8))
LARGE_BLOCKS = (Tile(128, 128, 128, 4, 8), Tile(128, 128, 128, 4, 4), Tile(64, 128, 128, 5, 4))


def _product(
    a: tl.tensor, b: tl.tensor, d: tl.tensor, scales_a: tl.tensor, scales_b: tl.tensor, m: tl.tensor, n: tl.tensor,
    k: tl.tensor, stride_a: tl.tensor, stride_b: tl.tensor,
    blocks: tl.constexpr, tile_m: tl.constexpr, tile_n: tl.constexpr, tile_k: tl.constexpr, group: tl.constexpr,
) -> None:  # fmt: skip
    program = tl.program_id(0)
    rows, columns = tl.cdiv(m, tile_m), tl.cdiv(n, tile_n)
    first = program // (group * columns) * group
    height = tl.minimum(rows - first, group)
    row = first + program % (group * columns) % height
    column = program % (group * columns) // height
    offs_m = row * tile_m + tl.arange(0, tile_m)
    offs_n = column * tile_n + tl.arange(0, tile_n)
    total = tl.zeros((tile_m, tile_n), tl.float32)
    for step in range(tl.cdiv(k, tile_k)):
        one = a.load([row * tile_m, step * tile_k])
        other = b.load([column * tile_n, step * tile_k])
        if blocks:
            factor_a = tl.load(scales_a + step * stride_a + offs_m, mask=offs_m < m, other=0.0)
            factor_b = tl.load(scales_b + (offs_n // 128) * stride_b + step, mask=offs_n < n, other=0.0)
            total += tl.dot(one, other.T) * factor_a[:, None] * factor_b[None, :]
        else:
            total = tl.dot(one, other.T, total)
    places = d + offs_m[:, None].to(tl.int64) * n + offs_n[None, :]
    tl.store(places, total.to(tl.bfloat16), mask=(offs_m[:, None] < m) & (offs_n[None, :] < n))


_KERNEL: Any = triton.jit(_product, do_not_specialize=["m"])


def tiles(m: int, blocks: bool) -> tuple[Tile, ...]:
    """The configurations to choose among for so many rows."""
    if m <= 32:
        return SMALL_BLOCKS if blocks else SMALL
    if m <= 256:
        return MIDDLE_BLOCKS if blocks else MIDDLE
    return LARGE_BLOCKS if blocks else LARGE


def call(a: Any, b: Any, d: Any, tile: Tile, scales: tuple[Any, Any] | None = None) -> Callable[[], Any]:
    """A launch: A [M, K], B [N, K], D [M, N] bfloat16.

    Parameters
    ----------
    a, b, d
        bfloat16, or A and B float8_e4m3fn.
    tile
        What it runs with; its k is 128 for blocks.
    scales
        Of FP8 blocks: of A [K/128, ⌈M/4⌉·4], of B [⌈N/128⌉, K/128], float32.
    """
    m, k = a.shape
    n = b.shape[0]
    left = TensorDescriptor(a, list(a.shape), list(a.stride()), [tile.m, tile.k])
    right = TensorDescriptor(b, list(b.shape), list(b.stride()), [tile.n, tile.k])
    of_a, of_b = scales or (d, d)
    grid = (triton.cdiv(m, tile.m) * triton.cdiv(n, tile.n),)

    def launch() -> Any:
        _KERNEL[grid](
            left, right, d, of_a, of_b, m, n, k, of_a.stride(0), of_b.stride(0),
            scales is not None, tile.m, tile.n, tile.k, 8, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        return d

    return launch
