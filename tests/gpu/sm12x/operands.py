# SPDX-License-Identifier: Apache-2.0
"""Quantized operands, ordinary and adversarial: codes and scales as the kernel reads them, and in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from warpsmith.reference.formats import decode_e2m1, decode_e4m3, decode_ue8m0
from warpsmith.reference.layouts import pack

Array = npt.NDArray[Any]
FORMATS = {
    "nvfp4": (4, 16, "ue4m3"),
    "mxfp4": (4, 32, "ue8m0"),
    "mxfp8": (8, 32, "ue8m0"),
    "fp8_block": (8, 128, "fp32"),
}
"""Bits of an element, block along K, type of the scales."""
STYLES = ("zero", "max", "tiny", "outlier", "wide", "nan", "cancel")
_NAN_SCALE = {"ue4m3": 0x7F, "ue8m0": 0xFF, "fp32": np.nan}
_NAN_CODE = 0x7F


class Operand:
    """[batches, rows, K] of one format, without its global scale.

    Parameters
    ----------
    left
        Whether it is A. Extreme scales of A and B are opposite, so that products stay moderate.
    prepared
        Whether nibbles are paired as the 8-bit MMA needs them.
    square
        Whether fp32 scales are of 128×128.
    offsets
        Of groups of rows.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        format: str,
        shape: tuple[int, int, int],
        style: str,
        *,
        left: bool,
        prepared: bool = False,
        square: bool = False,
        offsets: Array | None = None,
    ) -> None:
        self.shape, self.prepared, self.square, self.offsets = shape, prepared, square, offsets
        self.bits, self.block, self.scale_type = FORMATS[format]
        self.sign = 8 if self.bits == 4 else 0x80
        batches, rows, k = shape
        self.codes = self._codes(rng, style)
        scale_shape = (batches, -(-rows // 128) if square else rows, k // self.block)
        self.scales = _scales(rng, self.scale_type, scale_shape, style, left)
        if style == "nan":
            self._put_nan(rng, left)

    def _codes(self, rng: np.random.Generator, style: str) -> Array:
        codes: Array = rng.integers(0, 1 << self.bits, self.shape, dtype=np.uint8)
        if self.bits == 8:
            codes = np.where(codes & 127 == _NAN_CODE, codes - 1, codes)
        largest = codes & self.sign | (7 if self.bits == 4 else 0x7E)
        if style == "zero":
            codes = codes & self.sign
        elif style == "max":
            codes = largest
        elif style == "tiny" and self.bits == 8:
            codes = codes & 0x87  # subnormals
        elif style == "outlier":
            place = np.arange(self.shape[2]) % self.block == rng.integers(0, self.block)
            codes = np.where(place, largest, codes & (9 if self.bits == 4 else 0x83))
        return codes.astype(np.uint8)

    def _put_nan(self, rng: np.random.Generator, left: bool) -> None:
        nan = _NAN_SCALE[self.scale_type]
        if not left:
            self.scales[:, self.scales.shape[1] // 2, 0] = nan
            return
        self.scales[:, ::5, -1] = nan
        if self.bits == 8:
            self.codes[:, 1::7, rng.integers(0, self.shape[2])] = _NAN_CODE

    def data(self) -> Array:
        """The elements as they lie in memory."""
        if self.bits == 8:
            return self.codes
        low, high = self.codes[..., 0::2], self.codes[..., 1::2]
        if self.prepared:
            halves = self.codes.reshape(*self.codes.shape[:2], -1, 2, 16)
            low, high = halves[..., 0, :], halves[..., 1, :]
        return np.asarray((low | high << 4).reshape(*self.codes.shape[:2], -1))

    def scale_data(self) -> Array:
        """The scales as they lie in memory."""
        if self.scale_type == "fp32":
            return self.scales if self.square else pack(self.scales, "m_major")
        if self.offsets is None:
            return pack(self.scales, "128x4")
        return pack(self.scales[0], "128x4", offsets=self.offsets)

    def values(self) -> Array:
        """What it stands for, in float64."""
        factors: Array = self.scales.astype(np.float64)
        if self.scale_type != "fp32":
            factors = (decode_e4m3 if self.scale_type == "ue4m3" else decode_ue8m0)(self.scales).astype(np.float64)
        factors = np.repeat(factors, self.block, -1)
        if self.square:
            factors = np.repeat(factors, 128, 1)[:, : self.shape[1]]
        elements = (decode_e2m1 if self.bits == 4 else decode_e4m3)(self.codes)
        return np.asarray(elements.astype(np.float64) * factors)

    def repeat_first_half(self, half: int, negate: bool) -> None:
        """Make K's second half its first, with the opposite sign if `negate`."""
        self.codes[..., half : 2 * half] = self.codes[..., :half] ^ (self.sign if negate else 0)
        blocks = half // self.block
        self.scales[..., blocks : 2 * blocks] = self.scales[..., :blocks]


def cancel(a: Operand, b: Operand) -> None:
    """Make the halves of K cancel."""
    block = max(a.block, b.block)
    half = a.shape[2] // 2 // block * block
    a.repeat_first_half(half, negate=False)
    b.repeat_first_half(half, negate=True)


def _scales(rng: np.random.Generator, kind: str, shape: tuple[int, int, int], style: str, left: bool) -> Array:
    """Linear scales."""
    blocks = shape[2]
    # Opposite in A and B, and different from block to block: extreme scales, moderate products.
    shift = np.linspace(-1, 1, blocks)[np.arange(blocks) * 7 % blocks] if blocks > 1 else np.zeros(1)
    shift = shift if left else -shift
    if kind == "ue4m3":
        low, high = {"tiny": (0, 8), "wide": (0, 0x7F), "max": (0x7E, 0x7F)}.get(style, (36, 84))
        return rng.integers(low, high, shape).astype(np.uint8)
    if kind == "ue8m0":
        if style == "wide":
            return (127 + np.rint(shift * 118).astype(np.int64) + rng.integers(-4, 5, shape)).astype(np.uint8)
        tiny = (0, 5) if left else (245, 255)
        low, high = {"tiny": tiny, "max": (177, 178)}.get(style, (121, 134))
        return rng.integers(low, high, shape).astype(np.uint8)
    if style == "wide":
        exponents = shift * 100 + rng.uniform(-4, 4, shape)
    elif style == "max":
        exponents = np.full(shape, 40.0)
    else:
        tiny = (-126, -120) if left else (110, 120)
        exponents = rng.uniform(*(tiny if style == "tiny" else (-6, 6)), shape)
    return np.asarray((2.0**exponents).astype(np.float32))


def to_bits(values: Array, kind: str) -> Array:
    """fp32 values rounded to bf16, fp16 or fp32, as unsigned integers."""
    x = np.asarray(values, np.float32)
    if kind == "fp32":
        return x.view(np.uint32)
    if kind == "fp16":
        return x.astype(np.float16).view(np.uint16)
    u = x.view(np.uint32).astype(np.uint64)
    return np.where(np.isnan(x), 0x7FFF, (u + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)


def from_bits(bits: Array, kind: str) -> Array:
    """The values of bf16, fp16 or fp32 bits, in float64."""
    if kind == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return bits.view(np.float16 if kind == "fp16" else np.float32).astype(np.float64)
