# SPDX-License-Identifier: Apache-2.0
"""A small catalog with everything the real one has: two kernels, tiles, a tuning table, an unsupported format."""

from __future__ import annotations

from warpsmith.arch import CAPABILITIES, Capability
from warpsmith.catalog.spec import Catalog, Kernel, Operation, Param, Problem, Promise, Variant
from warpsmith.tuning import Bound, Rule

NATIVE = tuple(c for c in CAPABILITIES if c.major >= 10)
PORTABLE = tuple(c for c in CAPABILITIES if c.major < 10 and c != Capability(8, 7))

SCALE = Operation(
    "scale",
    fields=(("format", ("f4", "f8")), ("input", ("bf16", "fp32")), ("layout", ("linear", "tiled"))),
    dims=(("m", 128), ("k", 1024)),
    excluded=((("format", "f8"), ("layout", "tiled")),),
    multiples=(("f4", "k", 16), ("f8", "k", 32)),
)
PARAMS = (Param("out", "ptr"), Param("x", "ptr"), Param("rows", "i64"), Param("columns", "i32"))


def problem(m: int = 128, k: int = 1024, **fields: str) -> Problem:
    """A problem of the operation, with its defaults."""
    return SCALE.problem({**fields, "m": m, "k": k})


def variant(format: str, input: str, tile: str, *witnesses: Problem) -> Variant:
    """A variant for a format, an input and a tile."""
    return Variant(
        f"{format}_{input}_{tile}",
        macros=(("WS_INPUT", input), ("WS_TILE", tile)),
        serves=(("format", (format,)), ("input", (input,))),
        witnesses=witnesses,
        tile=tile,
    )


def variants() -> tuple[Variant, ...]:
    """Small and large tiles of each format and input."""
    return tuple(
        variant(f, i, tile, problem(m, format=f, input=i))
        for f in ("f4", "f8")
        for i in ("bf16", "fp32")
        for tile, m in (("small", 1), ("large", 65536))
    )


def promises() -> tuple[Promise, ...]:
    """Native from 10.0, portable below, nothing on 8.7."""
    rows = []
    for format in ("f4", "f8"):
        rows += [Promise("scale", format, c, "scale_native") for c in NATIVE]
        rows += [Promise("scale", format, c, "scale_portable") for c in PORTABLE]
        rows.append(Promise("scale", format, Capability(8, 7), None, "no such device at hand"))
    return tuple(rows)


TUNING = tuple(
    Rule(kernel, tile, bounds=(Bound(("m", "k"), per_sm=True, minimum=minimum),))
    for kernel in ("scale_native", "scale_portable")
    for tile, minimum in (("large", 65536), ("small", 0))
)

CATALOG = Catalog(
    operations=(SCALE,),
    kernels=(
        Kernel("scale_native", "scaling", "scale", "scale.cuh", "ws_scale_native", NATIVE, PARAMS, variants(), "f"),
        Kernel("scale_portable", "scaling", "scale", "scale.cuh", "ws_scale_portable", PORTABLE, PARAMS, variants()),
    ),
    promises=promises(),
    tuning=TUNING,
)
