# SPDX-License-Identifier: Apache-2.0
"""The quantized formats as the host sees them: widths, blocks, scale types, and the shapes of data and scales.

The exact arithmetic is the reference's business; see ``docs/numerics.md``.
"""

from __future__ import annotations

from typing import NamedTuple

from warpsmith.errors import FormatError

LINEAR, TILED, M_MAJOR = "linear", "128x4", "m_major"
STREAMED = "bf16"
"""The packing of 4-bit weights for few rows of bf16 activations; see `warpsmith.ops.prepared_order`."""
STREAMED_MULTIPLES = (32, 64)
"""What N and K of such weights must be divisible by."""

GATED = "gated"
"""What the packing of a gated w13 ends in: its rows are 16 of the gate and 16 of up in turn."""
GATED_ROWS, GATED_MULTIPLE = 16, 64
"""Rows of the gate, then of up, that follow each other; and what the rows of such weights must be divisible by."""


def gated(packing: str) -> str:
    """The packing of gated weights whose elements have a packing."""
    return f"{packing}_{GATED}" if packing else GATED


def packing_of_elements(packing: str) -> str:
    """The packing of the elements of weights, gated or not."""
    return packing.removesuffix(GATED).removesuffix("_")


def is_gated(packing: str) -> bool:
    """Whether weights of a packing have their rows in the gated order."""
    return packing.endswith(GATED)


_MXFP4_PACKINGS = ("mxfp8", STREAMED, GATED, gated("mxfp8"))


class Format(NamedTuple):
    """A quantized format.

    Attributes
    ----------
    element_bits
        4 (two elements a byte) or 8.
    block
        (rows, columns) that share a scale; columns run along K. With `whole`, what K is a multiple of.
    scale
        Type of a scale: ``ue4m3``, ``ue8m0`` or ``fp32``.
    layouts
        The scale layouts that it may have; the first is the default.
    has_global_scale
        Whether a second, fp32 scale belongs to it.
    roundings
        How a block's scale may be rounded; empty if there is no choice.
    packings
        The formats of activations that weights can be packed for, if that changes the order of their elements; and
        those in which rows of gate and up are mixed.
    whole
        ``row`` or ``tensor`` (each matrix of a batch) where that, and no block, has one scale.
    """

    name: str
    element_bits: int
    block: tuple[int, int]
    scale: str
    layouts: tuple[str, ...]
    has_global_scale: bool = False
    roundings: tuple[str, ...] = ()
    packings: tuple[str, ...] = ()
    whole: str = ""

    @property
    def scale_bytes(self) -> int:
        """Bytes of one scale."""
        return 4 if self.scale == "fp32" else 1

    def data_columns(self, k: int) -> int:
        """Bytes of one row of K elements."""
        return k * self.element_bits // 8

    def scale_shape(self, layout: str, batch: tuple[int, ...], m: int, k: int, groups: int = 0) -> tuple[int, ...]:
        """The shape of the scales of a [*batch, M, K] tensor; `groups` > 0 for a grouped one.

        Sources: ``128x4`` is what cuBLASLt and CUTLASS read; the grouped rows leave each group its own 128-row tiles.
        """
        if self.whole:
            return (*batch, m) if self.whole == "row" else batch or (1,)
        rows, columns = -(-m // self.block[0]), k // self.block[1]
        if layout == LINEAR:
            return (*batch, rows, columns)
        if layout == M_MAJOR:
            return (*batch, columns, -(-m // 4) * 4)
        padded = (m + 127 * groups) // 128 * 128 if groups else -(-m // 128) * 128
        return (*batch, padded, -(-columns // 4) * 4)


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("nvfp4", 4, (1, 16), "ue4m3", (LINEAR, TILED), has_global_scale=True, packings=("bf16", GATED)),
        Format("mxfp4", 4, (1, 32), "ue8m0", (LINEAR, TILED), roundings=("ceil", "floor"), packings=_MXFP4_PACKINGS),
        Format("mxfp8", 8, (1, 32), "ue8m0", (LINEAR, TILED), roundings=("ceil", "floor"), packings=(GATED,)),
        Format("fp8_block", 8, (1, 128), "fp32", (LINEAR, M_MAJOR)),
        Format("fp8_block_128x128", 8, (128, 128), "fp32", (LINEAR,)),
        Format("fp8_tensor", 8, (1, 16), "fp32", (LINEAR,), whole="tensor"),
        Format("fp8_row", 8, (1, 16), "fp32", (LINEAR,), whole="row"),
    )
}
"""Every quantized format by name."""


def get_format(name: object) -> Format:
    """Look a format up.

    Raises
    ------
    FormatError
        If there is no such format.
    """
    found = FORMATS.get(name) if isinstance(name, str) else None
    if found is None:
        raise FormatError(f"unknown format {name!r}; expected one of {', '.join(FORMATS)}")
    return found
