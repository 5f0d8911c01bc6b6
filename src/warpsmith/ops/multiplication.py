# SPDX-License-Identifier: Apache-2.0
"""Matrix products, plain and quantized: the public operations of `gemm`."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

from warpsmith.errors import InvalidArgumentError
from warpsmith.ops.gemm_activation import activation_of
from warpsmith.ops.gemm_checks import check_bias, check_dense, check_grouped, data_of
from warpsmith.ops.qtensor import QTensor, is_torch
from warpsmith.ops.quantization import on_gpu


@cache
def _cuda() -> ModuleType:
    """The half that needs torch, imported when the first CUDA tensor comes."""
    from warpsmith.ops import cuda_gemm

    return cuda_gemm


@cache
def _host() -> ModuleType:
    """The half for the host, which needs NumPy, imported when the first host array comes."""
    from warpsmith.ops import host_gemm

    return host_gemm


def _runs_on_gpu(a: Any, b: Any) -> bool:
    """Whether the operands are on a GPU; refuses what is no operand, and two frameworks at once."""
    left, right = data_of(a), data_of(b)
    try:
        if left.is_cuda and right.is_cuda:  # a call to serve in a microsecond: it is asked for nothing more
            return True
    except AttributeError:  # of NumPy's arrays
        pass
    first, second = on_gpu(left, "a"), on_gpu(right, "b")
    if not (first and second) and is_torch(left) != is_torch(right):
        raise InvalidArgumentError("a and b are of two frameworks; expected two torch tensors or two NumPy arrays")
    return first or second


def gemm(
    a: Any,
    b: Any,
    *,
    bias: Any = None,
    activation: str | None = None,
    alpha: float = 1.702,
    limit: float = 7.0,
    out_dtype: Any = None,
    out: Any = None,
) -> Any:
    """Multiply: D = A · Bᵀ + bias, of plain or quantized operands.

    Parameters
    ----------
    a
        [*batch, M, K]: bfloat16, float16, or a `QTensor`.
    b
        [N, K] or [*batch, N, K], the weights: of a's dtype, or a `QTensor` (fp8 weights in fp8_block_128x128). N must
        be a multiple of 8; K of 8, with a quantized operand of 32, with fp8 blocks of 128.
    bias
        [N] or [*batch, N], bfloat16, float16 or float32; added in float32, before the one rounding.
    activation, alpha, limit
        What becomes of the sums before they are rounded: ``swiglu``, ``swiglu_oai`` (with `alpha` and `limit`),
        ``geglu``, ``geglu_tanh`` or ``relu2``, as `Experts` has them. But for ``relu2`` b has gate rows, then as many
        up rows, N/2 a multiple of 8, and D has N/2 columns.
    out_dtype
        bfloat16, float16 or float32, by name or as the framework's dtype. By default that of `out`, or of a plain a;
        for a quantized a bfloat16 in torch and float32 in NumPy.
    out
        [*batch, M, N] on a's device to write into. Rows may be strided by multiples of 16 bytes. Its memory must not
        overlap that of an operand.

    Returns
    -------
    torch.Tensor or numpy.ndarray
        [*batch, M, N].

    Raises
    ------
    FormatError, InvalidArgumentError
        If an argument does not fit; the message says what was given and what is expected.
    MissingKernelError
        If no bundle holds the kernel and compiling is forbidden or impossible.

    Notes
    -----
    torch CUDA tensors run the kernels, with sums in fp32; torch CPU tensors and NumPy arrays run the reference, in
    float64. The same call gives the same bits each time. nvfp4's global scales divide the product; one that is not
    positive and finite makes it NaN. A plain operand whose rows are not contiguous and aligned to 16 bytes is copied.
    An activation is part of the kernel on compute capability 9.0 for 16-bit operands, but for ``geglu``: in fp32, of
    sums that were not rounded. Elsewhere another launch follows the product's, which is rounded to D's type between;
    that has to be bfloat16 or float16.
    No gradient flows through. Tolerances: ``docs/numerics.md``.

    Examples
    --------
    >>> import numpy as np, warpsmith as ws
    >>> w = ws.quantize(np.ones((8, 32), np.float32), "mxfp4")
    >>> ws.gemm(np.ones((2, 32), np.float16), w).tolist()[0][:2]
    [32.0, 32.0]
    """
    chosen = None if activation is None else activation_of(activation, alpha, limit)
    gpu = _runs_on_gpu(a, b)
    if gpu:
        return _cuda().dense(a, b, bias, out_dtype, out, chosen)
    shape = check_dense(a, b)
    check_bias(bias, a, shape)
    host = _host()
    return host.dense(a, b, shape, bias, host.result_name(a, out_dtype, out), out, chosen)


def grouped_gemm(
    a: Any,
    b: Any,
    *,
    offsets: Any = None,
    counts: Any = None,
    bias: Any = None,
    activation: str | None = None,
    alpha: float = 1.702,
    limit: float = 7.0,
    out_dtype: Any = None,
    out: Any = None,
) -> Any:
    """Multiply each group of rows of A with a B of its own, as the experts of an MoE layer do.

    Parameters
    ----------
    a
        With `offsets`, [M, K]: the rows of all groups, one group after the other. With `counts`, [groups, capacity, K].
        A `QTensor` with 128x4 scales must have been quantized with the same offsets.
    b
        [groups, N, K]. Formats, N and K as for `gemm`; a quantized b may have one global scale a group.
    offsets
        [groups + 1] int32 or int64 on a's device; group g is rows offsets[g] to offsets[g + 1]. By default those of
        a grouped `QTensor`.
    counts
        [groups] int32 or int64 on a's device: how many rows of each group are there.
    bias
        [N] or [groups, N].
    activation, alpha, limit
        As for `gemm`.
    out_dtype, out
        As for `gemm`, of shape [M, N] or [groups, capacity, N]; with an activation that has a gate, N/2.

    Returns
    -------
    torch.Tensor or numpy.ndarray
        [M, N] or [groups, capacity, N]. Rows of no group, and rows from a group's count on, are not written; without
        `out` they are zero on the host and undefined on a GPU.

    Raises
    ------
    FormatError, InvalidArgumentError, MissingKernelError
        As `gemm`. Offsets and counts on the host are checked: offsets must start at 0, never fall and end at M or
        before, counts lie in 0..capacity.

    Notes
    -----
    Offsets and counts on a GPU are read there, by the kernel: no copy to the host, no synchronisation. They are clamped
    to 0..M (0..capacity), and a group that would end before it starts is empty, so that wrong ones give wrong rows but
    touch nothing else.

    Examples
    --------
    >>> import numpy as np, warpsmith as ws
    >>> a, b = np.ones((3, 8), np.float16), np.ones((2, 8, 8), np.float16)
    >>> ws.grouped_gemm(a, b, offsets=np.array([0, 1, 3]))[:, 0].tolist()
    [8.0, 8.0, 8.0]
    """
    chosen = None if activation is None else activation_of(activation, alpha, limit)
    gpu = _runs_on_gpu(a, b)
    if offsets is None and counts is None and isinstance(a, QTensor):
        offsets = a.offsets
    if gpu:
        return _cuda().grouped(a, b, offsets, counts, bias, out_dtype, out, chosen)
    shape = check_grouped(a, b, offsets, counts)
    check_bias(bias, a, shape)
    index = offsets if counts is None else counts
    host = _host()
    return host.grouped(a, b, shape, index, bias, host.result_name(a, out_dtype, out), out, chosen)
