# SPDX-License-Identifier: Apache-2.0
"""The module `fp4_quantization`: quantize, SwiGLU and quantize, dequantize, global scale. Data only."""

from __future__ import annotations

from itertools import product

from warpsmith.arch import Capability
from warpsmith.catalog.formats import FORMATS, LINEAR, M_MAJOR, TILED
from warpsmith.catalog.spec import Instructions, Kernel, Operation, Param, Problem, Variant
from warpsmith.tuning import Bound, Rule

MODULE = "fp4_quantization"

CAPABILITIES = tuple(
    Capability(*c)
    for c in ((8, 0), (8, 6), (8, 7), (8, 8), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1))
)
_E4M3_NATIVE = tuple(c for c in CAPABILITIES if c >= Capability(8, 9))
_E2M1_NATIVE = tuple(c for c in CAPABILITIES if c >= Capability(10, 0))

_ROW_FORMATS = ("nvfp4", "mxfp4", "mxfp8", "fp8_block")
_SQUARE_FORMAT = "fp8_block_128x128"
_WHOLE_STEPS = {"fp8_row": "WS_ROWS", "fp8_tensor": "WS_MATRICES"}
_TYPES = ("bf16", "fp16", "fp32")
_TILES = {"p1": 1, "p4": 4}

_MULTIPLES = tuple((f.name, "k", f.block[1]) for f in FORMATS.values())
_EXCLUDED = tuple(
    (("format", f.name), ("layout", layout))
    for f in FORMATS.values()
    for layout in (LINEAR, TILED, M_MAJOR)
    if layout not in f.layouts
)
_DIMS = (("m", 4096), ("k", 4096))

OPERATIONS = (
    Operation(
        "quantize",
        (("format", tuple(FORMATS)), ("input", _TYPES), ("layout", (LINEAR, TILED, M_MAJOR))),
        _DIMS,
        _EXCLUDED,
        _MULTIPLES,
    ),
    Operation(
        "silu_and_mul_quantize",
        (("format", _ROW_FORMATS), ("input", _TYPES), ("layout", (LINEAR, TILED, M_MAJOR))),
        _DIMS,
        _EXCLUDED,
        _MULTIPLES,
    ),
    Operation(
        "dequantize",
        (("format", tuple(FORMATS)), ("output", _TYPES), ("layout", (LINEAR, TILED, M_MAJOR))),
        _DIMS,
        _EXCLUDED,
        _MULTIPLES,
    ),
    Operation("amax_partial", (("input", _TYPES),), _DIMS),
    Operation("matrix_amax", (("input", _TYPES),), _DIMS),
    Operation("global_scale", (), (("count", 1024),)),
)


def _params(text: str) -> tuple[Param, ...]:
    """Read ``ctype: name name …; …`` as parameters, in order."""
    found = []
    for part in text.split(";"):
        ctype, _, names = part.partition(":")
        found += [Param(name, ctype.strip()) for name in names.split()]
    return tuple(found)


_QUANTIZE_PARAMS = _params(
    "ptr: x codes scales global_scale offsets; i64: row_stride batch_stride scale_batch_bytes; "
    "u32: m units batches groups row_tiles scale_pitch row_shift flags"
)
_QUANTIZE_128X128_PARAMS = _params("ptr: x codes scales; i64: row_stride batch_stride; u32: m units batches flags")
_WHOLE_PARAMS = _params("ptr: x codes scales partials; i64: row_stride batch_stride; u32: m units batches parts flags")
_DEQUANTIZE_PARAMS = _params(
    "ptr: codes scales global_scale offsets out; i64: scale_batch_bytes; "
    "u32: m units batches groups row_tiles scale_pitch row_shift flags"
)
_AMAX_PARAMS = _params(
    "ptr: x partials; i64: row_stride batch_stride k; u32: m batches row_tiles col_tiles row_shift flags"
)
_GLOBAL_SCALE_PARAMS = _params("ptr: partials global_scale; u32: count")


def _problem(operation: str, m: int, k: int, **fields: str) -> Problem:
    return Problem.of(operation, fields, {"m": m, "k": k})


def _native(format: str) -> tuple[Instructions, ...]:
    """The conversion that a format's elements need, where the architecture has it."""
    if format in ("nvfp4", "mxfp4"):
        e2m1 = Instructions((r"F2FP\..*E2M1",), _E2M1_NATIVE, "f")
        e4m3 = Instructions((r"F2FP\..*E4M3",), _E4M3_NATIVE)
        return (e2m1, e4m3) if format == "nvfp4" else (e2m1,)
    return (Instructions((r"F2FP\..*E4M3",), _E4M3_NATIVE),)


def _quantize_variants(operation: str, silu: int) -> tuple[Variant, ...]:
    sizes = {"p1": (1, 4096), "p4": (65536, 4096)}
    return tuple(
        Variant(
            name=f"{format}_{input_type}_{tile}",
            macros=(
                ("WS_FORMAT", f"WS_{format.upper()}"),
                ("WS_INPUT", f"WS_{input_type.upper()}"),
                ("WS_SILU", str(silu)),
                ("WS_PASSES", str(passes)),
            ),
            serves=(("format", (format,)), ("input", (input_type,))),
            witnesses=(_problem(operation, *sizes[tile], format=format, input=input_type, layout=LINEAR),),
            tile=tile,
            instructions=_native(format),
        )
        for format, input_type, (tile, passes) in product(_ROW_FORMATS, _TYPES, _TILES.items())
    )


def _dequantize_variants() -> tuple[Variant, ...]:
    found = []
    for format, output in product(_ROW_FORMATS, _TYPES):
        served = (format, _SQUARE_FORMAT, *_WHOLE_STEPS) if format == "fp8_block" else (format,)
        found.append(
            Variant(
                name=f"{format}_{output}",
                macros=(("WS_FORMAT", f"WS_{format.upper()}"), ("WS_OUTPUT", f"WS_{output.upper()}")),
                serves=(("format", served), ("output", (output,))),
                witnesses=tuple(
                    _problem("dequantize", 4096, 4096, format=f, output=output, layout=LINEAR) for f in served
                ),
            )
        )
    return tuple(found)


KERNELS = (
    Kernel(
        name="quantize",
        module=MODULE,
        operation="quantize",
        source="fp4_quantization/sm80_quantize.cuh",
        entry="ws_quantize",
        capabilities=CAPABILITIES,
        params=_QUANTIZE_PARAMS,
        variants=_quantize_variants("quantize", silu=0),
    ),
    Kernel(
        name="quantize_128x128",
        module=MODULE,
        operation="quantize",
        source="fp4_quantization/sm80_quantize_128x128.cuh",
        entry="ws_quantize_128x128",
        capabilities=CAPABILITIES,
        params=_QUANTIZE_128X128_PARAMS,
        variants=tuple(
            Variant(
                name=input_type,
                macros=(("WS_INPUT", f"WS_{input_type.upper()}"),),
                serves=(("format", (_SQUARE_FORMAT,)), ("input", (input_type,))),
                witnesses=(_problem("quantize", 4096, 4096, format=_SQUARE_FORMAT, input=input_type, layout=LINEAR),),
                instructions=_native(_SQUARE_FORMAT),
            )
            for input_type in _TYPES
        ),
    ),
    Kernel(
        name="quantize_whole",
        module=MODULE,
        operation="quantize",
        source="fp4_quantization/sm80_quantize_whole.cuh",
        entry="ws_quantize_whole",
        capabilities=CAPABILITIES,
        params=_WHOLE_PARAMS,
        variants=tuple(
            Variant(
                name=f"{format}_{input_type}",
                macros=(("WS_INPUT", f"WS_{input_type.upper()}"), ("WS_STEP", step)),
                serves=(("format", (format,)), ("input", (input_type,))),
                witnesses=(_problem("quantize", 4096, 4096, format=format, input=input_type, layout=LINEAR),),
                instructions=_native(format),
            )
            for format, step in _WHOLE_STEPS.items()
            for input_type in _TYPES
        ),
    ),
    Kernel(
        name="matrix_amax",
        module=MODULE,
        operation="matrix_amax",
        source="fp4_quantization/sm80_quantize_whole.cuh",
        entry="ws_quantize_whole",
        capabilities=CAPABILITIES,
        params=_WHOLE_PARAMS,
        variants=tuple(
            Variant(
                name=input_type,
                macros=(("WS_INPUT", f"WS_{input_type.upper()}"), ("WS_STEP", "WS_MAXIMA")),
                serves=(("input", (input_type,)),),
                witnesses=(_problem("matrix_amax", 4096, 4096, input=input_type),),
            )
            for input_type in _TYPES
        ),
    ),
    Kernel(
        name="silu_and_mul_quantize",
        module=MODULE,
        operation="silu_and_mul_quantize",
        source="fp4_quantization/sm80_quantize.cuh",
        entry="ws_quantize",
        capabilities=CAPABILITIES,
        params=_QUANTIZE_PARAMS,
        variants=_quantize_variants("silu_and_mul_quantize", silu=1),
    ),
    Kernel(
        name="dequantize",
        module=MODULE,
        operation="dequantize",
        source="fp4_quantization/sm80_dequantize.cuh",
        entry="ws_dequantize",
        capabilities=CAPABILITIES,
        params=_DEQUANTIZE_PARAMS,
        variants=_dequantize_variants(),
    ),
    Kernel(
        name="amax_partial",
        module=MODULE,
        operation="amax_partial",
        source="fp4_quantization/sm80_amax_partial.cuh",
        entry="ws_amax_partial",
        capabilities=CAPABILITIES,
        params=_AMAX_PARAMS,
        variants=tuple(
            Variant(
                name=input_type,
                macros=(("WS_INPUT", f"WS_{input_type.upper()}"),),
                serves=(("input", (input_type,)),),
                witnesses=(_problem("amax_partial", 4096, 4096, input=input_type),),
            )
            for input_type in _TYPES
        ),
    ),
    Kernel(
        name="global_scale",
        module=MODULE,
        operation="global_scale",
        source="fp4_quantization/sm80_global_scale.cuh",
        entry="ws_global_scale",
        capabilities=CAPABILITIES,
        params=_GLOBAL_SCALE_PARAMS,
        variants=(Variant("default", (), (), (Problem.of("global_scale", {}, {"count": 1024}),)),),
    ),
)

_SMALL = (Bound(("m", "k"), maximum=32768, per_sm=True),)
TUNING = tuple(
    rule
    for kernel in ("quantize", "silu_and_mul_quantize")
    for rule in (Rule(kernel, "p1", bounds=_SMALL), Rule(kernel, "p4"))
)
"""One pass a thread while the tensor is small enough that every SM is starved for blocks; four passes beyond that."""
