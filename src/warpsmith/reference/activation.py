# SPDX-License-Identifier: Apache-2.0
"""SiLU-and-multiply with a defined exponential, alone and fused with quantization."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from warpsmith.errors import FormatError
from warpsmith.reference.arithmetic import fma
from warpsmith.reference.formats import ByteArray, FloatArray
from warpsmith.reference.quantize import GlobalScale, as_float32, check_input, quantize_with, row_chunks

_LOG2_E: Final = float.fromhex("0x1.715476p+0")
_ROUND_TO_INTEGER: Final = float.fromhex("0x1.8p+23")
# ln 2 in two parts, so that n·_LN2_HIGH is exact.
_LN2_HIGH: Final = float.fromhex("0x1.62e400p-1")
_LN2_LOW: Final = float.fromhex("0x1.7f7d1cp-20")
_COEFFICIENTS: Final = tuple(
    float.fromhex(c)
    for c in (
        "0x1.6a23d0p-10",
        "0x1.123a20p-7",
        "0x1.5558f2p-5",
        "0x1.555492p-3",
        "0x1.fffffcp-2",
        "0x1p+0",
        "0x1p+0",
    )
)


def exp(values: FloatArray) -> FloatArray:
    """Return e^v in fp32 as the kernels compute it, every bit of it; v is clamped to [−87, 88].

    e^v = 2^n · e^f with n the integer nearest to v / ln 2, and e^f a polynomial of degree 6. A NaN gives e^−87
    (``fmax`` drops it); the callers divide what was NaN by the result.
    """
    v = np.fmin(np.fmax(values, np.float32(-87)), np.float32(88))
    n = fma(v, _LOG2_E, _ROUND_TO_INTEGER) - np.float32(_ROUND_TO_INTEGER)
    f = fma(n, -_LN2_LOW, fma(n, -_LN2_HIGH, v))
    p = np.full_like(f, _COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        p = fma(p, f, coefficient)
    return (p.view(np.int32) + (n.astype(np.int32) << 23)).view(np.float32)


def _silu_and_mul_rows(rows: npt.NDArray[Any]) -> FloatArray:
    columns = rows.shape[-1] // 2
    gate, up = as_float32(rows[..., :columns]), as_float32(rows[..., columns:])
    return gate / (np.float32(1) + exp(-gate)) * up


def _columns(x: npt.NDArray[Any]) -> int:
    check_input(x)
    if x.shape[-1] % 2 or x.shape[-1] == 0:
        raise FormatError(f"input has {x.shape[-1]} columns: expected 2·K ≥ 2, the gate half then the up half")
    return int(x.shape[-1]) // 2


def silu_and_mul(x: npt.NDArray[Any]) -> FloatArray:
    """Return fl(fl(g / fl(1 + E(−g))) · u) in float32 for the halves g and u of the last axis.

    Parameters
    ----------
    x : ndarray
        float32, float16 or bfloat16, [..., M, 2·K]: gate, then up.

    Returns
    -------
    ndarray of float32
        [..., M, K].

    Raises
    ------
    FormatError
        If `x` has another dtype, fewer than two dimensions or an odd number of columns.

    Examples
    --------
    >>> silu_and_mul(np.array([[0, 1, 5, 2]], np.float32)).round(4).tolist()
    [[0.0, 1.4621000289916992]]
    """
    columns = _columns(x)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y = np.empty((len(rows), columns), np.float32)
    with np.errstate(all="ignore"):
        for part in row_chunks(len(rows), columns):
            y[part] = _silu_and_mul_rows(rows[part])
    return y.reshape(*x.shape[:-1], columns)


def silu_and_mul_quantize(
    x: npt.NDArray[Any],
    format: str,
    *,
    scale_layout: str = "linear",
    global_scale: GlobalScale = None,
    rounding: str = "ceil",
    offsets: npt.ArrayLike | None = None,
) -> tuple[ByteArray, npt.NDArray[Any]]:
    """Quantize ``silu_and_mul(x)`` in one pass, from float32.

    Parameters
    ----------
    x : ndarray
        float32, float16 or bfloat16, [..., M, 2·K]: gate, then up.
    format, scale_layout, global_scale, rounding, offsets
        As for `quantize`.

    Returns
    -------
    codes, scales : ndarray
        As `quantize` returns them for a [..., M, K] array.

    Raises
    ------
    FormatError
        If an argument does not fit; the message says what was given and what was expected.
    """
    return quantize_with(
        _silu_and_mul_rows,
        x,
        _columns(x),
        format,
        scale_layout=scale_layout,
        global_scale=global_scale,
        rounding=rounding,
        offsets=offsets,
    )
