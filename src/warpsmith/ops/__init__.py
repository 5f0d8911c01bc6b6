# SPDX-License-Identifier: Apache-2.0
"""The public operations; the only place that knows torch."""

from __future__ import annotations

from warpsmith.ops.explaining import explain
from warpsmith.ops.loading import load
from warpsmith.ops.moe import Permutation, fused_moe, moe_combine, moe_permute, moe_workspace, route
from warpsmith.ops.moe_types import Experts, Routing
from warpsmith.ops.multiplication import gemm, grouped_gemm
from warpsmith.ops.qtensor import QTensor
from warpsmith.ops.quantization import dequantize, global_scale, quantize, silu_and_mul_quantize

__all__ = [
    "Experts",
    "Permutation",
    "QTensor",
    "Routing",
    "dequantize",
    "explain",
    "fused_moe",
    "gemm",
    "global_scale",
    "grouped_gemm",
    "load",
    "moe_combine",
    "moe_permute",
    "moe_workspace",
    "quantize",
    "route",
    "silu_and_mul_quantize",
]
