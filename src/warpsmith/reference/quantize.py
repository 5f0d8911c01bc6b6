# SPDX-License-Identifier: Apache-2.0
"""Quantize, bit for bit as docs/numerics.md defines it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from warpsmith.errors import FormatError
from warpsmith.reference import layouts
from warpsmith.reference.arithmetic import FLT_MAX
from warpsmith.reference.formats import (
    E4M3_MAX,
    UE4M3_NAN,
    UE8M0_NAN,
    ByteArray,
    FloatArray,
    Format,
    decode_e4m3,
    decode_ue8m0,
    encode_e4m3,
    encode_elements,
    get_format,
)

GlobalScale = float | np.float32 | FloatArray | None
INPUT_DTYPES: Final = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
ROUNDINGS: Final = ("ceil", "floor")
_INF_BITS: Final = 0x7F800000
_CHUNK_ELEMENTS: Final = 1 << 17  # a chunk and its temporaries stay in cache


def check_input(x: npt.NDArray[Any]) -> None:
    """Raise FormatError unless `x` is a float32, float16 or bfloat16 array of at least two dimensions."""
    if not isinstance(x, np.ndarray) or x.dtype not in INPUT_DTYPES:
        given = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise FormatError(f"input is {given}: expected a float32, float16 or bfloat16 array")
    if x.ndim < 2:
        raise FormatError(f"input has shape {x.shape}: expected [..., M, K]")


def row_chunks(rows: int, columns: int, block_rows: int = 1) -> Iterator[slice]:
    """Cut `rows` into slices of one block, or where blocks have one row, of about `_CHUNK_ELEMENTS`."""
    step = block_rows if block_rows > 1 else max(_CHUNK_ELEMENTS // columns, 1)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def as_float32(rows: npt.NDArray[Any]) -> FloatArray:
    """Return `rows` as contiguous float32, exactly."""
    with np.errstate(invalid="ignore"):
        return np.ascontiguousarray(rows, np.float32)


def global_scale_blocks(global_scale: GlobalScale, spec: Format, offsets: layouts.OffsetArray | None) -> FloatArray:
    """Return the global scale as [1, 1, 1], or as [rows, 1, 1] where each group has its own."""
    if global_scale is None:
        return np.ones((1, 1, 1), np.float32)
    if spec.scale != "ue4m3":
        raise FormatError(f"{spec.name} has no global scale: leave global_scale out")
    if isinstance(global_scale, (int, float)):
        with np.errstate(over="ignore"):
            scale = np.array([global_scale], np.float64).astype(np.float32)
    else:
        scale = np.asarray(global_scale)
    groups = 1 if offsets is None else len(offsets) - 1
    if scale.dtype != np.float32 or (scale.size != 1 and scale.shape != (groups,)):
        expected = "one value" if offsets is None else f"one value or [{groups}], one a group"
        raise FormatError(f"global_scale is {scale.dtype} of shape {scale.shape}: expected float32, {expected}")
    if scale.size != 1 and offsets is not None:
        scale = np.repeat(scale, np.diff(offsets))
    return scale.reshape(-1, 1, 1)


def positive_finite(values: FloatArray) -> npt.NDArray[np.bool_]:
    """Return where a global scale is one that can be used."""
    return np.isfinite(values) & (values > 0)


def _nvfp4_scales(amax: FloatArray, global_scale: FloatArray) -> tuple[ByteArray, FloatArray]:
    """Return the scale bytes and the factor r that elements are multiplied by."""
    scales = encode_e4m3(global_scale * amax / np.float32(6))
    quotient = np.minimum(global_scale / decode_e4m3(scales), FLT_MAX)
    return scales, np.where(scales == 0, np.float32(0), quotient)


def _mx_scales(amax: FloatArray, spec: Format, rounding: str) -> tuple[ByteArray, FloatArray]:
    """Return the scale bytes and the factor 2^−e, from the bits of amax = m·2^k."""
    bits = amax.view(np.int32)
    # The element type's largest value is 1.5·2^2 (e2m1) or 1.75·2^8 (e4m3).
    top, fraction = (2, 0x400000) if spec.element == "e2m1" else (8, 0x600000)
    # fp32 denormals have exponent field 0, and whatever their fraction the clamp takes them to −127.
    exponent = (bits >> 23) - 127 - top
    if rounding == "ceil":
        exponent += (bits & 0x7FFFFF) > fraction
    exponent = np.maximum(exponent, -127)
    return (exponent + 127).astype(np.uint8), decode_ue8m0((127 - exponent).astype(np.uint8))


def _fp8_block_scales(amax: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the fp32 scales and the factor r that elements are multiplied by."""
    empty = amax == 0
    factor = np.where(empty, np.float32(0), np.minimum(E4M3_MAX / amax, FLT_MAX))
    return np.where(empty, np.float32(1), amax / E4M3_MAX), factor


def _nan_scale(spec: Format) -> np.generic:
    if spec.scale == "fp32":
        return np.float32(np.nan)
    return np.uint8(UE4M3_NAN if spec.scale == "ue4m3" else UE8M0_NAN)


def _quantize_blocks(
    values: FloatArray, spec: Format, global_scale: FloatArray, rounding: str
) -> tuple[ByteArray, npt.NDArray[Any]]:
    """Quantize [rows, blocks, block]; blocks of several rows share one scale over all rows given."""
    axes = 2 if spec.block[0] == 1 and spec.whole != "tensor" else (0, 2)
    amax_bits = (values.view(np.uint32) & np.uint32(0x7FFFFFFF)).max(axis=axes, keepdims=True)
    valid_global = positive_finite(global_scale)
    invalid = (amax_bits >= _INF_BITS) | ~valid_global
    any_invalid = bool(invalid.any())
    if any_invalid:
        values = np.where(invalid, np.float32(0), values)
        amax_bits = np.where(invalid, np.uint32(0), amax_bits)
        global_scale = np.where(valid_global, global_scale, np.float32(1))
    amax = amax_bits.view(np.float32)
    scales: npt.NDArray[Any]
    if spec.scale == "ue4m3":
        scales, factor = _nvfp4_scales(amax, global_scale)
    elif spec.scale == "ue8m0":
        scales, factor = _mx_scales(amax, spec, rounding)
    else:
        scales, factor = _fp8_block_scales(amax)
    codes = encode_elements(values * factor, spec)
    if any_invalid:
        scales = np.where(invalid, _nan_scale(spec), scales)
    return codes.reshape(len(values), -1), scales[:, :, 0]


def quantize_with(
    load: Callable[[npt.NDArray[Any]], FloatArray],
    x: npt.NDArray[Any],
    columns: int,
    format: str,
    *,
    scale_layout: str,
    global_scale: GlobalScale,
    rounding: str,
    offsets: npt.ArrayLike | None,
) -> tuple[ByteArray, npt.NDArray[Any]]:
    """Quantize ``load(rows of x)``, [..., M, columns] in float32, a few rows at a time.

    Everything that `quantize` and its fused forms have in common; parameters as in `quantize`.
    """
    spec = get_format(format)
    check_input(x)
    if rounding not in ROUNDINGS or (rounding == "floor" and spec.scale != "ue8m0"):
        known = "'ceil' or 'floor'" if spec.scale == "ue8m0" else "'ceil', its scales not being powers of two"
        raise FormatError(f"rounding {rounding!r} does not fit {format}: expected {known}")
    shape = (*x.shape[:-1], columns)
    groups = None if offsets is None else max(np.size(offsets) - 1, 0)
    layouts.scale_shape(format, shape, scale_layout=scale_layout, groups=groups)
    checked = None if offsets is None else layouts.check_offsets(offsets, shape[-2])
    per_block = global_scale_blocks(global_scale, spec, checked)

    codes = np.zeros((*shape[:-1], spec.code_columns(columns)), np.uint8)
    linear = np.full(layouts.scale_shape(format, shape), 0 if x.size else 1, spec.scale_dtype)
    block_rows, block = spec.scaled_together(shape[-2], columns)
    by_rows = block_rows == 1 and spec.whole != "tensor"
    # Blocks of one row do not see where a batch ends; taller ones must not cross it.
    batches, rows = (1, math.prod(shape[:-1])) if by_rows else (math.prod(shape[:-2]), shape[-2])
    x_rows = x.reshape(batches, rows, x.shape[-1])
    code_rows = codes.reshape(batches, rows, codes.shape[-1])
    scale_rows = linear.reshape(batches, -(-rows // block_rows), columns // block) if x.size else linear
    used = rows if checked is None else int(checked[-1])
    with np.errstate(all="ignore"):
        for batch in range(batches):
            for part in row_chunks(used, columns, block_rows):
                values = load(x_rows[batch, part]).reshape(-1, columns // block, block)
                scale = per_block if len(per_block) == 1 else per_block[part]
                part_codes, part_scales = _quantize_blocks(values, spec, scale, rounding)
                first = part.start // block_rows
                code_rows[batch, part] = part_codes
                scale_rows[batch, first : first + len(part_scales)] = part_scales
    return codes, linear if spec.whole else layouts.pack(linear, scale_layout, offsets=checked)


def quantize(
    x: npt.NDArray[Any],
    format: str,
    *,
    scale_layout: str = "linear",
    global_scale: GlobalScale = None,
    rounding: str = "ceil",
    offsets: npt.ArrayLike | None = None,
) -> tuple[ByteArray, npt.NDArray[Any]]:
    """Quantize an array in blocks along its last axis.

    Parameters
    ----------
    x : ndarray
        float32, float16 or bfloat16, [..., M, K]; [M, K] with `offsets`.
    format : str
        ``"nvfp4"``, ``"mxfp4"``, ``"mxfp8"``, ``"fp8_block"``, ``"fp8_block_128x128"``, ``"fp8_row"`` or
        ``"fp8_tensor"``.
    scale_layout : str
        ``"linear"``, ``"128x4"`` (one-byte scales) or ``"m_major"`` (``fp8_block``).
    global_scale : float or float32 array, optional
        nvfp4's second scale: one value, or one a group with `offsets`; 1 if left out. Where it is not positive
        and finite, the codes are 0 and the scales NaN.
    rounding : str
        How mxfp4 and mxfp8 round their scale's exponent, ``"ceil"`` or ``"floor"``.
    offsets : array_like of int32 or int64, optional
        Group g is rows offsets[g] to offsets[g + 1]. Rows after the last group give zero codes and scales here;
        the kernels do not write them.

    Returns
    -------
    codes : ndarray of uint8
        [..., M, K / 2] for fp4, else [..., M, K].
    scales : ndarray
        uint8, or float32 for the fp8_block formats, in the shape that `scale_shape` gives.

    Raises
    ------
    FormatError
        If an argument does not fit; the message says what was given and what was expected.

    Examples
    --------
    >>> codes, scales = quantize(np.full((1, 32), 6, np.float32), "mxfp4")
    >>> codes[0, 0].item(), scales.tolist()
    (119, [[127]])
    """
    check_input(x)
    return quantize_with(
        as_float32,
        x,
        x.shape[-1],
        format,
        scale_layout=scale_layout,
        global_scale=global_scale,
        rounding=rounding,
        offsets=offsets,
    )


def default_global_scale(x: npt.NDArray[Any]) -> np.float32:
    """Return nvfp4's global scale 448·6 / amax, over the finite values of `x`.

    It is at most the largest finite float32, and 1 if `x` is empty or its finite values are all zero.

    Parameters
    ----------
    x : ndarray
        float32, float16 or bfloat16, [..., M, K].

    Examples
    --------
    >>> float(default_global_scale(np.full((1, 16), 2, np.float32)))
    1344.0
    """
    check_input(x)
    amax = np.uint32(0)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    for part in row_chunks(len(rows), max(x.shape[-1], 1)):
        bits = as_float32(rows[part]).view(np.uint32) & np.uint32(0x7FFFFFFF)
        amax = max(amax, np.where(bits < _INF_BITS, bits, np.uint32(0)).max(initial=np.uint32(0)))
    if amax == 0:
        return np.float32(1)
    with np.errstate(over="ignore"):
        return np.float32(min(E4M3_MAX * np.float32(6) / amax.view(np.float32), FLT_MAX))
