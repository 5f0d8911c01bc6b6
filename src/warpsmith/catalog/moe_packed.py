# SPDX-License-Identifier: Apache-2.0
"""The kernels of `fused_moe` for a few tokens and 4-bit weights prepared for few rows, two launches a layer. Data only.

Dims of a problem are those of ``catalog/moe_decode.py``, whose numbers of types these kernels share. A bf16 layer with
such weights that is among `LAYERS` runs them.
"""

from __future__ import annotations

from warpsmith.catalog.moe_decode import CAPABILITIES, HERE, MODULE, many
from warpsmith.catalog.spec import Instructions, Kernel, Operation, Param, Problem, Variant
from warpsmith.tuning import Bound, Rule

UP, DOWN = "moe_packed_up", "moe_packed_down"
WEIGHTS = ("nvfp4", "mxfp4")

OWN_SCALES = (1 << 4, 1 << 5)
"""Flags: each expert has a global scale of w13, of w2."""
MOST_ROWS = 64
"""Rows of w2 that a cluster of `moe_packed_down` has at most."""
MAX_HIDDEN = 4096
"""Columns of x that `moe_packed_up` has room for."""
TOO_SMALL = {"nvfp4": 128.0, "mxfp4": 0.5}
"""What products of codes and scales as they lie in memory are too small by."""
LIFT = {"nvfp4": 1.0, "mxfp4": 2.0**48}
"""What rows of `act` are larger by: mxfp4's scales multiply sums, which would be subnormal."""
CLUSTER = 2
"""Blocks of `moe_packed_down` that divide experts and K."""

_TILES = {"t2": 2, "t8": 8}
_SCALED = {"nvfp4": r"HMUL2\.BF16", "mxfp4": "FFMA"}
"""What applies scales: to operands, or to sums."""
_DIMS = (("m", 8), ("n", 2880), ("k", 2880))

OPERATIONS = tuple(Operation(name, (("format", WEIGHTS),), _DIMS) for name in (UP, DOWN))

_PARAMS = {
    UP: (
        *many(
            "ptr", "x", "w13", "scales", "global_scale", "global_scale2", "bias", "logits", "route_bias", "num_tokens"
        ),
        Param("act", "ptr"),
        *many("i64", "x_row", "logits_row"),
        *HERE,
        *many("u32", "inner", "hidden", "activation"),
        *many("f32", "alpha", "limit"),
        Param("flags", "u32"),
    ),
    DOWN: (
        *many("ptr", "act", "w2", "scales", "bias", "logits", "route_bias", "num_tokens", "out"),
        Param("logits_row", "i64"),
        *HERE,
        *many("u32", "inner", "hidden", "flags"),
    ),
}


def _variant(operation: str, weights: str, tile: str) -> Variant:
    dims = {**dict(_DIMS), "m": _TILES[tile]}
    macros = (("WS_TYPE", "WS_BF16"), ("WS_TOKENS", str(_TILES[tile])), ("WS_B_FORMAT", f"WS_{weights.upper()}"))
    return Variant(
        name=f"{weights}_{tile}",
        macros=macros if operation == UP else (*macros, ("WS_CLUSTER", str(CLUSTER))),
        serves=(("format", (weights,)),),
        witnesses=(Problem.of(operation, {"format": weights}, dims),),
        tile=tile,
        instructions=(
            Instructions(
                (r"HMMA\.16816\.F32\.BF16", _SCALED[weights], r"LDSM\.16", r"LDGSTS\.E", "ACQBULK", "PREEXIT"),
                CAPABILITIES,
            ),
        ),
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
        variants=tuple(_variant(operation, weights, tile) for weights in WEIGHTS for tile in _TILES),
    )
    for operation in (UP, DOWN)
)

TUNING = tuple(
    rule for name in (UP, DOWN) for rule in (Rule(name, "t2", bounds=(Bound(("m",), maximum=2),)), Rule(name, "t8"))
)
"""By tokens."""

LAYERS = ((Bound(("tokens",), maximum=8), Bound(("hidden",), maximum=MAX_HIDDEN)),)
"""The layers that run these kernels, by tokens and columns of x: those where all bounds of a line hold."""
