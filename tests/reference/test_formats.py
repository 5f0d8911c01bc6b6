# SPDX-License-Identifier: Apache-2.0
"""Element and scale codes, exhaustively, against ml_dtypes and rational arithmetic."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from warpsmith.errors import FormatError
from warpsmith.reference import formats

from . import oracle

BYTES = np.arange(256, dtype=np.uint8)
BF16 = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
NUMBERS = BF16[~np.isnan(BF16)]


def neighbours(values: np.ndarray) -> np.ndarray:
    """The midpoints of sorted float32 values, and the float32 numbers on both sides of each."""
    middle = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    return np.concatenate([values, middle, np.nextafter(middle, -np.inf), np.nextafter(middle, np.inf)])


def random_floats(count: int) -> np.ndarray:
    bits = np.random.default_rng(1).integers(0, 1 << 32, count, dtype=np.uint32)
    values = bits.view(np.float32)
    return values[~np.isnan(values)]


def test_e2m1_decodes_as_ml_dtypes() -> None:
    codes = np.arange(16, dtype=np.uint8)
    want = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert formats.decode_e2m1(codes).tobytes() == want.tobytes()


def test_e4m3_decodes_as_ml_dtypes() -> None:
    want = BYTES.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    got = formats.decode_e4m3(BYTES)
    np.testing.assert_array_equal(got, want)
    assert (np.signbit(got) == np.signbit(want))[~np.isnan(want)].all()


def test_ue8m0_decodes_as_ml_dtypes_and_keeps_its_denormal() -> None:
    np.testing.assert_array_equal(formats.decode_ue8m0(BYTES), BYTES.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))
    assert formats.decode_ue8m0(np.uint8([0]))[0].view(np.uint32) == 0x00400000


def test_every_code_encodes_to_itself() -> None:
    nibbles = np.arange(16, dtype=np.uint8)
    np.testing.assert_array_equal(formats.encode_e2m1(formats.decode_e2m1(nibbles)), nibbles)
    numbers = BYTES[BYTES & 0x7F != 0x7F]
    np.testing.assert_array_equal(formats.encode_e4m3(formats.decode_e4m3(numbers)), numbers)


@pytest.mark.parametrize("values", [NUMBERS, random_floats(200_000)], ids=["bf16", "random"])
def test_encoding_agrees_with_ml_dtypes_once_clamped(values: np.ndarray) -> None:
    e2m1 = np.clip(values, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    np.testing.assert_array_equal(formats.encode_e2m1(values), e2m1)
    e4m3 = np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    np.testing.assert_array_equal(formats.encode_e4m3(values), e4m3)


@pytest.mark.parametrize("element", ["e2m1", "e4m3"])
def test_encoding_is_exact_around_every_tie(element: str) -> None:
    grid = oracle.E2M1 if element == "e2m1" else oracle.E4M3
    encode = formats.encode_e2m1 if element == "e2m1" else formats.encode_e4m3
    points = neighbours(np.array([float(v) for v in grid], np.float32))
    for sign in (1, -1):
        want = [oracle.encode(Fraction(float(p)), sign < 0 or bool(np.signbit(p)), element) for p in points]
        if sign > 0:
            assert encode(points).tolist() == want
        else:
            assert encode(-np.abs(points)).tolist() == want


def test_e2m1_ties_go_to_the_even_code() -> None:
    ties = np.float32([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert formats.encode_e2m1(ties).tolist() == [0, 2, 2, 4, 4, 6, 6]
    assert formats.encode_e2m1(-ties).tolist() == [8, 10, 10, 12, 12, 14, 14]


def test_encoding_saturates_and_keeps_the_sign_of_zero() -> None:
    extremes = np.float32([0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38, np.inf, -np.inf])
    assert formats.encode_e2m1(extremes).tolist() == [0, 8, 0, 8, 7, 15, 7, 15]
    assert formats.encode_e4m3(extremes).tolist() == [0, 0x80, 0, 0x80, 0x7E, 0xFE, 0x7E, 0xFE]


def test_the_even_element_is_in_the_low_nibble() -> None:
    codes = np.array([[1, 2, 15, 0]], np.uint8)
    packed = formats.pack_nibbles(codes)
    assert packed.tolist() == [[0x21, 0x0F]]
    np.testing.assert_array_equal(formats.unpack_nibbles(packed), codes)


def test_formats_are_frozen_and_say_what_they_are() -> None:
    table = {s.name: (s.element, s.element_bits, s.block, s.scale) for s in formats.FORMATS.values()}
    assert table == {
        "nvfp4": ("e2m1", 4, (1, 16), "ue4m3"),
        "mxfp4": ("e2m1", 4, (1, 32), "ue8m0"),
        "mxfp8": ("e4m3", 8, (1, 32), "ue8m0"),
        "fp8_block": ("e4m3", 8, (1, 128), "fp32"),
        "fp8_block_128x128": ("e4m3", 8, (128, 128), "fp32"),
        "fp8_tensor": ("e4m3", 8, (1, 16), "fp32"),
        "fp8_row": ("e4m3", 8, (1, 16), "fp32"),
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        formats.FORMATS["nvfp4"].element_bits = 8


@pytest.mark.parametrize("name", ["fp4", "", None, ["nvfp4"]])
def test_an_unknown_format_is_an_error_that_lists_the_known(name: object) -> None:
    with pytest.raises(FormatError, match="is not known: choose one of nvfp4, mxfp4"):
        formats.get_format(name)
