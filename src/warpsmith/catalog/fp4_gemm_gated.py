# SPDX-License-Identifier: Apache-2.0
"""The kernels of `fp4_gemm` that activate and quantize the first product of a MoE layer. Data only.

Problems are grouped: rows of x by the w13 of their expert, whose rows `warpsmith.prepare_weight` has put in the order
that the epilogue takes. m is the rows that a group has on average, n the rows of w13, and the result has A's format. As
in `fp4_gemm`, one source makes a kernel for 12.x and its twin for 9.0, which problems get that ask for the path
``emulated``, and weights that nothing else reads there. Where there is no kernel, a layer is composed of a product and
of `moe_quantize`.
"""

from __future__ import annotations

from dataclasses import replace

from warpsmith.catalog import fp4_gemm as product
from warpsmith.catalog.formats import GATED_MULTIPLE
from warpsmith.catalog.gemm import DEFAULT_PATH, EMULATED_PATH, PATHS, PREPARED, k_multiple
from warpsmith.catalog.spec import Kernel, Operation, Param, Problem, Variant, operands, pair
from warpsmith.tuning import Bound, Rule

OPERATION = "gated_gemm"
PAIRS = tuple((a, b) for a, b in product.PAIRS if a != "fp8_block")
FORMATS = tuple(pair(a, b) for a, b in PAIRS)
ACTIVATIONS = ("swiglu", "swiglu_oai", "geglu", "geglu_tanh")
"""What the epilogue computes: all that have a gate."""

TILES = {"s32": 16, "t128": 512, "t256": 65536}
"""Those of `fp4_gemm.SHAPES` that pay, with the rows of a witness. Up to 64 rows s32 costs at most 1.07 of the best of
the smaller tiles and of s64, by the estimate: less than the launch that it saves."""

OPERATIONS = (
    Operation(
        OPERATION,
        (("format", FORMATS), ("path", PATHS)),
        (("m", 512), ("n", 4096), ("k", 4096), ("batches", 8)),
        excluded=tuple((("format", format), ("path", EMULATED_PATH)) for format in PREPARED),
        opt_in=("path",),
        multiples=(
            *((pair(a, b), "k", k_multiple(a, b)) for a, b in PAIRS),
            *((format, "n", GATED_MULTIPLE) for format in FORMATS),
        ),
    ),
)

PARAMS = (
    *product.PARAMS,
    *(Param(name, "ptr") for name in ("d_scales", "d_global_scale")),
    Param("activation", "u32"),
    *(Param(name, "f32") for name in ("activation_alpha", "limit")),
)
"""Those of the product, and what becomes of it."""


def _variants(path: str) -> tuple[Variant, ...]:
    found = []
    for variant in product.KERNELS[0].variants:
        format = variant.name.removesuffix(f"_{variant.tile}")
        if variant.tile not in TILES or operands(format) not in PAIRS:
            continue
        asked = path if format not in PREPARED else DEFAULT_PATH
        dims = {"m": TILES[variant.tile], "n": 4096, "k": 4096, "batches": 1}
        serves = [("format", (format,))] + [("path", (asked,))] * (asked != DEFAULT_PATH)
        witness = Problem.of(OPERATION, {"format": format, "path": asked}, dims)
        found.append(replace(variant, serves=tuple(serves), witnesses=(witness,), activations=ACTIVATIONS))
    return tuple(found)


_NATIVE = Kernel(
    name="sm12x_gated_gemm",
    module=product.MODULE,
    operation=OPERATION,
    source="fp4_gemm/sm12x_gated_gemm.cuh",
    entry="ws_sm12x_gated_gemm",
    capabilities=product.CAPABILITIES,
    params=PARAMS,
    variants=_variants(DEFAULT_PATH),
    feature="f",
)
KERNELS = (
    _NATIVE,
    replace(
        _NATIVE,
        name="sm12x_gated_gemm_emulated",
        capabilities=product.EMULATED_ON,
        variants=_variants(EMULATED_PATH),
        feature="a",
        may_spill=True,
        emulates=_NATIVE.name,
    ),
)

_MANY = Bound(("batches", "m", "n"), minimum=4 * 256 * product.TILE_N, per_sm=True)
TUNING = (
    Rule(KERNELS[1].name, "s32", bounds=(Bound(("m",), maximum=64),)),
    Rule(
        KERNELS[1].name, "t256", bounds=(Bound(("batches", "m", "n"), minimum=4 * 256 * product.TILE_N, per_sm=True),)
    ),
    Rule(KERNELS[1].name, "t128"),
)
"""Emulated, the tiles that 12.x takes for about as many rows."""

ESTIMATES = tuple(
    replaced._replace(kernel=kernel.name, formats=tuple(f for f in formats if f.format in FORMATS))
    for replaced, kernel, formats in (
        (product.ESTIMATES[0], KERNELS[0], product.costs(product.NATIVE_RATES, TILES)),
        (product.ESTIMATES[1], KERNELS[1], product.costs(product.EMULATED_RATES, TILES)),
    )
)
"""As those of the product: what activating costs beside writing the product is not known."""
