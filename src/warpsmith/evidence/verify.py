# SPDX-License-Identifier: Apache-2.0
"""Run every kernel on a GPU against the reference, without torch: those of `fp4_quantization` bit for bit.

Those of `gemm` and `fp4_gemm` are in ``evidence/gemm.py``, of `fused_moe` in ``evidence/moe.py``. Inputs are fresh in
each run; the seed is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import ml_dtypes
import numpy as np

from warpsmith import reference
from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.spec import Catalog, CubinId, Problem
from warpsmith.evidence.cases import DTYPES, Case, amax_cases, dequantize_cases, draw, quantize_cases
from warpsmith.evidence.device import POISON, Array, Bench, Guarded
from warpsmith.evidence.gated import GatedCase, gated_cases, run_gated
from warpsmith.evidence.gemm import GemmCase, all_gemm_cases
from warpsmith.evidence.gemm_launches import run_gemm
from warpsmith.evidence.moe import run_moe
from warpsmith.evidence.moe_cases import MoeCase, all_moe_cases
from warpsmith.ops import quantization_args as arguments
from warpsmith.runtime.driver import Driver
from warpsmith.settings import Settings

_TYPES = tuple(DTYPES)


@dataclass
class Outcome:
    """What became of one cubin's cases; the worst error is 0 for what is compared bit for bit."""

    cubin: CubinId
    cases: int = 0
    worst: float = 0.0
    mismatches: list[str] = field(default_factory=list)


def all_cases(catalog: Catalog) -> Iterator[Case | GemmCase | GatedCase | MoeCase]:
    """Every case of every module."""
    for operation in ("quantize", "silu_and_mul_quantize"):
        for format in catalog.operation(operation).formats:
            for dtype in _TYPES:
                yield from quantize_cases(operation, format, dtype)
    for format in catalog.operation("dequantize").formats:
        for dtype in _TYPES:
            yield from dequantize_cases(format, dtype)
    for dtype in _TYPES:
        yield from amax_cases(dtype)
    yield from all_gemm_cases()
    yield from gated_cases()
    yield from all_moe_cases()


def verify(
    catalog: Catalog,
    settings: Settings,
    device: int,
    driver: Driver,
    *,
    seed: int,
    cases: Sequence[Case | GemmCase | GatedCase | MoeCase] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Outcome]:
    """Run the cases on a device; each cubin that served one has an outcome with its mismatches.

    Raises
    ------
    MissingKernelError, DriverError
        If a kernel cannot be had or a launch fails.
    """
    wanted = list(all_cases(catalog)) if cases is None else list(cases)
    outcomes: dict[CubinId, Outcome] = {}
    bench = Bench(catalog, settings, device, driver)
    rng = np.random.default_rng(seed)
    try:
        for number, case in enumerate(wanted):
            for cubin, mismatch, error in _run(bench, case, rng):
                outcome = outcomes.setdefault(cubin, Outcome(cubin))
                outcome.cases += 1
                outcome.worst = max(outcome.worst, error)
                if mismatch:
                    outcome.mismatches.append(f"{case}: {mismatch}")
            if progress:
                progress(number + 1, len(wanted), case.operation)
    finally:
        bench.close()
    return list(outcomes.values())


def _run(
    bench: Bench, case: Case | GemmCase | GatedCase | MoeCase, rng: np.random.Generator
) -> Iterator[tuple[CubinId, str, float]]:
    """Run a case; for each cubin that served it, a mismatch in words and the error."""
    if isinstance(case, GemmCase):
        yield from run_gemm(bench, case, rng)
    elif isinstance(case, GatedCase):
        yield from run_gated(bench, case, rng)
    elif not isinstance(case, Case):
        yield from run_moe(bench, case, rng)
    else:
        for cubin, mismatch in _RUN[case.operation](bench, case, rng):
            yield cubin, mismatch, 0.0


def _compare(name: str, got: Array, want: Array, written: Array | None = None) -> str:
    """An empty text if equal (NaN payloads of floats aside), else how they differ."""
    if got.dtype.kind == "f" or got.dtype == ml_dtypes.bfloat16:
        bits = np.dtype(f"u{got.dtype.itemsize}")
        same = (got.view(bits) == want.view(bits)) | (np.isnan(got) & np.isnan(want))
    else:
        same = got == want
    if written is not None:
        same = same | ~written
    if same.all():
        return ""
    first = tuple(int(i) for i in np.argwhere(~same)[0])
    return f"{name}: {int((~same).sum())} of {same.size} differ, first at {first}: {got[first]} for {want[first]}"


def _group_rows(case: Case, shape: tuple[int, ...]) -> Array | None:
    """Which rows of an output belong to a group; None if the tensor is not grouped."""
    if case.offsets is None:
        return None
    rows = np.zeros(shape, bool)
    rows[..., : case.offsets[-1], :] = True
    return rows


def _offsets(case: Case) -> Array | None:
    return None if case.offsets is None else np.array(case.offsets, np.int64 if case.wide_offsets else np.int32)


def _groups(case: Case) -> arguments.Groups:
    if case.offsets is None:
        return arguments.Groups()
    several = case.global_scale is not None and len(case.global_scale) > 1
    return arguments.Groups(len(case.offsets) - 1, case.wide_offsets, several)


def _padded(x: Array, padding: int) -> tuple[Array, int]:
    """The rows with `padding` elements between them, and the row stride."""
    if not padding:
        return x, x.shape[-1]
    wide = np.zeros((*x.shape[:-1], x.shape[-1] + padding), x.dtype)
    wide.view(np.uint8)[...] = 0xFF  # NaN: a kernel that reads padding shows it
    wide[..., : x.shape[-1]] = x
    return wide, wide.shape[-1]


def _scale_argument(case: Case) -> Array | None:
    return None if case.global_scale is None else np.array(case.global_scale, np.float32)


def _run_quantize(bench: Bench, case: Case, rng: np.random.Generator) -> Iterator[tuple[CubinId, str]]:
    silu = case.operation == "silu_and_mul_quantize"
    x = draw(case, case.k * (2 if silu else 1), rng)
    scale, offsets = _scale_argument(case), _offsets(case)
    function = reference.silu_and_mul_quantize if silu else reference.quantize
    value = None if scale is None else scale if scale.size > 1 else scale[0]
    batch_shaped = x if offsets is None else x[0]
    codes, scales = function(
        batch_shaped, case.format, scale_layout=case.layout, global_scale=value, rounding=case.rounding, offsets=offsets
    )
    memory, row_stride = _padded(x, case.row_padding)
    size = x.dtype.itemsize
    source = Guarded(bench, memory.nbytes, memory.tobytes(), size if case.misaligned else 0)
    strides = {
        "row_stride": row_stride, "batches": case.batches, "batch_stride": case.m * row_stride,
        "x_address": source.pointer,
    }  # fmt: skip
    extras = [None if a is None else Guarded(bench, a.nbytes, a.tobytes()) for a in (scale, offsets)]
    problem = Problem.of(
        case.operation, {"format": case.format, "input": case.dtype, "layout": case.layout}, {"m": case.m, "k": case.k}
    )
    if FORMATS[case.format].whole:
        yield from _run_whole(bench, case, problem, source, strides, codes, scales)
        source.close()
        return
    for tile, kernel in bench.kernels(problem).items():
        data = Guarded(bench, codes.nbytes, offset=1 if case.misaligned else 0)
        table = Guarded(bench, scales.nbytes, offset=scales.itemsize if case.misaligned else 0)
        pointers = [source.pointer, data.pointer, table.pointer]
        if FORMATS[case.format].block[0] > 1:
            launch = arguments.quantize_128x128_launch(case.dtype, m=case.m, k=case.k, **strides)
        else:
            pointers += [0 if e is None else e.pointer for e in extras]
            launch = arguments.quantize_launch(
                case.format, case.dtype, layout=case.layout, passes=int(tile[1:]), m=case.m, k=case.k,
                rounding=case.rounding, groups=_groups(case), flat=not silu, **strides,
            )  # fmt: skip
        tail = arguments.without_vector_stores(launch.tail) if case.misaligned else launch.tail
        kernel.launch(launch.grid, (*pointers, *tail), bench.stream.handle)
        bench.stream.synchronize()
        yield kernel.cubin, _compare_quantized(case, data, table, codes, scales)
        data.close()
        table.close()
    for buffer in (source, *extras):
        if buffer is not None:
            buffer.close()


def _run_whole(
    bench: Bench, case: Case, problem: Problem, source: Guarded, strides: dict[str, int], codes: Array, scales: Array
) -> Iterator[tuple[CubinId, str]]:
    """With one scale a row or a matrix: one launch, or two."""
    launches = arguments.whole_launches(case.format, case.dtype, m=case.m, k=case.k, **strides)
    kernels = [next(iter(bench.kernels(problem).values()))]
    data = Guarded(bench, codes.nbytes, offset=1 if case.misaligned else 0)
    table = Guarded(bench, scales.nbytes, offset=scales.itemsize if case.misaligned else 0)
    partials = Guarded(bench, 4 * case.batches * (launches[-1].grid[0] if len(launches) > 1 else 1))
    if len(launches) > 1:
        before = Problem.of("matrix_amax", {"input": case.dtype}, {"m": case.m * case.batches, "k": case.k})
        kernels.append(next(iter(bench.kernels(before).values())))
    for launch, kernel in reversed(list(zip(launches, kernels, strict=True))):
        tail = arguments.without_vector_stores(launch.tail) if case.misaligned else launch.tail
        pointers = source.pointer, data.pointer, table.pointer, partials.pointer
        kernel.launch(launch.grid, (*pointers, *tail), bench.stream.handle)
    bench.stream.synchronize()
    mismatch = _compare_quantized(case, data, table, codes, scales)
    mismatch = mismatch if partials.read()[1] else f"{mismatch}; wrote outside of the partial maxima"
    for kernel in kernels:
        yield kernel.cubin, mismatch
    for buffer in (data, table, partials):
        buffer.close()


def _compare_quantized(case: Case, data: Guarded, table: Guarded, codes: Array, scales: Array) -> str:
    got_codes, codes_guarded = data.read()
    got_scales, scales_guarded = table.read()
    grouped = case.offsets is not None
    written = _group_rows(case, codes.shape)
    scale_rows = None
    if grouped and case.layout == "linear":
        scale_rows = _group_rows(case, scales.shape)
    elif grouped and case.layout == "m_major":
        scale_rows = np.zeros(scales.shape, bool)
        scale_rows[..., : (case.offsets or (0,))[-1]] = True
    problems = [
        _compare("codes", got_codes.reshape(codes.shape), codes, written),
        _compare("scales", got_scales.view(scales.dtype).reshape(scales.shape), scales, scale_rows),
        "" if codes_guarded and scales_guarded else "wrote outside of an output",
    ]
    if written is not None and not (got_codes.reshape(codes.shape)[~written] == POISON).all():
        problems.append("wrote codes of rows that belong to no group")
    return "; ".join(p for p in problems if p)


def _run_dequantize(bench: Bench, case: Case, rng: np.random.Generator) -> Iterator[tuple[CubinId, str]]:
    scale, offsets = _scale_argument(case), _offsets(case)
    codes, scales = _quantized(case, rng, offsets)
    value = None if scale is None else scale if scale.size > 1 else scale[0]
    shape = (case.batches, case.m, case.k) if offsets is None else (case.m, case.k)
    want = reference.dequantize(
        codes, scales, case.format, shape=shape, scale_layout=case.layout, global_scale=value, offsets=offsets,
        dtype=case.dtype,
    )  # fmt: skip
    if FORMATS[case.format].whole == "tensor":
        scales = np.repeat(scales, case.m)
    inputs = [
        Guarded(bench, codes.nbytes, codes.tobytes(), 1 if case.misaligned else 0),
        Guarded(bench, scales.nbytes, scales.tobytes(), scales.itemsize if case.misaligned else 0),
        *(None if a is None else Guarded(bench, a.nbytes, a.tobytes()) for a in (scale, offsets)),
    ]
    launch = arguments.dequantize_launch(
        case.format, layout=case.layout, m=case.m, k=case.k, batches=case.batches, groups=_groups(case)
    )
    problem = Problem.of(
        "dequantize", {"format": case.format, "output": case.dtype, "layout": case.layout}, {"m": case.m, "k": case.k}
    )
    for kernel in bench.kernels(problem).values():
        out = Guarded(bench, want.nbytes, offset=want.itemsize if case.misaligned else 0)
        tail = arguments.without_vectors(launch.tail) if case.misaligned else launch.tail
        pointers = [0 if b is None else b.pointer for b in (*inputs, out)]
        kernel.launch(launch.grid, (*pointers, *tail), bench.stream.handle)
        bench.stream.synchronize()
        got, guarded = out.read()
        problems = [
            _compare("values", got.view(want.dtype).reshape(want.shape), want, _group_rows(case, want.shape)),
            "" if guarded else "wrote outside of the output",
        ]
        yield kernel.cubin, "; ".join(p for p in problems if p)
        out.close()
    for buffer in inputs:
        if buffer is not None:
            buffer.close()


def _quantized(case: Case, rng: np.random.Generator, offsets: Array | None) -> tuple[Array, Array]:
    """Codes and scales of a case: of a random tensor, or every code with every scale."""
    spec = FORMATS[case.format]
    shape = (case.batches, case.m, case.k) if offsets is None else (case.m, case.k)
    if case.distribution == "exhaustive":
        codes = rng.integers(0, 256, (*shape[:-1], spec.data_columns(case.k)), np.uint8)
        table = spec.scale_shape(case.layout, shape[:-2], case.m, case.k)
        if spec.scale == "fp32":
            return codes, rng.integers(0, 1 << 32, table, np.uint32).view(np.float32)
        return codes, np.resize(np.arange(256, dtype=np.uint8), math.prod(table)).reshape(table)
    x = draw(replace(case, dtype="fp32"), case.k, rng).reshape(shape)
    return reference.quantize(x, case.format, scale_layout=case.layout, offsets=offsets)


def _run_amax(bench: Bench, case: Case, rng: np.random.Generator) -> Iterator[tuple[CubinId, str]]:
    x = draw(case, case.k, rng)
    want = np.array([reference.default_global_scale(x)], np.float32)
    memory, row_stride = _padded(x, case.row_padding)
    source = Guarded(bench, memory.nbytes, memory.tobytes(), x.dtype.itemsize if case.misaligned else 0)
    dims = {"m": case.m * case.batches, "k": case.k}
    first = next(iter(bench.kernels(Problem.of("amax_partial", {"input": case.dtype}, dims)).values()))
    second = next(iter(bench.kernels(Problem.of("global_scale", {}, {"count": 1024})).values()))
    launch = arguments.amax_launch(
        case.dtype, m=case.m, k=case.k, row_stride=row_stride, batches=case.batches,
        batch_stride=case.m * row_stride, x_address=source.pointer,
    )  # fmt: skip
    partials, out = Guarded(bench, 4 * launch.grid[0]), Guarded(bench, 4)
    first.launch(launch.grid, (source.pointer, partials.pointer, *launch.tail), bench.stream.handle)
    final = arguments.global_scale_launch(launch.grid[0])
    second.launch(final.grid, (partials.pointer, out.pointer, *final.tail), bench.stream.handle)
    bench.stream.synchronize()
    got, guarded = out.read()
    problems = [_compare("scale", got.view(np.float32), want), "" if guarded else "wrote outside of the output"]
    for kernel in (first, second):
        yield kernel.cubin, "; ".join(p for p in problems if p)
    for buffer in (source, partials, out):
        buffer.close()


_RUN = {
    "quantize": _run_quantize,
    "silu_and_mul_quantize": _run_quantize,
    "dequantize": _run_dequantize,
    "amax_partial": _run_amax,
}
