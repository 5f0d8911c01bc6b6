# SPDX-License-Identifier: Apache-2.0
"""Weights as the fastest kernels read them: done once, when a model is loaded."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from warpsmith.catalog import CATALOG
from warpsmith.catalog.formats import (
    FORMATS,
    GATED_MULTIPLE,
    STREAMED,
    STREAMED_MULTIPLES,
    TILED,
    is_gated,
    packing_of_elements,
)
from warpsmith.catalog.gemm import PAIRS, PLAIN
from warpsmith.catalog.spec import pair
from warpsmith.errors import FormatError
from warpsmith.ops.gated_order import gated_weight
from warpsmith.ops.gemm_checks import format_of
from warpsmith.ops.prepared_order import as_bytes, few_rows_weight, like_typed
from warpsmith.ops.qtensor import QTensor, is_torch
from warpsmith.ops.scale_tiles import moved, tiled, untiled

_KNOWN = (*PLAIN, *FORMATS)


def prepare_weight(
    w: Any, activations: str, *, interleaved: bool = False, few_rows: bool = False, gated: bool = False
) -> Any:
    """Lay weights out as the fastest kernel that multiplies them reads them.

    Parameters
    ----------
    w
        [*batch, N, K]: a `QTensor`, or a bfloat16 or float16 tensor or NumPy array. 4-bit and mxfp8 weights may have
        linear or 128x4 scales.
    activations
        The format of the A that they will be multiplied with: ``bf16``, ``fp16``, ``nvfp4``, ``mxfp4``, ``mxfp8`` or
        ``fp8_block``.
    interleaved
        Whether gate and up rows alternate, as in gpt-oss: the gate rows come first then, and the up rows behind them.
    few_rows
        For nvfp4 and mxfp4 beside bf16: whether they will be multiplied with few rows of activations at a time, as at
        decode. Compute capability 9.0 reads them fastest in an order of their own, of which N must be a multiple of
        32 and K of 64.
    gated
        For the w13 of a MoE layer whose activation has a gate, beside nvfp4, mxfp4 or mxfp8 activations: whether rows
        of gate and up are mixed, so that compute capability 12.0 and 12.1 activate and quantize the first product
        where it is made. N is a multiple of 64.

    Returns
    -------
    QTensor, torch.Tensor or numpy.ndarray
        Beside quantized activations, with 128x4 scales where the format has them. mxfp4 beside mxfp8 has its elements
        packed for the 8-bit tensor cores too: its `packing` is ``mxfp8``, `dequantize`, `gemm` with mxfp8 activations
        and `Experts` of such a format understand it, and everything else refuses it. With `few_rows`, `packing` is
        ``bf16``, and `dequantize`, `gemm` and `grouped_gemm` with bf16 activations, and `Experts` without a format,
        understand it. With `gated`, `packing` ends in ``gated``; `dequantize` gives gate rows, then up rows, `Experts`
        takes it as its w13 alone, and products refuse it. What is right already is returned as it is.

    Raises
    ------
    FormatError
        If no kernel multiplies such operands, the weights are packed already for other activations, rows of their
        blocks cannot be told apart, or `few_rows` or `gated` is for other formats or sizes.

    Notes
    -----
    Weights packed for mxfp8 are read on the host and on compute capability 9.0 (with the tensor core's instruction made
    in software), 12.0 and 12.1; those packed for bf16 on the host and on 9.0. Elsewhere pass the weights as they were
    quantized. Products of many rows go through weights packed for bf16 once for each 8 or 16 rows: keep the others too.

    Examples
    --------
    >>> import numpy as np, warpsmith as ws
    >>> w = ws.quantize(np.ones((8, 32), np.float32), "mxfp4")
    >>> prepared = ws.prepare_weight(w, "mxfp8")
    >>> prepared.packing, prepared.scale_layout
    ('mxfp8', '128x4')
    >>> bool((ws.dequantize(prepared) == ws.dequantize(w)).all())
    True
    """
    name = format_of(w, "w")
    _check(w, name, activations, interleaved)
    if gated or (isinstance(w, QTensor) and is_gated(w.packing)):
        return _for_gates(w, name, activations, interleaved, few_rows)
    if few_rows or (isinstance(w, QTensor) and w.packing == STREAMED):
        return _for_few_rows(w, name, activations, interleaved)
    if not isinstance(w, QTensor):
        return _gate_then_up(w) if interleaved else w
    spec = FORMATS[w.format]
    packing = activations if activations in spec.packings and activations != STREAMED else ""
    layout = TILED if activations not in PLAIN and TILED in spec.layouts else w.scale_layout
    if (w.packing, w.scale_layout, interleaved) == (packing, layout, False):
        return w
    data, scales = as_bytes(w.data), as_bytes(w.scales)
    if interleaved or layout != w.scale_layout:
        scales = untiled(scales, w.shape, spec) if w.scale_layout == TILED else scales
        if interleaved and spec.whole != "tensor":
            scales = _gate_then_up(scales[..., None])[..., 0] if spec.whole == "row" else _gate_then_up(scales)
        scales = tiled(scales) if layout == TILED else scales
    data = _gate_then_up(data) if interleaved else data
    data = packed(data) if packing != w.packing else data
    return QTensor(
        like_typed(data, w.data), like_typed(scales, w.scales), w.format, w.shape, scale_layout=layout,
        global_scale=w.global_scale, packing=packing,
    )  # fmt: skip


def _for_gates(w: Any, name: str, activations: str, interleaved: bool, few_rows: bool) -> QTensor:
    """A w13 in the order of `gated_order`."""
    if not isinstance(w, QTensor) or activations not in FORMATS or TILED not in FORMATS[name].layouts or few_rows:
        raise FormatError(
            f"gated is for nvfp4, mxfp4 and mxfp8 weights beside such activations, without few_rows; w is {name}, "
            f"beside {activations}: leave it out"
        )
    if is_gated(w.packing):
        if interleaved:
            raise FormatError("w is in the gated order already: its rows have to be reordered before that")
        return w
    if w.shape[-2] % GATED_MULTIPLE:
        raise FormatError(
            f"w has N = {w.shape[-2]} rows; gated needs gate rows, then as many up rows, of each a multiple of "
            f"{GATED_MULTIPLE // 2}: leave it out"
        )
    return gated_weight(prepare_weight(w, activations, interleaved=interleaved))


def _for_few_rows(w: Any, name: str, activations: str, interleaved: bool) -> QTensor:
    """4-bit weights in the order of `prepared_order`."""
    rows, columns = STREAMED_MULTIPLES
    if not isinstance(w, QTensor) or activations != STREAMED or STREAMED not in FORMATS[name].packings:
        raise FormatError(
            f"few_rows is for nvfp4 and mxfp4 weights beside bf16 activations; w is {name}, beside {activations}: "
            "leave it out"
        )
    if w.packing:
        if interleaved:
            raise FormatError(f"w is packed for {w.packing}: its rows have to be reordered before that")
        return w
    if w.shape[-2] % rows or w.shape[-1] % columns:
        raise FormatError(
            f"w has shape {list(w.shape)}; few_rows needs N to be a multiple of {rows} and K of {columns}: leave it out"
        )
    data, scales = as_bytes(w.data), as_bytes(w.scales)
    scales = untiled(scales, w.shape, FORMATS[name]) if w.scale_layout == TILED else scales
    if interleaved:
        data, scales = _gate_then_up(data), _gate_then_up(scales)
    return few_rows_weight(w, data, scales)


def _check(w: Any, name: str, activations: str, interleaved: bool) -> None:
    if activations not in _KNOWN:
        raise FormatError(f"activations {activations!r} are unknown; expected one of {', '.join(_KNOWN)}")
    if (activations, name) not in PAIRS:
        promises = (p for p in CATALOG.promises if (p.operation, p.format) == ("gemm", pair(activations, name)))
        raise FormatError(f"activations are {activations} and w is {name}: {next(promises).reason}")
    if len(w.shape) < 2:
        raise FormatError(f"w has shape {list(w.shape)}; expected [*batch, N, K]")
    if interleaved and w.shape[-2] % 2:
        raise FormatError(f"w has N = {w.shape[-2]} rows; expected as many gate rows as up rows")
    if not isinstance(w, QTensor):
        return
    if w.offsets is not None:
        raise FormatError("w is a grouped QTensor; expected weights [*batch, N, K]")
    elements = packing_of_elements(w.packing)
    if w.packing and elements != (activations if elements or activations in FORMATS[w.format].packings else ""):
        raise FormatError(f"w is packed for {w.packing}, not for {activations}: prepare it as it was quantized")
    if interleaved and FORMATS[w.format].block[0] > 1:
        raise FormatError(
            f"w is {w.format}: rows that share a scale cannot be parted; reorder them before they are quantized"
        )


def packed(data: Any) -> Any:
    """4-bit codes [..., K/2] in the order that `reference.pack_codes` defines, of either framework."""
    blocks = data.reshape(*data.shape[:-1], -1, 2, 8)
    first, second = blocks[..., 0, :], blocks[..., 1, :]
    even, odd = (first & 15) | ((second & 15) << 4), (first >> 4) | (second & 240)
    return _stack((even, odd), -1).reshape(data.shape)


def unpacked(data: Any) -> Any:
    """The inverse of `packed`."""
    blocks = data.reshape(*data.shape[:-1], -1, 8, 2)
    even, odd = blocks[..., 0], blocks[..., 1]
    first, second = (even & 15) | ((odd & 15) << 4), (even >> 4) | (odd & 240)
    return _stack((first, second), -2).reshape(data.shape)


def _stack(parts: tuple[Any, Any], dim: int) -> Any:
    return sys.modules["torch"].stack(parts, dim) if is_torch(parts[0]) else np.stack(parts, dim)


def _gate_then_up(x: Any) -> Any:
    """Rows 0, 2, 4, … and then 1, 3, 5, …."""
    return moved(x.reshape(*x.shape[:-2], -1, 2, x.shape[-1]), (-2,), (-3,)).reshape(x.shape)
