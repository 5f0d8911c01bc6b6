# SPDX-License-Identifier: Apache-2.0
"""What operations check of their arguments before they plan anything."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from warpsmith.catalog.formats import Format
from warpsmith.errors import FormatError, InvalidArgumentError
from warpsmith.ops.qtensor import QTensor, device_of, dtype_name

INPUT_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""Framework dtype name → the catalog's name."""
NUMBERS = (int, float, np.floating, np.integer)
"""What counts as a number where a tensor could be given too."""


def check_problem(
    spec: Format, x: Any, scale_layout: str, rounding: str, offsets: Any, *, silu: bool = False
) -> tuple[int, ...]:
    """The logical shape [*batch, M, K] of the result.

    Raises
    ------
    FormatError
        If dtype, shape, layout, rounding or offsets do not fit the format; the message says which and what is expected.
    """
    if dtype_name(x) not in INPUT_NAMES:
        raise FormatError(f"x is {dtype_name(x)}; expected bfloat16, float16 or float32")
    shape = tuple(x.shape)
    if len(shape) < 2:
        raise FormatError(f"x has shape {list(shape)}; expected [*batch, M, K] (use x[None] for one row)")
    k = shape[-1]
    if silu:
        if k % 2:
            raise FormatError(f"x has {k} columns; expected 2·K, the gate half and then the up half")
        k //= 2
    if k == 0 or k % spec.block[1]:
        raise FormatError(f"K = {k} must be a positive multiple of {spec.block[1]}, the block of {spec.name}")
    if silu and spec.whole:
        raise FormatError(f"silu_and_mul_quantize does not make {spec.name}: compute the activation, then quantize it")
    if scale_layout not in spec.layouts:
        raise FormatError(
            f"{spec.name} has no scale layout {scale_layout!r}; expected {' or '.join(map(repr, spec.layouts))}"
        )
    if rounding not in ("ceil", "floor") or (rounding == "floor" and not spec.roundings):
        expected = "'ceil' or 'floor'" if spec.roundings else "'ceil': its scales are not powers of two"
        raise FormatError(f"rounding {rounding!r} does not fit {spec.name}; expected {expected}")
    if offsets is not None:
        check_offsets(spec, offsets, x, shape)
    return (*shape[:-1], k)


def check_offsets(spec: Format, offsets: Any, x: Any, shape: tuple[int, ...]) -> None:
    """Refuse group offsets that do not fit the format or x.

    Raises
    ------
    FormatError
        If the format has blocks of several rows, x has batches, or kind, dtype, shape or device of the offsets are
        others.
    """
    if not hasattr(offsets, "dtype") or not hasattr(offsets, "shape"):
        raise FormatError(f"offsets is a {type(offsets).__name__}; expected an int32 or int64 tensor [groups + 1]")
    if spec.whole:
        raise FormatError(f"{spec.name} needs no offsets: leave them out, and pass them to grouped_gemm")
    if spec.block[0] != 1:
        raise FormatError(f"{spec.name} has blocks of {spec.block[0]} rows and cannot be grouped by offsets")
    if len(shape) != 2:
        raise FormatError(f"a grouped x is [M, K]; this one has shape {list(shape)}")
    if dtype_name(offsets) not in ("int32", "int64") or len(offsets.shape) != 1 or offsets.shape[0] < 2:
        raise FormatError(
            f"offsets is {dtype_name(offsets)} of shape {list(offsets.shape)}; expected int32 or int64 [groups + 1]"
        )
    if device_of(offsets) != device_of(x):
        raise FormatError(f"offsets is on {device_of(offsets)} and x on {device_of(x)}; expected the same device")


def check_scale_value(value: Any) -> None:
    """Refuse a host global scale that no value can be divided by.

    Raises
    ------
    InvalidArgumentError
        If the value, as fp32, is not positive and finite.
    """
    if not isinstance(value, NUMBERS) or isinstance(value, bool):
        raise InvalidArgumentError(f"global_scale is a {type(value).__name__}; expected a float32 tensor or a number")
    try:
        with np.errstate(over="ignore"):
            rounded = float(np.float32(value))
    except OverflowError:  # an int beyond every float
        rounded = math.inf
    if not (math.isfinite(rounded) and rounded > 0):
        raise InvalidArgumentError(f"global_scale = {value!r} is not positive and finite in float32")


def need_scale(silu: bool) -> None:
    """Refuse to guess the global scale of an activation that has not been computed yet.

    Raises
    ------
    FormatError
        If `silu` is set.
    """
    if silu:
        raise FormatError(
            "silu_and_mul_quantize to nvfp4 needs global_scale: the default, 2688 / amax, would take a second pass "
            "over the activation; pass a calibrated one, or 1.0"
        )


def no_scale(format: str) -> None:
    """Refuse a global scale for a format that has none.

    Raises
    ------
    FormatError
        Always.
    """
    raise FormatError(f"{format} has no global scale; leave global_scale out")


def check_host_scale(given: Any, groups: int) -> np.ndarray[Any, Any]:
    """A global scale on the host as a float32 array of one element, or of one a group.

    Raises
    ------
    FormatError
        If its dtype, shape or device does not fit.
    InvalidArgumentError
        If a value is not positive and finite.
    """
    if isinstance(given, NUMBERS):
        check_scale_value(given)
        return np.asarray([given], np.float32)
    if not hasattr(given, "dtype"):
        raise InvalidArgumentError(f"global_scale is a {type(given).__name__}; expected a float32 tensor or a number")
    if device_of(given).startswith("cuda"):
        raise FormatError(f"global_scale is on {device_of(given)}, but x is on the host; expected the same device")
    if dtype_name(given) != "float32":
        raise FormatError(f"global_scale is {dtype_name(given)}; expected float32")
    detached = given.detach() if hasattr(given, "detach") else given
    values: np.ndarray[Any, Any] = np.asarray(detached, np.float32).reshape(-1)
    if values.size not in {1, max(groups, 1)}:
        raise FormatError(f"global_scale has {values.size} elements; expected 1{f' or {groups}' if groups else ''}")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise InvalidArgumentError(f"global_scale = {values.tolist()} is not positive and finite")
    return values


def check_out(out: Any, format: str, shape: tuple[int, ...], scale_layout: str, offsets: Any, device: str) -> None:
    """Refuse an `out` that is not the `QTensor` the operation would make.

    Raises
    ------
    FormatError
        If format, shape, layout, grouping, device or contiguity differ.
    """
    if not isinstance(out, QTensor):
        raise FormatError(f"out is a {type(out).__name__}; expected a QTensor")
    for name, have, want in (
        ("format", out.format, format),
        ("shape", out.shape, shape),
        ("scale_layout", out.scale_layout, scale_layout),
        ("packing", out.packing, ""),
        ("groups", _groups(out.offsets), _groups(offsets)),
    ):
        if have != want:
            raise FormatError(f"out has {name} {have!r}; expected {want!r}")
    if out.device != device:
        raise FormatError(f"out is on {out.device} and x on {device}; expected the same device")
    for name, part in (("data", out.data), ("scales", out.scales)):
        contiguous = part.is_contiguous() if hasattr(part, "is_contiguous") else part.flags.c_contiguous
        if not contiguous:
            raise FormatError(f"out.{name} is not contiguous; expected a contiguous tensor")


def _groups(offsets: Any) -> int:
    return 0 if offsets is None else int(offsets.shape[0]) - 1
