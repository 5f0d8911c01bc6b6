# SPDX-License-Identifier: Apache-2.0
"""Where each scale lies: the linear, 128x4 and m_major layouts, batched and grouped."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from warpsmith.errors import FormatError
from warpsmith.reference.formats import get_format

LAYOUTS: Final = ("linear", "128x4", "m_major")
OffsetArray = npt.NDArray[np.int64]


def round_up(value: int, multiple: int) -> int:
    """Return `value` rounded up to a multiple of `multiple`."""
    return -(-value // multiple) * multiple


def index_128x4(row: npt.ArrayLike, column: npt.ArrayLike, padded_columns: int) -> npt.NDArray[np.int64]:
    """Return the byte at which the 128x4 layout holds the scale at (row, column) of one padded matrix.

    128 rows by 4 columns make one tile of 512 bytes; tiles run along a row of tiles first.
    """
    r, c = np.asarray(row, np.int64), np.asarray(column, np.int64)
    tile = (r // 128) * (padded_columns // 4) + c // 4
    return np.asarray(tile * 512 + (r % 32) * 16 + (r % 128 // 32) * 4 + c % 4)


def index_m_major(row: npt.ArrayLike, column: npt.ArrayLike, rows: int) -> npt.NDArray[np.int64]:
    """Return the element at which the m_major layout of `rows` rows holds the scale at (row, column)."""
    return np.asarray(np.asarray(column, np.int64) * round_up(rows, 4) + np.asarray(row, np.int64))


def group_starts(offsets: OffsetArray) -> OffsetArray:
    """Return the padded row at which each group's 128x4 scales start: ⌊(off[g] + 127·g) / 128⌋·128."""
    starts: OffsetArray = (offsets[:-1] + 127 * np.arange(len(offsets) - 1)) // 128 * 128
    return starts


def check_offsets(offsets: npt.ArrayLike, rows: int) -> OffsetArray:
    """Return group offsets as int64 after checking them.

    Raises
    ------
    FormatError
        Unless they are G + 1 ≥ 2 int32 or int64 values that start at 0, never fall and end at most at `rows`.
    """
    given = np.asarray(offsets)
    if given.dtype not in (np.int32, np.int64) or given.ndim != 1 or given.size < 2:
        raise FormatError(
            f"offsets have dtype {given.dtype} and shape {given.shape}: expected int32 or int64 [groups + 1], "
            "at least one group"
        )
    checked = given.astype(np.int64)
    if checked[0] != 0 or checked[-1] > rows or (np.diff(checked) < 0).any():
        raise FormatError(
            f"offsets {checked.tolist()} do not divide {rows} rows: they must start at 0, never fall and end "
            f"at {rows} or before"
        )
    return checked


def scale_shape(
    format: str, shape: tuple[int, ...], *, scale_layout: str = "linear", groups: int | None = None
) -> tuple[int, ...]:
    """Return the shape of the scale array of a tensor of logical `shape`.

    Parameters
    ----------
    format : str
        Format name.
    shape : tuple of int
        Logical shape [..., M, K] of the quantized tensor.
    scale_layout : str
        ``"linear"``, ``"128x4"`` or ``"m_major"``.
    groups : int, optional
        Number of groups G along M when the tensor is grouped.

    Raises
    ------
    FormatError
        If the format or layout is unknown, they do not go together, or K does not divide into blocks.

    Examples
    --------
    >>> scale_shape("nvfp4", (200, 4096), scale_layout="128x4")
    (256, 256)
    """
    spec = get_format(format)
    if scale_layout not in LAYOUTS:
        raise FormatError(f"scale layout {scale_layout!r} is not known: choose one of {', '.join(LAYOUTS)}")
    if scale_layout not in spec.layouts:
        raise FormatError(
            f"{format} scales cannot have the layout {scale_layout!r}: choose one of {', '.join(spec.layouts)}"
        )
    if len(shape) < 2:
        raise FormatError(f"shape {shape} has {len(shape)} dimensions: expected [..., M, K]")
    block_rows, block = spec.block
    *batch, rows, columns = shape
    if columns <= 0 or columns % block:
        raise FormatError(f"K = {columns} does not fit {format}: it must be a positive multiple of {block}")
    if groups is not None and (batch or block_rows != 1):
        raise FormatError(f"groups need a 2-D tensor and blocks of one row; given shape {shape} in format {format}")
    if spec.whole:
        if groups is not None:
            raise FormatError(f"{format} needs no groups: leave offsets out")
        return (*batch, rows) if spec.whole == "row" else tuple(batch) or (1,)
    scale_columns = columns // block
    if scale_layout == "linear":
        return (*batch, -(-rows // block_rows), scale_columns)
    if scale_layout == "m_major":
        return (*batch, scale_columns, round_up(rows, 4))
    padded_rows = round_up(rows, 128) if groups is None else (rows + 127 * groups) // 128 * 128
    return (*batch, padded_rows, round_up(scale_columns, 4))


def _grouped_rows(offsets: OffsetArray) -> tuple[OffsetArray, OffsetArray]:
    """Return, for every row that belongs to a group, the row itself and its row in the padded buffer."""
    rows = np.arange(offsets[-1])
    shift = np.repeat(group_starts(offsets) - offsets[:-1], np.diff(offsets))
    return rows, rows + shift


def pack(linear: npt.NDArray[Any], scale_layout: str, *, offsets: OffsetArray | None = None) -> npt.NDArray[Any]:
    """Lay linear scales [..., M, C] out in `scale_layout`; padding is zero.

    With `offsets` (checked, [G + 1]) rows from ``offsets[-1]`` on belong to no group: 128x4 leaves them out.
    """
    *batch, rows, columns = linear.shape
    if scale_layout == "linear":
        return linear
    if scale_layout == "m_major":
        turned = np.zeros((*batch, columns, round_up(rows, 4)), linear.dtype)
        turned[..., :rows] = np.swapaxes(linear, -1, -2)
        return turned
    padded_columns = round_up(columns, 4)
    if offsets is None:
        padded = np.zeros((*batch, round_up(rows, 128), padded_columns), linear.dtype)
        padded[..., :rows, :columns] = linear
    else:
        padded = np.zeros(((rows + 127 * (len(offsets) - 1)) // 128 * 128, padded_columns), linear.dtype)
        source, target = _grouped_rows(offsets)
        padded[target, :columns] = linear[source]
    # (row tile, row // 32, row % 32, column tile, column % 4) → the order of index_128x4
    tiles = padded.reshape(*batch, padded.shape[-2] // 128, 4, 32, padded_columns // 4, 4)
    return np.moveaxis(tiles, (-2, -3, -4), (-4, -3, -2)).reshape(padded.shape)


def unpack(
    scales: npt.NDArray[Any],
    scale_layout: str,
    rows: int,
    columns: int,
    *,
    offsets: OffsetArray | None = None,
) -> npt.NDArray[Any]:
    """Undo `pack`: return linear scales [..., rows, columns]; rows that belong to no group are zero."""
    if scale_layout == "linear":
        return scales
    if scale_layout == "m_major":
        return np.swapaxes(scales[..., :rows], -1, -2)
    *batch, padded_rows, padded_columns = scales.shape
    tiles = scales.reshape(*batch, padded_rows // 128, padded_columns // 4, 32, 4, 4)
    padded = np.moveaxis(tiles, (-4, -3, -2), (-2, -3, -4)).reshape(scales.shape)
    if offsets is None:
        return padded[..., :rows, :columns]
    linear = np.zeros((rows, columns), scales.dtype)
    target, source = _grouped_rows(offsets)
    linear[target] = padded[source, :columns]
    return linear
