# SPDX-License-Identifier: Apache-2.0
"""Matrix products of already dequantized operands in float64: dense, grouped and masked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from warpsmith.errors import FormatError
from warpsmith.reference.arithmetic import cast
from warpsmith.reference.layouts import check_offsets

DoubleArray = npt.NDArray[np.float64]


def _finish(
    product: DoubleArray, alpha: npt.ArrayLike, bias: npt.ArrayLike | None, out_dtype: str | None
) -> npt.NDArray[Any]:
    result = np.asarray(alpha, np.float64)[..., None, None] * product
    if bias is not None:
        result = result + np.asarray(bias, np.float64)[..., None, :]
    return result if out_dtype is None else cast(result, out_dtype)


def gemm(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    bias: npt.ArrayLike | None = None,
    alpha: npt.ArrayLike = 1.0,
    out_dtype: str | None = None,
) -> npt.NDArray[Any]:
    """Return alpha·A·Bᵀ + bias in float64, rounded once if `out_dtype` is given.

    Parameters
    ----------
    a : array_like
        [..., M, K].
    b : array_like
        [..., N, K].
    bias : array_like, optional
        [..., N].
    alpha : array_like
        One value, or one a batch.
    out_dtype : str, optional
        ``"bf16"``, ``"fp16"`` or ``"fp32"``; float64 if left out.

    Returns
    -------
    ndarray
        [..., M, N].

    Raises
    ------
    FormatError
        If the operands have fewer than two dimensions or differ in K.

    Examples
    --------
    >>> gemm([[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]], alpha=2.0, bias=[1.0, 0.0]).tolist()
    [[23.0, 34.0]]
    """
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if min(left.ndim, right.ndim) < 2 or left.shape[-1] != right.shape[-1]:
        raise FormatError(f"operands have shapes {left.shape} and {right.shape}: expected [..., M, K] and [..., N, K]")
    with np.errstate(all="ignore"):
        return _finish(left @ np.swapaxes(right, -1, -2), alpha, bias, out_dtype)


def grouped_gemm(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    offsets: npt.ArrayLike,
    *,
    bias: npt.ArrayLike | None = None,
    alpha: npt.ArrayLike = 1.0,
    out_dtype: str | None = None,
) -> npt.NDArray[Any]:
    """Multiply each group of rows of A with its own B.

    Parameters
    ----------
    a : array_like
        [M, K]; group g is rows offsets[g] to offsets[g + 1].
    b : array_like
        [G, N, K].
    offsets : array_like of int32 or int64
        [G + 1].
    bias : array_like, optional
        [G, N].
    alpha : array_like
        One value, or [G].
    out_dtype : str, optional
        ``"bf16"``, ``"fp16"`` or ``"fp32"``; float64 if left out.

    Returns
    -------
    ndarray
        [M, N]; rows that belong to no group are zero.

    Raises
    ------
    FormatError
        If the shapes do not go together or the offsets do not divide the rows.
    """
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    groups = right.shape[0] if right.ndim == 3 else 0
    if left.ndim != 2 or groups == 0 or left.shape[1] != right.shape[2] or np.size(offsets) != groups + 1:
        raise FormatError(
            f"operands have shapes {left.shape} and {right.shape} with {np.size(offsets)} offsets: expected "
            "[M, K], [G, N, K] and G + 1"
        )
    bounds = check_offsets(offsets, len(left))
    product = np.zeros((len(left), right.shape[1]))
    factors = np.broadcast_to(np.asarray(alpha, np.float64), (groups,))
    for group in range(groups):
        rows = slice(bounds[group], bounds[group + 1])
        group_bias = None if bias is None else np.asarray(bias)[group]
        product[rows] = gemm(left[rows], right[group], bias=group_bias, alpha=factors[group])
    return product if out_dtype is None else cast(product, out_dtype)


def masked_gemm(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    counts: npt.ArrayLike,
    *,
    bias: npt.ArrayLike | None = None,
    alpha: npt.ArrayLike = 1.0,
    out_dtype: str | None = None,
) -> npt.NDArray[Any]:
    """Multiply the first ``counts[g]`` rows of each batch entry of A with its own B.

    Parameters
    ----------
    a : array_like
        [G, C, K] with a capacity of C rows a group; what lies beyond a group's count is not read.
    b : array_like
        [G, N, K].
    counts : array_like of int
        [G], each in 0..C.
    bias, alpha, out_dtype
        As for `grouped_gemm`.

    Returns
    -------
    ndarray
        [G, C, N]; rows beyond a group's count are zero.

    Raises
    ------
    FormatError
        If the shapes do not go together or a count is out of range.
    """
    left, right, rows = np.asarray(a, np.float64), np.asarray(b, np.float64), np.asarray(counts)
    if left.ndim != 3 or right.ndim != 3 or len(left) != len(right) or left.shape[2] != right.shape[2]:
        raise FormatError(f"operands have shapes {left.shape} and {right.shape}: expected [G, C, K] and [G, N, K]")
    groups, capacity = left.shape[:2]
    if rows.shape != (groups,) or rows.dtype.kind not in "iu" or ((rows < 0) | (rows > capacity)).any():
        raise FormatError(f"counts are {rows.tolist()}: expected {groups} integers from 0 to {capacity}")
    kept = np.arange(capacity) < rows[:, None]
    offsets = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
    product = np.zeros((groups, capacity, right.shape[1]))
    product[kept] = grouped_gemm(left[kept], right, offsets, bias=bias, alpha=alpha)
    return product if out_dtype is None else cast(product, out_dtype)
