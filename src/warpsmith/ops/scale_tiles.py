# SPDX-License-Identifier: Apache-2.0
"""One-byte scales in the layout 128x4 and back, of either framework."""

from __future__ import annotations

from typing import Any

import numpy as np

from warpsmith.catalog.formats import Format
from warpsmith.ops.qtensor import is_torch


def moved(x: Any, source: tuple[int, ...], target: tuple[int, ...]) -> Any:
    """Dimensions of an array in other places."""
    return x.movedim(source, target) if is_torch(x) else np.moveaxis(x, source, target)


def tiled(linear: Any) -> Any:
    """Linear one-byte scales [..., M, C] in the layout 128x4, padded with zeros."""
    *batch, rows, columns = linear.shape
    height, width = -(-rows // 128) * 128, -(-columns // 4) * 4
    make = linear.new_zeros if is_torch(linear) else lambda shape: np.zeros(shape, np.uint8)
    padded = make((*batch, height, width))
    padded[..., :rows, :columns] = linear
    tiles = padded.reshape(*batch, height // 128, 4, 32, width // 4, 4)
    return moved(tiles, (-2, -3, -4), (-4, -3, -2)).reshape(*batch, height, width)


def untiled(scales: Any, shape: tuple[int, ...], spec: Format) -> Any:
    """The inverse of `tiled`: the linear scales of weights of a shape."""
    *batch, height, width = scales.shape
    tiles = scales.reshape(*batch, height // 128, width // 4, 32, 4, 4)
    padded = moved(tiles, (-4, -3, -2), (-2, -3, -4)).reshape(*batch, height, width)
    return padded[..., : shape[-2], : shape[-1] // spec.block[1]]
