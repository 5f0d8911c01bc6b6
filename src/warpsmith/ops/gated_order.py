# SPDX-License-Identifier: Apache-2.0
"""The order of w13's rows that `prepare_weight` makes for products that are activated where they are made.

Of every 32 rows the first 16 are the gate's and the others up's, so that the 32 columns of the product which a warp
writes at least are 16 activations. Of either framework.
"""

from __future__ import annotations

from typing import Any

from warpsmith.catalog.formats import FORMATS, GATED_ROWS, gated, is_gated, packing_of_elements
from warpsmith.ops.prepared_order import as_bytes, like_typed
from warpsmith.ops.qtensor import QTensor
from warpsmith.ops.scale_tiles import moved, tiled, untiled


def mixed(x: Any) -> Any:
    """Rows [..., 2·I, C], the gate's and then up's, in the gated order."""
    parts = x.reshape(*x.shape[:-2], 2, -1, GATED_ROWS, x.shape[-1])
    return moved(parts, (-4,), (-3,)).reshape(x.shape)


def parted(x: Any) -> Any:
    """The inverse of `mixed`."""
    parts = x.reshape(*x.shape[:-2], -1, 2, GATED_ROWS, x.shape[-1])
    return moved(parts, (-3,), (-4,)).reshape(x.shape)


def mixed_bias(bias: Any) -> Any:
    """A bias [E, 2·I] in the order of the product's columns: a copy."""
    return mixed(bias[..., None])[..., 0]


def gated_weight(w: QTensor) -> QTensor:
    """Prepared weights, with 128x4 scales, in the gated order."""
    return _with_rows(w, mixed, gated(w.packing))


def ungated(w: QTensor) -> QTensor:
    """Weights whose rows are the gate's and then up's; others as they are."""
    return _with_rows(w, parted, packing_of_elements(w.packing)) if is_gated(w.packing) else w


def _with_rows(w: QTensor, order: Any, packing: str) -> QTensor:
    data, scales = as_bytes(w.data), as_bytes(w.scales)
    scales = tiled(order(untiled(scales, w.shape, FORMATS[w.format])))
    return QTensor(
        like_typed(order(data), w.data), like_typed(scales, w.scales), w.format, w.shape,
        scale_layout=w.scale_layout, global_scale=w.global_scale, packing=packing,
    )  # fmt: skip
