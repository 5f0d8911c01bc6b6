# SPDX-License-Identifier: Apache-2.0
"""Planned grids: simulated with the kernels' index arithmetic, they write every byte of the result exactly once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import warpsmith
from warpsmith.catalog.formats import FORMATS, Format
from warpsmith.errors import InvalidArgumentError
from warpsmith.ops import quantization_args as args

KERNELS = Path(warpsmith.__file__).parent / "kernels" / "fp4_quantization"
ROW_FORMATS = ("nvfp4", "mxfp4", "mxfp8", "fp8_block")
ROW_STEP = 32  # between the four passes of a thread
THREAD = np.arange(args.THREADS)


class Counter:
    """How often each item of a batched tensor is written; anything outside is an error."""

    def __init__(self, *shape: int) -> None:
        self.hits = np.zeros(shape, np.int64)

    def add(self, *indices: np.ndarray) -> None:
        indices = tuple(np.broadcast_arrays(*indices))
        for index, size in zip(indices, self.hits.shape, strict=True):
            assert ((index >= 0) & (index < size)).all()
        np.add.at(self.hits, indices, 1)


def grid_tiles(launch: args.Launch, *tiles: int) -> Iterator[tuple[int, ...]]:
    """(column tile, row tile, batch) of every tile that some CTA takes, out of as many of each."""
    assert max(launch.grid[1:]) <= 65535
    assert launch.block == args.THREADS
    for cta in product(*map(range, launch.grid)):
        yield from product(*map(range, cta, tiles, launch.grid))


def tile_position(x: int, tile: int, row_shift: int, passes: int) -> tuple[int, np.ndarray, np.ndarray]:
    """TilePosition of tile.cuh for all threads: (slab, row of pass 0, unit)."""
    sub_shift = (5 if passes == 4 else 7) + row_shift - 8
    row = ((tile & ((1 << sub_shift) - 1)) << (8 - row_shift)) + (THREAD >> row_shift)
    return tile >> sub_shift, row, (x << row_shift) + (THREAD & ((1 << row_shift) - 1))


def locate_slab(slab: int, m: int, offsets: np.ndarray | None, flags: int) -> tuple[int, int, int]:
    """(first row, low, high) of tile.cuh."""
    if offsets is None:
        return slab * 128, 0, min(m - slab * 128, 128)
    if not flags & args.PADDED_GROUPS:
        low, high = np.clip(offsets[[0, -1]] - slab * 128, 0, 128)
        return slab * 128, low, max(low, high)
    starts = (offsets[:-1] + 127 * np.arange(len(offsets) - 1)) // 128
    group = np.flatnonzero(starts <= slab)[-1]
    inside = (slab - starts[group]) * 128
    return offsets[group] + inside, 0, max(0, min(128, offsets[group + 1] - offsets[group] - inside))


def quantize_writes(
    launch: args.Launch, spec: Format, layout: str, passes: int, offsets: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Count the writes of ws_quantize: units of codes, and scales."""
    _, _, scale_bytes, m, units, batches, groups, row_tiles, pitch, row_shift, flags = launch.tail
    assert groups == (0 if offsets is None else len(offsets) - 1)
    lanes, blocks = spec.block[1] // 8, units * 8 // spec.block[1]
    codes = Counter(batches, m, units)
    scales = Counter(batches, scale_bytes // spec.scale_bytes)
    for x, tile, batch in grid_tiles(launch, -(-units >> row_shift), row_tiles, batches):
        slab, row, unit = tile_position(x, tile, row_shift, passes)
        first, low, high = locate_slab(slab, m, offsets, flags)
        block, lane = unit // lanes, THREAD % lanes
        for i in range(passes):
            at = row + i * ROW_STEP
            exists = (at >= low) & (at < high)
            active = (unit < units) & exists
            codes.add(np.int64(batch), first + at[active], unit[active])
            if spec.scale_bytes == 4:
                writer = active & (lane == i)
                m_major = layout == "m_major"
                major, minor = (block, first + at) if m_major else (first + at, block)
                scales.add(np.int64(batch), (major * pitch + minor)[writer])
            elif layout == "128x4":
                writer = (lane == 0) & (block < pitch)
                tiled = slab * pitch * 128 + block // 4 * 512 + at % 32 * 16 + at // 32 * 4 + block % 4
                scales.add(np.int64(batch), tiled[writer])
            else:
                writer = (lane == 0) & (block < blocks) & exists
                scales.add(np.int64(batch), ((first + at) * pitch + block)[writer])
        if layout == "m_major" and tile == 0:
            for column in block[(THREAD >> row_shift == 0) & (lane == 0) & (block < blocks)]:
                scales.add(np.int64(batch), column * pitch + np.arange(m, pitch))
    return codes.hits, scales.hits


def layouts_of(format: str) -> tuple[str, ...]:
    return FORMATS[format].layouts


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    format = draw(st.sampled_from(ROW_FORMATS))
    block = FORMATS[format].block[1]
    grouped = draw(st.booleans())
    m = draw(st.integers(1, 300))
    cuts = sorted(draw(st.lists(st.integers(0, m), min_size=1, max_size=6))) if grouped else None
    return {
        "format": format,
        "layout": draw(st.sampled_from(layouts_of(format))),
        "passes": draw(st.sampled_from((1, 4))),
        "m": m,
        "k": block * draw(st.integers(1, 9)),
        "batches": 1 if grouped else draw(st.integers(1, 3)),
        "offsets": np.array([0, *cuts]) if grouped else None,
        "per_group": grouped and format == "nvfp4" and draw(st.booleans()),
    }


def check_coverage(
    format: str,
    layout: str,
    passes: int,
    m: int,
    k: int,
    batches: int = 1,
    offsets: np.ndarray | None = None,
    per_group: bool = False,
    row_shift: int | None = None,
) -> None:
    spec = FORMATS[format]
    groups = args.Groups() if offsets is None else args.Groups(len(offsets) - 1, scale_per_group=per_group)
    launch = args.quantize_launch(
        format, "bf16", layout=layout, passes=passes, m=m, k=k, row_stride=k, batches=batches, batch_stride=m * k,
        groups=groups, row_shift=row_shift,
    )  # fmt: skip
    codes, scales = quantize_writes(launch, spec, layout, passes, offsets)
    assert scales.size == np.prod(spec.scale_shape(layout, (batches,), m, k, groups.number))
    assert codes.size == batches * m * k // 8
    last = m if offsets is None else offsets[-1]
    codes = codes.reshape(batches, m, -1)  # one run of memory may have been cut into other rows
    assert (codes[:, :last] == 1).all()
    assert (codes[:, last:] == 0).all()
    if layout == "linear":
        rows = scales.reshape(batches, m, -1)
        assert (rows[:, :last] == 1).all()
        assert (rows[:, last:] == 0).all()
    elif layout == "m_major":
        columns = scales.reshape(batches, k // 128, -1)
        assert (columns[:, :, :last] == 1).all()
        assert (columns[:, :, last:m] == 0).all()
        assert (columns[:, :, m:] == 1).all()
    else:
        assert (scales == 1).all()


@settings(max_examples=60, deadline=None)
@given(problems())
def test_every_code_and_scale_is_written_once(problem: dict[str, Any]) -> None:
    check_coverage(**problem)


@pytest.mark.parametrize("passes", [1, 4])
@pytest.mark.parametrize("format", ROW_FORMATS)
def test_any_number_of_threads_a_row_covers_the_same(format: str, passes: int) -> None:
    for row_shift in range(3 if format == "nvfp4" else 4, 9):
        for layout in layouts_of(format):
            check_coverage(format, layout, passes, m=131, k=FORMATS[format].block[1] * 5, row_shift=row_shift)


def test_a_cta_takes_a_strip_of_column_tiles_where_there_are_many() -> None:
    problem = {"layout": "128x4", "m": 8192, "k": 8192, "row_stride": 8192}
    many = args.quantize_launch("nvfp4", "bf16", passes=4, **problem)
    row_tiles, row_shift = many.tail[7], many.tail[9]
    assert row_tiles * (1024 >> row_shift) == 8192
    assert many.grid == ((1024 >> row_shift) // 4, row_tiles, 1)
    one_pass = args.quantize_launch("nvfp4", "bf16", passes=1, **problem)
    assert one_pass.grid[0] == 1024 >> one_pass.tail[9]
    narrow = {**problem, "m": 128 * 513, "k": 5 * 64}
    assert args.quantize_launch("nvfp4", "bf16", passes=4, **narrow).grid == (5, 513, 1)


@pytest.mark.parametrize("format", ROW_FORMATS)
def test_strips_cover_the_same(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(args, "_STRIP_CTAS", 2)
    for layout in layouts_of(format):
        check_coverage(format, layout, passes=4, m=140, k=128 * 7, batches=2, row_shift=4)


def test_more_tiles_than_a_grid_may_have_are_looped_over() -> None:
    launch = args.quantize_launch("nvfp4", "bf16", layout="linear", passes=1, m=1 << 28, k=16, row_stride=16)
    row_tiles, row_shift = launch.tail[7], launch.tail[9]
    assert launch.grid[1] == 65535 < row_tiles
    assert row_tiles * (args.THREADS >> row_shift) >= 1 << 28
    many = args.quantize_128x128_launch("bf16", m=1, k=128, row_stride=128, batches=70000, batch_stride=128)
    assert many.grid == (1, 1, 65535)
    assert many.tail[4] == 70000


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from((*ROW_FORMATS, "fp8_block_128x128")),
    st.integers(1, 300),
    st.integers(1, 9),
    st.integers(1, 3),
    st.data(),
)
def test_dequantize_reads_every_unit_once(format: str, m: int, blocks: int, batches: int, data: st.DataObject) -> None:
    spec = FORMATS[format]
    layout = data.draw(st.sampled_from(spec.layouts))
    offsets, groups = None, args.Groups()
    if spec.block[0] == 1 and batches == 1 and data.draw(st.booleans()):
        offsets = np.array([0, *sorted(data.draw(st.lists(st.integers(0, m), min_size=1, max_size=6)))])
        groups = args.Groups(len(offsets) - 1, scale_per_group=data.draw(st.booleans()))
    k = blocks * spec.block[1]
    launch = args.dequantize_launch(format, layout=layout, m=m, k=k, batches=batches, groups=groups)
    scale_bytes, _, units, _, _, row_tiles, pitch, row_shift, flags = launch.tail
    assert scale_bytes * batches == spec.scale_bytes * np.prod(
        spec.scale_shape(layout, (batches,), m, k, groups.number)
    )
    assert bool(flags & args.SQUARE_BLOCKS) == (spec.block[0] == 128)
    assert pitch == spec.scale_shape(layout, (), m, k, groups.number)[-1]
    values = Counter(batches, m, units)
    for x, tile, batch in grid_tiles(launch, -(-units >> row_shift), row_tiles, batches):
        slab, row, unit = tile_position(x, tile, row_shift, 4)
        first, low, high = locate_slab(slab, m, offsets, flags)
        for i in range(4):
            at = row + i * ROW_STEP
            active = (unit < units) & (at >= low) & (at < high)
            values.add(np.int64(batch), first + at[active], unit[active])
    last = m if offsets is None else offsets[-1]
    assert (values.hits[:, :last] == 1).all()
    assert (values.hits[:, last:] == 0).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 700), st.integers(1, 4), st.integers(1, 1024))
def test_amax_visits_every_tile_once(m: int, k: int, batches: int, most_ctas: int) -> None:
    launch = args.amax_launch("bf16", m=m, k=k, row_stride=k, batches=batches, batch_stride=m * k, most_ctas=most_ctas)
    *_, row_tiles, col_tiles, row_shift, flags = launch.tail
    count = launch.grid[0]
    assert 1 <= count <= min(most_ctas, args.MAX_PARTIALS)
    assert row_tiles * 4 * (args.THREADS >> row_shift) >= m > (row_tiles - 1) * 4 * (args.THREADS >> row_shift)
    assert col_tiles << row_shift + 3 >= k > (col_tiles - 1) << row_shift + 3
    assert bool(flags & args.VECTOR_ROWS) == (k % 8 == 0)
    visited = Counter(batches, row_tiles, col_tiles)
    step = (count // col_tiles // row_tiles, count // col_tiles % row_tiles, count % col_tiles)
    for cta in range(count):
        batch, row, column = cta // col_tiles // row_tiles, cta // col_tiles % row_tiles, cta % col_tiles
        while batch < batches:
            visited.add(np.int64(batch), np.int64(row), np.int64(column))
            batch, row, column = batch + step[0], row + step[1], column + step[2]
            row, column = (row + 1, column - col_tiles) if column >= col_tiles else (row, column)
            batch, row = (batch + 1, row - row_tiles) if row >= row_tiles else (batch, row)
    assert (visited.hits == 1).all()


@pytest.mark.parametrize(
    ("change", "vector"),
    [
        ({}, True),
        ({"x_address": 8}, False),
        ({"row_stride": 68}, False),
        ({"row_stride": 72}, True),
        ({"m": 1, "row_stride": 65}, True),
        ({"batches": 2, "batch_stride": 4 * 64 + 4}, False),
        ({"batch_stride": 3}, True),
        ({"element_type": "fp32", "row_stride": 68}, True),
    ],
)
def test_vector_loads_need_every_row_aligned(change: dict[str, Any], vector: bool) -> None:
    problem = {"element_type": "bf16", "m": 4, "k": 64, "row_stride": 64, **change}
    row = args.quantize_launch("mxfp8", layout="linear", passes=1, **problem)
    assert bool(row.tail[-1] & args.VECTOR_ROWS) == vector
    square = args.quantize_128x128_launch(**{**problem, "k": 128})
    assert bool(square.tail[-1] & args.VECTOR_ROWS) == vector
    assert bool(args.amax_launch(**problem).tail[-1] & args.VECTOR_ROWS) == vector


def test_scales_of_a_row_that_is_no_multiple_of_four_are_stored_singly() -> None:
    def flag(layout: str, k: int) -> int:
        launch = args.quantize_launch("nvfp4", "bf16", layout=layout, passes=4, m=4, k=k, row_stride=k)
        return launch.tail[-1] & args.VECTOR_SCALES

    assert flag("linear", 64)
    assert flag("128x4", 48)
    assert not flag("linear", 48)


def test_vectors_can_be_taken_back() -> None:
    tail = args.quantize_launch("nvfp4", "bf16", layout="128x4", passes=4, m=4, k=64, row_stride=64).tail
    assert args.without_vector_stores(tail)[:-1] == args.without_vectors(tail)[:-1] == tail[:-1]
    assert args.without_vector_stores(tail)[-1] == args.LAYOUT_128X4 | args.VECTOR_ROWS
    assert args.without_vectors(tail)[-1] == args.LAYOUT_128X4


def test_sizes_beyond_the_kernels_integers_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"2\^32 rows"):
        args.quantize_launch("nvfp4", "bf16", layout="linear", passes=4, m=1 << 32, k=16, row_stride=16)
    with pytest.raises(InvalidArgumentError, match=r"2\^35 columns"):
        args.dequantize_launch("nvfp4", layout="linear", m=1, k=1 << 35)
    with pytest.raises(InvalidArgumentError, match="too many for one amax"):
        args.amax_launch("bf16", m=1 << 31, k=1 << 20, row_stride=1 << 20)


def test_constants_are_those_of_the_device_sources() -> None:
    source = (KERNELS / "format.cuh").read_text(encoding="utf-8")
    device = {name: int(value) for name, value in re.findall(r"enum : u32 \{ k(\w+) = (\d+) \};", source)}
    host = {
        "Threads": args.THREADS, "Elements": args.ELEMENTS, "Slab": args.SLAB,
        "VectorRows": args.VECTOR_ROWS, "VectorCodes": args.VECTOR_CODES, "VectorScales": args.VECTOR_SCALES,
        "Layout128x4": args.LAYOUT_128X4, "LayoutMMajor": args.LAYOUT_M_MAJOR, "Floor": args.FLOOR,
        "Offsets64": args.OFFSETS_64, "PaddedGroups": args.PADDED_GROUPS,
        "ScalePerGroup": args.SCALE_PER_GROUP, "SquareBlocks": args.SQUARE_BLOCKS,
    }  # fmt: skip
    assert device == host


@pytest.mark.parametrize(("format", "width"), [("nvfp4", 1024), ("mxfp4", 1024), ("mxfp8", 512), ("fp8_block", 512)])
def test_one_run_of_memory_is_cut_into_rows_of_the_best_length(format: str, width: int) -> None:
    k = 5 * FORMATS[format].block[1]
    check_coverage(format, "linear", 4, m=64, k=k, batches=3 * width // 64)
    problem = {"layout": "linear", "passes": 4, "m": width, "k": k, "row_stride": k}
    launch = args.quantize_launch(format, "bf16", **problem)
    assert launch.tail[3:5] == (k, width // 8)
    for changed in ({"row_stride": k + 8}, {"passes": 1}, {"flat": False}, {"m": width - 1}, {"layout": "128x4"}):
        if format == "fp8_block" and "layout" in changed:
            continue
        launch = args.quantize_launch(format, "bf16", **{**problem, **changed})
        assert launch.tail[3:5] == (changed.get("m", width), k // 8)
