# SPDX-License-Identifier: Apache-2.0
"""Other people's code for the same work. A peer counts only if its output is right: see `agrees`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from warpsmith.catalog.formats import LINEAR, TILED

Function = Callable[[Any], tuple[Any, Any]]
"""From x [M, K] to (codes, scales)."""


def peers(format: str, layout: str) -> dict[str, Function]:
    """The peers for a format and layout, by name; those that are not installed are left out."""
    found: dict[str, Function] = {}
    for name, maker in (("flashinfer", _flashinfer), ("torch.compile", _compiled)):
        function = maker(format, layout)
        if function is not None:
            found[name] = function
    return found


def agrees(codes: Any, ours: Any) -> float:
    """The share of code bytes that a peer has in common with ours; a kernel that computes nothing has next to none."""
    import torch

    theirs, mine = codes.reshape(-1).view(torch.uint8), ours.reshape(-1).view(torch.uint8)
    return float((theirs == mine).float().mean()) if theirs.shape == mine.shape else 0.0


def _flashinfer(format: str, layout: str) -> Function | None:
    try:
        import flashinfer
        import torch
        import tvm_ffi
    except Exception:
        return None
    swizzled = layout == TILED
    one = torch.ones(1, device="cuda", dtype=torch.float32)
    functions: dict[str, Function] = {
        "nvfp4": lambda x: flashinfer.fp4_quantize(x, one, 16, False, swizzled),
        "mxfp4": lambda x: flashinfer.fp4_quantize(x, None, 32, True, swizzled),
        "mxfp8": lambda x: flashinfer.mxfp8_quantize(x, swizzled),
    }
    function = functions.get(format)
    if function is None:
        return None

    def run(x: Any) -> tuple[Any, Any]:
        # FlashInfer 0.7 launches on tvm-ffi's stream, which a graph capture does not move by itself.
        with tvm_ffi.use_torch_stream():
            return function(x)

    return run


def _compiled(format: str, layout: str) -> Function | None:
    """The format written in torch operations and fused by torch.compile (Triton)."""
    import torch

    functions: dict[str, Function] = {"mxfp8": _mxfp8, "fp8_block": _fp8_block, "nvfp4": _nvfp4, "mxfp4": _mxfp4}
    if layout != LINEAR or format not in functions:
        return None
    compiled: Function = torch.compile(functions[format], dynamic=False)
    return compiled


def _blocks(x: Any, block: int) -> tuple[Any, Any]:
    values = x.float().reshape(x.shape[0], -1, block)
    return values, values.abs().amax(-1, keepdim=True)


def _fp8_block(x: Any) -> tuple[Any, Any]:
    import torch

    values, amax = _blocks(x, 128)
    return (values * (448.0 / amax)).to(torch.float8_e4m3fn).reshape(x.shape), (amax / 448.0).squeeze(-1)


def _power(amax: Any, largest_exponent: int, fraction: int) -> tuple[Any, Any]:
    """(scale byte, factor) of the ``ceil`` rule."""
    import torch

    bits = amax.view(torch.int32)
    exponent = (bits >> 23) - 127 - largest_exponent + ((bits & 0x7FFFFF) > fraction).int()
    byte = (exponent + 127).clamp(0, 254)
    return byte.to(torch.uint8).squeeze(-1), ((254 - byte) << 23).view(torch.float32)


def _mxfp8(x: Any) -> tuple[Any, Any]:
    import torch

    values, amax = _blocks(x, 32)
    byte, factor = _power(amax, 8, 0x600000)
    return (values * factor).to(torch.float8_e4m3fn).reshape(x.shape), byte


def _pack(y: Any, shape: Any) -> Any:
    """E2m1 codes of values, two a byte."""
    import torch

    size = y.abs()
    code = (size > 0.25).int() + (size >= 0.75) + (size > 1.25) + (size >= 1.75)
    code = code + (size > 2.5) + (size >= 3.5) + (size > 5.0) + (y.view(torch.int32) < 0) * 8
    pairs = code.reshape(shape[0], -1, 2)
    return (pairs[..., 0] | (pairs[..., 1] << 4)).to(torch.uint8)


def _mxfp4(x: Any) -> tuple[Any, Any]:
    values, amax = _blocks(x, 32)
    byte, factor = _power(amax, 2, 0x400000)
    return _pack(values * factor, x.shape), byte


def _nvfp4(x: Any) -> tuple[Any, Any]:
    import torch

    values, amax = _blocks(x, 16)
    scale = (amax / 6.0).clamp(max=448.0).to(torch.float8_e4m3fn)
    return _pack(values * (1.0 / scale.float()), x.shape), scale.squeeze(-1)
