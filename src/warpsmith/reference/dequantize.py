# SPDX-License-Identifier: Apache-2.0
"""Dequantize: to an output type as the kernels do, or exactly to float64 as `gemm` wants it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from warpsmith.errors import FormatError
from warpsmith.reference import layouts
from warpsmith.reference.arithmetic import cast, output_dtype
from warpsmith.reference.formats import ByteArray, FloatArray, decode_elements, decode_scales, get_format
from warpsmith.reference.packing import unpack_codes
from warpsmith.reference.quantize import GlobalScale, global_scale_blocks, positive_finite, row_chunks


def _decode_with(
    finish: Callable[[FloatArray, FloatArray, FloatArray], npt.NDArray[Any]],
    codes: ByteArray,
    scales: npt.NDArray[Any],
    format: str,
    dtype: npt.DTypeLike,
    *,
    shape: tuple[int, ...],
    scale_layout: str,
    global_scale: GlobalScale,
    offsets: npt.ArrayLike | None,
    packing: str,
) -> npt.NDArray[Any]:
    """Return ``finish(elements, scales, global scales)`` of each few rows as one array of `shape`."""
    spec = get_format(format)
    groups = None if offsets is None else max(np.size(offsets) - 1, 0)
    expected = layouts.scale_shape(format, shape, scale_layout=scale_layout, groups=groups)
    *batch, rows, columns = shape
    for name, given, wanted, kind in (
        ("codes", codes, (*batch, rows, spec.code_columns(columns)), np.dtype(np.uint8)),
        ("scales", scales, expected, spec.scale_dtype),
    ):
        if given.shape != wanted or given.dtype != kind:
            raise FormatError(
                f"{name} are {given.dtype} of shape {given.shape}: expected {kind} of shape {wanted} for "
                f"{format} of shape {tuple(shape)} with {scale_layout} scales"
            )
    codes = unpack_codes(codes, packing) if packing else codes
    checked = None if offsets is None else layouts.check_offsets(offsets, rows)
    per_block = global_scale_blocks(global_scale, spec, checked)
    per_block = np.where(positive_finite(per_block), per_block, np.float32(np.nan))

    block_rows, block = spec.scaled_together(rows, columns)
    if spec.whole:
        scales = scales.reshape(*batch, rows if spec.whole == "row" else 1, 1)
    linear = layouts.unpack(scales, scale_layout, -(-rows // block_rows), columns // block, offsets=checked)
    if block_rows > 1 or rows == 0:
        linear = np.repeat(linear, block_rows, axis=-2)[..., :rows, :]
    total = math.prod(shape[:-1])
    code_rows, scale_rows = codes.reshape(total, codes.shape[-1]), linear.reshape(total, columns // block)
    values = np.zeros((total, columns), dtype)
    with np.errstate(all="ignore"):
        for part in row_chunks(total if checked is None else int(checked[-1]), columns):
            elements = decode_elements(code_rows[part], spec).reshape(-1, columns // block, block)
            scale = decode_scales(scale_rows[part], spec)[:, :, None]
            out = finish(elements, scale, per_block if len(per_block) == 1 else per_block[part])
            values[part] = out.reshape(-1, columns)
    return values.reshape(shape)


def dequantize(
    codes: ByteArray,
    scales: npt.NDArray[Any],
    format: str,
    *,
    shape: tuple[int, ...],
    scale_layout: str = "linear",
    global_scale: GlobalScale = None,
    offsets: npt.ArrayLike | None = None,
    packing: str = "",
    dtype: str = "fp32",
) -> npt.NDArray[Any]:
    """Return the values of a quantized array: fl(q·s), nvfp4 fl(q·s / global_scale), rounded to `dtype`.

    Parameters
    ----------
    codes, scales : ndarray
        As `quantize` returns them.
    format, scale_layout, global_scale, offsets
        As given to `quantize`.
    shape : tuple of int
        Logical shape [..., M, K].
    packing : str
        What the codes were packed for by `pack_codes`, if they were.
    dtype : str
        ``"bf16"``, ``"fp16"`` or ``"fp32"``. What overflows becomes Inf.

    Returns
    -------
    ndarray
        [..., M, K]. A NaN scale, or a global scale that is not positive and finite, gives NaN. Rows that belong
        to no group are zero here; the kernels do not write them.

    Raises
    ------
    FormatError
        If an argument does not fit; the message says what was given and what was expected.

    Examples
    --------
    >>> codes, scales = np.full((1, 16), 0xD7, np.uint8), np.array([[128]], np.uint8)
    >>> dequantize(codes, scales, "mxfp4", shape=(1, 32))[0, :2].tolist()
    [12.0, -6.0]
    """
    spec = get_format(format)

    def finish(elements: FloatArray, scale: FloatArray, per_block: FloatArray) -> npt.NDArray[Any]:
        values = elements * scale
        return cast(values / per_block if spec.scale == "ue4m3" else values, dtype)

    return _decode_with(
        finish,
        codes,
        scales,
        format,
        output_dtype(dtype),
        shape=shape,
        scale_layout=scale_layout,
        global_scale=global_scale,
        offsets=offsets,
        packing=packing,
    )


def decode_float64(
    codes: ByteArray,
    scales: npt.NDArray[Any],
    format: str,
    *,
    shape: tuple[int, ...],
    scale_layout: str = "linear",
    global_scale: GlobalScale = None,
    offsets: npt.ArrayLike | None = None,
    packing: str = "",
) -> npt.NDArray[np.float64]:
    """Return the values of a quantized array in float64, what `gemm` multiplies.

    Parameters are those of `dequantize`. q·s is exact; nvfp4's division by the global scale is rounded once, in
    float64.

    Raises
    ------
    FormatError
        If an argument does not fit; the message says what was given and what was expected.
    """

    def finish(elements: FloatArray, scale: FloatArray, per_block: FloatArray) -> npt.NDArray[np.float64]:
        return elements.astype(np.float64) * scale / per_block

    return _decode_with(
        finish,
        codes,
        scales,
        format,
        np.float64,
        shape=shape,
        scale_layout=scale_layout,
        global_scale=global_scale,
        offsets=offsets,
        packing=packing,
    )
