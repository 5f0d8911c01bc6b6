# SPDX-License-Identifier: Apache-2.0
"""The module `fp4_gemm`: block-scaled operands on the block-scaled tensor cores of 12.0 and 12.1. Data only.

The operation is `gemm`'s. Two kernels are made of one source: on 12.x its MMA is an instruction, on 9.0 it is made in
software. There it is what a problem gets that asks for the path ``emulated``, and the one reader of prepared weights;
``docs/kernels/sm12x_blockscaled_gemm.md`` is the contract.
"""

from __future__ import annotations

from typing import NamedTuple

from warpsmith.arch import Capability
from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.gemm import EMULATED_PATH, PREPARED, PREPARED_LAYOUT, TILED_LAYOUT, witness
from warpsmith.catalog.spec import Instructions, Kernel, Param, Variant, pair
from warpsmith.tuning import Bound, Rule

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
    witness
        Rows of a problem with 4096 columns that it is for.
    """

    m: int
    k: int
    warps_m: int
    warps_n: int
    swap: bool
    witness: int


SHAPES = {
    "s8": Shape(8, 256, 1, 4, True, 8),
    "s16": Shape(16, 256, 1, 4, True, 16),
    "s32": Shape(32, 256, 1, 4, True, 32),
    "s64": Shape(64, 256, 2, 4, True, 64),
    "t128": Shape(128, 128, 2, 4, False, 128),
    "t256": Shape(256, 128, 4, 2, False, 65536),
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
    copies = (r"UTMALDG\.3D", r"UBLKCP\.S\.G", "ACQBULK", "PREEXIT", *moves)
    return (
        Instructions((_mma(a, b, shape.swap), *copies), CAPABILITIES, "f"),
        Instructions((r"HMMA\.16816\.F32", *copies), EMULATED_ON, "a"),
    )


def _variant(a: str, b: str, tile: str, path: str) -> Variant:
    shape, format = SHAPES[tile], pair(a, b)
    layout = PREPARED_LAYOUT if format in PREPARED else TILED_LAYOUT
    sizes = (
        ("TILE_M", shape.m),
        ("TILE_N", TILE_N),
        ("TILE_K", shape.k if a == b and FORMATS[a].element_bits == 4 else shape.k // 2),
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


def _tuning(kernel: str) -> tuple[Rule, ...]:
    """The smallest tile that holds a matrix's rows; the largest where it makes four waves, so that few bytes come."""
    waves = (Bound(("m",), minimum=129), Bound(("batches", "m", "n"), minimum=4 * 256 * TILE_N, per_sm=True))
    return (
        *(Rule(kernel, f"s{rows}", bounds=(Bound(("m",), maximum=rows),)) for rows in (8, 16, 32, 64)),
        Rule(kernel, "t256", fields=(("format", _ALL_BUT_BLOCK),), bounds=waves),
        Rule(kernel, "t128"),
    )


TUNING = tuple(rule for kernel in KERNELS for rule in _tuning(kernel.name))
