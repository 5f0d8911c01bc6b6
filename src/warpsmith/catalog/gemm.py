# SPDX-License-Identifier: Apache-2.0
"""The module `gemm`: D = alpha · A · Bᵀ + bias; dense, batched, grouped, masked; of many formats. Data only.

A problem's format names both operands, ``bf16_x_nvfp4``: A, then B. Its layout says how quantized operands lie, which
decides who can read them:

- ``tiled``: each has the last of its format's scale layouts, the one that tensor cores read (128x4; m_major of fp8
  blocks; fp8 weights have one alone);
- ``linear``: the scales of one of them at least are linear though they could be tiled;
- ``prepared``: the elements of B in an order that `warpsmith.prepare_weight` gives them, and all scales tiled, or
  beside bf16 in an order of their own.

Its path is ``default``, what `warpsmith.gemm` asks for, or ``emulated``: where the instruction of another architecture
is made in software, take that kernel. Its `m` is the rows of one matrix; of a grouped problem it is the rows that a
group has on average.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from warpsmith.arch import Capability
from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.spec import Instructions, Kernel, Operation, Param, Problem, Variant, pair
from warpsmith.tuning import Bound, Rule

MODULE = "gemm"
MODES = ("dense", "grouped", "masked")
PLAIN = ("bf16", "fp16")
TILED_LAYOUT, LINEAR_LAYOUT, PREPARED_LAYOUT = LAYOUTS = ("tiled", "linear", "prepared")
DEFAULT_PATH, EMULATED_PATH = PATHS = ("default", "emulated")

CAPABILITIES = tuple(
    Capability(*c)
    for c in ((8, 0), (8, 6), (8, 7), (8, 8), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1))
)
_E4M3_NATIVE = tuple(c for c in CAPABILITIES if c >= Capability(8, 9))


def k_multiple(a: str, b: str) -> int:
    """What K must be divisible by: the longer block, and 16 bytes a row."""
    return max(8 if f in PLAIN else max(FORMATS[f].block[1], 32) for f in (a, b))


N_MULTIPLE = 8
"""What N must be divisible by: 16 bytes of a 16-bit row of D."""

_WEIGHTS = ("nvfp4", "mxfp4", "mxfp8", "fp8_block_128x128")
_PLAIN_PAIRS = tuple((p, p) for p in PLAIN)
_WEIGHT_ONLY = tuple((p, w) for w in _WEIGHTS for p in PLAIN)
_BOTH = (
    ("nvfp4", "nvfp4"),
    ("mxfp4", "mxfp4"),
    ("mxfp8", "mxfp8"),
    ("fp8_block", "fp8_block_128x128"),
    ("mxfp8", "mxfp4"),
)
WHOLE_SCALED = tuple((a, b) for a in ("fp8_row", "fp8_tensor") for b in ("fp8_row", "fp8_tensor"))
"""Pairs whose sums over all of K are scaled: one kernel serves them all, as that of the first."""
PAIRS = (*_PLAIN_PAIRS, *_WEIGHT_ONLY, *_BOTH, *WHOLE_SCALED)
"""The pairs (A, B) that are computed; `promises` has the reasons for all others."""

PREPARED = (pair("mxfp8", "mxfp4"),)
"""The formats whose B can be prepared for tensor cores that take both sides quantized."""

FEW_ROWS = tuple(pair("bf16", b) for b in ("nvfp4", "mxfp4"))
"""The formats whose B can be prepared for few rows of A."""

BLOCK_SCALED = tuple(pair(a, b) for a, b in _BOTH if pair(a, b) not in PREPARED)
"""The formats with both sides quantized that need no preparation."""


def _excluded() -> Iterator[tuple[tuple[str, str], ...]]:
    """What is no problem: layouts that a pair has not, and emulation where nothing is emulated."""
    for format in (pair(a, b) for a, b in PAIRS):
        if format not in (*PREPARED, *FEW_ROWS):
            yield ("format", format), ("layout", PREPARED_LAYOUT)
        if format not in BLOCK_SCALED:
            yield ("format", format), ("path", EMULATED_PATH)
    for a, b in (*_PLAIN_PAIRS, *WHOLE_SCALED):
        yield ("format", pair(a, b)), ("layout", LINEAR_LAYOUT)
    for format in (pair(a, "fp8_block_128x128") for a in PLAIN):
        yield ("format", format), ("layout", LINEAR_LAYOUT)
    yield ("layout", LINEAR_LAYOUT), ("path", EMULATED_PATH)


OPERATIONS = (
    Operation(
        "gemm",
        (("format", tuple(pair(a, b) for a, b in PAIRS)), ("mode", MODES), ("layout", LAYOUTS), ("path", PATHS)),
        (("m", 4096), ("n", 4096), ("k", 4096), ("batches", 1)),
        excluded=tuple(_excluded()),
        opt_in=("path",),
        multiples=(
            *((pair(a, b), "k", k_multiple(a, b)) for a, b in PAIRS),
            *((pair(a, b), "n", N_MULTIPLE) for a, b in PAIRS),
        ),
    ),
)


class Tile(NamedTuple):
    """What one block of `sm80_gemm` computes, and with what.

    Attributes
    ----------
    m, n, k
        Tile of D, and K of a pipeline stage.
    warps_m, warps_n, warps_k
        Warps along each of them.
    stages
        Depth of the pipeline.
    swap
        Whether rows of B are the 16-row operand of the MMA, for few rows of A.
    blocks
        Blocks that a multiprocessor should hold.
    """

    m: int
    n: int
    k: int
    warps_m: int
    warps_n: int
    warps_k: int
    stages: int
    swap: bool
    blocks: int


# The fastest of those timed on an H200. By name, which says for how many rows of A a tile is: `rows8` has M <= 8, …
_PLAIN_TILES = {
    "rows8": Tile(8, 32, 128, 1, 2, 4, 6, True, 2),
    "rows16": Tile(16, 64, 128, 1, 2, 4, 4, True, 2),
    "rows64": Tile(64, 64, 64, 1, 4, 2, 4, True, 2),
    "large": Tile(128, 128, 64, 2, 2, 1, 3, False, 2),
    "wide": Tile(128, 256, 64, 2, 4, 1, 3, False, 1),
    "wide_k32": Tile(128, 256, 32, 2, 4, 1, 4, False, 1),  # for the 99 KB that a block has elsewhere
}
_FP4_WEIGHT_TILES = {
    "rows8": Tile(8, 32, 512, 1, 1, 8, 4, True, 2),
    "rows16": Tile(16, 64, 256, 1, 2, 2, 3, True, 3),
    "rows64": Tile(64, 64, 128, 1, 4, 2, 3, True, 1),
    "large": Tile(128, 128, 64, 2, 4, 1, 3, False, 1),
}
_MXFP8_WEIGHT_TILES = {**_FP4_WEIGHT_TILES, "rows16": Tile(16, 128, 128, 1, 4, 2, 3, True, 1)}
_FP8_WEIGHT_TILES = {**_FP4_WEIGHT_TILES, "rows16": Tile(16, 64, 128, 1, 4, 2, 4, True, 2)}
_ROWS8 = tuple(pair("bf16", b) for b in ("bf16", "nvfp4", "mxfp4"))  # elsewhere `rows16` is as fast, or not worth it
_LARGE = tuple(pair(a, b) for a, b in (*_PLAIN_PAIRS, *_WEIGHT_ONLY))


def _tiles(a: str, b: str) -> dict[str, Tile]:
    """The tiles of a pair, by name."""
    if a not in PLAIN:
        k = 256 if FORMATS[b].element_bits == 4 else 128
        return {"rows16": Tile(16, 64, k, 1, 2, 4, 4, True, 2), "rows64": Tile(64, 64, 128, 2, 2, 1, 3, False, 2)}
    found = _PLAIN_TILES
    if b not in PLAIN:
        found = {"mxfp8": _MXFP8_WEIGHT_TILES, "fp8_block_128x128": _FP8_WEIGHT_TILES}.get(b, _FP4_WEIGHT_TILES)
    return {name: tile for name, tile in found.items() if name != "rows8" or pair(a, b) in _ROWS8}


_WITNESS_ROWS = {"rows8": 1, "rows16": 16, "rows64": 64, "large": 512, "wide": 4096, "wide_k32": 4096}
_ROOMY = tuple(c for c in CAPABILITIES if c == (8, 7) or Capability(9, 0) <= c < Capability(12, 0))
"""Where a block may have more than 99 KB of shared memory; on 8.0 too, but its cubins are also for 8.6 and 8.9."""
_WIDE = (Bound(("batches", "m", "n"), minimum=2 * 128 * 256, per_sm=True),)  # two tiles for each multiprocessor


def format_macro(format: str) -> str:
    """The number of a format in the sources."""
    return f"WS_{format.removesuffix('_128x128').upper()}"


def served(a: str, b: str) -> tuple[str, ...]:
    """The formats of problems that a kernel for A and B of these formats computes."""
    return tuple(pair(*found) for found in (WHOLE_SCALED if (a, b) in WHOLE_SCALED else ((a, b),)))


def _instructions(a: str, b: str) -> tuple[Instructions, ...]:
    """The MMA of the pair's type, asynchronous copies, and conversions where the architecture has them."""
    mma = r"HMMA\.16816\.F32\.BF16" if "bf16" in (a, b) else r"HMMA\.16816\.F32$"
    found = [Instructions((mma, r"LDGSTS\.E\.BYPASS", "LDGDEPBAR", r"BAR\.SYNC"), CAPABILITIES)]
    if b in PLAIN:
        found.append(Instructions((r"LDSM\.16\.M88\.4",), CAPABILITIES))
    if b not in PLAIN and FORMATS[b].element_bits == 8:
        found.append(Instructions((r"F2FP\.F16\.E4M3\.UNPACK_B",), _E4M3_NATIVE))
    return tuple(found)


def witness(format: str, m: int, layout: str = TILED_LAYOUT, path: str = DEFAULT_PATH, k: int = 4096) -> Problem:
    """A dense problem of 4096 columns, for a variant to be found by."""
    fields = {"format": format, "mode": "dense", "layout": layout, "path": path}
    return Problem.of("gemm", fields, {"m": m, "n": 4096, "k": k, "batches": 1})


def _witnesses(a: str, b: str, m: int) -> tuple[Problem, ...]:
    """At an ordinary K, and at one that kernels for few rows leave to this one.

    Tiled scales of two quantized operands are read by faster kernels, where there are any.
    """
    layout = TILED_LAYOUT if a in PLAIN or (a, b) in WHOLE_SCALED else LINEAR_LAYOUT
    return tuple(witness(format, m, layout, k=k) for format in served(a, b) for k in (4096, 32768))


_TILE_MACROS = (
    *("TILE_M", "TILE_N", "TILE_K", "WARPS_M", "WARPS_N", "WARPS_K"),
    *("STAGES", "SWAP", "BLOCKS"),
)


def _variants() -> tuple[Variant, ...]:
    return tuple(
        Variant(
            name=f"{pair(a, b)}_{name}",
            macros=(
                ("WS_A_FORMAT", format_macro(a)),
                ("WS_B_FORMAT", format_macro(b)),
                *((f"WS_{macro}", str(int(value))) for macro, value in zip(_TILE_MACROS, tile, strict=True)),
            ),
            serves=(("format", served(a, b)), ("layout", (TILED_LAYOUT, LINEAR_LAYOUT))),
            witnesses=_witnesses(a, b, _WITNESS_ROWS[name]),
            tile=name,
            instructions=_instructions(a, b),
        )
        for a, b in PAIRS
        if (a, b) not in WHOLE_SCALED[1:]
        for name, tile in _tiles(a, b).items()
    )


_POINTERS = (
    *("a", "b", "d", "a_scales", "b_scales", "bias", "alphas", "a_global_scale", "b_global_scale"),
    *("index", "workspace", "arrivals"),
)
_STRIDES = (
    *("a_row", "b_row", "d_row", "a_batch", "b_batch", "d_batch"),
    *("a_scale_batch", "b_scale_batch", "bias_batch"),
)

KERNELS = (
    Kernel(
        name="sm80_gemm",
        module=MODULE,
        operation="gemm",
        source="gemm/sm80_gemm.cuh",
        entry="ws_sm80_gemm",
        capabilities=CAPABILITIES,
        params=(
            *(Param(name, "ptr") for name in _POINTERS),
            *(Param(name, "i64") for name in _STRIDES),
            *(Param(name, "u32") for name in ("m", "n", "k", "batches")),
            Param("alpha", "f32"),
            Param("flags", "u32"),
        ),
        variants=_variants(),
    ),
)


@lru_cache(maxsize=256)
def sm80_tile(variant: str) -> Tile:
    """The tile of a variant of `sm80_gemm`.

    Raises
    ------
    CatalogError
        If there is no such variant.
    """
    macros = dict(KERNELS[0].variant(variant).macros)
    m, n, k, warps_m, warps_n, warps_k, stages, swap, blocks = (int(macros[f"WS_{name}"]) for name in _TILE_MACROS)
    return Tile(m, n, k, warps_m, warps_n, warps_k, stages, bool(swap), blocks)


TUNING = (
    Rule("sm80_gemm", "rows8", fields=(("format", _ROWS8),), bounds=(Bound(("m",), maximum=8),)),
    Rule("sm80_gemm", "rows16", bounds=(Bound(("m",), maximum=16),)),
    Rule("sm80_gemm", "rows64", bounds=(Bound(("m",), maximum=64),)),
    Rule("sm80_gemm", "wide", _ROOMY, (("format", tuple(pair(p, p) for p in PLAIN)),), _WIDE),
    Rule("sm80_gemm", "wide_k32", fields=(("format", tuple(pair(p, p) for p in PLAIN)),), bounds=_WIDE),
    Rule("sm80_gemm", "large", fields=(("format", _LARGE),)),
    Rule("sm80_gemm", "rows64"),
)
"""By the rows of a matrix. With both sides quantized, tiles of 64 rows serve every size above 16."""
