# SPDX-License-Identifier: Apache-2.0
"""The public operations; the only place that knows torch."""

from __future__ import annotations

from warpsmith.ops.loading import load
from warpsmith.ops.qtensor import QTensor
from warpsmith.ops.quantization import dequantize, global_scale, quantize, silu_and_mul_quantize

__all__ = ["QTensor", "dequantize", "global_scale", "load", "quantize", "silu_and_mul_quantize"]
