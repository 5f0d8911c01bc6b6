# SPDX-License-Identifier: Apache-2.0
"""The block-scaled MMA's maps, as numerics.md spells them, and its software form in every selector."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from warpsmith.errors import InvalidArgumentError
from warpsmith.reference import mma
from warpsmith.reference.formats import decode_e2m1, decode_e4m3, decode_ue8m0

LANES = [(lane, lane >> 2, lane & 3) for lane in range(32)]
SELECTORS_1X = list(itertools.product([1], range(2), range(4), range(4), range(4)))
SELECTORS_2X = list(itertools.product([2], range(2), (0, 2), range(4), (0, 2)))
SELECTORS_4X = list(itertools.product([4], range(2), [0], range(4), [0]))
CASES = [
    *((32, "ue8m0", selector) for selector in SELECTORS_1X),
    *((64, "ue8m0", selector) for selector in SELECTORS_2X),
    *((64, "ue4m3", selector) for selector in SELECTORS_4X),
]
RNG = np.random.default_rng(0)


def test_m16n8k64_fragments() -> None:
    (rows, inner), (b_inner, columns) = mma.a_map(64), mma.b_map(64)
    assert rows.shape == inner.shape == (32, 32)
    assert b_inner.shape == columns.shape == (32, 16)
    for lane, g, t in LANES:
        for i in range(32):
            row = g if i < 8 or 16 <= i < 24 else g + 8
            assert (rows[lane, i], inner[lane, i]) == (row, 8 * t + (i & 7) + (32 if i >= 16 else 0))
        for i in range(16):
            assert (b_inner[lane, i], columns[lane, i]) == (8 * t + (i & 7) + (32 if i >= 8 else 0), g)


def test_m16n8k32_fragments() -> None:
    (rows, inner), (b_inner, columns) = mma.a_map(32), mma.b_map(32)
    for lane, g, t in LANES:
        for i in range(16):
            want = (g + 8 * ((i >> 2) & 1), 4 * t + (i & 3) + (16 if i >= 8 else 0))
            assert (rows[lane, i], inner[lane, i]) == want
        for i in range(8):
            assert (b_inner[lane, i], columns[lane, i]) == (4 * t + (i & 3) + (16 if i >= 4 else 0), g)


def test_m16n8k16_and_accumulator_fragments() -> None:
    (rows, inner), (b_inner, columns), (c_rows, c_columns) = mma.a_map(16), mma.b_map(16), mma.c_map()
    for lane, g, t in LANES:
        for i in range(8):
            want = (g if i in (0, 1, 4, 5) else g + 8, 2 * t + (i & 1) + (8 if i >= 4 else 0))
            assert (rows[lane, i], inner[lane, i]) == want
        for i in range(4):
            assert (b_inner[lane, i], columns[lane, i]) == (2 * t + (i & 1) + (8 if i >= 2 else 0), g)
            assert (c_rows[lane, i], c_columns[lane, i]) == (g + (8 if i >= 2 else 0), 2 * t + (i & 1))


@pytest.mark.parametrize("k", [16, 32, 64])
def test_every_element_has_one_place(k: int) -> None:
    for (first, second), shape in ((mma.a_map(k), (16, k)), (mma.b_map(k), (k, 8)), (mma.c_map(), (16, 8))):
        places = np.ravel_multi_index((first, second), shape)
        np.testing.assert_array_equal(np.sort(places, axis=None), np.arange(np.prod(shape)))


def test_scale_lanes_and_bytes() -> None:
    for thread in range(2):
        for row in range(16):
            assert mma.scale_lane_a(row, thread) == 4 * (row % 8) + 2 * thread + (row >= 8)
    for thread in range(4):
        for column in range(8):
            assert mma.scale_lane_b(column, thread) == 4 * column + thread
    assert mma.scale_byte(np.arange(64), 64, 4, 0).tolist() == [0] * 16 + [1] * 16 + [2] * 16 + [3] * 16
    assert mma.scale_byte(np.arange(64), 64, 2, 2).tolist() == [2] * 32 + [3] * 32
    assert mma.scale_byte(np.arange(32), 32, 1, 3).tolist() == [3] * 32


def test_the_scale_lanes_of_one_word_a_lane_do_not_overlap() -> None:
    lanes = [mma.scale_lane_a(np.arange(16), thread) for thread in range(2)]
    assert sorted(np.concatenate(lanes).tolist()) == list(range(32))
    lanes = [mma.scale_lane_b(np.arange(8), thread) for thread in range(4)]
    assert sorted(np.concatenate(lanes).tolist()) == list(range(32))


def operands(k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if k == 64:
        left, right = (decode_e2m1(RNG.integers(0, 16, s, dtype=np.uint8)) for s in ((16, k), (k, 8)))
    else:
        numbers = decode_e4m3(np.delete(np.arange(256, dtype=np.uint8), [0x7F, 0xFF]))
        left, right = RNG.choice(numbers, (16, k)), RNG.choice(numbers, (k, 8))
    return left, right, RNG.integers(-100, 100, (16, 8)).astype(np.float32)


def words(scales: np.ndarray, lanes: np.ndarray, byte: int) -> np.ndarray:
    """Scale bytes [rows, vector] in the lanes and bytes that are read, random ones (NaN too) everywhere else."""
    held = RNG.choice(np.uint8([0, 1, 0x33, 0x7F, 0xFF]), (32, 4))
    held[lanes, byte : byte + scales.shape[1]] = scales
    return held.astype(np.uint32) @ (1 << np.arange(0, 32, 8, dtype=np.uint32))


def decoded(scale_type: str, codes: np.ndarray) -> np.ndarray:
    return (decode_e4m3 if scale_type == "ue4m3" else decode_ue8m0)(codes).astype(np.float64)


@pytest.mark.parametrize(("k", "scale_type"), [(32, "ue8m0"), (64, "ue8m0"), (64, "ue4m3")])
def test_both_forms_are_the_plain_scaled_product_for_every_selector(k: int, scale_type: str) -> None:
    for case_k, case_type, (vector, thread_a, byte_a, thread_b, byte_b) in CASES:
        if (case_k, case_type) != (k, scale_type):
            continue
        left, right, total = operands(k)
        low, high = (0, 0x7F) if scale_type == "ue4m3" else (120, 134)
        codes_a, codes_b = (RNG.integers(low, high, (n, vector), dtype=np.uint8) for n in (16, 8))
        scale_a = words(codes_a, 4 * (np.arange(16) % 8) + 2 * thread_a + np.arange(16) // 8, byte_a)
        scale_b = words(codes_b, 4 * np.arange(8) + thread_b, byte_b)
        selector = mma.ScaleSelector(vector, thread_a, byte_a, thread_b, byte_b)
        want = total.astype(np.float64)
        for part in range(vector):
            stretch = slice(part * k // vector, (part + 1) * k // vector)
            scales = np.outer(decoded(scale_type, codes_a[:, part]), decoded(scale_type, codes_b[:, part]))
            want += (left[:, stretch].astype(np.float64) @ right[stretch]) * scales
        fragments = left[mma.a_map(k)], right[mma.b_map(k)], total[mma.c_map()]
        hardware = mma.block_scaled_mma(*fragments, scale_a, scale_b, selector, scale_type)
        np.testing.assert_array_equal(hardware, want[mma.c_map()])
        software = mma.software_mma(*fragments, scale_a, scale_b, selector, scale_type)
        if scale_type == "ue4m3":
            np.testing.assert_array_equal(software, hardware)
        else:
            magnitude = np.abs(left) @ np.abs(right)
            np.testing.assert_allclose(software, hardware, rtol=0, atol=2.0**-22 * 2.0**14 * magnitude.max())
            if k == 64:
                np.testing.assert_array_equal(software, hardware)


@pytest.mark.parametrize(("k", "vector", "scale_type"), [(32, 1, "ue8m0"), (64, 2, "ue8m0"), (64, 4, "ue4m3")])
def test_every_single_position_meets_its_own_scales(k: int, vector: int, scale_type: str) -> None:
    first = 40 if scale_type == "ue4m3" else 110  # distinct scales whose products fp32 holds
    codes_a = np.arange(first, first + 16 * vector, dtype=np.uint8).reshape(16, vector)
    codes_b = np.arange(first, first + 8 * vector, dtype=np.uint8).reshape(8, vector)
    selector = mma.ScaleSelector(vector, 1, 0, 2, 0)
    scale_a = words(codes_a, mma.scale_lane_a(np.arange(16), 1), 0)
    scale_b = words(codes_b, mma.scale_lane_b(np.arange(8), 2), 0)
    right, zero = np.ones((k, 8)), np.zeros((32, 4))
    for row, inner in np.ndindex(16, k):
        left = np.zeros((16, k))
        left[row, inner] = 1.5
        part = inner * vector // k
        want = np.zeros((16, 8))
        want[row] = 1.5 * decoded(scale_type, codes_a[row, part]) * decoded(scale_type, codes_b[:, part])
        fragments = left[mma.a_map(k)], right[mma.b_map(k)], zero
        got = mma.software_mma(*fragments, scale_a, scale_b, selector, scale_type)
        np.testing.assert_array_equal(got, want[mma.c_map()])


def test_e2m1_times_ue4m3_is_exact_in_fp16() -> None:
    values = decode_e2m1(np.arange(16, dtype=np.uint8))
    products = np.outer(values, decode_e4m3(np.arange(0x7F, dtype=np.uint8)))
    np.testing.assert_array_equal(products.astype(np.float16).astype(np.float32), products)


@pytest.mark.parametrize(
    ("value", "code_a", "code_b"),
    [(1.5, 0, 0), (1.5, 0, 254), (1.5, 1, 200), (6, 49, 50), (6, 0, 99), (0.5, 190, 193), (0.5, 254, 126)],
)
@pytest.mark.parametrize("k", [32, 64])
def test_extreme_exponents_are_scaled_in_range(k: int, value: float, code_a: int, code_b: int) -> None:
    left, right = np.zeros((16, k)), np.zeros((k, 8))
    left[:, 0] = right[0] = value
    fragments = left[mma.a_map(k)], right[mma.b_map(k)], np.zeros((32, 4))
    selector = mma.ScaleSelector(k // 32)
    scales = (np.full(32, code * 0x01010101, np.uint32) for code in (code_a, code_b))
    got = mma.software_mma(*fragments, *scales, selector, "ue8m0")
    want = np.ldexp(value * value, code_a + code_b - 254)
    np.testing.assert_array_equal(got, np.full((32, 4), want).astype(np.float32))


def test_a_nan_scale_makes_its_row_nan() -> None:
    for k, scale_type, nan, vector in ((32, "ue8m0", 0xFF, 1), (64, "ue8m0", 0xFF, 2), (64, "ue4m3", 0x7F, 4)):
        left, right, total = operands(k)
        codes = np.full((16, vector), 0x38, np.uint8)
        codes[3, -1] = nan
        scale_a = words(codes, mma.scale_lane_a(np.arange(16), 0), 0)
        scale_b = words(codes[:8] * 0 + 0x38, mma.scale_lane_b(np.arange(8), 0), 0)
        fragments = left[mma.a_map(k)], right[mma.b_map(k)], total[mma.c_map()]
        for form in (mma.block_scaled_mma, mma.software_mma):
            got = form(*fragments, scale_a, scale_b, mma.ScaleSelector(vector), scale_type)
            np.testing.assert_array_equal(np.isnan(got), mma.c_map()[0] == 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), "scale vector 3X"),
        ((2, 0, 1), "byte-ids 1 and 0: 2X takes"),
        ((4, 0, 0, 0, 2), "byte-ids 0 and 2"),
        ((1, 2), "thread-ids 2 and 0"),
        ((1, 0, 0, 4), "thread-ids 0 and 4"),
    ],
)
def test_selectors_that_the_instruction_lacks_are_errors(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        mma.ScaleSelector(*arguments)


@pytest.mark.parametrize(("k", "vector", "scale_type"), [(32, 1, "ue4m3"), (64, 2, "ue4m3"), (32, 2, "ue8m0")])
def test_kinds_that_the_instruction_lacks_are_errors(k: int, vector: int, scale_type: str) -> None:
    scale = np.zeros(32, np.uint32)
    fragments = np.zeros((32, k // 2)), np.zeros((32, k // 4)), np.zeros((32, 4))
    for form in (mma.block_scaled_mma, mma.software_mma):
        with pytest.raises(InvalidArgumentError, match=f"no MMA with K = {k}, {vector}X scales of {scale_type}"):
            form(*fragments, scale, scale, mma.ScaleSelector(vector), scale_type)
