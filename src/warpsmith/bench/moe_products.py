# SPDX-License-Identifier: Apache-2.0
"""The two grouped products of a MoE layer by themselves: what share of the layer's time they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from warpsmith.ops.qtensor import dtype_name

PRODUCTS = "products alone"
"""Their time among the details of a row."""
PREFILL = 2048
"""Tokens from which on a row has them."""


def products(x: Any, ids: Any, layer: Any) -> Callable[[], Any] | None:
    """What runs a layer's products, first with its activation, on rows that have been sorted and gathered.

    Parameters
    ----------
    x
        [T, H] bfloat16 or float16.
    ids
        [T, k] int32, the tokens' experts.
    layer
        The `Experts`.

    Returns
    -------
    callable or None
        None where activations are quantized between the products, which is work of the layer and not of a product.
    """
    import warpsmith as ws

    if layer.format is not None:
        return None
    sorted_pairs = ws.moe_permute(ids, layer.number, x=x)
    offsets, gathered = sorted_pairs.offsets, sorted_pairs.gathered
    options = {"activation": layer.activation, "alpha": layer.alpha, "limit": layer.limit}
    act = gathered.new_empty((gathered.shape[0], layer.inner))
    y = gathered.new_empty((gathered.shape[0], layer.hidden))

    def run() -> Any:
        ws.grouped_gemm(
            gathered, layer.w13, offsets=offsets, bias=layer.bias13, out_dtype=dtype_name(x), out=act, **options
        )
        return ws.grouped_gemm(act, layer.w2, offsets=offsets, bias=layer.bias2, out_dtype=dtype_name(x), out=y)

    return run
