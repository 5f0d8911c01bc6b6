# SPDX-License-Identifier: Apache-2.0
"""Weights in the order for few rows with more of them: which sizes go where, and how they are launched."""

from __future__ import annotations

import pytest

from warpsmith.arch import Capability
from warpsmith.catalog import CATALOG
from warpsmith.catalog.fp4_gemm import PARAMS
from warpsmith.catalog.gemm import FEW_ROWS
from warpsmith.catalog.gemm_mixed_packed import KERNEL, TILES
from warpsmith.catalog.resolve import DeviceFacts, resolve
from warpsmith.catalog.spec import CubinId
from warpsmith.evidence.gemm_packed_cases import many_rows_cases
from warpsmith.ops.gemm_args import Operand, Output, Size
from warpsmith.ops.gemm_map_args import choose_map_splits, map_launch, tile_of

TAIL = [p.name for p in PARAMS[12:]]


def chosen(**problem: str | int) -> CubinId:
    wanted = CATALOG.operation("gemm").problem({"layout": "prepared", **problem})
    choice = resolve(CATALOG, wanted, DeviceFacts(Capability(9, 0), 132)).choice
    assert choice is not None
    return choice


@pytest.mark.parametrize("format", FEW_ROWS)
@pytest.mark.parametrize("mode", ["dense", "grouped", "masked"])
def test_more_than_sixteen_rows_are_its_own(format: str, mode: str) -> None:
    for m in (17, 64, 65, 300, 5000):
        for n in (32, 2880, 65536):
            assert chosen(format=format, mode=mode, m=m, n=n).kernel == KERNEL.name
    few = 5 if mode == "grouped" else 16
    assert chosen(format=format, mode=mode, m=few).kernel == "sm90_packed_gemm"
    assert chosen(format=format, mode=mode, m=few, k=16384).kernel == (
        "sm90_packed_gemm" if mode == "grouped" and few * 16384 <= 16 * 4128 else "sm90_packed_pair_gemm"
    )
    assert (chosen(format=format, mode=mode, m=6).kernel == KERNEL.name) == (mode == "grouped")


@pytest.mark.parametrize("format", FEW_ROWS)
def test_it_takes_what_the_kernels_for_few_rows_cannot_count(format: str) -> None:
    assert chosen(format=format, mode="grouped", m=4, batches=513).kernel == KERNEL.name
    assert chosen(format=format, m=4, k=1 << 18).kernel == KERNEL.name


@pytest.mark.parametrize("format", FEW_ROWS)
def test_tiles_have_the_rows_that_there_are(format: str) -> None:
    for m in (17, 32, 33, 64, 65, 128, 129):
        tile = tile_of(KERNEL, chosen(format=format, m=m, n=16384, mode="masked").variant)
        assert m <= tile.m <= 2 * m
    groups = [chosen(format=format, m=m, mode="grouped", batches=32).variant for m in (6, 17, 48, 256, 512)]
    assert groups == [f"{format}_{name}" for name in ("m16w", "m32w", "m64w", "m128", "m256")]
    assert chosen(format=format, m=512, n=4096).variant.endswith("m128")
    assert chosen(format=format, m=100, n=512).variant == f"{format}_m32"


@pytest.mark.parametrize("name", list(TILES))
def test_a_launch_has_the_stride_of_codes_where_a_has_scales(name: str) -> None:
    tile = tile_of(KERNEL, f"{FEW_ROWS[0]}_{name}")
    assert tile.packed
    size = Size("dense", 100, 512, 2944, 3)
    a, b = Operand("bf16", 5888, 100 * 5888), Operand("nvfp4", 1472, 512 * 1472, "linear", 512 * 184, True)
    launch = map_launch(tile, size, a, b, Output("bf16", 1024, 102400), sm_count=132)
    tail = dict(zip(TAIL, launch.tail, strict=False))
    assert (tail["a_scale_batch"], tail["b_scale_batch"]) == (512 * 1472, 512 * 184)
    assert tail["flags"] == 1 << 11


def test_few_tiles_are_split() -> None:
    cubin = chosen(format=FEW_ROWS[1], m=32, n=4096, k=7168)
    fields = {"format": FEW_ROWS[1], "mode": "dense", "layout": "prepared", "path": "default"}
    assert choose_map_splits(CATALOG, cubin, fields, Size("dense", 32, 4096, 7168), 132) == (4, 0)


def test_each_tile_has_cases() -> None:
    for format in FEW_ROWS:
        cases = [c for c in many_rows_cases() if c.format == format]
        assert all(c.layout == "prepared" and not c.n % 32 and not c.k % 64 for c in cases)
        assert {c.mode for c in cases} == {"dense", "grouped", "masked"}
        assert {c.k % 128 for c in cases} == {0, 64}
        assert min(c.size.rows for c in cases) > 16
