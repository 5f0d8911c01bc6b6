# SPDX-License-Identifier: Apache-2.0
"""Quantize, SwiGLU and quantize, dequantize, global scale: the public operations of `fp4_quantization`."""

from __future__ import annotations

import math
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from warpsmith.errors import InvalidArgumentError
from warpsmith.ops.gated_order import ungated
from warpsmith.ops.prepared_order import restored
from warpsmith.ops.qtensor import QTensor, dtype_name, is_torch

_OUTPUTS = ("bfloat16", "float16", "float32")


def on_gpu(array: Any, what: str) -> bool:
    """Whether `array` is a torch CUDA tensor; refuses what is neither a torch tensor nor a NumPy array."""
    if isinstance(array, np.ndarray):
        return False
    if not is_torch(array):
        raise InvalidArgumentError(f"{what} is a {type(array).__name__}; expected a torch tensor or a NumPy array")
    kind = array.device.type
    if kind not in ("cuda", "cpu"):
        raise InvalidArgumentError(f"{what} is on {array.device}; expected a CUDA or CPU tensor")
    return bool(kind == "cuda")


@cache
def _host() -> ModuleType:
    """The half that runs the reference, imported when the first host array comes."""
    from warpsmith.ops import host

    return host


@cache
def _cuda() -> ModuleType:
    """The half that needs torch, imported when the first CUDA tensor comes."""
    from warpsmith.ops import cuda

    return cuda


def quantize(
    x: Any,
    format: str,
    *,
    scale_layout: str = "linear",
    global_scale: Any = None,
    rounding: str = "ceil",
    offsets: Any = None,
    out: QTensor | None = None,
) -> QTensor:
    """Quantize a tensor to a block-scaled format.

    Parameters
    ----------
    x
        [*batch, M, K], bfloat16, float16 or float32; M ≥ 0, K a multiple of the format's block. Rows may be strided;
        the last dimension must be contiguous (it is copied if not). torch CUDA tensors run the kernels; torch CPU
        tensors and NumPy arrays run the reference, bit for bit the same.
    format
        ``nvfp4``, ``mxfp4``, ``mxfp8``, ``fp8_block`` (scales for 1×128) or ``fp8_block_128x128`` (for weights).
    scale_layout
        ``linear``; ``128x4`` (one-byte scales, as cuBLASLt and CUTLASS read them); ``m_major`` (fp8_block).
    global_scale
        nvfp4 only: fp32, one element on x's device (or one a group, with `offsets`), or a number (calls share its copy
        on the device: do not write to the result's). By default 2688 / amax(x), computed on the device in one more
        pass; pass a calibrated one where speed counts.
    rounding
        mxfp4 and mxfp8: ``ceil`` (no element saturates) or ``floor`` (OCP).
    offsets
        [G + 1] int32 or int64 row offsets of G groups, on x's device, starting at 0 and not decreasing. With ``128x4``
        each group's scales get their own 128-row tiles. Rows beyond the last offset are not written; without
        `out`, their codes and linear scales are zero on the host and undefined on a GPU.
    out
        A contiguous `QTensor` of the same format, shape, layout and number of groups on x's device to write into. Its
        memory must not overlap that of x.

    Returns
    -------
    QTensor

    Raises
    ------
    FormatError, InvalidArgumentError
        If an argument does not fit; the message says what was given and what is expected.
    MissingKernelError
        If no bundle holds the kernel and compiling is forbidden or impossible.

    Notes
    -----
    A block with a NaN or infinity gets a NaN scale and zero codes: it dequantizes to NaN, and only it. A global scale
    on the device that is not positive and finite gives NaN scales everywhere. Offsets on the device are not checked:
    wrong ones give wrong scales and codes, but touch nothing else. No gradient flows through. Formulas:
    ``docs/numerics.md``.

    Examples
    --------
    >>> import numpy as np, warpsmith as ws
    >>> q = ws.quantize(np.ones((4, 32), np.float32), "mxfp4")
    >>> q.data.shape, q.scales.shape
    ((4, 16), (4, 1))
    """
    run = _cuda().quantize if on_gpu(x, "x") else _host().quantize
    made: QTensor = run(x, format, scale_layout, global_scale, rounding, offsets, out, False)
    return made


def silu_and_mul_quantize(
    x: Any,
    format: str,
    *,
    scale_layout: str = "linear",
    global_scale: Any = None,
    rounding: str = "ceil",
    offsets: Any = None,
    out: QTensor | None = None,
) -> QTensor:
    """Quantize silu(gate) · up in one pass.

    Parameters
    ----------
    x
        [*batch, M, 2·K]: the gate half, then the up half.
    format, scale_layout, global_scale, rounding, offsets, out
        As for `quantize`, for the result [*batch, M, K]; but nvfp4 asks for `global_scale`, whose default would take a
        second pass over the activation.

    Returns
    -------
    QTensor

    Raises
    ------
    FormatError, InvalidArgumentError, MissingKernelError
        As `quantize`.

    Notes
    -----
    The activation is computed and quantized in fp32, without rounding to the input's type between.
    """
    run = _cuda().quantize if on_gpu(x, "x") else _host().quantize
    made: QTensor = run(x, format, scale_layout, global_scale, rounding, offsets, out, True)
    return made


def dequantize(q: QTensor, dtype: Any = None, *, out: Any = None) -> Any:
    """Turn a `QTensor` back into floating point.

    Parameters
    ----------
    q
        The quantized tensor.
    dtype
        ``bfloat16``, ``float16`` or ``float32``, by name or as the framework's dtype; by default bfloat16 for torch and
        float32 for NumPy.
    out
        A contiguous tensor [*batch, M, K] to write into; its dtype then is the default.

    Returns
    -------
    torch.Tensor or numpy.ndarray
        [*batch, M, K]; q · scale (nvfp4: / global_scale), rounded once to `dtype`. Rows of a grouped tensor that belong
        to no group are zero, or left alone in `out`.

    Raises
    ------
    InvalidArgumentError
        If `q` is not a `QTensor`, the dtype is another, or `out` does not fit.
    """
    if not isinstance(q, QTensor):
        raise InvalidArgumentError(f"q is a {type(q).__name__}; expected a QTensor, as quantize returns it")
    q = ungated(restored(q))
    if q.offsets is None and q.global_scale is not None and math.prod(q.global_scale.shape) > 1:
        raise InvalidArgumentError(
            f"q has a global scale for each of its {math.prod(q.global_scale.shape)} batch entries; expected one: "
            "dequantize the entries one by one"
        )
    gpu = on_gpu(q.data, "q.data")
    if dtype is not None:
        name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", str(dtype)).rpartition(".")[2]
    elif hasattr(out, "dtype"):
        name = dtype_name(out)
    else:
        name = "bfloat16" if is_torch(q.data) else "float32"
    if name not in _OUTPUTS:
        raise InvalidArgumentError(f"dtype {name!r} is unknown; expected one of {', '.join(_OUTPUTS)}")
    if out is not None:
        _check_output(q, name, out)
    return _cuda().dequantize(q, name, out) if gpu else _host().dequantize(q, name, out)


def _check_output(q: QTensor, name: str, out: Any) -> None:
    kind = "torch tensor" if is_torch(q.data) else "NumPy array"
    alike = is_torch(out) if is_torch(q.data) else isinstance(out, np.ndarray)
    if not alike or dtype_name(out) != name or tuple(out.shape) != q.shape:
        given = (
            f"{type(out).__name__} {dtype_name(out)} {list(out.shape)}" if hasattr(out, "dtype") else type(out).__name__
        )
        raise InvalidArgumentError(f"out is {given}; expected a {kind}, {name} {list(q.shape)}")
    contiguous = out.is_contiguous() if hasattr(out, "is_contiguous") else out.flags.c_contiguous
    if not contiguous:
        raise InvalidArgumentError("out is not contiguous; expected a contiguous tensor")
    if hasattr(out, "get_device") and out.get_device() != q.data.get_device():
        raise InvalidArgumentError(f"out is on {out.device} and q on {q.device}; expected the same device")


def global_scale(x: Any) -> Any:
    """The default nvfp4 global scale of a tensor: 448 · 6 / amax over its finite values, 1 if that amax is 0.

    Parameters
    ----------
    x
        [*batch, M, K], bfloat16, float16 or float32.

    Returns
    -------
    torch.Tensor or numpy.ndarray
        fp32 [1] on x's device; nothing is copied to the host.

    Raises
    ------
    FormatError, InvalidArgumentError
        If x is not such a tensor.
    """
    return _cuda().default_scale(x) if on_gpu(x, "x") else _host().global_scale(x)
