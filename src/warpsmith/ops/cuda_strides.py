# SPDX-License-Identifier: Apache-2.0
"""Where the rows of a torch tensor lie that kernels write, and how far it reaches."""

from __future__ import annotations

import torch

from warpsmith.errors import InvalidArgumentError
from warpsmith.ops.cuda import _rows as matrices


def out_strides(out: torch.Tensor, columns: int) -> tuple[int, int]:
    """Bytes from row to row and from batch to batch of an `out` that the kernels can write.

    Raises
    ------
    InvalidArgumentError
        If its strides or its address do not fit.
    """
    if out.numel() == 0:
        return columns, 0
    rows, batches, row_stride, batch_stride = matrices(out)
    size, m = out.element_size(), out.shape[-2]
    row, batch = row_stride * size, batch_stride * size
    wrong = ""
    if rows is not out:
        wrong = "columns that are not contiguous, or batches without a common stride"
    elif (m > 1 and row < columns) or (batches > 1 and batch < (m - 1) * row + columns and not row >= batches * batch):
        wrong = "rows that overlap"
    elif (out.data_ptr() | row | (batch if batches > 1 else 0)) & 15:
        wrong = "rows that do not start at multiples of 16 bytes"
    if m == 1 and batches > 1:
        row = batch
    if wrong:
        raise InvalidArgumentError(
            f"out has shape {list(out.shape)} and strides {list(out.stride())}: {wrong}; expected contiguous columns, "
            "rows and batches that start at multiples of 16 bytes, and no two of them at one place"
        )
    return row, batch if batches > 1 else m * row


def extent(x: torch.Tensor) -> int:
    """Bytes from a tensor's first element to its end."""
    if x.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return int((last + 1) * x.element_size())
