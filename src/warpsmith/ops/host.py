# SPDX-License-Identifier: Apache-2.0
"""Operations on NumPy arrays and torch CPU tensors: the reference, in the arrays' own framework."""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np

from warpsmith import reference
from warpsmith.catalog.formats import LINEAR, M_MAJOR, get_format
from warpsmith.ops.checks import check_host_scale, check_out, check_problem, need_scale, no_scale
from warpsmith.ops.qtensor import QTensor, dtype_name, is_torch, trusted

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def to_numpy(array: Any) -> np.ndarray[Any, Any]:
    """View a torch CPU tensor (or NumPy array) as NumPy, with one-byte floats as their bits."""
    if isinstance(array, np.ndarray):
        return array.view(np.uint8) if array.dtype.itemsize == 1 else array
    torch = sys.modules["torch"]
    name = dtype_name(array)
    if name == "bfloat16":
        return array.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
    if array.element_size() == 1:
        return array.detach().view(torch.uint8).numpy()  # type: ignore[no-any-return]
    return array.detach().numpy()  # type: ignore[no-any-return]


def like(result: np.ndarray[Any, Any], template: Any, dtype: str = "") -> Any:
    """The result in the template's framework, its bytes viewed as `dtype`."""
    if not is_torch(template):
        return result.view(getattr(ml_dtypes, dtype)) if dtype.startswith(("float8", "bfloat")) else result
    torch = sys.modules["torch"]
    if dtype == "bfloat16":
        return torch.from_numpy(result.view(np.int16)).view(torch.bfloat16)
    made = torch.from_numpy(result)
    return made.view(getattr(torch, dtype)) if dtype.startswith("float8") else made


def quantize(
    x: Any,
    format: str,
    scale_layout: str,
    global_scale: Any,
    rounding: str,
    offsets: Any,
    out: QTensor | None,
    silu: bool,
) -> QTensor:
    """Quantize on the host; arguments as in `warpsmith.quantize`."""
    spec = get_format(format)
    shape = check_problem(spec, x, scale_layout, rounding, offsets, silu=silu)
    values = to_numpy(x)
    offs = None if offsets is None else to_numpy(offsets)
    scale = None
    if spec.has_global_scale:
        if global_scale is None:
            need_scale(silu)
            scale = np.asarray([reference.default_global_scale(values)], np.float32)
        else:
            scale = check_host_scale(global_scale, 0 if offs is None else len(offs) - 1)
    elif global_scale is not None:
        no_scale(format)
    function = reference.silu_and_mul_quantize if silu else reference.quantize
    argument = None if scale is None else scale if scale.size > 1 else scale[0]
    codes, scales = function(
        values, format, scale_layout=scale_layout, global_scale=argument, rounding=rounding, offsets=offs
    )
    data = like(codes, x, "float8_e4m3fn" if spec.element_bits == 8 else "")
    typed = like(scales, x, {"ue4m3": "float8_e4m3fn", "ue8m0": "float8_e8m0fnu", "fp32": ""}[spec.scale])
    kept = None if scale is None else like(scale, x)
    made = trusted(data, typed, format, shape, scale_layout, kept, offsets)
    return made if out is None else _fill(out, made)


def _fill(out: QTensor, made: QTensor) -> QTensor:
    """Copy into `out`, but for the rows that belong to no group."""
    check_out(out, made.format, made.shape, made.scale_layout, made.offsets, made.device)
    old_data, old_scales = to_numpy(out.data), to_numpy(out.scales)
    data, scales = to_numpy(made.data), to_numpy(made.scales)
    if made.offsets is not None:
        idle = _idle_rows(made)
        data[idle] = old_data[idle]
        if made.scale_layout == LINEAR:
            scales[idle] = old_scales[idle]
        elif made.scale_layout == M_MAJOR:
            scales[:, idle] = old_scales[:, idle]
    old_data[...] = data
    old_scales[...] = scales
    return trusted(out.data, out.scales, made.format, made.shape, made.scale_layout, made.global_scale, made.offsets)


def _idle_rows(q: QTensor) -> slice:
    """The rows of a grouped tensor that belong to no group."""
    return slice(int(q.offsets[-1]), q.shape[0])


def dequantize(q: QTensor, dtype: str, out: Any) -> Any:
    """Dequantize on the host to ``bfloat16``, ``float16`` or ``float32``."""
    scale = None if q.global_scale is None else to_numpy(q.global_scale).reshape(-1)
    result = reference.dequantize(
        to_numpy(q.data),
        to_numpy(q.scales),
        q.format,
        shape=q.shape,
        scale_layout=q.scale_layout,
        global_scale=None if scale is None else scale if scale.size > 1 else scale[0],
        offsets=None if q.offsets is None else to_numpy(q.offsets),
        packing=q.packing,
        dtype=_DTYPES[dtype],
    )
    if out is not None:
        target = to_numpy(out)
        if q.offsets is not None:
            result[_idle_rows(q)] = target[_idle_rows(q)]
        target[...] = result
        return out
    return like(result, q.data, "bfloat16" if dtype == "bfloat16" else "")


def global_scale(x: Any) -> Any:
    """The default global scale of a host array, one fp32 element."""
    return like(np.asarray([reference.default_global_scale(to_numpy(x))], np.float32), x)
