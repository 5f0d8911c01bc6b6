# SPDX-License-Identifier: Apache-2.0
"""Launches by weights prepared for few rows: which kernel, its grid, and what is beyond it."""

from __future__ import annotations

import pytest

import warpsmith as ws
from warpsmith.catalog.gemm import FEW_ROWS
from warpsmith.catalog.gemm_packed import KERNELS, TILES, PackedTile
from warpsmith.errors import InvalidArgumentError
from warpsmith.ops.gemm_args import Launch, Operand, Output, Size
from warpsmith.ops.gemm_packed_args import packed_launch

ONE, PAIR = TILES["sm90_packed_gemm"]["rows8"], TILES["sm90_packed_pair_gemm"]["rows16"]


@pytest.mark.parametrize("format", FEW_ROWS)
@pytest.mark.parametrize(
    ("m", "k", "chosen"),
    [
        (1, 16384, "sm90_packed_gemm/{}_rows8"),
        (8, 7168, "sm90_packed_gemm/{}_rows8"),
        (8, 9216, "sm90_packed_pair_gemm/{}_rows16"),
        (9, 2048, "sm90_packed_gemm/{}_rows16"),
        (16, 4096, "sm90_packed_gemm/{}_rows16"),
        (16, 7168, "sm90_packed_pair_gemm/{}_rows16"),
        (512, 7168, "sm90_mixed_packed_gemm/{}_m256"),
    ],
)
def test_a_block_has_all_of_k_where_few_rows_of_a_fit(format: str, m: int, k: int, chosen: str) -> None:
    choice = ws.explain("gemm", device="9.0", format=format, layout="prepared", m=m, n=4096, k=k).choice
    assert str(choice).partition("@")[0] == chosen.format(format)


def test_other_devices_say_what_to_do() -> None:
    decision = ws.explain("gemm", device="12.0", format=FEW_ROWS[0], layout="prepared", m=1, n=4096, k=4096)
    assert decision.choice is None
    assert "pass the weights as they were quantized" in decision.unsupported


def launch_of(size: Size, tile: PackedTile = ONE, sm_count: int = 132) -> Launch:
    a = Operand("bf16", 2 * size.k, 2 * size.k * size.m)
    b = Operand("nvfp4", size.k // 2, size.k // 2 * size.n, "linear", size.n * size.k // 16, True)
    return packed_launch(tile, size, a, b, Output("bf16", 2 * size.n), sm_count=sm_count, wide=True)


def test_a_block_for_each_multiprocessor_and_whole_pairs() -> None:
    size = Size("dense", 4, 4096, 7168)
    assert launch_of(size).grid == (132, 1, 1)
    assert launch_of(size, PAIR, 133).grid == (132, 1, 1)
    assert launch_of(size, PAIR, 1).grid == (2, 1, 1)
    assert launch_of(size).workspace == launch_of(size).arrivals == 0


def test_flags_say_kind_index_and_scales_of_each_matrix() -> None:
    assert launch_of(Size("masked", 4, 4096, 7168, 3)).tail[-1] == 2 | 1 << 6 | 1 << 11


@pytest.mark.parametrize(
    "size", [Size("dense", 1, 32, 1 << 17), Size("masked", 1, 32, 64, 513), Size("dense", 1 << 20, 1 << 18, 64)]
)
def test_what_is_beyond_its_numbers_is_refused(size: Size) -> None:
    with pytest.raises(InvalidArgumentError, match="too large"):
        launch_of(size)


def test_each_tile_of_the_catalog_is_known() -> None:
    for kernel in KERNELS:
        assert {variant.tile for variant in kernel.variants} == set(TILES[kernel.name])
