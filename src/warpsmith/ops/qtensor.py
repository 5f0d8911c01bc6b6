# SPDX-License-Identifier: Apache-2.0
"""The typed quantized tensor that operations take and return."""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

from warpsmith.catalog.formats import GATED_MULTIPLE, STREAMED, STREAMED_MULTIPLES, Format, get_format, is_gated
from warpsmith.errors import FormatError

_DATA_DTYPES = {4: ("uint8", "float4_e2m1fn_x2"), 8: ("float8_e4m3fn", "uint8")}
_SCALE_DTYPES = {
    "ue4m3": ("float8_e4m3fn", "uint8"),
    "ue8m0": ("float8_e8m0fnu", "uint8"),
    "fp32": ("float32",),
}


def dtype_name(array: Any) -> str:
    """The name of an array's dtype, the same for torch and NumPy (``bfloat16``, ``float8_e4m3fn``)."""
    return str(array.dtype).rpartition(".")[2]


def is_torch(array: Any) -> bool:
    """Whether the array is a torch tensor; torch is not imported for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def device_of(array: Any) -> str:
    """Where an array lives: ``cuda:0``, ``cpu``, or ``numpy``."""
    device = getattr(array, "device", None)
    return "numpy" if device is None or type(array).__module__.startswith("numpy") else str(device)


class QTensor:
    """A quantized tensor: data, scales, and what they mean.

    Parameters
    ----------
    data
        [*batch, M, K/2] ``uint8`` for the 4-bit formats (element 0 in the low nibble), [*batch, M, K]
        ``float8_e4m3fn`` for the 8-bit ones (``uint8`` with the same bits is taken too).
    scales
        In the shape that `scale_layout` gives it: ``linear`` [*batch, M, K/block]; ``128x4`` [*batch, ⌈M/128⌉·128,
        ⌈K/block/4⌉·4] in the order that cuBLASLt and CUTLASS read; ``m_major`` [*batch, K/128, ⌈M/4⌉·4].
        fp8_row: [*batch, M]; fp8_tensor: [*batch], or [1] without batches.
        ``float8_e4m3fn`` (nvfp4), ``float8_e8m0fnu`` (mxfp4, mxfp8) or ``float32`` (all others).
    format
        ``nvfp4``, ``mxfp4``, ``mxfp8``, ``fp8_block`` (1×128), ``fp8_block_128x128``, ``fp8_row`` or ``fp8_tensor``.
    shape
        The logical shape [*batch, M, K].
    scale_layout
        ``linear``, ``128x4`` or ``m_major``.
    global_scale
        nvfp4, and mxfp4 packed for ``bf16``: fp32, one element (or one a group, or one a batch entry, as experts have
        them); a value is q · scale / global_scale. None stands for 1.
    offsets
        For grouped tensors: [G + 1] row offsets of the groups, int32 or int64.
    packing
        The order of the elements: empty for the format's own, or the format of the activations that `prepare_weight`
        has packed them for. It ends in ``gated`` where rows of gate and up are mixed.

    Raises
    ------
    FormatError
        If a part does not fit the others; the message names the part, what it is and what it should be.
    """

    __slots__ = ("_lies", "data", "format", "global_scale", "offsets", "packing", "scale_layout", "scales", "shape")

    data: Any
    scales: Any
    format: str
    shape: tuple[int, ...]
    scale_layout: str
    global_scale: Any
    offsets: Any
    packing: str
    _lies: Any  # how its parts lie in memory, once an operation has asked; see `remember_lies`

    def __init__(
        self,
        data: Any,
        scales: Any,
        format: str,
        shape: tuple[int, ...],
        *,
        scale_layout: str = "linear",
        global_scale: Any = None,
        offsets: Any = None,
        packing: str = "",
    ) -> None:
        spec = get_format(format)
        if packing:
            _validate_packing(spec, packing, tuple(shape), scale_layout, global_scale, offsets)
        _validate(spec, data, scales, tuple(shape), scale_layout, global_scale, offsets, packing)
        self._set(data, scales, format, tuple(shape), scale_layout, global_scale, offsets, packing)

    def _set(self, *parts: Any) -> None:
        names = ("data", "scales", "format", "shape", "scale_layout", "global_scale", "offsets", "packing")
        for name, value in zip(names, parts, strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a QTensor does not change; make a new one to replace {name}")

    @property
    def _parts(self) -> tuple[Any, ...]:
        named = self.format, self.shape, self.scale_layout
        return self.data, self.scales, *named, self.global_scale, self.offsets, self.packing

    def __copy__(self) -> QTensor:
        return trusted(*self._parts)

    def __deepcopy__(self, memo: dict[int, Any]) -> QTensor:
        return trusted(*(copy.deepcopy(part, memo) for part in self._parts))

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Pickled as its parts, which are checked again when they are put together."""
        data, scales, *others = self._parts
        return _restored, (_plain(data), _plain(scales), *others)

    def __repr__(self) -> str:
        grouped = f", groups={self.offsets.shape[0] - 1}" if self.offsets is not None else ""
        grouped += f", packing={self.packing!r}" if self.packing else ""
        return (
            f"QTensor({self.format}, shape={list(self.shape)}, scale_layout={self.scale_layout!r}, "
            f"device={device_of(self.data)}{grouped})"
        )

    @property
    def device(self) -> str:
        """Where the data lives: ``cuda:0``, ``cpu`` or ``numpy``."""
        return device_of(self.data)


def _plain(part: Any) -> tuple[Any, str]:
    """A part as its pickle has it, with the name of its dtype: torch cannot pickle its types of 8 bits alone."""
    name = dtype_name(part)
    return (part.view(sys.modules["torch"].uint8) if is_torch(part) and part.element_size() == 1 else part), name


def _typed(part: Any, name: str) -> Any:
    return part.view(getattr(sys.modules["torch"], name)) if is_torch(part) and dtype_name(part) != name else part


def _restored(
    data: tuple[Any, str],
    scales: tuple[Any, str],
    format: str,
    shape: tuple[int, ...],
    layout: str,
    global_scale: Any,
    offsets: Any,
    packing: str = "",
) -> QTensor:
    """An unpickled `QTensor`."""
    parts = _typed(*data), _typed(*scales)
    others = {"global_scale": global_scale, "offsets": offsets, "packing": packing}
    return QTensor(*parts, format, shape, scale_layout=layout, **others)


def remember_lies(q: QTensor, lies: Any) -> Any:
    """Keep with a `QTensor`, as `_lies`, what operations key their plans by: it never changes."""
    object.__setattr__(q, "_lies", lies)
    return lies


def trusted(
    data: Any,
    scales: Any,
    format: str,
    shape: tuple[int, ...],
    layout: str,
    global_scale: Any,
    offsets: Any,
    packing: str = "",
) -> QTensor:
    """Make a `QTensor` from parts that an operation has just made to fit."""
    made = QTensor.__new__(QTensor)
    put = object.__setattr__
    put(made, "data", data)
    put(made, "scales", scales)
    put(made, "format", format)
    put(made, "shape", shape)
    put(made, "scale_layout", layout)
    put(made, "global_scale", global_scale)
    put(made, "offsets", offsets)
    put(made, "packing", packing)
    return made


def _validate(
    spec: Format,
    data: Any,
    scales: Any,
    shape: tuple[int, ...],
    layout: str,
    global_scale: Any,
    offsets: Any,
    packing: str,
) -> None:
    if len(shape) < 2:
        raise FormatError(f"QTensor: shape {list(shape)} has {len(shape)} dimensions; expected [*batch, M, K]")
    *batch, m, k = shape
    if k == 0 or k % spec.block[1]:
        raise FormatError(f"QTensor: K = {k} must be a positive multiple of {spec.block[1]} for {spec.name}")
    if layout not in spec.layouts:
        raise FormatError(f"QTensor: {spec.name} has no scale layout {layout!r}; expected {' or '.join(spec.layouts)}")
    groups = 0
    if offsets is not None:
        if len(shape) != 2:
            raise FormatError(f"QTensor: a grouped tensor is [M, K]; shape is {list(shape)}")
        if spec.whole:
            raise FormatError(f"QTensor: {spec.name} needs no offsets: pass them to grouped_gemm alone")
        if spec.block[0] != 1:
            raise FormatError(f"QTensor: {spec.name} has blocks of {spec.block[0]} rows and cannot be grouped")
        _expect("offsets", offsets, ("int32", "int64"), None)
        if len(offsets.shape) != 1 or offsets.shape[0] < 2:
            raise FormatError(f"QTensor: offsets has shape {list(offsets.shape)}; expected [groups + 1]")
        groups = int(offsets.shape[0]) - 1
    _expect("data", data, _DATA_DTYPES[spec.element_bits], (*batch, m, spec.data_columns(k)))
    _expect("scales", scales, _SCALE_DTYPES[spec.scale], spec.scale_shape(layout, tuple(batch), m, k, groups))
    if global_scale is not None:
        if not (spec.has_global_scale or packing == STREAMED):
            raise FormatError(f"QTensor: {spec.name} has no global scale, but one was given")
        _expect("global_scale", global_scale, ("float32",), None)
        count, several = _count(global_scale), groups or math.prod(batch)
        if count not in {1, several}:
            raise FormatError(
                f"QTensor: global_scale has {count} elements; expected 1{f' or {several}' * (several > 1)}"
            )
    where = {device_of(a) for a in (data, scales, global_scale, offsets) if a is not None}
    if len(where) > 1:
        raise FormatError(f"QTensor: its parts live on {', '.join(sorted(where))}; expected one device")


def _validate_packing(
    spec: Format, packing: str, shape: tuple[int, ...], layout: str, global_scale: Any, offsets: Any
) -> None:
    if packing not in spec.packings:
        known = " or ".join(map(repr, ("", *spec.packings)))
        raise FormatError(f"QTensor: {spec.name} has no packing {packing!r}; expected {known}")
    rows, columns = STREAMED_MULTIPLES
    if packing == STREAMED and (len(shape) < 2 or shape[-2] % rows or shape[-1] % columns):
        raise FormatError(
            f"QTensor: weights packed for {packing} are [*batch, N, K] with N a multiple of {rows} and K of {columns}; "
            f"shape is {list(shape)}"
        )
    if packing == STREAMED and global_scale is None and not spec.has_global_scale:
        raise FormatError(f"QTensor: {spec.name} weights packed for {packing} have a global scale; none was given")
    if is_gated(packing) and (len(shape) < 2 or shape[-2] % GATED_MULTIPLE):
        raise FormatError(
            f"QTensor: weights packed {packing!r} are [*batch, N, K] with N a multiple of {GATED_MULTIPLE}; shape is "
            f"{list(shape)}"
        )
    wanted = spec.layouts[0 if packing == STREAMED else -1]
    if layout != wanted or offsets is not None:
        raise FormatError(
            f"QTensor: weights packed for {packing} have {wanted} scales and no groups; these have {layout}"
            f" scales{' and offsets' * (offsets is not None)}: make them with prepare_weight"
        )


def _count(array: Any) -> int:
    total = 1
    for size in array.shape:
        total *= int(size)
    return total


def _expect(part: str, array: Any, dtypes: tuple[str, ...], shape: tuple[int, ...] | None) -> None:
    if not hasattr(array, "dtype") or not hasattr(array, "shape"):
        raise FormatError(f"QTensor: {part} is a {type(array).__name__}; expected a torch tensor or NumPy array")
    if dtype_name(array) not in dtypes:
        raise FormatError(f"QTensor: {part} is {dtype_name(array)}; expected {' or '.join(dtypes)}")
    if shape is not None and tuple(array.shape) != shape:
        raise FormatError(f"QTensor: {part} has shape {list(array.shape)}; expected {list(shape)}")
