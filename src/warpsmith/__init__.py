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
    from warpsmith.ops import QTensor as QTensor
    from warpsmith.ops import dequantize as dequantize
    from warpsmith.ops import explain as explain
    from warpsmith.ops import gemm as gemm
    from warpsmith.ops import global_scale as global_scale
    from warpsmith.ops import grouped_gemm as grouped_gemm
    from warpsmith.ops import load as load
    from warpsmith.ops import prepare_weight as prepare_weight
    from warpsmith.ops import quantize as quantize
    from warpsmith.ops import silu_and_mul_quantize as silu_and_mul_quantize
    from warpsmith.ops import warmup as warmup

_HOME = {
    "Decision": "warpsmith.catalog.resolve",
    "InvalidArgumentError": "warpsmith.errors",
    "MissingKernelError": "warpsmith.errors",
    "NotLoadedError": "warpsmith.errors",
    "QTensor": "warpsmith.ops",
    "UnsupportedError": "warpsmith.errors",
    "WarpsmithError": "warpsmith.errors",
    "dequantize": "warpsmith.ops",
    "explain": "warpsmith.ops",
    "gemm": "warpsmith.ops",
    "global_scale": "warpsmith.ops",
    "grouped_gemm": "warpsmith.ops",
    "load": "warpsmith.ops",
    "prepare_weight": "warpsmith.ops",
    "quantize": "warpsmith.ops",
    "silu_and_mul_quantize": "warpsmith.ops",
    "warmup": "warpsmith.ops",
}

__all__ = [
    "Decision",
    "InvalidArgumentError",
    "MissingKernelError",
    "NotLoadedError",
    "QTensor",
    "UnsupportedError",
    "WarpsmithError",
    "__version__",
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
        raise AttributeError(f"module 'warpsmith' has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
