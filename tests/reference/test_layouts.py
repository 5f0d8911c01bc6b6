# SPDX-License-Identifier: Apache-2.0
"""Scale layouts: the published formulas byte by byte, and bijections with zero padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from warpsmith.errors import FormatError
from warpsmith.reference import layouts

BLOCK = {"nvfp4": 16, "fp8_block": 128}


def numbered(*shape: int) -> np.ndarray:
    """Distinct non-zero values, so that a lost, doubled or misplaced one shows."""
    return np.arange(1, np.prod(shape) + 1, dtype=np.uint32).reshape(shape)


def test_128x4_formula_byte_by_byte() -> None:
    rows, columns, padded = 300, 10, 12
    linear = numbered(rows, columns)
    flat = layouts.pack(linear, "128x4").reshape(-1)
    assert flat.size == 384 * padded
    seen = np.zeros_like(flat)
    for row in range(rows):
        for column in range(columns):
            byte = (
                ((row // 128) * (padded // 4) + column // 4) * 512
                + (row % 32) * 16
                + ((row % 128) // 32) * 4
                + column % 4
            )
            assert flat[byte] == linear[row, column]
            assert layouts.index_128x4(row, column, padded) == byte
            seen[byte] = linear[row, column]
    np.testing.assert_array_equal(flat, seen)


def test_128x4_first_bytes_in_full() -> None:
    flat = layouts.pack(numbered(128, 4), "128x4").reshape(-1)
    want = [row * 4 + column + 1 for row in (0, 32, 64, 96) for column in range(4)]
    assert flat[:16].tolist() == want
    assert flat[16:20].tolist() == [5, 6, 7, 8]


def test_m_major_formula_element_by_element() -> None:
    rows, columns = 6, 3
    linear = numbered(rows, columns)
    packed = layouts.pack(linear, "m_major")
    assert packed.shape == (3, 8)
    for row in range(rows):
        for column in range(columns):
            assert packed[column, row] == linear[row, column]
            assert packed.reshape(-1)[layouts.index_m_major(row, column, rows)] == linear[row, column]
    assert not packed[:, rows:].any()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["linear", "128x4", "m_major"]),
    st.lists(st.integers(0, 3), max_size=2),
    st.integers(0, 300),
    st.integers(1, 9),
)
@example("128x4", [], 0, 1)
@example("m_major", [2], 0, 1)
def test_a_layout_is_a_bijection_with_zero_padding(layout: str, batch: list[int], rows: int, columns: int) -> None:
    linear = numbered(*batch, rows, columns)
    packed = layouts.pack(linear, layout)
    name = "fp8_block" if layout == "m_major" else "nvfp4"
    shape = (*batch, rows, columns * BLOCK[name])
    assert packed.shape == layouts.scale_shape(name, shape, scale_layout=layout)
    np.testing.assert_array_equal(np.sort(packed[packed != 0]), linear.reshape(-1))
    np.testing.assert_array_equal(layouts.unpack(packed, layout, rows, columns), linear)
    for entry in np.ndindex(*batch):
        np.testing.assert_array_equal(packed[entry], layouts.pack(linear[entry], layout))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 260), min_size=1, max_size=6), st.integers(1, 6), st.integers(0, 200))
@example([0, 0, 0], 3, 0)
@example([1, 1, 1, 128, 129], 4, 5)
def test_grouped_128x4_is_each_group_packed_alone(counts: list[int], columns: int, rest: int) -> None:
    offsets = np.cumsum([0, *counts])
    rows, groups = int(offsets[-1]) + rest, len(counts)
    linear = numbered(rows, columns)
    packed = layouts.pack(linear, "128x4", offsets=offsets)
    assert packed.shape == layouts.scale_shape("nvfp4", (rows, columns * 16), scale_layout="128x4", groups=groups)
    want = np.zeros_like(packed)
    previous_end = 0
    for group in range(groups):
        start = (int(offsets[group]) + 127 * group) // 128 * 128
        assert start >= previous_end
        alone = layouts.pack(linear[offsets[group] : offsets[group + 1]], "128x4")
        previous_end = start + len(alone)
        assert previous_end <= len(packed)
        want[start:previous_end] = alone
    np.testing.assert_array_equal(packed, want)
    linear[offsets[-1] :] = 0
    np.testing.assert_array_equal(layouts.unpack(packed, "128x4", rows, columns, offsets=offsets), linear)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nvfp5", (4, 32)), "format 'nvfp5' is not known"),
        (("nvfp4", (4, 32), "blocked"), "scale layout 'blocked' is not known: choose one of linear, 128x4, m_major"),
        (("nvfp4", (4, 32), "m_major"), "nvfp4 scales cannot have the layout 'm_major': choose one of linear, 128x4"),
        (("fp8_block", (4, 128), "128x4"), "choose one of linear, m_major"),
        (("fp8_block_128x128", (4, 128), "m_major"), "choose one of linear$"),
        (("nvfp4", (32,)), r"shape \(32,\) has 1 dimensions"),
        (("mxfp4", (4, 48)), "K = 48 does not fit mxfp4: it must be a positive multiple of 32"),
        (("mxfp4", (4, 0)), "K = 0 does not fit"),
        (("nvfp4", (2, 4, 32), "128x4", 2), "groups need a 2-D tensor"),
        (("fp8_block_128x128", (4, 128), "linear", 2), "groups need a 2-D tensor and blocks of one row"),
    ],
)
def test_a_shape_that_does_not_fit_is_an_error(arguments: tuple, message: str) -> None:
    format, shape, layout, groups = (*arguments, *("linear", None)[len(arguments) - 2 :])
    with pytest.raises(FormatError, match=message):
        layouts.scale_shape(format, shape, scale_layout=layout, groups=groups)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (np.array([0, 4], np.int16), "dtype int16"),
        (np.array([0.0, 4.0]), "dtype float64"),
        (np.array([0]), r"shape \(1,\): expected int32 or int64 \[groups \+ 1\]"),
        (np.array([[0, 4]]), r"shape \(1, 2\)"),
        (np.array([1, 4]), "must start at 0, never fall"),
        (np.array([0, 3, 2, 4]), r"offsets \[0, 3, 2, 4\] do not divide 4 rows"),
        (np.array([0, 5]), "end at 4 or before"),
        (np.array([0, -1, 4], np.int32), "never fall"),
    ],
)
def test_offsets_that_do_not_divide_the_rows_are_an_error(offsets: np.ndarray, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        layouts.check_offsets(offsets, 4)
