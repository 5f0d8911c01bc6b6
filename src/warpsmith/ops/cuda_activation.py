# SPDX-License-Identifier: Apache-2.0
"""The activation of a product that has been computed, for kernels that have none in their epilogue."""

from __future__ import annotations

import math
from typing import Any

import torch

from warpsmith.catalog.fused_moe import ACTIVATIONS
from warpsmith.catalog.spec import Problem
from warpsmith.errors import InvalidArgumentError
from warpsmith.ops.gemm_activation import Activation
from warpsmith.ops.gemm_checks import PLAIN_NAMES
from warpsmith.ops.moe_args import activation_launch
from warpsmith.ops.qtensor import dtype_name
from warpsmith.ops.state import runtime

_current_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # a CPU build of torch has none


def activate_product(
    product: torch.Tensor, activation: Activation, shape: tuple[int, ...], out: Any, index: Any, mode: str
) -> torch.Tensor:
    """Activate the rows of a contiguous product into a tensor of `shape`.

    Parameters
    ----------
    out
        Where to; rows of no group, and from a group's count on, keep what they hold.
    index, mode
        The product's offsets or counts.

    Raises
    ------
    InvalidArgumentError
        If the product is float32.
    """
    name = PLAIN_NAMES.get(dtype_name(product))
    if name is None:
        raise InvalidArgumentError(
            f"out_dtype is float32, and no kernel for these operands on this device has {activation.name} in its "
            "epilogue; expected bfloat16 or float16"
        )
    made = torch.empty(shape, dtype=product.dtype, device=product.device)
    rows, columns, device = math.prod(shape[:-1]), shape[-1], product.get_device()
    if rows:
        kernel = runtime().prepare(Problem.of("moe_activation", {"type": name}, {"m": rows, "k": columns}), device)
        number = ACTIVATIONS[activation.name]
        launch = activation_launch(rows, columns, number, activation.alpha, activation.limit)
        every = torch.full((1,), rows, dtype=torch.int32, device=product.device)
        pointers = product.data_ptr(), made.data_ptr(), every.data_ptr()
        kernel.launch(launch.grid, pointers + launch.tail, _current_stream(device))
    if out is None:
        return made
    if mode == "dense":
        out.copy_(made)
    else:
        out.copy_(torch.where(_written(index, mode, shape[-2], product.device)[..., None], made, out))
    return out


def _written(index: torch.Tensor, mode: str, rows: int, device: torch.device) -> torch.Tensor:
    """Which rows a product writes, found on the device."""
    every = torch.arange(rows, device=device)
    if mode == "masked":
        return every < index[:, None]
    return (every >= index[0]) & (every < index[-1])
