# SPDX-License-Identifier: Apache-2.0
"""Warpsmith: LLM-inference kernels for NVIDIA GPUs, built ahead of time and dispatched from one catalog.

Importing this package touches no GPU, disk, network or environment, and imports neither NumPy nor torch: every public
name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from warpsmith._version import __version__

if TYPE_CHECKING:
    from warpsmith.catalog.resolve import Decision as Decision
    from warpsmith.errors import InvalidArgumentError as InvalidArgumentError
    from warpsmith.errors import MissingKernelError as MissingKernelError
    from warpsmith.errors import NotLoadedError as NotLoadedError
    from warpsmith.errors import UnsupportedError as UnsupportedError
    from warpsmith.errors import WarpsmithError as WarpsmithError
    from warpsmith.ops import Experts as Experts
    from warpsmith.ops import Permutation as Permutation
    from warpsmith.ops import QTensor as QTensor
    from warpsmith.ops import Routing as Routing
    from warpsmith.ops import dequantize as dequantize
    from warpsmith.ops import explain as explain
    from warpsmith.ops import fused_moe as fused_moe
    from warpsmith.ops import gemm as gemm
    from warpsmith.ops import global_scale as global_scale
    from warpsmith.ops import grouped_gemm as grouped_gemm
    from warpsmith.ops import load as load
    from warpsmith.ops import moe_combine as moe_combine
    from warpsmith.ops import moe_permute as moe_permute
    from warpsmith.ops import moe_workspace as moe_workspace
    from warpsmith.ops import prepare_weight as prepare_weight
    from warpsmith.ops import quantize as quantize
    from warpsmith.ops import route as route
    from warpsmith.ops import silu_and_mul_quantize as silu_and_mul_quantize
    from warpsmith.ops import warmup as warmup

_HOME = {
    "Decision": "warpsmith.catalog.resolve",
    "Experts": "warpsmith.ops",
    "InvalidArgumentError": "warpsmith.errors",
    "MissingKernelError": "warpsmith.errors",
    "NotLoadedError": "warpsmith.errors",
    "Permutation": "warpsmith.ops",
    "QTensor": "warpsmith.ops",
    "Routing": "warpsmith.ops",
    "UnsupportedError": "warpsmith.errors",
    "WarpsmithError": "warpsmith.errors",
    "dequantize": "warpsmith.ops",
    "explain": "warpsmith.ops",
    "fused_moe": "warpsmith.ops",
    "gemm": "warpsmith.ops",
    "global_scale": "warpsmith.ops",
    "grouped_gemm": "warpsmith.ops",
    "load": "warpsmith.ops",
    "moe_combine": "warpsmith.ops",
    "moe_permute": "warpsmith.ops",
    "moe_workspace": "warpsmith.ops",
    "prepare_weight": "warpsmith.ops",
    "quantize": "warpsmith.ops",
    "route": "warpsmith.ops",
    "silu_and_mul_quantize": "warpsmith.ops",
    "warmup": "warpsmith.ops",
}

__all__ = [
    "Decision",
    "Experts",
    "InvalidArgumentError",
    "MissingKernelError",
    "NotLoadedError",
    "Permutation",
    "QTensor",
    "Routing",
    "UnsupportedError",
    "WarpsmithError",
    "__version__",
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
        raise AttributeError(f"module 'warpsmith' has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
