# SPDX-License-Identifier: Apache-2.0
"""The public operations; the only place that knows torch. Each is loaded when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warpsmith.ops.explaining import explain as explain
    from warpsmith.ops.loading import load as load
    from warpsmith.ops.moe import Permutation as Permutation
    from warpsmith.ops.moe import fused_moe as fused_moe
    from warpsmith.ops.moe import moe_combine as moe_combine
    from warpsmith.ops.moe import moe_permute as moe_permute
    from warpsmith.ops.moe import moe_workspace as moe_workspace
    from warpsmith.ops.moe import route as route
    from warpsmith.ops.moe_types import Experts as Experts
    from warpsmith.ops.moe_types import Routing as Routing
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
    "Experts": "moe_types",
    "Permutation": "moe",
    "QTensor": "qtensor",
    "Routing": "moe_types",
    "dequantize": "quantization",
    "explain": "explaining",
    "fused_moe": "moe",
    "gemm": "multiplication",
    "global_scale": "quantization",
    "grouped_gemm": "multiplication",
    "load": "loading",
    "moe_combine": "moe",
    "moe_permute": "moe",
    "moe_workspace": "moe",
    "prepare_weight": "preparation",
    "quantize": "quantization",
    "route": "moe",
    "silu_and_mul_quantize": "quantization",
    "warmup": "warming",
}

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
    "prepare_weight",
    "quantize",
    "route",
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
