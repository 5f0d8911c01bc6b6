# SPDX-License-Identifier: Apache-2.0
"""The module `fused_moe`: routing, sorting by expert and gathering, activation, quantizing, weighted sum. Data only.

Between them stand the grouped products of the module `gemm`, whatever kernel dispatch has for them. `FORMATS` are the
pairs of formats that a layer may have.
"""

from __future__ import annotations

from warpsmith.arch import Capability
from warpsmith.catalog.formats import FORMATS as ELEMENTS
from warpsmith.catalog.gemm import PLAIN, k_multiple
from warpsmith.catalog.spec import Instructions, Kernel, Operation, Param, Problem, Variant, pair

MODULE = "fused_moe"

CAPABILITIES = tuple(
    Capability(*c)
    for c in ((8, 0), (8, 6), (8, 7), (8, 8), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1))
)
_WAITS = tuple(c for c in CAPABILITIES if c >= Capability(9, 0))

MAX_EXPERTS = 512
MAX_TOP_K = 16
MAX_GROUPS = 32

RULES = {
    "softmax_topk": 0,
    "softmax_topk_renormalize": 1,
    "topk_softmax": 1,
    "sigmoid_bias_grouped": 2,
    "sigmoid_input": 3,
}
"""Routing rules and their numbers in ``kernels/fused_moe/routing.cuh``; two names are the same function."""

ACTIVATIONS = {"swiglu": 0, "swiglu_oai": 1, "geglu": 2, "geglu_tanh": 3, "relu2": 4}
"""Activations and their numbers in ``kernels/fused_moe/activation.cuh``."""

GATHER = len(ACTIVATIONS)
"""The number, for `moe_quantize`, of no activation: rows are tokens', gathered."""

UNGATED = ("relu2",)
"""Activations without a gate: w13 has I rows, not 2·I."""

QUANTIZED_ACTIVATIONS = ("nvfp4", "mxfp4", "mxfp8", "fp8_block")
_WEIGHTS = ("nvfp4", "mxfp4", "mxfp8", "fp8_block_128x128")
FORMATS = (
    *((p, p) for p in PLAIN),
    *((p, w) for w in _WEIGHTS for p in PLAIN),
    *(("nvfp4", "nvfp4"), ("mxfp4", "mxfp4"), ("mxfp8", "mxfp8"), ("mxfp8", "mxfp4")),
    ("fp8_block", "fp8_block_128x128"),
)
"""(activations, weights) of a layer; both of its products are `gemm` problems of that format."""

TILED_FORMATS = ("nvfp4", "mxfp4", "mxfp8")
"""The formats of activations whose scales tensor cores read in the layout 128x4."""

_TYPES = ("bf16", "fp16", "fp32")

OPERATIONS = (
    Operation("moe_route", (("input", _TYPES),), (("m", 64), ("experts", 128))),
    Operation("moe_count", (), (("pairs", 65536),)),
    Operation("moe_permute", (), (("pairs", 512),)),
    Operation("moe_activation", (("type", PLAIN),), (("m", 512), ("k", 2048))),
    Operation(
        "moe_quantize",
        (("format", TILED_FORMATS), ("type", PLAIN)),
        (("m", 512), ("k", 2048)),
        multiples=tuple((f, "k", k_multiple(f, f)) for f in TILED_FORMATS),
    ),
    Operation("moe_combine", (("type", PLAIN),), (("m", 64), ("k", 4096))),
)


def _params(text: str) -> tuple[Param, ...]:
    """Read ``ctype: name name …; …`` as parameters, in order."""
    found = []
    for part in text.split(";"):
        ctype, _, names = part.partition(":")
        found += [Param(name, ctype.strip()) for name in names.split()]
    return tuple(found)


_ROUTE_PARAMS = _params(
    "ptr: logits bias num_tokens ids weights offsets rows positions; i64: row_bytes; "
    "u32: tokens experts top_k rule n_group topk_group; f32: scale; u32: expert_offset local_experts"
)
_PERMUTE_PARAMS = _params(
    "ptr: ids num_tokens offsets rows positions counts zeros x a x_scales a_scales weights; i64: x_row; "
    "u32: row_bytes scale_bytes scale_pitch pairs top_k expert_offset local_experts zero_words flags"
)
_ACTIVATION_PARAMS = _params("ptr: h act last_offset; u32: most_rows units activation; f32: alpha limit")
_QUANTIZE_PARAMS = _params(
    "ptr: x codes scales global_scale offsets ids positions weights; i64: x_row; "
    "u32: units groups pitch most_rows top_k expert_offset activation; f32: alpha limit; u32: flags"
)
_COMBINE_PARAMS = _params("ptr: y weights positions out; i64: out_row; u32: rows top_k units")


def _waiting(*patterns: str) -> tuple[Instructions, ...]:
    """The wait for the launch before, and what else must be there."""
    return (Instructions(("ACQBULK",), _WAITS), *((Instructions(patterns, CAPABILITIES),) if patterns else ()))


def _kernel(name: str, source: str, params: tuple[Param, ...], variants: tuple[Variant, ...]) -> Kernel:
    entry = f"ws_{source}"
    return Kernel(name, MODULE, name, f"fused_moe/sm80_{source}.cuh", entry, CAPABILITIES, params, variants)


def _by_type(operation: str, macro: str, field: str, types: tuple[str, ...], *patterns: str) -> tuple[Variant, ...]:
    dims = dict(next(o.dims for o in OPERATIONS if o.name == operation))
    return tuple(
        Variant(
            name=t,
            macros=((macro, f"WS_{t.upper()}"),),
            serves=((field, (t,)),),
            witnesses=(Problem.of(operation, {field: t}, dims),),
            instructions=_waiting(*patterns),
        )
        for t in types
    )


def _sorting(operation: str, pairs: int, count: int, instruction: str) -> tuple[Variant, ...]:
    witness = Problem.of(operation, {}, {"pairs": pairs})
    return (Variant("default", (("WS_COUNT", str(count)),), (), (witness,), instructions=_waiting(instruction)),)


def _quantizing() -> tuple[Variant, ...]:
    e2m1 = Instructions((r"F2FP\..*E2M1",), tuple(c for c in CAPABILITIES if c >= Capability(10, 0)), "f")
    e4m3 = Instructions((r"F2FP\..*E4M3",), tuple(c for c in CAPABILITIES if c >= Capability(8, 9)))
    return tuple(
        Variant(
            name=f"{format}_{type}",
            macros=(("WS_FORMAT", f"WS_{format.upper()}"), ("WS_INPUT", f"WS_{type.upper()}")),
            serves=(("format", (format,)), ("type", (type,))),
            witnesses=(Problem.of("moe_quantize", {"format": format, "type": type}, {"m": 512, "k": 2048}),),
            instructions=(*_waiting(), e2m1 if ELEMENTS[format].element_bits == 4 else e4m3),
        )
        for format in TILED_FORMATS
        for type in PLAIN
    )


KERNELS = (
    _kernel("moe_route", "moe_route", _ROUTE_PARAMS, _by_type("moe_route", "WS_INPUT", "input", _TYPES, "C?REDUX")),
    _kernel("moe_count", "moe_permute", _PERMUTE_PARAMS, _sorting("moe_count", 65536, 1, r"ATOMS\.POPC\.INC")),
    _kernel("moe_permute", "moe_permute", _PERMUTE_PARAMS, _sorting("moe_permute", 512, 0, r"MATCH\.ANY")),
    _kernel(
        "moe_activation", "moe_activation", _ACTIVATION_PARAMS, _by_type("moe_activation", "WS_TYPE", "type", PLAIN)
    ),
    _kernel("moe_quantize", "moe_quantize", _QUANTIZE_PARAMS, _quantizing()),
    _kernel("moe_combine", "moe_combine", _COMBINE_PARAMS, _by_type("moe_combine", "WS_TYPE", "type", PLAIN)),
)


def gemm_format(activations: str, weights: str) -> str:
    """The format of the layer's `gemm` problems."""
    return pair(activations, weights)
