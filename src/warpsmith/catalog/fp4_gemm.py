# SPDX-License-Identifier: Apache-2.0
"""The module `fp4_gemm`: block-scaled operands on the block-scaled tensor cores of 12.0 and 12.1. Data only.

The operation is `gemm`'s. Two kernels are made of one source: on 12.x its MMA is an instruction, on 9.0 it is made in
software. There it is what a problem gets that asks for the path ``emulated``, and the one reader of prepared weights;
``docs/kernels/sm12x_blockscaled_gemm.md`` is the contract.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from warpsmith.arch import Capability
from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.gemm import EMULATED_PATH, PREPARED, PREPARED_LAYOUT, TILED_LAYOUT, witness
from warpsmith.catalog.spec import Instructions, Kernel, Param, Variant, pair
from warpsmith.tuning import Bound, Rule
from warpsmith.tuning.estimate import Estimate, FormatCost, TileShape

MODULE = "fp4_gemm"
CAPABILITIES = (Capability(12, 0), Capability(12, 1))
EMULATED_ON = (Capability(9, 0),)
PAIRS = (
    ("nvfp4", "nvfp4"),
    ("mxfp4", "mxfp4"),
    ("mxfp8", "mxfp8"),
    ("mxfp8", "mxfp4"),
    ("fp8_block", "fp8_block_128x128"),
)


class Shape(NamedTuple):
    """A tile of D, M × 128, and what computes it.

    Attributes
    ----------
    m
        Rows.
    k
        K of a stage for two 4-bit formats; half of it for the others.
    warps_m, warps_n
        MMA warps along each.
    swap
        Whether rows of B are the 16-row operand of the MMA.
    loads
        LDSM for each MMA; as one takes 4 clocks of a multiprocessor's shared memory, and a round of four MMAs 16, it is
        also what loads take by what MMAs take.
    witness
        Rows of a problem with 4096 columns that it is for.
    """

    m: int
    k: int
    warps_m: int
    warps_n: int
    swap: bool
    loads: float
    witness: int


SHAPES = {
    "s8": Shape(8, 256, 1, 4, True, 1.5, 8),
    "s16": Shape(16, 256, 1, 4, True, 0.75, 16),
    "s32": Shape(32, 256, 1, 4, True, 0.5, 32),
    "s64": Shape(64, 256, 2, 4, True, 0.5, 64),
    "t128": Shape(128, 128, 2, 4, False, 0.38, 512),
    "t256": Shape(256, 128, 4, 2, False, 0.25, 65536),
}
TILE_N = 128
_ALL_BUT_BLOCK = tuple(pair(a, b) for a, b in PAIRS if a != "fp8_block")  # t256's promotion would not fit registers


def _mma(a: str, b: str, swap: bool) -> str:
    """The instruction of a pair on 12.x; swapped, B's elements come first."""
    if b == "nvfp4":
        return r"OMMA\.SF\.16864\.F32\.E2M1\.E2M1\.UE4M3\.4X"
    if a == "mxfp4":
        return r"OMMA\.SF\.16864\.F32\.E2M1\.E2M1\.E8"
    types = ["E2M1" if FORMATS[f].element_bits == 4 else "E4M3" for f in (a, b)]
    return r"QMMA\.SF\.16832\.F32\.{}\.{}\.E8".format(*(reversed(types) if swap else types))


def _instructions(a: str, b: str, shape: Shape) -> tuple[Instructions, ...]:
    moves = ("USETMAXREG",) if shape.warps_m * shape.warps_n == 8 else ()
    copies = (r"UTMALDG\.3D", r"UBLKCP\.S\.G", "ACQBULK", "PREEXIT")
    return (
        Instructions((_mma(a, b, shape.swap), *copies, *moves), CAPABILITIES, "f"),
        Instructions((r"HMMA\.16816\.F32", *copies), EMULATED_ON, "a"),
    )


def _stage(a: str, b: str, shape: Shape) -> int:
    """K of a stage; of FP8 blocks it is what a scale covers, so that the main loop takes both at once."""
    if a == "fp8_block":
        return FORMATS[a].block[1]
    return shape.k if FORMATS[a].element_bits == FORMATS[b].element_bits == 4 else shape.k // 2


def _variant(a: str, b: str, tile: str, path: str) -> Variant:
    shape, format = SHAPES[tile], pair(a, b)
    layout = PREPARED_LAYOUT if format in PREPARED else TILED_LAYOUT
    sizes = (
        ("TILE_M", shape.m),
        ("TILE_N", TILE_N),
        ("TILE_K", _stage(a, b, shape)),
        ("WARPS_M", shape.warps_m),
        ("WARPS_N", shape.warps_n),
        ("SWAP", int(shape.swap)),
    )
    serves = [("format", (format,)), ("layout", (layout,))]
    if path and layout == TILED_LAYOUT:
        serves.append(("path", (path,)))
    return Variant(
        name=f"{format}_{tile}",
        macros=(
            ("WS_A_FORMAT", f"WS_{a.upper()}"),
            ("WS_B_FORMAT", f"WS_{b.removesuffix('_128x128').upper()}"),
            *((f"WS_{name}", str(size)) for name, size in sizes),
        ),
        serves=tuple(serves),
        witnesses=(witness(format, shape.witness, layout, path if path and layout == TILED_LAYOUT else "default"),),
        tile=tile,
        instructions=_instructions(a, b, shape),
    )


def _variants(path: str = "") -> tuple[Variant, ...]:
    return tuple(
        _variant(a, b, tile, path)
        for a, b in PAIRS
        for tile in SHAPES
        if tile != "t256" or pair(a, b) in _ALL_BUT_BLOCK
    )


_POINTERS = ("a_scales", "b_scales", "d", "bias", "alphas", "a_global_scale", "b_global_scale", "index")
_STRIDES = ("d_row", "d_batch", "a_scale_batch", "b_scale_batch", "bias_batch")
PARAMS = (
    *(Param(name, "tensormap") for name in ("a_map", "b_map")),
    *(Param(name, "ptr") for name in (*_POINTERS, "workspace", "arrivals")),
    *(Param(name, "i64") for name in _STRIDES),
    *(Param(name, "u32") for name in ("m", "n", "k", "batches", "splits")),
    Param("alpha", "f32"),
    Param("flags", "u32"),
)
"""The parameters of a GEMM that reads its operands through tensor maps."""

_SOURCE, _ENTRY = "fp4_gemm/sm12x_blockscaled_gemm.cuh", "ws_sm12x_blockscaled_gemm"
KERNELS = (
    Kernel(
        name="sm12x_blockscaled_gemm",
        module=MODULE,
        operation="gemm",
        source=_SOURCE,
        entry=_ENTRY,
        capabilities=CAPABILITIES,
        params=PARAMS,
        variants=_variants(),
        feature="f",
    ),
    Kernel(
        name="sm12x_blockscaled_gemm_emulated",
        module=MODULE,
        operation="gemm",
        source=_SOURCE,
        entry=_ENTRY,
        capabilities=EMULATED_ON,
        params=PARAMS,
        variants=_variants(EMULATED_PATH),
        feature="a",
        may_spill=True,
        emulates="sm12x_blockscaled_gemm",
    ),
)


NATIVE_RATES = (4096.0, 4096.0, 2048.0, 2048.0, 2048.0)
EMULATED_RATES = (930.0, 460.0, 590.0, 540.0, 1070.0)
"""Of `PAIRS`, in operations a clock of one multiprocessor: on 12.x one MMA in 16 clocks of a partition, as published
peaks have it; emulated, what 4096 × 4096 × 4096 took on an H200, at 1.755 GHz, by cubins compiled
for speed (they are compiled fast since)."""


def costs(rates: tuple[float, ...], tiles: Collection[str] = tuple(SHAPES)) -> tuple[FormatCost, ...]:
    """What `PAIRS` cost by some tiles, at a rate for each."""
    return tuple(
        FormatCost(
            pair(a, b),
            FORMATS[a].element_bits / 8,
            FORMATS[b].element_bits / 8,
            rate,
            tuple(
                TileShape(tile, shape.m, TILE_N, max(_stage(a, b, shape), _SPLIT_STEP), shape.loads)
                for tile, shape in SHAPES.items()
                if tile in tiles and (tile != "t256" or pair(a, b) in _ALL_BUT_BLOCK)
            ),
        )
        for (a, b), rate in zip(PAIRS, rates, strict=True)
    )


TUNING = (
    *(Rule(KERNELS[1].name, f"s{rows}", bounds=(Bound(("m",), maximum=rows),)) for rows in (8, 16, 32, 64)),
    Rule(
        KERNELS[1].name,
        "t256",
        fields=(("format", _ALL_BUT_BLOCK),),
        bounds=(Bound(("batches", "m", "n"), minimum=4 * 256 * TILE_N, per_sm=True),),
    ),
    Rule(KERNELS[1].name, "t128"),
)
"""Emulated, what is slow on 9.0 is not what is slow on 12.x: the tiles are those that 12.x takes for as many rows."""

_SPLIT_STEP = 128  # splits have whole steps of K of at least this
ESTIMATES = (
    Estimate(KERNELS[0].name, costs(NATIVE_RATES), start=1000, split=1500, l2=32, memory=4),
    Estimate(KERNELS[1].name, costs(EMULATED_RATES), start=2000, split=3000, l2=32, memory=16),
)
"""Memory moves about 4 bytes a clock for each multiprocessor of 12.x (1.8 TB/s for 170 to 188 of them; 2.4 on GB10), 16
on an H200. What a start and a split cost is assumed, as is what comes from the L2.
"""
