# SPDX-License-Identifier: Apache-2.0
"""The order in which prepared weights hold their elements.

``mxfp8``: for e2m1 weights beside e4m3 activations. The 8-bit MMA takes e2m1 in bytes, k = 4t + j and 16 + 4t + j of 32
in lane t's two words; with these two as the nibbles of one byte, one load and two shifts make both words. Byte i of 16
holds elements i (low) and 16 + i (high) of each 32.
"""

from __future__ import annotations

import numpy as np

from warpsmith.errors import FormatError
from warpsmith.reference.formats import ByteArray

PACKINGS = ("mxfp8",)


def pack_codes(codes: ByteArray, packing: str) -> ByteArray:
    """Bring the 4-bit codes of weights into the order of a packing.

    Parameters
    ----------
    codes : ndarray
        uint8 [..., K/2], element 0 in the low nibble; K is a multiple of 32.
    packing : str
        One of `PACKINGS`.

    Returns
    -------
    ndarray
        uint8 [..., K/2].

    Raises
    ------
    FormatError
        If there is no such packing.
    """
    _check(packing)
    elements = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1, 2, 16)
    return np.asarray(elements[..., 0, :] | elements[..., 1, :] << 4, np.uint8).reshape(codes.shape)


def unpack_codes(packed: ByteArray, packing: str) -> ByteArray:
    """Bring packed codes back into their format's own order: the inverse of `pack_codes`."""
    _check(packing)
    blocks = packed.reshape(*packed.shape[:-1], -1, 16)
    elements = np.concatenate([blocks & 15, blocks >> 4], -1)
    return np.asarray(elements[..., 0::2] | elements[..., 1::2] << 4, np.uint8).reshape(packed.shape)


def _check(packing: str) -> None:
    if packing not in PACKINGS:
        raise FormatError(f"unknown packing {packing!r}; expected one of {', '.join(PACKINGS)}")
