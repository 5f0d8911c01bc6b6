# SPDX-License-Identifier: Apache-2.0
"""Launches of the kernel for few rows: its grid, and how its warps divide K and rows of B."""

from __future__ import annotations

import pytest

from warpsmith.catalog.gemm_stream import TILES, StreamTile
from warpsmith.errors import InvalidArgumentError
from warpsmith.ops.gemm_args import Launch, Operand, Output, Size, row_bytes, scale_bytes
from warpsmith.ops.gemm_stream_args import stream_launch, warps_along_k

ONE, PAIR = TILES["sm90_stream_gemm"], TILES["sm90_stream_pair_gemm"]


@pytest.mark.parametrize(
    ("size", "format", "warps"),
    [
        (Size("dense", 1, 4096, 7168), "nvfp4", 16),  # 32 rows a block
        (Size("dense", 8, 7168, 2048), "nvfp4", 8),  # 56 rows
        (Size("dense", 8, 128256, 4096), "nvfp4", 1),  # 976 rows
        (Size("dense", 1, 8, 64), "nvfp4", 1),  # one column of 64 bytes
        (Size("dense", 1, 11520, 2880), "mxfp4", 4),  # 88 rows
        (Size("grouped", 4, 2880, 2880, 128), "mxfp4", 4),  # as many of four groups
        (Size("grouped", 8, 2048, 768, 128), "nvfp4", 2),  # 120 rows, and those that a group's end leaves out
        (Size("grouped", 32, 5760, 2880, 128), "mxfp4", 2),  # 1240 rows of the 28 groups that 32 rows hit
    ],
)
def test_warps_divide_k_where_rows_do_not_keep_them_busy(size: Size, format: str, warps: int) -> None:
    assert warps_along_k(ONE, size, format, 132) == warps


def test_at_least_four_warps_of_each_block_of_a_pair_divide_k() -> None:
    assert warps_along_k(PAIR, Size("dense", 8, 128256, 4096), "nvfp4", 132) == 4


def launch_of(size: Size, tile: StreamTile = ONE, sm_count: int = 132) -> Launch:
    b_row = row_bytes("nvfp4", size.k)
    a = Operand("bf16", 2 * size.k, 2 * size.k * size.m)
    b = Operand("nvfp4", b_row, b_row * size.n, "128x4", scale_bytes("nvfp4", "128x4", size.n, size.k))
    return stream_launch(tile, size, a, b, Output("bf16", 2 * size.n), sm_count=sm_count, wide=True)


def test_a_block_for_each_multiprocessor_and_whole_pairs() -> None:
    size = Size("dense", 4, 4096, 7168)
    assert launch_of(size).grid == (132, 1, 1)
    assert launch_of(size, PAIR, 133).grid == (132, 1, 1)
    assert launch_of(size, PAIR, 1).grid == (2, 1, 1)
    assert launch_of(size).workspace == launch_of(size).arrivals == 0


def test_flags_carry_the_warps_along_k() -> None:
    flags = launch_of(Size("masked", 4, 4096, 7168, 3)).tail[-1]
    assert flags == 2 | 1 << 6 | 1 << 8 | 2 << 16


@pytest.mark.parametrize(("n", "k"), [(1 << 27, 256), (8, 1 << 29)])
def test_what_is_beyond_its_numbers_is_refused(n: int, k: int) -> None:
    with pytest.raises(InvalidArgumentError, match="too large"):
        launch_of(Size("dense", 1, n, k))
