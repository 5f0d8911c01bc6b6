# SPDX-License-Identifier: Apache-2.0
"""IEEE arithmetic that NumPy lacks: an fp32 fused multiply-add and single-rounding casts."""

from __future__ import annotations

from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from warpsmith.errors import FormatError

FloatArray = npt.NDArray[np.float32]

FLT_MAX: Final = np.finfo(np.float32).max
OUTPUT_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp16": np.dtype(np.float16),
    "fp32": np.dtype(np.float32),
}


def round_to_odd(nearest: npt.NDArray[Any], error: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Turn a value rounded to nearest into the same value rounded to odd.

    A value rounded to odd can be rounded once more, to a type at least two bits shorter, and comes out as if
    it had been rounded once (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).

    Parameters
    ----------
    nearest : ndarray
        The exact values rounded to nearest, float32 or float64.
    error : ndarray
        Exact value minus `nearest`; only its sign is read. Where `nearest` is not finite it is ignored.
    """
    integer = np.dtype(f"i{nearest.dtype.itemsize}")
    bits = nearest.view(integer)
    inexact_even = (error != 0) & np.isfinite(nearest) & ((bits & 1) == 0)
    away_from_zero = (error < 0) == np.signbit(nearest)
    step = np.where(away_from_zero, 1, -1).astype(integer)
    odd: npt.NDArray[Any] = np.where(inexact_even, bits + step, bits).view(nearest.dtype)
    return odd


def fma(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> FloatArray:
    """Return a·b + c in fp32 with one rounding, bit for bit what ``fmaf`` gives.

    Parameters
    ----------
    a, b, c : array_like
        Values that fp32 holds exactly; they broadcast.
    """
    addend = np.asarray(c, np.float64)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        # 24 + 24 bits fit in 53, so the product is exact; TwoSum then gives the sum's error exactly.
        product = np.asarray(np.asarray(a, np.float64) * np.asarray(b, np.float64))
        total = np.asarray(product + addend)
        part = total - product
        error = (product - (total - part)) + (addend - part)
        return round_to_odd(total, error).astype(np.float32)


def output_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of ``"bf16"``, ``"fp16"`` or ``"fp32"``.

    Raises
    ------
    FormatError
        If `name` is none of the three.
    """
    if name not in OUTPUT_DTYPES:
        raise FormatError(f"output dtype {name!r} is not known: choose one of {', '.join(OUTPUT_DTYPES)}")
    return OUTPUT_DTYPES[name]


def cast(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Round float32 or float64 values once, to nearest even, to ``"bf16"``, ``"fp16"`` or ``"fp32"``.

    Overflow gives Inf and NaN stays NaN.

    Raises
    ------
    FormatError
        If `dtype` is none of the three.
    """
    target = output_dtype(dtype)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        if dtype == "bf16" and values.dtype == np.float64:
            # ml_dtypes goes through float32, which would round twice.
            nearest = values.astype(np.float32)
            values = round_to_odd(nearest, values - nearest)
        return values.astype(target)
