# SPDX-License-Identifier: Apache-2.0
"""Grids, tiles and arguments of the quantization kernels, from plain integers.

The kernels' parameters are pointers first; all that follows them is called the tail here. It depends on shapes,
strides, alignment and options only, so that a caller plans once and launches many times with new pointers. The numbers
that the device sources share with this module are in ``kernels/fp4_quantization/format.cuh`` and ``tile.cuh``.
"""

from __future__ import annotations

from typing import NamedTuple

from warpsmith.catalog.formats import FORMATS, LINEAR, M_MAJOR, TILED
from warpsmith.errors import InvalidArgumentError

THREADS = 256
ELEMENTS = 8
"""Consecutive elements of a row that a thread takes at a time; a unit."""
SLAB = 128
"""Rows: the unit of the 128x4 layout and of a tile with four passes."""
MAX_PARTIALS = 1024
WHOLE_CTAS = 2048
"""CTAs of a matrix with one scale, at most: each reads all partial maxima."""

VECTOR_ROWS = 1
VECTOR_CODES = 2
VECTOR_SCALES = 4
LAYOUT_128X4 = 8
LAYOUT_M_MAJOR = 16
FLOOR = 32
OFFSETS_64 = 64
PADDED_GROUPS = 128
SCALE_PER_GROUP = 256
SQUARE_BLOCKS = 512

ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}

_MAX_GRID = 65535
_PREFERRED_SHIFT = 5
_MAX_SHIFT = 8
_AMAX_PASSES = 4
_FLAT_WIDTH = {4: 1024, 8: 512}
"""Columns that one run of memory is cut into, by element bits: measured best on an H200, whatever K is."""
_FLAT_SHIFT = 6
_MAX_FLAT_ROWS = (1 << 32) - 2 * SLAB
_STRIP_CTAS = 2048
_MAX_STRIP = 8
_SQUARE = "fp8_block_128x128"


class Launch(NamedTuple):
    """One launch but for its pointers: the arguments are the kernel's pointers followed by `tail`."""

    grid: tuple[int, int, int]
    block: int
    tail: tuple[int, ...]


class Groups(NamedTuple):
    """How the rows are grouped; `number` 0 means that they are not."""

    number: int = 0
    wide: bool = False
    scale_per_group: bool = False


_UNGROUPED = Groups()


def _ceil_log2(value: int) -> int:
    return (value - 1).bit_length()


def _check_size(m: int, k: int, groups: int) -> None:
    """Rows and units are 32-bit numbers in the kernels; byte offsets are not."""
    if m + (SLAB - 1) * (groups + 1) >= 1 << 32 or k >= 1 << 35:
        raise InvalidArgumentError(
            f"a matrix of {m} rows ({groups} groups) and {k} columns is too large; "
            f"expected fewer than 2^32 rows, with 127 more a group, and fewer than 2^35 columns"
        )


def _row_shift(units: int, m: int, smallest: int, passes: int, tiled: bool) -> int:
    """Log2 of the threads that share a row.

    More threads a row read and write longer runs: the most that leave few threads without a column, or, with one pass,
    without a row. In the 128x4 layout, where the fewest make a tile a whole 512-byte scale atom, twice as many were
    measured to be best, if they all have a column.
    """
    if passes == 1 and not tiled:
        wanted = max(_MAX_SHIFT - _ceil_log2(m), smallest)
        return min(wanted, max(_ceil_log2(units), smallest), _MAX_SHIFT)
    if not tiled:
        for shift in range(_PREFERRED_SHIFT, smallest, -1):
            tiles = -(-units >> shift)
            if (tiles << shift) - units <= units >> 5:
                return shift
    if tiled and passes == 4 and units % (2 << smallest) == 0:
        return smallest + 1
    return smallest


def _row_tiles(slabs: int, m: int, padded: bool, row_shift: int, passes: int) -> int:
    """Row tiles, without the ones past the last row where padding need not be written."""
    rows = THREADS >> row_shift
    share = SLAB // passes  # rows of a slab that its sub-tiles share out
    if padded:
        return slabs * (share // rows)
    full, rest = divmod(m, SLAB)
    return full * (share // rows) + -(-min(rest, share) // rows)


def _strips(col_tiles: int, row_tiles: int, batches: int) -> int:
    """CTAs that share a row of column tiles: one that takes several computes its rows' addresses only once."""
    strip = min(max(col_tiles * row_tiles * batches // _STRIP_CTAS, 1), _MAX_STRIP)
    return -(-col_tiles // strip)


def _scale_layout(layout: str, batch_rows: int, blocks: int, m: int) -> tuple[int, int, int]:
    """(pitch, scales of a batch, flag) of a layout; `batch_rows` is padded for 128x4."""
    if layout == TILED:
        pitch = -(-blocks // 4) * 4
        return pitch, batch_rows * pitch, LAYOUT_128X4
    if layout == M_MAJOR:
        pitch = -(-m // 4) * 4
        return pitch, blocks * pitch, LAYOUT_M_MAJOR
    return blocks, batch_rows * blocks, 0


def _row_vectors(x_address: int, element_type: str, m: int, batches: int, row_stride: int, batch_stride: int) -> int:
    """The flag `VECTOR_ROWS` if every row starts at a multiple of 16 bytes, else 0."""
    size = ELEMENT_BYTES[element_type]
    odd = x_address | (row_stride * size if m > 1 else 0) | (batch_stride * size if batches > 1 else 0)
    return 0 if odd % 16 else VECTOR_ROWS


def quantize_launch(
    format: str,
    element_type: str,
    *,
    layout: str,
    passes: int,
    m: int,
    k: int,
    row_stride: int,
    batches: int = 1,
    batch_stride: int = 0,
    x_address: int = 0,
    rounding: str = "ceil",
    groups: Groups = _UNGROUPED,
    row_shift: int | None = None,
    flat: bool = True,
) -> Launch:
    """Plan ``ws_quantize`` (with or without SwiGLU), for codes and scales that are aligned to 8 bytes.

    Parameters
    ----------
    format, element_type, layout, rounding
        Names as in the catalog; the type is that of `x`.
    passes
        The variant's passes a thread, 1 or 4.
    m, k
        Rows of a batch and columns of the output; both at least 1.
    row_stride, batch_stride
        Of `x`, in elements.
    x_address
        The address of `x`, or any number with the same last four bits.
    groups
        How the rows are grouped; needs one batch.
    row_shift
        Log2 of the threads that share a row, instead of the planned one.
    flat
        Whether `x`, where it is one run of memory and its scales are linear, may be taken as rows of another length
        (not so with SwiGLU, whose rows have two halves).

    Returns
    -------
    Launch
        Pointers are ``x, codes, scales, global_scale, offsets``.

    Raises
    ------
    InvalidArgumentError
        If the matrix is too large for 32-bit row numbers.
    """
    _check_size(m, k, groups.number)
    spec = FORMATS[format]
    if passes == 4 and layout == LINEAR and not groups.number and row_shift is None and flat:
        width = _FLAT_WIDTH[spec.element_bits]
        contiguous = row_stride == k and (batches == 1 or batch_stride == m * k)
        if contiguous and m * batches * k % width == 0 and m * batches * k // width < _MAX_FLAT_ROWS:
            m, k, batches, row_stride, row_shift = m * batches * k // width, width, 1, width, _FLAT_SHIFT
    units, blocks = k // ELEMENTS, k // spec.block[1]
    tiled = layout == TILED
    padded_groups = groups.number > 0 and (tiled or groups.scale_per_group)
    slabs = (m + (SLAB - 1) * groups.number) // SLAB if padded_groups else -(-m // SLAB)
    if row_shift is None:
        smallest = 3 if spec.block[1] == 16 else 4
        row_shift = _row_shift(units, m, smallest, passes, tiled)
    row_tiles = _row_tiles(slabs, m, tiled or padded_groups, row_shift, passes)
    col_tiles = -(-units >> row_shift)
    pitch, batch_scales, flags = _scale_layout(layout, slabs * SLAB if tiled else m, blocks, m)

    flags |= VECTOR_CODES
    if tiled or (layout == LINEAR and blocks % 4 == 0 and spec.scale_bytes == 1):
        flags |= VECTOR_SCALES
    flags |= _row_vectors(x_address, element_type, m, batches, row_stride, batch_stride)
    if rounding == "floor":
        flags |= FLOOR
    flags |= _group_flags(groups, padded_groups)
    columns = _strips(col_tiles, row_tiles, batches) if passes == 4 else col_tiles
    return Launch(
        (columns, min(row_tiles, _MAX_GRID), min(batches, _MAX_GRID)),
        THREADS,
        (
            row_stride, batch_stride, batch_scales * spec.scale_bytes,
            m, units, batches, groups.number, row_tiles, pitch, row_shift, flags,
        ),
    )  # fmt: skip


def _group_flags(groups: Groups, padded: bool) -> int:
    return (
        (OFFSETS_64 if groups.wide else 0)
        | (PADDED_GROUPS if padded else 0)
        | (SCALE_PER_GROUP if groups.scale_per_group else 0)
    )


def quantize_128x128_launch(
    element_type: str,
    *,
    m: int,
    k: int,
    row_stride: int,
    batches: int = 1,
    batch_stride: int = 0,
    x_address: int = 0,
) -> Launch:
    """Plan ``ws_quantize_128x128``; arguments as for `quantize_launch`, pointers ``x, codes, scales``."""
    _check_size(m, k, 0)
    flags = VECTOR_CODES | _row_vectors(x_address, element_type, m, batches, row_stride, batch_stride)
    return Launch(
        (k // SLAB, min(-(-m // SLAB), _MAX_GRID), min(batches, _MAX_GRID)),
        THREADS,
        (row_stride, batch_stride, m, k // ELEMENTS, batches, flags),
    )


def whole_launches(
    format: str,
    element_type: str,
    *,
    m: int,
    k: int,
    row_stride: int,
    batches: int = 1,
    batch_stride: int = 0,
    x_address: int = 0,
) -> tuple[Launch, ...]:
    """Plan ``ws_quantize_whole``; arguments as for `quantize_launch`, pointers ``x, codes, scales, partials``.

    Returns
    -------
    tuple of Launch
        That which writes the codes; for ``fp8_tensor`` also the one of `matrix_amax` that goes before. It has no codes
        and scales, and ``partials`` takes one 32-bit word for each CTA of each batch.
    """
    _check_size(m, k, 0)
    flags = VECTOR_CODES | _row_vectors(x_address, element_type, m, batches, row_stride, batch_stride)
    parts = min(m, MAX_PARTIALS)
    tail = row_stride, batch_stride, m, k // ELEMENTS, batches, parts, flags
    grid_y = min(batches, _MAX_GRID)
    if FORMATS[format].whole == "row":
        return (Launch((min(m, (1 << 31) - 1), grid_y, 1), THREADS, tail),)
    return Launch((min(m, WHOLE_CTAS), grid_y, 1), THREADS, tail), Launch((parts, grid_y, 1), THREADS, tail)


def dequantize_launch(
    format: str,
    *,
    layout: str,
    m: int,
    k: int,
    batches: int = 1,
    groups: Groups = _UNGROUPED,
) -> Launch:
    """Plan ``ws_dequantize``, for codes aligned to 8 bytes and an output to 16.

    Arguments are those of `quantize_launch`; the format may be any. The pointers are ``codes, scales, global_scale,
    offsets, out``; fp8_tensor has a scale for each row here, as fp8_row.
    """
    _check_size(m, k, groups.number)
    spec = FORMATS[format]
    units, blocks = k // ELEMENTS, k // spec.block[1]
    tiled = layout == TILED
    padded_groups = groups.number > 0 and (tiled or groups.scale_per_group)
    slabs = (m + (SLAB - 1) * groups.number) // SLAB if padded_groups else -(-m // SLAB)
    row_shift = _row_shift(units, m, 3, 4, tiled=False)
    row_tiles = _row_tiles(slabs, m, padded_groups, row_shift, 4)
    scale_rows = slabs * SLAB if tiled else -(-m // spec.block[0])
    pitch, batch_scales, flags = _scale_layout(layout, scale_rows, blocks, m)
    if spec.whole:
        pitch, batch_scales, flags = 0, m, LAYOUT_M_MAJOR
    flags |= VECTOR_CODES | VECTOR_ROWS | _group_flags(groups, padded_groups)
    if format == _SQUARE:
        flags |= SQUARE_BLOCKS
    return Launch(
        (-(-units >> row_shift), min(row_tiles, _MAX_GRID), min(batches, _MAX_GRID)),
        THREADS,
        (
            batch_scales * spec.scale_bytes,
            m, units, batches, groups.number, row_tiles, pitch, row_shift, flags,
        ),
    )  # fmt: skip


def without_vector_stores(tail: tuple[int, ...]) -> tuple[int, ...]:
    """The tail for quantized data or scales that are not aligned to 8 bytes (dequantize: or an output to 16)."""
    return (*tail[:-1], tail[-1] & ~(VECTOR_CODES | VECTOR_SCALES))


def without_vectors(tail: tuple[int, ...]) -> tuple[int, ...]:
    """The tail for tensors of which nothing is known to be aligned beyond its elements."""
    return (*tail[:-1], tail[-1] & ~(VECTOR_ROWS | VECTOR_CODES | VECTOR_SCALES))


def amax_launch(
    element_type: str,
    *,
    m: int,
    k: int,
    row_stride: int,
    batches: int = 1,
    batch_stride: int = 0,
    x_address: int = 0,
    most_ctas: int = MAX_PARTIALS,
) -> Launch:
    """Plan ``ws_amax_partial``; pointers ``x, partials``, one partial for each of ``grid[0]`` CTAs (at most 1024).

    Arguments are those of `quantize_launch`; k may be any number of columns.
    """
    _check_size(m, k, 0)
    units = -(-k // ELEMENTS)
    row_shift = min(_ceil_log2(units), _PREFERRED_SHIFT)
    rows = _AMAX_PASSES * (THREADS >> row_shift)
    row_tiles, col_tiles = -(-m // rows), -(-units >> row_shift)
    tiles = row_tiles * col_tiles * batches
    if tiles >= (1 << 32) - MAX_PARTIALS:
        raise InvalidArgumentError(
            f"{batches} × {m} × {k} elements are too many for one amax: {tiles} tiles; expected fewer than 2^32"
        )
    rows = _row_vectors(x_address, element_type, m, batches, row_stride, batch_stride)
    return Launch(
        (min(tiles, most_ctas, MAX_PARTIALS), 1, 1),
        THREADS,
        (
            row_stride, batch_stride, k,
            m, batches, row_tiles, col_tiles, row_shift, 0 if k % ELEMENTS else rows,
        ),
    )  # fmt: skip


def global_scale_launch(count: int) -> Launch:
    """Plan ``ws_global_scale`` for `count` partials; pointers ``partials, global_scale``."""
    return Launch((1, 1, 1), THREADS, (count,))
