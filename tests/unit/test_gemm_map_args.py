# SPDX-License-Identifier: Apache-2.0
"""Launches of GEMM kernels that take tensor maps: grids that cover D, scratch that suffices, maps of what is read."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import warpsmith
from warpsmith.arch import parse
from warpsmith.catalog import CATALOG
from warpsmith.catalog.fp4_gemm import KERNELS, PARAMS, SHAPES
from warpsmith.catalog.gemm import MODES
from warpsmith.catalog.spec import CubinId
from warpsmith.errors import CatalogError, InvalidArgumentError
from warpsmith.ops import gemm_args as args
from warpsmith.ops.gemm_activation import Activation
from warpsmith.ops.gemm_args import Operand, Output, Size
from warpsmith.ops.gemm_map_args import (
    STORES_BY_MAP,
    MapLaunch,
    MapTile,
    choose_map_splits,
    map_launch,
    map_tiles,
    max_splits,
    tile_of,
)
from warpsmith.runtime.tensor_map import NO_MAP, MapSpec

SHARED = Path(warpsmith.__file__).parent / "kernels" / "common" / "gemm_problem.cuh"
TAIL = [p.name for p in PARAMS[12:]]
TILE = MapTile(128, 128, 128, 1)
PAIR = MapTile(128, 256, 64, 2)
B = Operand("nvfp4", 2048, 4096 * 2048, "128x4", 4096 * 256)


def planned(size: Size, tile: MapTile = TILE, a: Operand | None = None, **options: int) -> MapLaunch:
    left = a or Operand("nvfp4", 2048, size.m * 2048, "128x4", 128 * 256)
    return map_launch(tile, size, left, B, Output("bf16", 8192, size.m * 8192), sm_count=132, **options)


def test_the_flags_are_those_of_the_device_source() -> None:
    text = SHARED.read_text(encoding="utf-8")
    found = {name: eval(value) for name, value in re.findall(r"\b(k\w+) = ([0-9]+(?: << [0-9]+)?)", text)}  # noqa: S307
    assert [found[name] for name in ("kGrouped", "kMasked")] == [MODES.index(m) for m in ("grouped", "masked")]
    assert [found[f"kOut{name.capitalize()}"] for name in args.TYPES] == [0, 1, 2]
    assert (found["kOutShift"], found["kBiasShift"], found["kIndex64"]) == (
        args.OUT_SHIFT, args.BIAS_SHIFT, args.INDEX_64,
    )  # fmt: skip
    assert (found["kGlobalAPerBatch"], found["kGlobalBPerBatch"]) == (args.GLOBAL_A_PER_BATCH, args.GLOBAL_B_PER_BATCH)


def test_every_variant_says_its_tile() -> None:
    for kernel in KERNELS:
        for variant in kernel.variants:
            tile = tile_of(kernel, variant.name)
            shape = SHAPES[variant.tile]
            assert (tile.m, tile.n, tile.cluster) == (shape.m, 128, 1)
            assert tile.k in (shape.k, shape.k // 2)
    with pytest.raises(CatalogError, match="has no variant 'nope'"):
        tile_of(KERNELS[0], "nope")


def test_a_launch_says_what_is_where() -> None:
    size = Size("masked", 100, 4096, 4096, 3)
    a = Operand("nvfp4", 2048, 100 * 2048, "128x4", 128 * 256, True)
    output = Output("fp32", 16384, 100 * 16384, "fp16", 8192)
    launch = map_launch(TILE, size, a, B, output, sm_count=48, wide=True)
    tail = dict(zip(TAIL, launch.tail, strict=True))
    assert [tail[n] for n in ("d_row", "d_batch", "bias_batch")] == [16384, 100 * 16384, 8192]
    assert [tail[n] for n in ("a_scale_batch", "b_scale_batch")] == [128 * 256, 4096 * 256]
    assert [tail[n] for n in ("m", "n", "k", "batches", "splits", "alpha")] == [100, 4096, 4096, 3, 1, 1.0]
    assert tail["flags"] == 2 | 2 << 2 | 2 << 4 | args.INDEX_64 | args.GLOBAL_A_PER_BATCH
    assert launch.grid == (48, 1, 1)
    assert (launch.workspace, launch.arrivals) == (0, 0)
    assert launch.a == MapSpec(2048, 100, 3, 2048, 100 * 2048, 64, 128)
    assert launch.b == MapSpec(2048, 4096, 3, 2048, 4096 * 2048, 64, 128)


def test_groups_are_rows_of_one_matrix() -> None:
    launch = planned(Size("grouped", 1000, 256, 4096, 9))
    assert launch.a == MapSpec(2048, 1000, 1, 2048, 1000 * 2048, 64, 128)
    assert launch.b.batches == 9
    assert launch.grid == (min(132, (1000 // 128 + 9) * 2), 1, 1)


def test_plain_operands_have_strides_of_their_own() -> None:
    a = Operand("bf16", 10000, 1 << 20)
    b, output = Operand("bf16", 8192, 0), Output("bf16", 1024, 307200)
    launch = map_launch(PAIR, Size("dense", 300, 512, 4096, 2), a, b, output, sm_count=132)
    assert launch.a == MapSpec(8192, 300, 2, 10000, 1 << 20, 128, 128)
    assert launch.b == MapSpec(8192, 512, 2, 8192, 0, 128, 128)


def test_a_tile_that_stores_by_a_map_has_one_of_d() -> None:
    tile = MapTile(128, 256, 64, gates=True, stores=True)
    a = Operand("bf16", 8192)

    def launch(size: Size, d: Output, activation: Activation | None = None) -> MapLaunch:
        return map_launch(tile, size, a, a, d, sm_count=132, activation=activation)

    dense = launch(Size("dense", 300, 512, 4096, 2), Output("bf16", 1040, 1 << 20))
    assert dense.d == MapSpec(1024, 300, 2, 1040, 1 << 20, 128, 16)
    assert int(dense.tail[11]) & STORES_BY_MAP
    grouped = launch(Size("grouped", 300, 512, 4096, 7), Output("fp16", 1024))
    assert grouped.d == MapSpec(1024, 300, 1, 1024, 300 * 1024, 128, 16)
    gated = launch(Size("dense", 300, 512, 4096), Output("bf16", 512), Activation("swiglu", 1.0, 2.0))
    assert gated.d == MapSpec(512, 300, 1, 512, 300 * 512, 128, 16)
    for d in (Output("fp32", 2048), Output("bf16", 1032), Output("bf16", 1024, 8)):
        without = launch(Size("dense", 300, 512, 4096), d)
        assert without.d is None
        assert without.tail[-1] == NO_MAP
        assert not int(without.tail[11]) & STORES_BY_MAP
    assert launch(Size("dense", 1, 512, 4096), Output("bf16", 0)).d == MapSpec(1024, 1, 1, 1024, 1024, 128, 16)


def test_blocks_of_a_cluster_come_together() -> None:
    size = Size("dense", 300, 512, 4096)
    assert map_tiles(PAIR, size) == 2 * 2 * 2
    for sms, blocks in ((132, 8), (7, 6), (1, 2)):
        launch = map_launch(
            PAIR, size, Operand("bf16", 8192), Operand("bf16", 8192), Output("bf16", 1024), sm_count=sms
        )
        assert launch.grid == (blocks, 1, 1)


@given(st.integers(1, 700), st.lists(st.integers(0, 300), min_size=1, max_size=40), st.sampled_from([TILE, PAIR]))
def test_groups_never_need_more_tiles_than_are_planned(n: int, rows: list[int], tile: MapTile) -> None:
    n *= 8
    planned_tiles = map_tiles(tile, Size("grouped", sum(rows), n, 64, len(rows)))
    height = tile.m * tile.cluster
    assert sum(-(-r // height) for r in rows) * -(-n // tile.n) * tile.cluster <= planned_tiles


def test_splits_need_scratch_and_words_for_every_tile() -> None:
    size = Size("dense", 8, 4096, 4096)
    launch = planned(size, MapTile(8, 128, 256, 1), splits=4)
    assert (launch.arrivals, launch.workspace) == (32, 32 * 4 * 8 * 128 * 4)
    assert launch.grid == (128, 1, 1)
    assert dict(zip(TAIL, launch.tail, strict=True))["splits"] == 4


@given(st.sampled_from(MODES), st.integers(1, 4096), st.integers(1, 512), st.integers(1, 256), st.integers(1, 200))
def test_splits_are_of_k_and_of_dense_problems_alone(mode: str, m: int, n: int, k: int, sms: int) -> None:
    size = Size(mode, m, 8 * n, 32 * k, 3 if mode != "dense" else 1)
    fields = {"format": "nvfp4_x_nvfp4", "mode": mode}
    for kernel, tile in ((KERNELS[0], "t128"), (KERNELS[1], "s16")):
        cubin = CubinId(kernel.name, f"nvfp4_x_nvfp4_{tile}", parse("sm_121a"))
        splits, _ = choose_map_splits(CATALOG, cubin, fields, size, sms)
        most = max_splits(tile_of(kernel, cubin.variant), size)
        assert 1 <= splits <= most
        assert mode == "dense" or splits == most == 1


def test_a_kernel_without_an_estimate_is_not_split() -> None:
    bare = replace(CATALOG, estimates=())
    cubin = CubinId(KERNELS[0].name, "nvfp4_x_nvfp4_s8", parse("sm_121a"))
    size, fields = Size("dense", 1, 512, 65536), {"format": "nvfp4_x_nvfp4", "mode": "dense"}
    assert choose_map_splits(bare, cubin, fields, size, 170) == (1, 0)
    assert choose_map_splits(CATALOG, cubin, fields, size, 170)[0] > 8


def test_a_product_that_is_too_large_is_refused() -> None:
    for size in (
        Size("dense", 1 << 31, 4096, 4096),
        Size("dense", 1, 8, 1 << 30),
        Size("masked", 1, 4096, 64, 1 << 28),
    ):
        with pytest.raises(InvalidArgumentError, match="is too large"):
            planned(size)


def test_a_short_last_wave_is_split_and_its_tiles_alone_have_scratch() -> None:
    cubin = CubinId("sm90_gemm", "bf16_x_bf16_t128x256", parse("sm_90a"))
    fields = {"format": "bf16_x_bf16", "mode": "dense"}
    size = Size("dense", 777, 11008, 4096)  # 7 x 43 tiles: 264 in two waves, and 37
    assert choose_map_splits(CATALOG, cubin, fields, size, 132) == (3, 264)
    launch = planned(size, tile_of(CATALOG.kernel(cubin.kernel), cubin.variant), splits=3, whole=264)
    assert launch.arrivals == 37
    assert launch.workspace == 37 * 3 * 128 * 256 * 4
    assert launch.tail[9] == 264 << 8 | 3
    assert launch.grid == (132, 1, 1)
    for m in (4096, 777 * 40, 64):  # full waves, many waves, less than one
        assert choose_map_splits(CATALOG, cubin, fields, Size("dense", m, 8448, 4096), 132) == (1, 0)


def test_fp8_splits_a_short_last_wave_behind_many_too_where_k_is_long() -> None:
    cubin = CubinId("sm90_gemm", "fp8_block_x_fp8_block_128x128_t128x128", parse("sm_90a"))
    fields = {"format": "fp8_block_x_fp8_block_128x128", "mode": "dense"}
    assert choose_map_splits(CATALOG, cubin, fields, Size("dense", 8192, 8192, 8192), 132) == (4, 4092)
    for size in (Size("dense", 8192, 8192, 2048), Size("dense", 4096, 4096, 7168), Size("dense", 8192, 16384, 8192)):
        assert choose_map_splits(CATALOG, cubin, fields, size, 132) == (1, 0)


def test_blocks_of_a_cluster_that_divide_k_come_in_whole_clusters_and_need_no_scratch() -> None:
    tile = tile_of(CATALOG.kernel("sm90_gemm"), "bf16_x_bf16_s32k2")
    size = Size("dense", 32, 4096, 7168)
    assert (tile.parts, tile.cluster, max_splits(tile, size)) == (2, 1, 1)
    launch = planned(size, tile)
    assert (launch.grid, launch.workspace, launch.arrivals) == ((128, 1, 1), 0, 0)
    assert planned(size._replace(n=32768), tile._replace(parts=7)).grid == (259, 1, 1)
    assert launch.b.box_rows == 64


def test_blocks_that_share_a_multiprocessor_are_counted() -> None:
    kernel = CATALOG.kernel("sm90_gemm")
    launch = planned(Size("dense", 8, 128256, 4096), tile_of(kernel, "bf16_x_bf16_s8"))
    assert launch.grid == (264, 1, 1)
    for variant, m, splits in (("s8", 8, 1), ("s32", 32, 2), ("t128x64", 128, 2)):
        cubin = CubinId("sm90_gemm", f"bf16_x_bf16_{variant}", parse("sm_90a"))
        assert choose_map_splits(CATALOG, cubin, {}, Size("dense", m, 4096, 7168), 132) == (splits, 0)


def test_boxes_of_sm90_have_no_more_rows_than_the_matrix() -> None:
    kernel = CATALOG.kernel("sm90_gemm")
    wide = tile_of(kernel, "bf16_x_bf16_t128x256")
    cases = ((wide, 777, 11008, (128, 256)), (wide, 100, 136, (100, 136)), (wide, 136, 40, (128, 40)))
    for tile, m, n, boxes in cases:
        a, b = Operand("bf16", 512, m * 512), Operand("bf16", 512, n * 512)
        launch = map_launch(tile, Size("dense", m, n, 256), a, b, Output("bf16", 2 * n), sm_count=132)
        assert (launch.a.box_rows, launch.b.box_rows) == boxes
    assert planned(Size("dense", 100, 4096, 4096)).a.box_rows == TILE.m
