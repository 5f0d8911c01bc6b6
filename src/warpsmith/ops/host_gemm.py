# SPDX-License-Identifier: Apache-2.0
"""`gemm` and `grouped_gemm` of NumPy arrays and torch CPU tensors: the reference, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from warpsmith import reference
from warpsmith.ops import host
from warpsmith.ops.gemm_activation import Activation
from warpsmith.ops.gemm_checks import OUT_NAMES, Shape, check_out, data_of, out_name, overlap
from warpsmith.ops.prepared_order import restored
from warpsmith.ops.qtensor import QTensor, is_torch
from warpsmith.reference.arithmetic import cast
from warpsmith.reference.moe import activate

Array = np.ndarray[Any, Any]


def result_name(a: Any, out_dtype: Any, out: Any) -> str:
    """The dtype of the result; for a quantized a bfloat16 in torch, float32 in NumPy."""
    return out_name(a, out_dtype, out, "bfloat16" if is_torch(data_of(a)) else "float32")


def dense(a: Any, b: Any, shape: Shape, bias: Any, name: str, out: Any, activation: Activation | None = None) -> Any:
    """Multiply batches; arguments are checked."""
    b = restored(b) if isinstance(b, QTensor) else b
    alpha = _alpha(a, shape.out[:-2]) * _alpha(b, shape.out[:-2])
    return _run(reference.gemm, a, b, shape, bias, name, out, alpha, (), activation)


def grouped(
    a: Any, b: Any, shape: Shape, index: Any, bias: Any, name: str, out: Any, activation: Activation | None = None
) -> Any:
    """Multiply groups of rows, or masked batches; arguments are checked but for the values of `index`."""
    b = restored(b) if isinstance(b, QTensor) else b
    groups = shape.size.batches
    alpha = np.broadcast_to(_alpha(a, (groups,)) * _alpha(b, (groups,)), (groups,))
    function = reference.masked_gemm if shape.size.mode == "masked" else reference.grouped_gemm
    every_bias = None if bias is None else np.broadcast_to(_values(bias), (groups, shape.size.n))
    return _run(function, a, b, shape, every_bias, name, out, alpha, (host.to_numpy(index),), activation)


def _run(
    function: Any,
    a: Any,
    b: Any,
    shape: Shape,
    bias: Any,
    name: str,
    out: Any,
    alpha: Array,
    index: tuple[Array, ...],
    activation: Activation | None,
) -> Any:
    if activation is not None:
        shape = shape._replace(out=(*shape.out[:-1], activation.columns(shape.size.n)))
    if out is not None:
        check_out(out, a, shape.out)
        _refuse_overlap(out, a, b, bias)
    values = None if bias is None else _values(bias)
    dtype = OUT_NAMES[name] if activation is None else None
    result = function(_decoded(a), _decoded(b), *index, bias=values, alpha=alpha, out_dtype=dtype)
    if activation is not None:
        result = activate(result, activation.name, alpha=activation.alpha, limit=activation.limit)
        result = cast(result, OUT_NAMES[name])
    if out is None:
        return host.like(result, data_of(a), "bfloat16" if name == "bfloat16" else "")
    written = _written(shape, index)
    target = host.to_numpy(out)
    target[written] = result[written]
    return out


def _values(x: Any) -> Array:
    """A plain array in float64."""
    return (x if isinstance(x, np.ndarray) else host.to_numpy(x)).astype(np.float64)


def _decoded(x: Any) -> Array:
    """An operand in float64, without its global scale: q · scale is exact, and alpha has the rest."""
    if not isinstance(x, QTensor):
        return _values(x)
    return reference.decode_float64(
        host.to_numpy(x.data),
        host.to_numpy(x.scales),
        x.format,
        shape=x.shape,
        scale_layout=x.scale_layout,
        offsets=None if x.offsets is None else host.to_numpy(x.offsets),
        packing=x.packing,
    )


def _alpha(x: Any, batch: tuple[int, ...]) -> Array:
    """1 / the global scales of an operand: one, or one a batch entry or group; NaN where that is not a scale."""
    if not isinstance(x, QTensor) or x.global_scale is None:
        return np.ones((), np.float64)
    scales = host.to_numpy(x.global_scale).astype(np.float64).reshape(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors: Array = np.where(np.isfinite(scales) & (scales > 0), 1 / scales, np.nan)
    return factors.reshape(batch) if factors.size > 1 else factors.reshape(())


def _written(shape: Shape, index: tuple[Array, ...]) -> Any:
    """The rows of D that belong to a batch or group."""
    if not index:
        return ...
    if shape.size.mode == "grouped":
        return slice(0, int(index[0][-1]))
    return np.arange(shape.size.m) < index[0][:, None]


def _refuse_overlap(out: Any, a: Any, b: Any, bias: Any) -> None:
    target = host.to_numpy(out)
    for what, x in (("a", a), ("b", b), ("bias", bias)):
        parts = (x.data, x.scales) if isinstance(x, QTensor) else () if x is None else (x,)
        if any(np.may_share_memory(target, host.to_numpy(part)) for part in parts):
            raise overlap(what)
