# SPDX-License-Identifier: Apache-2.0
"""Cases of products by weights in the order for few rows that have more of them: the tiles of `gemm_mixed_packed`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from warpsmith.catalog.gemm import FEW_ROWS
from warpsmith.catalog.spec import operands
from warpsmith.evidence.gemm import KINDS, GemmCase


def many_rows_cases() -> Iterator[GemmCase]:
    """Of each pair; N is 32 times any number, and K ends within a stage or with it."""
    for format in FEW_ROWS:
        a, b = operands(format)
        base = GemmCase(a, b, 33, 288, 2880, prepared=True)
        yield replace(base, out="bf16", bias="bf16")
        yield replace(base, m=100, n=160, k=1088)
        yield replace(base, m=300, n=416, k=1152, batches=2, out="fp16", bias="fp32", scale_each=True, padding=16)
        yield replace(base, m=129, n=224, k=4096, splits=3, padding=32)
        rows = (0, 5, 130, 1, 0, 64)
        grouped = replace(base, mode="grouped", batches=6, m=sum(rows) + 3, rows=rows, n=224, k=576, scale_each=True)
        yield from (grouped, replace(grouped, n=96, k=64, out="bf16", bias="bf16", wide=True))
        many = tuple(40 * int(i % 3 > 0) for i in range(600))
        yield replace(grouped, batches=600, m=sum(many), rows=many, n=32, k=128)
        yield replace(base, mode="masked", batches=4, m=70, rows=(70, 0, 3, 70), k=960, scale_each=True)
        few = replace(base, m=20, n=96, k=448)  # two for tools that slow a launch down a thousandfold
        yield from (replace(few, splits=2), replace(few, mode="grouped", batches=1, rows=(17,)))
        yield from (replace(few, m=40, k=1088, kind=kind) for kind in KINDS)
