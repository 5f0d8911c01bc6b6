# SPDX-License-Identifier: Apache-2.0
"""The public operations; the only place that knows torch. Each is loaded when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warpsmith.ops.explaining import explain as explain
    from warpsmith.ops.loading import load as load
    from warpsmith.ops.multiplication import gemm as gemm
    from warpsmith.ops.multiplication import grouped_gemm as grouped_gemm
    from warpsmith.ops.preparation import prepare_weight as prepare_weight
    from warpsmith.ops.qtensor import QTensor as QTensor
    from warpsmith.ops.quantization import dequantize as dequantize
    from warpsmith.ops.quantization import global_scale as global_scale
    from warpsmith.ops.quantization import quantize as quantize
    from warpsmith.ops.quantization import silu_and_mul_quantize as silu_and_mul_quantize
    from warpsmith.ops.warming import warmup as warmup

_HOME = {
    "QTensor": "qtensor",
    "dequantize": "quantization",
    "explain": "explaining",
    "gemm": "multiplication",
    "global_scale": "quantization",
    "grouped_gemm": "multiplication",
    "load": "loading",
    "prepare_weight": "preparation",
    "quantize": "quantization",
    "silu_and_mul_quantize": "quantization",
    "warmup": "warming",
}

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
    "warmup",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'warpsmith.ops' has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(f"warpsmith.ops.{home}"), name)
    globals()[name] = value
    return value
