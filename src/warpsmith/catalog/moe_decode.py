# SPDX-License-Identifier: Apache-2.0
"""The kernels of `fused_moe` for a few tokens on 9.0, two launches a layer. Data only.

Dims of a problem are m tokens, n rows of an expert's result and k columns. A layer with bf16 or fp16 weights that is
among `LAYERS` runs them; others are composed of the module's other kernels and grouped products.
"""

from __future__ import annotations

from warpsmith.arch import Capability
from warpsmith.catalog.gemm import PLAIN
from warpsmith.catalog.spec import Instructions, Kernel, Operation, Param, Problem, Variant
from warpsmith.tuning import Bound, Rule

MODULE = "fused_moe"
CAPABILITIES = (Capability(9, 0),)
UP, DOWN = "moe_decode_up", "moe_decode_down"

LOGIT_TYPES = ("bf16", "fp16", "fp32")
"""Types of router logits, by their number in ``kernels/fused_moe/decode.cuh``."""
BIAS_TYPES = ("", "bf16", "fp16", "fp32")
"""Types of biases likewise; none first."""
BIAS_SHIFT = 2
MOST_ROWS = 64
"""Rows of w2 that a block of `moe_decode_down` has at most."""
MAX_HIDDEN = 7168
"""Columns of x that `moe_decode_up` has room for."""

_TILES = {"t2": 2, "t8": 8}
_DIMS = (("m", 8), ("n", 2048), ("k", 4096))

OPERATIONS = tuple(Operation(name, (("type", PLAIN),), _DIMS) for name in (UP, DOWN))

_ROUTER = ("tokens", "experts", "top_k", "rule", "n_group", "topk_group")


def many(ctype: str, *names: str) -> tuple[Param, ...]:
    """Parameters of one C type."""
    return tuple(Param(name, ctype) for name in names)


HERE = (*many("u32", *_ROUTER), Param("scale", "f32"), *many("u32", "expert_offset", "local_experts"))
"""What both kernels need to route tokens."""
_PARAMS = {
    UP: (
        *many("ptr", "x", "w13", "bias", "logits", "route_bias", "num_tokens", "act"),
        *many("i64", "x_row", "logits_row"),
        *HERE,
        *many("u32", "inner", "hidden", "activation"),
        *many("f32", "alpha", "limit"),
        Param("flags", "u32"),
    ),
    DOWN: (
        *many("ptr", "act", "w2", "bias", "logits", "route_bias", "num_tokens", "out"),
        Param("logits_row", "i64"),
        *HERE,
        *many("u32", "inner", "hidden", "flags"),
    ),
}
_MMA = {"bf16": r"HMMA\.16816\.F32\.BF16", "fp16": r"HMMA\.16816\.F32$"}


def _variant(operation: str, type: str, tile: str) -> Variant:
    dims = {**dict(_DIMS), "m": _TILES[tile]}
    return Variant(
        name=f"{type}_{tile}",
        macros=(("WS_TYPE", f"WS_{type.upper()}"), ("WS_TOKENS", str(_TILES[tile]))),
        serves=(("type", (type,)),),
        witnesses=(Problem.of(operation, {"type": type}, dims),),
        tile=tile,
        instructions=(Instructions((_MMA[type], r"LDGSTS\.E", "ACQBULK", "PREEXIT"), CAPABILITIES),),
    )


KERNELS = tuple(
    Kernel(
        name=operation,
        module=MODULE,
        operation=operation,
        source=f"fused_moe/sm90_{operation}.cuh",
        entry=f"ws_{operation}",
        capabilities=CAPABILITIES,
        params=_PARAMS[operation],
        variants=tuple(_variant(operation, type, tile) for type in PLAIN for tile in _TILES),
    )
    for operation in (UP, DOWN)
)

TUNING = tuple(
    rule for name in (UP, DOWN) for rule in (Rule(name, "t2", bounds=(Bound(("m",), maximum=2),)), Rule(name, "t8"))
)
"""By tokens."""

_COLUMNS = Bound(("hidden",), maximum=MAX_HIDDEN)
LAYERS = (
    (Bound(("tokens",), maximum=2), _COLUMNS),
    (Bound(("tokens",), maximum=8), Bound(("hidden",), maximum=2304)),
    (Bound(("tokens",), maximum=8), Bound(("hidden",), minimum=3840), _COLUMNS),
)
"""The layers that run these kernels, by tokens and columns of x: those where all bounds of a line hold.

Between, blocks of `moe_decode_down` have two tiles that are not full: see ``docs/moe.md``.
"""
