# SPDX-License-Identifier: Apache-2.0
"""The launches of `warpsmith verify` for products: each case by every tile that serves it, twice, to the same bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from warpsmith.catalog.gemm import sm80_tile
from warpsmith.catalog.gemm_packed import TILES as PACKED_TILES
from warpsmith.catalog.gemm_stream import TILES
from warpsmith.catalog.spec import CubinId, Kernel, Problem
from warpsmith.evidence.cases import DTYPES
from warpsmith.evidence.device import POISON, Array, Bench, Guarded
from warpsmith.evidence.gemm import GemmCase, Product, compare
from warpsmith.ops import gemm_args as arguments
from warpsmith.ops.gemm_map_args import MapLaunch, map_launch, max_splits, tile_of
from warpsmith.ops.gemm_packed_args import packed_launch
from warpsmith.ops.gemm_stream_args import stream_launch
from warpsmith.runtime.device import device_facts
from warpsmith.runtime.launch import Argument, PreparedKernel
from warpsmith.runtime.tensor_map import NO_MAP, encode


def run_gemm(bench: Bench, case: GemmCase, rng: np.random.Generator) -> Iterator[tuple[CubinId, str, float]]:
    """Run a case with every tile; for each, the cubin, a mismatch in words, and the error."""
    product = Product(case, rng)
    want, measure = product.expected()
    sources = (
        product.a.memory, product.b.memory, product.a.scales, product.b.scales, product.bias, product.a_scale,
        product.b_factor, product.index,
    )  # fmt: skip
    buffers = [None if x is None else Guarded(bench, x.nbytes, np.ascontiguousarray(x).tobytes()) for x in sources]
    problem = Problem.of(
        "gemm",
        {"format": case.format, "mode": case.mode, "layout": case.layout, "path": case.path},
        {"m": case.size.rows, "n": case.n, "k": case.k, "batches": case.batches},
    )
    for kernel in bench.kernels(problem).values():
        row = bench.catalog.kernel(kernel.cubin.kernel)
        if case.activation and case.activation not in row.variant(kernel.cubin.variant).activations:
            continue
        launch = plan(case, product, row, kernel.cubin.variant, device_facts(bench.device, bench.driver).sm_count)
        results = [_launch(bench, kernel, launch, buffers, product) for _ in range(2)]
        values, faults = results[0]
        tolerance = row.variant(kernel.cubin.variant).tolerance
        mismatch, error = compare(case, values, want, measure, product.written(), tolerance)
        if values.tobytes() != results[1][0].tobytes():
            faults.append("two runs differ")
        yield kernel.cubin, "; ".join(p for p in (mismatch, *faults) if p), error
    for buffer in buffers:
        if buffer is not None:
            buffer.close()


def plan(case: GemmCase, product: Product, kernel: Kernel, variant: str, sm_count: int) -> arguments.Launch | MapLaunch:
    """The launch of a case with a variant of a kernel."""
    sides = []
    for format, side in ((case.a, product.a), (case.b, product.b)):
        row = side.memory.shape[-1]
        scale_batch = 0 if side.scales is None or side.scales.ndim < 3 else side.scales[0].nbytes
        rows = side.memory.shape[-2]
        sides.append(arguments.Operand(format, row, rows * row, side.layout, scale_batch, case.scale_each))
    row = case.columns * arguments.ELEMENT_BYTES[case.out] + case.padding
    bias_row = 0 if product.bias is None else product.bias[0].nbytes
    output = arguments.Output(case.out, row, case.m * row, case.bias, bias_row)
    if kernel.takes_maps:
        map_tile = tile_of(kernel, variant)
        splits = min(case.splits, max_splits(map_tile, case.size))
        return map_launch(
            map_tile, case.size, sides[0], sides[1], output,
            sm_count=sm_count, splits=splits, wide=case.wide, activation=case.epilogue,
        )  # fmt: skip
    stream = TILES.get(kernel.name)
    if stream is not None:
        return stream_launch(stream, case.size, sides[0], sides[1], output, sm_count=sm_count, wide=case.wide)
    packed = PACKED_TILES.get(kernel.name)
    if packed is not None:
        packed_tile = packed[kernel.variant(variant).tile]
        return packed_launch(packed_tile, case.size, sides[0], sides[1], output, sm_count=sm_count, wide=case.wide)
    tile = sm80_tile(variant)
    splits = min(case.splits, -(-case.k // tile.k))
    return arguments.sm80_launch(tile, case.size, sides[0], sides[1], output, splits=splits, wide=case.wide)


def _launch(
    bench: Bench,
    kernel: PreparedKernel,
    launch: arguments.Launch | MapLaunch,
    buffers: list[Guarded | None],
    product: Product,
) -> tuple[Array, list[str]]:
    """Run once: D, and what was written that should not have been."""
    case = product.case
    batches, m, n = product.shape
    width = n * arguments.ELEMENT_BYTES[case.out]
    pitch = width + case.padding
    d = Guarded(bench, batches * m * pitch)
    workspace = Guarded(bench, launch.workspace)
    arrivals = Guarded(bench, 4 * launch.arrivals, bytes(4 * launch.arrivals))
    a, b, a_scales, b_scales, bias, a_scale, b_scale, index = (0 if x is None else x.pointer for x in buffers)
    operands: tuple[Argument, ...] = (a, b, d.pointer, a_scales, b_scales)
    if isinstance(launch, MapLaunch):
        a_map, b_map = (encode(bench.driver, bench.device, *x) for x in ((a, launch.a), (b, launch.b)))
        operands = (a_map, b_map, b if case.few_rows else a_scales, b_scales, d.pointer)
    rest = (bias, 0, a_scale, b_scale, index, workspace.pointer, arrivals.pointer)
    tail: tuple[Argument, ...] = launch.tail
    if isinstance(launch, MapLaunch) and launch.d is not None:
        tail = (*tail, encode(bench.driver, bench.device, d.pointer, launch.d) if d.pointer % 16 == 0 else NO_MAP)
    kernel.launch(launch.grid, (*operands, *rest, *tail), bench.stream.handle)
    bench.stream.synchronize()
    raw, guarded = d.read()
    words, words_guarded = arrivals.read()
    rows = raw.reshape(batches, m, pitch)
    faults = [] if guarded and words_guarded and workspace.read()[1] else ["wrote outside of an output"]
    if words.any():
        faults.append("arrivals are not 0 again")
    if (rows[..., width:] != POISON).any() or (rows[~product.written()] != POISON).any():
        faults.append("wrote between rows, or rows that belong to nothing")
    for buffer in (d, workspace, arrivals):
        buffer.close()
    return np.ascontiguousarray(rows[..., :width]).view(DTYPES[case.out]), faults
