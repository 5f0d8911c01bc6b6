# SPDX-License-Identifier: Apache-2.0
"""What a GEMM launch is planned to be: grids that cover D, scratch that suffices, splits that are worth it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import warpsmith
from warpsmith.catalog.gemm import KERNELS, MODES, Tile, sm80_tile
from warpsmith.errors import InvalidArgumentError
from warpsmith.ops import gemm_args as args
from warpsmith.ops.gemm_args import Operand, Output, Size

KERNEL_SOURCES = Path(warpsmith.__file__).parent / "kernels"
SHARED = ("common/gemm_problem.cuh", "gemm/sm80_schedule.cuh")
"""Where the numbers stand that this module shares with the device."""
TILES = sorted({sm80_tile(v.name) for v in KERNELS[0].variants})
NAMES = [p.name for p in KERNELS[0].params]
PLAIN = Operand("bf16", 8192)


def launched(launch: args.Launch) -> dict[str, int | float]:
    """The tail by parameter names."""
    return dict(zip(NAMES[12:], launch.tail, strict=True))


def test_the_flags_are_those_of_the_device_source() -> None:
    text = "".join((KERNEL_SOURCES / name).read_text(encoding="utf-8") for name in SHARED)
    found = {name: eval(value) for name, value in re.findall(r"\b(k\w+) = ([0-9]+(?: << [0-9]+)?)", text)}  # noqa: S307
    for index, mode in enumerate(MODES):
        assert found[f"k{mode.capitalize()}"] == index
    for index, name in enumerate(args.TYPES):
        assert found[f"kOut{name.capitalize()}"] == index
        assert found[f"kBias{name.capitalize()}"] == index + 1
    assert (found["kOutShift"], found["kBiasShift"]) == (args.OUT_SHIFT, args.BIAS_SHIFT)
    assert (found["kIndex64"], found["kTiledScalesA"], found["kTiledScalesB"]) == (
        args.INDEX_64,
        args.TILED_SCALES_A,
        args.TILED_SCALES_B,
    )
    assert (found["kGlobalAPerBatch"], found["kGlobalBPerBatch"]) == (args.GLOBAL_A_PER_BATCH, args.GLOBAL_B_PER_BATCH)


def test_a_launch_says_what_is_where() -> None:
    a = Operand("nvfp4", 2048, 4096 * 2048, "128x4", 256 * 4096, True)
    b = Operand("nvfp4", 2048, 0, "linear", 0)
    d = Output("fp16", 8192, 4096 * 8192, "fp32", 16384)
    launch = args.sm80_launch(Tile(64, 64, 128, 2, 2, 1, 3, False, 2), Size("masked", 100, 4096, 4096, 3), a, b, d,
                              splits=2, wide=True)  # fmt: skip
    tail = launched(launch)
    assert launch.grid == (3 * 2 * 64, 2, 1)
    assert launch.workspace == 3 * 2 * 64 * 2 * 64 * 64 * 4
    assert launch.arrivals == 3 * 2 * 64
    assert [tail[name] for name in ("a_row", "a_batch", "a_scale_batch")] == [2048, 4096 * 2048, 256 * 4096]
    assert [tail[name] for name in ("b_row", "b_batch", "b_scale_batch")] == [2048, 0, 0]
    assert [tail[name] for name in ("d_row", "d_batch", "bias_batch")] == [8192, 4096 * 8192, 16384]
    assert [tail[name] for name in ("m", "n", "k", "batches", "alpha")] == [100, 4096, 4096, 3, 1.0]
    assert tail["flags"] == 2 | 1 << 2 | 3 << 4 | 1 << 6 | 1 << 7 | 1 << 10


@given(
    tile=st.sampled_from(TILES),
    mode=st.sampled_from(MODES),
    rows=st.lists(st.integers(0, 300), min_size=1, max_size=12),
    spare=st.integers(0, 200),
    n=st.integers(1, 40).map(lambda x: 8 * x),
)
@settings(max_examples=300, deadline=None)
def test_the_grid_has_a_block_for_every_tile_of_d(tile: Tile, mode: str, rows: list[int], spare: int, n: int) -> None:
    m = sum(rows) + spare if mode == "grouped" else max(rows) + 1
    size = Size(mode, max(m, 1), n, 1024, len(rows))
    columns = -(-n // tile.n)
    needed = (
        sum(-(-r // tile.m) for r in rows) * columns if mode == "grouped" else len(rows) * -(-m // tile.m) * columns
    )
    assert args.tiles_of(tile, size) >= needed


@given(
    tile=st.sampled_from(TILES),
    m=st.integers(1, 5000),
    n=st.integers(1, 3000).map(lambda x: 8 * x),
    k=st.integers(1, 600).map(lambda x: 32 * x),
    sms=st.sampled_from([1, 16, 48, 84, 132, 188]),
    held=st.integers(1, 3),
)
@settings(max_examples=300, deadline=None)
def test_splits_are_possible_cheapest_and_the_same_each_time(
    tile: Tile, m: int, n: int, k: int, sms: int, held: int
) -> None:
    size = Size("dense", m, n, k)
    splits = args.choose_splits(tile, size, sms, held)
    assert 1 <= splits <= -(-k // tile.k)
    assert splits == args.choose_splits(tile, size, sms, held)
    assert args.split_cost(tile, size, splits, sms, held) <= args.split_cost(tile, size, 1, sms, held)
    if args.tiles_of(tile, size) >= sms * held * 32:
        assert splits == 1  # the GPU is full as it is
    launch = args.sm80_launch(tile, size, PLAIN, PLAIN, Output("bf16", 2 * n), splits=splits)
    assert (launch.workspace > 0) == (launch.arrivals > 0) == (splits > 1)


def test_more_multiprocessors_never_get_fewer_splits_of_a_small_problem() -> None:
    tile = sm80_tile("bf16_x_nvfp4_rows16")
    for n, k in ((1024, 8192), (2048, 8192), (4096, 7168)):
        found = [args.choose_splits(tile, Size("dense", 16, n, k), sms, 3) for sms in (16, 32, 64, 128, 256)]
        assert found == sorted(found)
        assert found[-1] > 1


# Microseconds on an H200 (132 multiprocessors) by splits: (variant, M, N, K) → time.
TIMED = {
    ("bf16_x_nvfp4_rows8", 1, 4096, 7168): {1: 12.0, 2: 13.1, 3: 15.8, 4: 16.6},
    ("bf16_x_nvfp4_rows16", 16, 4096, 7168): {2: 15.8, 3: 17.2, 4: 14.0, 6: 14.9},
    ("bf16_x_mxfp4_rows16", 16, 7168, 2048): {1: 9.1, 2: 10.0, 3: 10.6, 4: 12.2},
    ("bf16_x_fp8_block_128x128_rows16", 16, 4096, 7168): {2: 15.3, 3: 15.8, 4: 14.1, 8: 17.3},
    ("bf16_x_mxfp8_rows16", 16, 4096, 7168): {3: 19.0, 4: 16.0, 6: 18.5, 8: 16.1},
    ("bf16_x_mxfp8_rows16", 16, 7168, 2048): {1: 14.2, 2: 11.3, 3: 13.5, 4: 11.8},
    ("bf16_x_nvfp4_rows64", 64, 4096, 7168): {2: 27.8, 3: 37.8, 4: 32.3, 6: 36.3},
    ("bf16_x_nvfp4_rows64", 64, 7168, 2048): {1: 16.7, 2: 22.5, 3: 25.8, 4: 29.5},
    ("bf16_x_bf16_rows64", 64, 4096, 7168): {2: 27.1, 3: 27.8, 4: 24.1, 8: 29.5},
    ("bf16_x_bf16_rows64", 64, 7168, 2048): {1: 16.0, 2: 16.6, 3: 19.7, 4: 21.2},
}


@pytest.mark.parametrize("case", TIMED, ids=lambda case: "-".join(map(str, case)))
def test_the_model_chooses_what_was_measured_to_be_good(case: tuple[str, int, int, int]) -> None:
    variant, m, n, k = case
    tile, times = sm80_tile(variant), TIMED[case]
    chosen = min(times, key=lambda s: args.split_cost(tile, Size("dense", m, n, k), s, 132, tile.blocks))
    assert times[chosen] <= 1.1 * min(times.values())


def test_empty_groups_do_not_count_as_work() -> None:
    tile = sm80_tile("bf16_x_bf16_rows16")
    assert args.choose_splits(tile, Size("grouped", 1, 256, 8192, 1000), 132, 2) > 1


def test_the_shared_memory_of_a_device_bounds_what_it_holds() -> None:
    tile = Tile(128, 128, 64, 2, 2, 1, 3, False, 2)
    assert args.resident(tile, 98304, 227 * 1024) == 2
    assert args.resident(tile, 98304, 99 * 1024) == 1
    assert args.resident(tile._replace(blocks=1), 1000, 99 * 1024) == 1


def test_bytes_of_rows_and_scales() -> None:
    assert [args.row_bytes(f, 256) for f in ("bf16", "nvfp4", "mxfp8")] == [512, 128, 256]
    assert args.scale_bytes("bf16", "linear", 3, 256) == 0
    assert args.scale_bytes("nvfp4", "128x4", 130, 160) == 256 * 12
    assert args.scale_bytes("fp8_block", "m_major", 5, 256) == 2 * 8 * 4
    assert args.scale_bytes("fp8_block_128x128", "linear", 130, 256) == 2 * 2 * 4


@pytest.mark.parametrize(
    "size",
    [Size("dense", 1 << 22, 1 << 22, 64, 64), Size("grouped", (1 << 32) - 100, 8, 64), Size("dense", 8, 8, 1 << 30)],
)
def test_what_is_too_large_is_refused(size: Size) -> None:
    with pytest.raises(InvalidArgumentError, match="too large"):
        args.sm80_launch(Tile(64, 64, 128, 2, 2, 1, 3, False, 2), size, PLAIN, PLAIN, Output("bf16", 16))


def test_a_group_counts_by_its_average_rows() -> None:
    assert Size("grouped", 100, 8, 8, 16).rows == 7
    assert Size("grouped", 0, 8, 8, 16).rows == 1
    assert Size("masked", 100, 8, 8, 16).rows == 100
