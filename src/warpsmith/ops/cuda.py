# SPDX-License-Identifier: Apache-2.0
"""Operations on torch CUDA tensors: check once, plan once, launch many.

A call looks its plan up by what makes it (shapes, strides, dtypes, options), fills in pointers, and launches. What a
plan does not cover is checked in each call: `out`, scale and offsets.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from warpsmith.catalog import CATALOG
from warpsmith.catalog.formats import Format, get_format
from warpsmith.catalog.spec import Problem
from warpsmith.errors import FormatError, InvalidArgumentError
from warpsmith.ops import quantization_args as arguments
from warpsmith.ops.checks import (
    INPUT_NAMES,
    NUMBERS,
    check_offsets,
    check_out,
    check_problem,
    check_scale_value,
    need_scale,
    no_scale,
)
from warpsmith.ops.preparation import unpacked
from warpsmith.ops.qtensor import QTensor, dtype_name, trusted
from warpsmith.ops.state import runtime
from warpsmith.runtime.launch import PreparedKernel

_MAX_PLANS = 4096
_UNGROUPED = arguments.Groups()
_SCALE_DTYPES = {"ue4m3": torch.float8_e4m3fn, "ue8m0": torch.float8_e8m0fnu, "fp32": torch.float32}
_OFFSET_DTYPES = (torch.int32, torch.int64)
_current_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # a CPU build of torch has none


class _Maxima(NamedTuple):
    """What goes before where a matrix has one scale; `words` are those of its result."""

    kernel: PreparedKernel
    grid: tuple[int, int, int]
    tail: tuple[int, ...]
    words: int


class _Plan(NamedTuple):
    """What a call needs besides pointers; `kernel` is None when there is nothing to do."""

    kernel: PreparedKernel | None
    grid: tuple[int, int, int]
    tail: tuple[int, ...]
    shape: tuple[int, ...]
    data_shape: tuple[int, ...]
    data_dtype: torch.dtype
    scale_shape: tuple[int, ...]
    scale_dtype: torch.dtype
    spec: Format
    row_blocks: bool
    maxima: _Maxima | None = None


_plans: dict[tuple[Any, ...], _Plan] = {}
_scalars: dict[tuple[int, int, float], torch.Tensor] = {}


def _remember(plans: dict[Any, Any], key: Any, plan: Any) -> Any:
    """Keep a plan; a full table starts anew rather than growing with every shape a server ever sees."""
    if len(plans) >= _MAX_PLANS:
        plans.clear()
    plans[key] = plan
    return plan


def _rows(x: torch.Tensor) -> tuple[torch.Tensor, int, int, int]:
    """The tensor as [batches, M, K] with one batch stride: (tensor, batches, row stride, batch stride).

    Copies only where the last dimension is not contiguous or the batch dimensions have no common stride.
    """
    if x.numel() == 0:  # whatever its strides, torch calls it contiguous
        return x, 0, 0, 0
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        x = x.contiguous()
    shape, strides = x.shape, x.stride()
    batches, batch_stride = 1, 0
    for size, stride in zip(reversed(shape[:-2]), reversed(strides[:-2]), strict=True):
        if size == 1:
            continue
        if batches == 1:
            batches, batch_stride = size, stride
        elif stride == batches * batch_stride:
            batches *= size
        else:
            return _rows(x.contiguous())
    row_stride = strides[-2] if shape[-2] > 1 else shape[-1]
    return x, batches, row_stride, batch_stride


def _scalar(value: Any, device: int) -> torch.Tensor:
    """A device copy of a host scale.

    It is kept for its stream alone, which fills it before any use, and for good, since a captured graph may hold its
    address. What a capture fills, or a full table has no place for, lives as long as the result.
    """
    check_scale_value(value)
    key = device, _current_stream(device), float(value)
    found = _scalars.get(key)
    if found is None:
        with torch.cuda.device(device):
            found = torch.full((1,), key[2], dtype=torch.float32, device="cuda")
            if len(_scalars) < _MAX_PLANS and not torch.cuda.is_current_stream_capturing():
                _scalars[key] = found
    return found


def _device_scale(given: Any, device: int, groups: int) -> torch.Tensor:
    """Check a global scale, or put a number on the device."""
    if isinstance(given, NUMBERS):
        return _scalar(given, device)
    if not isinstance(given, torch.Tensor):
        raise InvalidArgumentError(f"global_scale is a {type(given).__name__}; expected a float32 tensor or a number")
    if given.dtype is not torch.float32:
        raise FormatError(f"global_scale is {dtype_name(given)}; expected float32")
    if given.get_device() != device:
        raise FormatError(f"global_scale is on {given.device} and x on cuda:{device}; expected the same device")
    count = given.numel()
    if count != 1 and count != max(groups, 1):
        raise FormatError(f"global_scale has {count} elements; expected 1{f' or {groups}' if groups else ''}")
    return given if given.is_contiguous() else given.contiguous()


def _checked_groups(offsets: Any, scale: Any, x: torch.Tensor, format: str) -> arguments.Groups:
    """The grouping that offsets ask for, once they are what a kernel can read; words are made for a misfit only.

    Whether x can be grouped is for the plan to find out.
    """
    if (
        isinstance(offsets, torch.Tensor) and offsets.dtype in _OFFSET_DTYPES and offsets.dim() == 1
        and offsets.shape[0] > 1 and offsets.get_device() == x.get_device() and offsets.is_contiguous()
    ):  # fmt: skip
        return _groups(offsets, scale)
    check_offsets(get_format(format), offsets, x, tuple(x.shape))
    raise FormatError("offsets is not contiguous; expected a contiguous tensor")


def quantize(
    x: torch.Tensor,
    format: str,
    scale_layout: str,
    global_scale: Any,
    rounding: str,
    offsets: torch.Tensor | None,
    out: QTensor | None,
    silu: bool,
) -> QTensor:
    """Quantize on the GPU; arguments as in `warpsmith.quantize`."""
    device = x.get_device()
    pointer = x.data_ptr()
    groups = _UNGROUPED if offsets is None else _checked_groups(offsets, global_scale, x, format)
    key = (device, x.shape, x.stride(), x.dtype, format, scale_layout, rounding, silu, groups, pointer & 15)
    try:
        plan = _plans.get(key)
    except TypeError:  # an option that cannot be hashed is none of those that exist
        plan = None
    if plan is None:
        shape = check_problem(get_format(format), x, scale_layout, rounding, offsets, silu=silu)
        rows = _rows(x)[0]
        if rows is not x:
            return quantize(rows, format, scale_layout, global_scale, rounding, offsets, out, silu)
        plan = _remember(_plans, key, _plan_quantize(x, format, scale_layout, rounding, silu, shape, groups))
    scale = None
    if plan.spec.has_global_scale:
        if global_scale is None:
            need_scale(silu)
            scale = default_scale(x)
        else:
            scale = _device_scale(global_scale, device, groups.number)
    elif global_scale is not None:
        no_scale(format)
    if out is None:
        data = torch.empty(plan.data_shape, dtype=plan.data_dtype, device=x.device)
        scales = torch.empty(plan.scale_shape, dtype=plan.scale_dtype, device=x.device)
    else:
        data, scales = _parts(out, x, plan, scale_layout, offsets, groups.number)
    kernel = plan.kernel
    if kernel is not None:
        codes, scale_pointer = data.data_ptr(), scales.data_ptr()
        tail = plan.tail
        if (codes | scale_pointer) & 7:
            tail = arguments.without_vector_stores(tail)
        pointers: tuple[int, ...] = (pointer, codes, scale_pointer)
        if plan.row_blocks:
            pointers += (
                0 if scale is None else scale.data_ptr(),
                0 if offsets is None else offsets.data_ptr(),
            )
        elif plan.spec.whole:
            partials = None if plan.maxima is None else _find_maxima(plan.maxima, x)
            pointers += (0 if partials is None else partials.data_ptr(),)
        kernel.launch(plan.grid, pointers + tail, _current_stream(device))
    elif plan.spec.whole:
        scales.fill_(1.0)
    elif scales.numel():  # no rows, but groups: their tiles are padding
        scales.view(torch.uint8).zero_()
    return trusted(data, scales, format, plan.shape, scale_layout, scale, offsets)


def _find_maxima(maxima: _Maxima, x: torch.Tensor) -> torch.Tensor:
    partials = torch.empty(maxima.words, dtype=torch.int32, device=x.device)
    pointers = x.data_ptr(), 0, 0, partials.data_ptr()
    maxima.kernel.launch(maxima.grid, pointers + maxima.tail, _current_stream(x.get_device()))
    return partials


def _parts(
    out: Any, x: torch.Tensor, plan: _Plan, scale_layout: str, offsets: torch.Tensor | None, groups: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Data and scales of `out`, once it is what the operation would make; words are made for a misfit only."""
    if type(out) is QTensor:
        data, scales, own = out.data, out.scales, out.offsets
        if (
            out.shape == plan.shape and out.format == plan.spec.name and out.scale_layout == scale_layout
            and (0 if own is None else own.shape[0] - 1) == groups
            and isinstance(data, torch.Tensor) and data.get_device() == x.get_device()
            and data.is_contiguous() and scales.is_contiguous()
        ):  # fmt: skip
            return data, scales
    check_out(out, plan.spec.name, plan.shape, scale_layout, offsets, str(x.device))
    return out.data, out.scales


def _plan_quantize(
    x: torch.Tensor,
    format: str,
    scale_layout: str,
    rounding: str,
    silu: bool,
    shape: tuple[int, ...],
    groups: arguments.Groups,
) -> _Plan:
    spec = get_format(format)
    *batch, m, k = shape
    data_dtype = torch.uint8 if spec.element_bits == 4 else torch.float8_e4m3fn
    data_shape = (*shape[:-1], spec.data_columns(k))
    scale_shape = spec.scale_shape(scale_layout, tuple(batch), m, k, groups.number)
    row_blocks = spec.block[0] == 1 and not spec.whole
    result = (shape, data_shape, data_dtype, scale_shape, _SCALE_DTYPES[spec.scale], spec, row_blocks)
    if 0 in shape:
        return _Plan(None, (0, 0, 0), (), *result)
    _, batches, row_stride, batch_stride = _rows(x)
    element_type = INPUT_NAMES[dtype_name(x)]
    operation = "silu_and_mul_quantize" if silu else "quantize"
    fields = {"format": format, "input": element_type, "layout": scale_layout}
    kernel = runtime().prepare(Problem.of(operation, fields, {"m": m * batches, "k": k}), x.get_device())
    strides = {"row_stride": row_stride, "batches": batches, "batch_stride": batch_stride, "x_address": x.data_ptr()}
    if spec.whole:
        launch, *first = arguments.whole_launches(format, element_type, m=m, k=k, **strides)
        maxima = None
        if first:
            before = Problem.of("matrix_amax", {"input": element_type}, {"m": m * batches, "k": k})
            words = first[0].grid[0] * batches
            maxima = _Maxima(runtime().prepare(before, x.get_device()), first[0].grid, first[0].tail, words)
        return _Plan(kernel, launch.grid, launch.tail, *result, maxima)
    if spec.block[0] > 1:
        launch = arguments.quantize_128x128_launch(element_type, m=m, k=k, **strides)
    else:
        launch = arguments.quantize_launch(
            format,
            element_type,
            layout=scale_layout,
            passes=passes(kernel),
            m=m,
            k=k,
            rounding=rounding,
            groups=groups,
            flat=not silu,
            **strides,
        )
    return _Plan(kernel, launch.grid, launch.tail, *result)


def passes(kernel: PreparedKernel) -> int:
    """The passes a thread of a prepared quantize kernel makes: its tile is named for them."""
    return int(CATALOG.kernel(kernel.cubin.kernel).variant(kernel.cubin.variant).tile[1:])


class _DequantizePlan(NamedTuple):
    kernel: PreparedKernel
    grid: tuple[int, int, int]
    tail: tuple[int, ...]
    rows: int  # of a matrix whose one scale has to be repeated for each; else 0


_dequantize_plans: dict[tuple[Any, ...], _DequantizePlan] = {}


def _plan_dequantize(q: QTensor, output: str, groups: arguments.Groups, device: int) -> _DequantizePlan:
    *batch, m, k = q.shape
    batches = math.prod(batch)
    fields = {"format": q.format, "output": output, "layout": q.scale_layout}
    kernel = runtime().prepare(Problem.of("dequantize", fields, {"m": m * batches, "k": k}), device)
    launch = arguments.dequantize_launch(q.format, layout=q.scale_layout, m=m, k=k, batches=batches, groups=groups)
    return _DequantizePlan(kernel, launch.grid, launch.tail, m if get_format(q.format).whole == "tensor" else 0)


def dequantize(q: QTensor, dtype: str, out: torch.Tensor | None) -> torch.Tensor:
    """Dequantize on the GPU; arguments as in `warpsmith.dequantize`, the dtype by name."""
    device, offsets, scale = q.data.get_device(), q.offsets, q.global_scale
    groups = _groups(offsets, scale)
    data = unpacked(q.data) if q.packing else q.data
    if out is None:
        make = torch.empty if offsets is None else torch.zeros
        out = make(q.shape, dtype=getattr(torch, dtype), device=q.data.device)
    if 0 in q.shape:
        return out
    key = (device, q.shape, q.format, q.scale_layout, dtype, groups)
    plan = _dequantize_plans.get(key)
    if plan is None:
        plan = _remember(_dequantize_plans, key, _plan_dequantize(q, INPUT_NAMES[dtype], groups, device))
    # Copies, where there are any, have to live until the launch.
    codes, scales = data.contiguous(), q.scales.contiguous()
    if plan.rows:
        scales = scales.view(-1, 1).expand(-1, plan.rows).contiguous()
    scale = None if scale is None else scale.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    pointers = (
        codes.data_ptr(),
        scales.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        0 if offsets is None else offsets.data_ptr(),
        out.data_ptr(),
    )
    aligned = not ((pointers[0] & 7) | (pointers[4] & 15))
    tail = plan.tail if aligned else arguments.without_vectors(plan.tail)
    plan.kernel.launch(plan.grid, (*pointers, *tail), _current_stream(device))
    return out


def _groups(offsets: torch.Tensor | None, scale: Any) -> arguments.Groups:
    if offsets is None:
        return _UNGROUPED
    count = offsets.shape[0] - 1
    several = isinstance(scale, torch.Tensor) and scale.numel() > 1
    return arguments.Groups(count, offsets.dtype is torch.int64, several)


def default_scale(x: torch.Tensor) -> torch.Tensor:
    """2688 / amax of a CUDA tensor's finite values, fp32 [1], computed on its device."""
    device = x.get_device()
    name = dtype_name(x)
    if name not in INPUT_NAMES:
        raise FormatError(f"x is {name}; expected bfloat16, float16 or float32")
    if x.dim() < 2:
        raise FormatError(f"x has shape {list(x.shape)}; expected [*batch, M, K] (use x[None] for one row)")
    if x.numel() == 0:
        return torch.ones(1, dtype=torch.float32, device=x.device)
    x, batches, row_stride, batch_stride = _rows(x)
    m, k = x.shape[-2:]
    shared = runtime()
    fields = {"input": INPUT_NAMES[name]}
    first = shared.prepare(Problem.of("amax_partial", fields, {"m": m * batches, "k": k}), device)
    launch = arguments.amax_launch(
        INPUT_NAMES[name],
        m=m,
        k=k,
        row_stride=row_stride,
        batches=batches,
        batch_stride=batch_stride,
        x_address=x.data_ptr(),
    )
    count = launch.grid[0]
    second = shared.prepare(Problem.of("global_scale", {}, {"count": arguments.MAX_PARTIALS}), device)
    partials = torch.empty(count, dtype=torch.int32, device=x.device)
    scale = torch.empty(1, dtype=torch.float32, device=x.device)
    stream = _current_stream(device)
    first.launch(launch.grid, (x.data_ptr(), partials.data_ptr(), *launch.tail), stream)
    final = arguments.global_scale_launch(count)
    second.launch(final.grid, (partials.data_ptr(), scale.data_ptr(), *final.tail), stream)
    return scale
