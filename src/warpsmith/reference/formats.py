# SPDX-License-Identifier: Apache-2.0
"""The formats: what their elements, blocks and scales are, and how each is coded in bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from warpsmith.errors import FormatError

ByteArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

E2M1_MAX: Final = np.float32(6)
E4M3_MAX: Final = np.float32(448)
UE4M3_NAN: Final = 0x7F
UE8M0_NAN: Final = 0xFF


@dataclass(frozen=True)
class Format:
    """One quantized format.

    Attributes
    ----------
    name : str
        The name that users write.
    element : str
        Element type, ``"e2m1"`` or ``"e4m3"``.
    element_bits : int
        Bits an element takes in memory.
    block : tuple of int
        Rows and columns that share one scale; where a row or a tensor does, what K must be a multiple of.
    scale : str
        Scale type: ``"ue4m3"``, ``"ue8m0"`` or ``"fp32"``.
    layouts : tuple of str
        The scale layouts that the format can have.
    whole : str
        ``"row"`` or ``"tensor"`` (each matrix of a batch) where that, and no block, has one scale.
    """

    name: str
    element: Literal["e2m1", "e4m3"]
    element_bits: int
    block: tuple[int, int]
    scale: Literal["ue4m3", "ue8m0", "fp32"]
    layouts: tuple[str, ...]
    whole: Literal["", "row", "tensor"] = ""

    @property
    def scale_dtype(self) -> np.dtype[Any]:
        """The NumPy dtype that scales are stored in."""
        return np.dtype(np.float32 if self.scale == "fp32" else np.uint8)

    def scaled_together(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of a matrix that share one scale."""
        if self.whole:
            return (1, columns) if self.whole == "row" else (max(rows, 1), columns)
        return self.block

    def code_columns(self, columns: int) -> int:
        """Bytes that a row of `columns` elements takes."""
        return columns * self.element_bits // 8


FORMATS: Final[dict[str, Format]] = {
    entry.name: entry
    for entry in (
        Format("nvfp4", "e2m1", 4, (1, 16), "ue4m3", ("linear", "128x4")),
        Format("mxfp4", "e2m1", 4, (1, 32), "ue8m0", ("linear", "128x4")),
        Format("mxfp8", "e4m3", 8, (1, 32), "ue8m0", ("linear", "128x4")),
        Format("fp8_block", "e4m3", 8, (1, 128), "fp32", ("linear", "m_major")),
        Format("fp8_block_128x128", "e4m3", 8, (128, 128), "fp32", ("linear",)),
        Format("fp8_tensor", "e4m3", 8, (1, 16), "fp32", ("linear",), "tensor"),
        Format("fp8_row", "e4m3", 8, (1, 16), "fp32", ("linear",), "row"),
    )
}


def get_format(name: str) -> Format:
    """Return the format called `name`.

    Raises
    ------
    FormatError
        If there is none.
    """
    try:
        return FORMATS[name]
    except (KeyError, TypeError):
        raise FormatError(f"format {name!r} is not known: choose one of {', '.join(FORMATS)}") from None


def _e4m3_value(code: int) -> float:
    exponent, mantissa = code >> 3 & 15, code & 7
    magnitude = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    if code & 0x7F == 0x7F:
        magnitude = float("nan")
    return -magnitude if code & 0x80 else magnitude


_E2M1: Final = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_E4M3: Final = np.array([_e4m3_value(code) for code in range(256)], np.float32)
_UE8M0: Final = np.array([2.0 ** (code - 127) for code in range(255)] + [float("nan")], np.float32)


def decode_e2m1(codes: ByteArray) -> FloatArray:
    """Return the values of e2m1 codes 0..15, one a byte."""
    return np.take(_E2M1, codes)


def encode_e2m1(values: FloatArray) -> ByteArray:
    """Round to e2m1: to nearest, ties to the even code, saturating at 6; the sign bit is kept.

    Parameters
    ----------
    values : ndarray of float32
        Finite or infinite, not NaN: a block that holds a NaN is settled before its elements are rounded.

    Returns
    -------
    ndarray of uint8
        Codes 0..15, one a byte.
    """
    magnitude = np.minimum(np.abs(values), E2M1_MAX)
    # Values step by 1/2 up to 2, by 1 up to 4 and by 2 up to 6. Each line below is the code in its own range and
    # no less than the code elsewhere; a code is even where rint's result is, so ties agree.
    halves = np.rint(magnitude * np.float32(2))
    ones = np.rint(magnitude) + np.float32(2)
    twos = np.rint(magnitude * np.float32(0.5)) + np.float32(4)
    code = np.minimum(np.minimum(halves, ones), twos).astype(np.uint8)
    return code | (np.signbit(values).view(np.uint8) << np.uint8(3))


def pack_nibbles(codes: ByteArray) -> ByteArray:
    """Pack 4-bit codes two a byte along the last axis, the even element in the low nibble."""
    return codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))


def unpack_nibbles(packed: ByteArray) -> ByteArray:
    """Undo `pack_nibbles`."""
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), np.uint8)
    codes[..., 0::2] = packed & np.uint8(15)
    codes[..., 1::2] = packed >> np.uint8(4)
    return codes


def decode_e4m3(codes: ByteArray) -> FloatArray:
    """Return the values of e4m3 (``e4m3fn``) bytes; 0x7F and 0xFF are NaN. ue4m3 is its non-negative half."""
    return np.take(_E4M3, codes)


def encode_e4m3(values: FloatArray) -> ByteArray:
    """Round to e4m3: to nearest even, subnormals kept, saturating at 448; the sign bit is kept.

    Parameters
    ----------
    values : ndarray of float32
        Finite or infinite, not NaN: a block that holds a NaN is settled before its elements are rounded.
    """
    magnitude = np.minimum(np.abs(values), E4M3_MAX)
    exponent = np.maximum((magnitude.view(np.int32) >> 23) - 127, -6)
    eighths = ((130 - exponent) << 23).view(np.float32)
    code: ByteArray = (np.rint(magnitude * eighths).astype(np.int32) + ((exponent + 6) << 3)).astype(np.uint8)
    return code | (np.signbit(values).view(np.uint8) << np.uint8(7))


def decode_ue8m0(codes: ByteArray) -> FloatArray:
    """Return 2^(byte − 127) exactly, 2^−127 (byte 0) included; 255 is NaN."""
    return np.take(_UE8M0, codes)


def decode_scales(scales: npt.NDArray[Any], spec: Format) -> FloatArray:
    """Return stored scales of `spec` as float32 values, exactly."""
    if spec.scale == "fp32":
        return np.asarray(scales, np.float32)
    return decode_e4m3(scales) if spec.scale == "ue4m3" else decode_ue8m0(scales)


def decode_elements(codes: ByteArray, spec: Format) -> FloatArray:
    """Return the element values of stored code bytes, without their scales."""
    return decode_e2m1(unpack_nibbles(codes)) if spec.element == "e2m1" else decode_e4m3(codes)


def encode_elements(values: FloatArray, spec: Format) -> ByteArray:
    """Return the stored code bytes of already scaled values."""
    return pack_nibbles(encode_e2m1(values)) if spec.element == "e2m1" else encode_e4m3(values)
