# SPDX-License-Identifier: Apache-2.0
"""What is promised: (operation, format, capability) → the kernel that serves it, or why nothing does.

Written down independently of the kernels' own rows. Dropping a capability from a row would shrink plan and dispatch
alike; it is this table that still names the gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import TypeVar

from warpsmith.arch import Capability
from warpsmith.catalog.spec import NO_FORMAT, Promise

_T = TypeVar("_T")
_EVERYWHERE = tuple(
    Capability.parse(text)
    for text in ("8.0", "8.6", "8.7", "8.8", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")
)


def _rows(
    operation: str,
    formats: Iterable[str],
    capabilities: Iterable[Capability],
    kernel: str | None,
    fields: tuple[tuple[str, str], ...] = (),
    reason: str = "",
    others: tuple[str, ...] = (),
) -> tuple[Promise, ...]:
    about = tuple((name, (value,)) for name, value in fields)
    return tuple(
        Promise(operation, format, capability, kernel, reason, about, others)
        for format in formats
        for capability in capabilities
    )


def _except(all: Iterable[_T], without: Iterable[_T]) -> tuple[_T, ...]:
    return tuple(x for x in all if x not in without)


_SM90 = (Capability(9, 0),)
_SM12X = (Capability(12, 0), Capability(12, 1))
_PLAIN = ("bf16", "fp16")
_BLOCK_SCALED = ("nvfp4_x_nvfp4", "mxfp4_x_mxfp4", "mxfp8_x_mxfp8", "fp8_block_x_fp8_block_128x128")
_FP8 = ("fp8_block_x_fp8_block_128x128",)
_WHOLE = ("fp8_row", "fp8_tensor")
_WHOLE_PAIRS = tuple(f"{a}_x_{b}" for a in _WHOLE for b in _WHOLE)
_WGMMA = ("bf16_x_bf16", "fp16_x_fp16", *_FP8, *_WHOLE_PAIRS)
_LINEAR, _PREPARED, _EMULATED = (("layout", "linear"),), (("layout", "prepared"),), (("path", "emulated"),)
_GATED = ("nvfp4_x_nvfp4", "mxfp4_x_mxfp4", "mxfp8_x_mxfp8", "mxfp8_x_mxfp4")
_GEMM = (
    *("bf16_x_bf16", "bf16_x_nvfp4", "bf16_x_mxfp4", "bf16_x_mxfp8", "bf16_x_fp8_block_128x128"),
    *("fp16_x_fp16", "fp16_x_nvfp4", "fp16_x_mxfp4", "fp16_x_mxfp8", "fp16_x_fp8_block_128x128"),
    *("nvfp4_x_nvfp4", "mxfp4_x_mxfp4", "mxfp8_x_mxfp8", "mxfp8_x_mxfp4", "fp8_block_x_fp8_block_128x128"),
    *_WHOLE_PAIRS,
)
_STREAMED = (
    *("bf16_x_nvfp4", "bf16_x_mxfp4", "bf16_x_mxfp8", "bf16_x_fp8_block_128x128"),
    *("fp16_x_nvfp4", "fp16_x_fp8_block_128x128"),
)
_PACKED = ("bf16_x_nvfp4", "bf16_x_mxfp4")
_MIXED = (*_PACKED, "bf16_x_mxfp8", "bf16_x_fp8_block_128x128")
_PACKED_KERNELS = ("sm90_packed_gemm", "sm90_packed_pair_gemm")
_STREAMS = ("sm90_stream_gemm", "sm90_stream_pair_gemm")
_GEMM_FORMATS = (*_PLAIN, "nvfp4", "mxfp4", "mxfp8", "fp8_block", "fp8_block_128x128", *_WHOLE)


_NOT_PREPARED = (
    "weights prepared for mxfp8 are read on 9.0, 12.0 and 12.1 alone: pass the weights as they were quantized"
)
_NOT_PACKED = "weights prepared for few rows are read on 9.0 alone: pass the weights as they were quantized"


_NOT_GATED = (
    "the epilogue that activates and quantizes is of 12.0 and 12.1: elsewhere the product, then moe_quantize, do so"
)


_NO_DECODE = (
    "layers of a few tokens have kernels of their own on 9.0 alone: elsewhere they are composed of grouped products"
)


def _no_gemm(a: str, b: str) -> str:
    """Why operands of these formats are not multiplied, and what to do."""
    if a in _WHOLE or b in _WHOLE:
        side, other = ("B", b) if a in _WHOLE else ("A", a)
        return f"fp8_row and fp8_tensor go with each other alone, not with {other}: quantize {side} to one of them"
    if a == "fp8_block_128x128":
        return "128×128 blocks are for weights, B: quantize A to fp8_block"
    if b == "fp8_block":
        return "the scales of fp8 weights, B, are for 128×128 blocks: quantize B to fp8_block_128x128"
    if b in _PLAIN and a in _PLAIN:
        return "neither of bf16 and fp16 holds the other's values: convert one operand"
    if b in _PLAIN:
        return "a quantized operand beside a plain one has to be B, the weights: exchange or dequantize them"
    return f"no kernel multiplies {a} by {b}: quantize A to the format of B, or leave it in bf16"


def _unsupported_gemms() -> Iterator[Promise]:
    for a, b in product(_GEMM_FORMATS, _GEMM_FORMATS):
        format = f"{a}_x_{b}"
        if format not in _GEMM:
            reason = _no_gemm(a, b)
            for capability in _EVERYWHERE:
                yield Promise("gemm", format, capability, None, reason)


PROMISES = (
    *_rows("quantize", ("nvfp4", "mxfp4", "mxfp8", "fp8_block"), _EVERYWHERE, "quantize"),
    *_rows("quantize", ("fp8_block_128x128",), _EVERYWHERE, "quantize_128x128"),
    *_rows("quantize", _WHOLE, _EVERYWHERE, "quantize_whole"),
    *_rows("matrix_amax", (NO_FORMAT,), _EVERYWHERE, "matrix_amax"),
    *_rows("silu_and_mul_quantize", ("nvfp4", "mxfp4", "mxfp8", "fp8_block"), _EVERYWHERE, "silu_and_mul_quantize"),
    *_rows(
        "dequantize", ("nvfp4", "mxfp4", "mxfp8", "fp8_block", "fp8_block_128x128", *_WHOLE), _EVERYWHERE, "dequantize"
    ),
    *_rows("amax_partial", (NO_FORMAT,), _EVERYWHERE, "amax_partial"),
    *_rows("global_scale", (NO_FORMAT,), _EVERYWHERE, "global_scale"),
    *_rows("gemm", _except(_GEMM, (*_BLOCK_SCALED, *_WGMMA, *_STREAMED)), _EVERYWHERE, "sm80_gemm"),
    *_rows("gemm", _STREAMED, _except(_EVERYWHERE, _SM90), "sm80_gemm"),
    *_rows("gemm", _except(_STREAMED, _MIXED), _SM90, "sm80_gemm", others=_STREAMS),
    *_rows("gemm", _MIXED, _SM90, "sm90_mixed_gemm", others=_STREAMS),
    *_rows("gemm", _except(_WGMMA, _BLOCK_SCALED), _except(_EVERYWHERE, _SM90), "sm80_gemm"),
    *_rows("gemm", _except(_BLOCK_SCALED, _WGMMA), _except(_EVERYWHERE, _SM12X), "sm80_gemm"),
    *_rows("gemm", _FP8, _except(_EVERYWHERE, (*_SM90, *_SM12X)), "sm80_gemm"),
    *_rows("gemm", _WGMMA, _SM90, "sm90_gemm"),
    *_rows("gemm", _FP8, _SM90, "sm80_gemm", _LINEAR),
    *_rows("gemm", _BLOCK_SCALED, _SM12X, "sm12x_blockscaled_gemm"),
    *_rows("gemm", _BLOCK_SCALED, _SM12X, "sm80_gemm", _LINEAR),
    *_rows("gemm", _BLOCK_SCALED, _SM90, "sm12x_blockscaled_gemm_emulated", _EMULATED),
    *_rows("gemm", ("mxfp8_x_mxfp4",), _SM12X, "sm12x_blockscaled_gemm", _PREPARED),
    *_rows("gemm", ("mxfp8_x_mxfp4",), _SM90, "sm12x_blockscaled_gemm_emulated", _PREPARED),
    *_rows("gemm", ("mxfp8_x_mxfp4",), _except(_EVERYWHERE, (*_SM90, *_SM12X)), None, _PREPARED, _NOT_PREPARED),
    *_rows("gemm", _PACKED, _SM90, "sm90_mixed_packed_gemm", _PREPARED, others=_PACKED_KERNELS),
    *_rows("gemm", _PACKED, _except(_EVERYWHERE, _SM90), None, _PREPARED, _NOT_PACKED),
    *_unsupported_gemms(),
    *_rows("gated_gemm", _GATED, _SM12X, "sm12x_gated_gemm"),
    *_rows("gated_gemm", _GATED[:3], _SM90, "sm12x_gated_gemm_emulated", _EMULATED),
    *_rows("gated_gemm", _GATED[:3], _SM90, None, reason=_NOT_GATED),
    *_rows("gated_gemm", _GATED[3:], _SM90, "sm12x_gated_gemm_emulated"),
    *_rows("gated_gemm", _GATED, _except(_EVERYWHERE, (*_SM90, *_SM12X)), None, reason=_NOT_GATED),
    *_rows("moe_route", (NO_FORMAT,), _EVERYWHERE, "moe_route"),
    *_rows("moe_count", (NO_FORMAT,), _EVERYWHERE, "moe_count"),
    *_rows("moe_permute", (NO_FORMAT,), _EVERYWHERE, "moe_permute"),
    *_rows("moe_activation", (NO_FORMAT,), _EVERYWHERE, "moe_activation"),
    *_rows("moe_quantize", ("nvfp4", "mxfp4", "mxfp8"), _EVERYWHERE, "moe_quantize"),
    *_rows("moe_combine", (NO_FORMAT,), _EVERYWHERE, "moe_combine"),
    *_rows("moe_decode_up", (NO_FORMAT,), _SM90, "moe_decode_up"),
    *_rows("moe_decode_down", (NO_FORMAT,), _SM90, "moe_decode_down"),
    *_rows("moe_decode_up", (NO_FORMAT,), _except(_EVERYWHERE, _SM90), None, reason=_NO_DECODE),
    *_rows("moe_decode_down", (NO_FORMAT,), _except(_EVERYWHERE, _SM90), None, reason=_NO_DECODE),
    *_rows("moe_packed_up", ("nvfp4", "mxfp4"), _SM90, "moe_packed_up"),
    *_rows("moe_packed_down", ("nvfp4", "mxfp4"), _SM90, "moe_packed_down"),
    *_rows("moe_packed_up", ("nvfp4", "mxfp4"), _except(_EVERYWHERE, _SM90), None, reason=_NO_DECODE),
    *_rows("moe_packed_down", ("nvfp4", "mxfp4"), _except(_EVERYWHERE, _SM90), None, reason=_NO_DECODE),
)
