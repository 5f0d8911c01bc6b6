# SPDX-License-Identifier: Apache-2.0
"""Packed weights: the order that the kernel's contract says, and back."""

from __future__ import annotations

import numpy as np
import pytest

from warpsmith.errors import FormatError
from warpsmith.reference import decode_float64, dequantize, pack_codes, quantize, unpack_codes

CODES = np.random.default_rng(1).integers(0, 16, (3, 5, 96), dtype=np.uint8)
BYTES = CODES[..., 0::2] | CODES[..., 1::2] << 4


def test_byte_i_of_16_holds_elements_i_and_16_more() -> None:
    packed = pack_codes(BYTES, "mxfp8")
    for block in range(3):
        for i in range(16):
            low, high = (CODES[..., 32 * block + 16 * half + i] for half in (0, 1))
            np.testing.assert_array_equal(packed[..., 16 * block + i], low | high << 4)


def test_two_shifts_make_the_words_that_the_mma_takes() -> None:
    words = pack_codes(BYTES, "mxfp8").view(np.uint32)
    for lane in range(4):
        word = words[..., lane::4]
        for half, found in enumerate((word << np.uint32(2), word >> np.uint32(2))):
            for j in range(4):
                byte = found >> np.uint32(8 * j) & np.uint32(0x3C)
                np.testing.assert_array_equal(byte >> 2, CODES[..., 4 * lane + j + 16 * half :: 32])


def test_unpacking_is_the_inverse_and_values_stay() -> None:
    np.testing.assert_array_equal(unpack_codes(pack_codes(BYTES, "mxfp8"), "mxfp8"), BYTES)
    codes, scales = quantize(np.random.default_rng(2).standard_normal((7, 128)).astype(np.float32), "mxfp4")
    packed = pack_codes(codes, "mxfp8")
    for function in (dequantize, decode_float64):
        want = function(codes, scales, "mxfp4", shape=(7, 128))
        np.testing.assert_array_equal(function(packed, scales, "mxfp4", shape=(7, 128), packing="mxfp8"), want)


@pytest.mark.parametrize("function", [pack_codes, unpack_codes])
def test_an_unknown_packing_is_refused(function: object) -> None:
    with pytest.raises(FormatError, match="unknown packing 'nvfp4'; expected one of mxfp8"):
        function(BYTES, "nvfp4")  # type: ignore[operator]
