# SPDX-License-Identifier: Apache-2.0
"""What `gemm` and `grouped_gemm` check of their arguments, the same for every framework and device."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from warpsmith.catalog import CATALOG
from warpsmith.catalog.formats import FORMATS, LINEAR, TILED, is_gated
from warpsmith.catalog.gemm import (
    LINEAR_LAYOUT,
    N_MULTIPLE,
    PAIRS,
    PREPARED_LAYOUT,
    TILED_LAYOUT,
    k_multiple,
)
from warpsmith.catalog.spec import pair
from warpsmith.errors import FormatError, InvalidArgumentError
from warpsmith.ops.gemm_args import Operand, Size
from warpsmith.ops.qtensor import QTensor, device_of, dtype_name

PLAIN_NAMES = {"bfloat16": "bf16", "float16": "fp16"}
OUT_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class Shape(NamedTuple):
    """A checked product: its sizes, the shape of D without its columns folded, and the operands' formats."""

    size: Size
    out: tuple[int, ...]
    a: str
    b: str


def data_of(x: Any) -> Any:
    """The elements of an operand."""
    return x.data if isinstance(x, QTensor) else x


def format_of(x: Any, what: str) -> str:
    """The format of an operand: that of a `QTensor`, or ``bf16`` or ``fp16``.

    Raises
    ------
    FormatError
        If its dtype is another.
    """
    if isinstance(x, QTensor):
        return x.format
    name = dtype_name(x)
    if name not in PLAIN_NAMES:
        raise FormatError(f"{what} is {name}; expected bfloat16, float16 or a QTensor")
    return PLAIN_NAMES[name]


def _check_operands(a: Any, b: Any) -> tuple[str, str]:
    """The formats of operands that go together."""
    formats = format_of(a, "a"), format_of(b, "b")
    if formats not in PAIRS:
        name = pair(*formats)
        reason = next(p.reason for p in CATALOG.promises if (p.operation, p.format) == ("gemm", name))
        raise FormatError(f"a is {formats[0]} and b is {formats[1]}: {reason}")
    if device_of(data_of(a)) != device_of(data_of(b)):
        raise FormatError(f"a is on {device_of(data_of(a))} and b on {device_of(data_of(b))}; expected the same device")
    _check_packing(a, b)
    if isinstance(b, QTensor) and b.offsets is not None:
        raise FormatError("b is a grouped QTensor; expected weights [N, K], or [groups, N, K] with one B a group")
    for what, x in (("a", a), ("b", b)):
        if len(x.shape) < 2:
            raise FormatError(f"{what} has shape {list(x.shape)}; expected at least two dimensions, the last of them K")
    k, n = a.shape[-1], b.shape[-2]
    if b.shape[-1] != k:
        raise FormatError(f"a has K = {k} and b has K = {b.shape[-1]}; expected [..., M, K] and [..., N, K]")
    multiple = k_multiple(*formats)
    if k == 0 or k % multiple:
        raise FormatError(f"K = {k} must be a positive multiple of {multiple} for {formats[0]} by {formats[1]}")
    if n == 0 or n % N_MULTIPLE:
        raise FormatError(f"b has N = {n} rows; expected a positive multiple of {N_MULTIPLE}")
    return formats


def _check_packing(a: Any, b: Any) -> None:
    """Prepared weights go with the activations that they were prepared for; quantized ones have tiled scales."""
    if isinstance(a, QTensor) and a.packing:
        raise FormatError("a is prepared as weights are; expected activations as they were quantized")
    if not isinstance(b, QTensor) or not b.packing:
        return
    name = format_of(a, "a")
    if is_gated(b.packing):
        raise FormatError("b is prepared as a gated w13, which Experts alone takes: prepare it without gated")
    if name != b.packing:
        raise FormatError(
            f"b is prepared for {b.packing} activations, and a is {name}: pass the weights as they were quantized"
        )
    if isinstance(a, QTensor) and a.scale_layout != FORMATS[name].layouts[-1]:
        raise FormatError(
            f"a has {a.scale_layout} scales; beside prepared weights they have to be {FORMATS[name].layouts[-1]}: "
            f"quantize it with scale_layout={FORMATS[name].layouts[-1]!r}"
        )


def layout_of(a: Any, b: Any) -> str:
    """How checked operands lie, as dispatch sees it: see `catalog.gemm`."""
    if isinstance(b, QTensor) and b.packing:
        return PREPARED_LAYOUT
    tiled = all(x.scale_layout == FORMATS[x.format].layouts[-1] for x in (a, b) if isinstance(x, QTensor))
    return TILED_LAYOUT if tiled else LINEAR_LAYOUT


def layout_of_operands(*planned: Operand) -> str:
    """The same of operands that are planned before there are tensors of them; none of them is prepared."""
    tiled = all(x.format in PLAIN_NAMES.values() or x.layout == FORMATS[x.format].layouts[-1] for x in planned)
    return TILED_LAYOUT if tiled else LINEAR_LAYOUT


def check_dense(a: Any, b: Any) -> Shape:
    """The product of a [*batch, M, K] with b [N, K] or [*batch, N, K]; a [M, K] may stand beside batches of b.

    Raises
    ------
    FormatError
        If formats, shapes or devices do not go together.
    """
    formats = _check_operands(a, b)
    if isinstance(a, QTensor) and a.offsets is not None:
        raise FormatError("a is a grouped QTensor; multiply it with grouped_gemm")
    a_batch, b_batch = tuple(a.shape[:-2]), tuple(b.shape[:-2])
    if a_batch and b_batch and a_batch != b_batch:
        raise FormatError(f"a has batches {list(a_batch)} and b {list(b_batch)}; expected the same, or none")
    batch = a_batch or b_batch
    m, n, k = a.shape[-2], b.shape[-2], a.shape[-1]
    return Shape(Size("dense", m, n, k, math.prod(batch)), (*batch, m, n), *formats)


def check_grouped(a: Any, b: Any, offsets: Any, counts: Any) -> Shape:
    """The product of groups of rows of a [M, K], or of a [G, C, K] with counts, with b [G, N, K].

    Raises
    ------
    FormatError
        If formats, shapes, offsets or devices do not go together.
    InvalidArgumentError
        If not exactly one of offsets and counts is given.
    """
    if (offsets is None) == (counts is None):
        given = "neither" if offsets is None else "both"
        raise InvalidArgumentError(f"grouped_gemm takes offsets or counts, one of them; {given} was given")
    formats = _check_operands(a, b)
    masked = counts is not None
    dims = 3 if masked else 2
    if len(a.shape) != dims or len(b.shape) != 3 or (masked and a.shape[0] != b.shape[0]) or not b.shape[0]:
        wanted = "[groups, capacity, K] with counts" if masked else "[M, K] with offsets"
        raise FormatError(f"a has shape {list(a.shape)} and b {list(b.shape)}; expected a {wanted}, b [groups, N, K]")
    groups, n, k = b.shape
    what, index, length = ("counts", counts, groups) if masked else ("offsets", offsets, groups + 1)
    _check_index(what, index, length, a)
    if isinstance(a, QTensor):
        _check_quantized_groups(a, offsets, masked)
    m = a.shape[-2]
    return Shape(Size("masked" if masked else "grouped", m, n, k, groups), (*a.shape[:-1], n), *formats)


def _check_index(what: str, index: Any, length: int, a: Any) -> None:
    if not hasattr(index, "dtype") or not hasattr(index, "shape"):
        raise FormatError(f"{what} is a {type(index).__name__}; expected an int32 or int64 tensor [{length}]")
    if dtype_name(index) not in ("int32", "int64") or tuple(index.shape) != (length,):
        raise FormatError(
            f"{what} is {dtype_name(index)} of shape {list(index.shape)}; expected int32 or int64 [{length}]"
        )
    if device_of(index) != device_of(data_of(a)):
        raise FormatError(f"{what} is on {device_of(index)} and a on {device_of(data_of(a))}; expected the same device")


def _check_quantized_groups(a: QTensor, offsets: Any, masked: bool) -> None:
    """The groups that a was quantized with have to be those that are multiplied."""
    if masked:
        return  # a grouped QTensor has two dimensions
    if a.offsets is None:
        if a.scale_layout == TILED:
            raise FormatError(
                "a has 128x4 scales without groups; quantize it with these offsets, or with linear scales"
            )
        return
    own = a.offsets
    same = own.shape == offsets.shape and own.dtype == offsets.dtype and _address(own) == _address(offsets)
    if not (own is offsets or same):
        raise FormatError("offsets are not those that a was quantized with; leave them out to use a's own")


def _address(x: Any) -> int:
    return int(x.data_ptr() if hasattr(x, "data_ptr") else x.ctypes.data)


def check_bias(bias: Any, a: Any, shape: Shape) -> str:
    """The type of a bias [N], or [*batch, N] or [groups, N]; empty if there is none.

    Raises
    ------
    FormatError
        If dtype, shape or device does not fit.
    """
    if bias is None:
        return ""
    n, batch = shape.size.n, shape.out[:-2]
    if shape.size.mode == "grouped":
        batch = (shape.size.batches,)
    if not hasattr(bias, "dtype") or dtype_name(bias) not in OUT_NAMES:
        given = dtype_name(bias) if hasattr(bias, "dtype") else type(bias).__name__
        raise FormatError(f"bias is {given}; expected a bfloat16, float16 or float32 tensor")
    if tuple(bias.shape) not in ((n,), (*batch, n)):
        wanted = f"[{n}]" + (f" or {[*batch, n]}" if batch else "")
        raise FormatError(f"bias has shape {list(bias.shape)}; expected {wanted}")
    if device_of(bias) != device_of(data_of(a)):
        raise FormatError(f"bias is on {device_of(bias)} and a on {device_of(data_of(a))}; expected the same device")
    return OUT_NAMES[dtype_name(bias)]


def out_name(a: Any, out_dtype: Any, out: Any, quantized_default: str) -> str:
    """The dtype of the result: as asked for, else that of `out`, of a plain a, or the framework's default.

    Raises
    ------
    InvalidArgumentError
        If it is not bfloat16, float16 or float32, or `out` has another.
    """
    if out_dtype is not None:
        spelled = out_dtype if isinstance(out_dtype, str) else getattr(out_dtype, "__name__", str(out_dtype))
        name = spelled.rpartition(".")[2]
    elif hasattr(out, "dtype"):
        name = dtype_name(out)
    else:
        name = quantized_default if isinstance(a, QTensor) else dtype_name(a)
    if name not in OUT_NAMES:
        raise InvalidArgumentError(f"out_dtype {name!r} is unknown; expected one of {', '.join(OUT_NAMES)}")
    if out is not None and hasattr(out, "dtype") and dtype_name(out) != name:
        raise InvalidArgumentError(f"out is {dtype_name(out)}, but out_dtype is {name}")
    return name


def check_out(out: Any, a: Any, shape: tuple[int, ...]) -> None:
    """Refuse an `out` that is not an array of a's framework and device, of the result's shape.

    Raises
    ------
    InvalidArgumentError
        If it is another.
    """
    data = data_of(a)
    if type(out).__module__.partition(".")[0] != type(data).__module__.partition(".")[0] or not hasattr(out, "dtype"):
        raise InvalidArgumentError(f"out is a {type(out).__name__}; expected a {type(data).__name__} like a's")
    if tuple(out.shape) != shape:
        raise InvalidArgumentError(f"out has shape {list(out.shape)}; expected {list(shape)}")
    if device_of(out) != device_of(data):
        raise InvalidArgumentError(f"out is on {device_of(out)} and a on {device_of(data)}; expected the same device")


def overlap(what: str) -> InvalidArgumentError:
    """The error of an `out` that lies in the memory of an operand."""
    return InvalidArgumentError(
        f"out shares memory with {what}: its elements would be overwritten while others still read them; pass another"
    )


def folds(x: Any, b: Any, m: int) -> bool:
    """Whether the batches of a quantized A lie as the rows of one matrix, and share B and their global scale."""
    if len(b.shape) != 2 or (x.global_scale is not None and math.prod(x.global_scale.shape) > 1):
        return False
    if FORMATS[x.format].whole == "tensor":
        return False
    return x.scale_layout == LINEAR or (x.scale_layout == TILED and m % 128 == 0)
