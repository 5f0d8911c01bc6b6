# SPDX-License-Identifier: Apache-2.0
"""The public operations; the only place that knows torch."""

from __future__ import annotations

from warpsmith.ops.explaining import explain
from warpsmith.ops.loading import load
from warpsmith.ops.multiplication import gemm, grouped_gemm
from warpsmith.ops.preparation import prepare_weight
from warpsmith.ops.qtensor import QTensor
from warpsmith.ops.quantization import dequantize, global_scale, quantize, silu_and_mul_quantize

__all__ = [
    "QTensor",
    "dequantize",
    "explain",
    "gemm",
    "global_scale",
    "grouped_gemm",
    "load",
    "prepare_weight",
    "quantize",
    "silu_and_mul_quantize",
]
