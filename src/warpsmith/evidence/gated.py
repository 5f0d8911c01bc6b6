# SPDX-License-Identifier: Apache-2.0
"""What `warpsmith verify` runs of the products that are activated and quantized where they are made: every tile.

Operands are those of grouped products (``evidence/gemm.py``), in the order in which kernels read them. What codes stand
for is compared with the reference's: sums are fp32 and rounded to 16 bits, so that a value near the middle between two
codes may become either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from warpsmith.catalog.formats import FORMATS, TILED
from warpsmith.catalog.fp4_gemm_gated import OPERATION, PAIRS
from warpsmith.catalog.fused_moe import ACTIVATIONS
from warpsmith.catalog.gemm import DEFAULT_PATH, EMULATED_PATH, PREPARED
from warpsmith.catalog.spec import CubinId, Problem, pair
from warpsmith.evidence.cases import DTYPES
from warpsmith.evidence.device import Array, Bench
from warpsmith.evidence.gemm import GemmCase, Product
from warpsmith.evidence.moe_memory import Memory, twice
from warpsmith.evidence.moe_quantize import difference, padding_columns, written_besides
from warpsmith.ops import gemm_args as arguments
from warpsmith.ops.gated_order import parted
from warpsmith.ops.gemm_map_args import MapLaunch, MapTile, gated_launch, tile_of
from warpsmith.reference import moe
from warpsmith.runtime.device import device_facts
from warpsmith.runtime.launch import PreparedKernel
from warpsmith.runtime.tensor_map import encode

_ALPHA, _LIMIT = 1.702, 7.0
_NEAR = 1e-2  # ‖difference‖ / ‖value‖ of what codes stand for


@dataclass(frozen=True)
class GatedCase:
    """A grouped product, with n = 2·I and sums that are rounded to `product.out`, and its activation.

    nvfp4 results have the global scales of `scale`: one, one a group, or none.
    """

    product: GemmCase
    activation: str = "swiglu"
    scale: tuple[float, ...] = ()

    operation = OPERATION

    def __str__(self) -> str:
        return f"gated {self.product} {self.activation} {self.scale}"


def gated_cases() -> Iterator[GatedCase]:
    """Every case: groups of all sizes, rows of blocks that end anywhere, every activation, biases, adverse values."""
    rows = (0, 1, 130, 0, 3, 257, 64)
    for a, b in PAIRS:
        mixed = pair(a, b) in PREPARED
        product = GemmCase(
            a, b, sum(rows) + 9, 192, 256, "grouped", len(rows), "bf16", rows=rows, tiled_a=True, tiled_b=True,
            path=DEFAULT_PATH if mixed else EMULATED_PATH, prepared=mixed,
        )  # fmt: skip
        nvfp4 = a == "nvfp4"
        yield GatedCase(product, scale=(60.0,) if nvfp4 else ())
        for number, activation in enumerate(name for name in ACTIVATIONS if name != "relu2"):
            each = tuple(20.0 * (g + 1) for g in range(len(rows))) if nvfp4 else ()
            some = replace(product, n=(64, 320, 448, 256)[number], k=(160, 96, 1024, 416)[number], scale_each=True)
            yield GatedCase(replace(some, out=("bf16", "fp16")[number % 2], bias="fp32"), activation, each)
            yield GatedCase(replace(some, out="fp32", bias=("bf16", "fp16")[number % 2]), activation)
        many = tuple(int(i % 3 > 0) for i in range(300))
        yield GatedCase(replace(product, batches=300, m=sum(many), rows=many, n=128, wide=True))
        for kind in ("zeros", "largest", "not_finite"):
            yield GatedCase(replace(product, kind=kind), scale=(1.0,) if nvfp4 else ())
        for value in (1e-30, float("nan"), -2.0) if nvfp4 else ():
            yield GatedCase(product, scale=(value,))


def run_gated(bench: Bench, case: GatedCase, rng: np.random.Generator) -> Iterator[tuple[CubinId, str, float]]:
    """Run a case with every tile; for each, the cubin, a mismatch in words, and the error."""
    size, made = case.product, Product(case.product, rng)
    want, scale = _wanted(case, made), np.array(case.scale, np.float32) if case.scale else None
    offsets = np.asarray(made.index).astype(np.int32)
    problem = Problem.of(
        OPERATION,
        {"format": size.format, "path": size.path},
        {"m": size.size.rows, "n": size.n, "k": size.k, "batches": size.batches},
    )
    for kernel in bench.kernels(problem).values():
        memory = Memory(bench)
        problems = [_launch(bench, memory, kernel, case, made, scale), memory.broken()]
        width = FORMATS[size.a].data_columns(size.n // 2)
        got = memory.take("codes", np.uint8).reshape(size.m, width), memory.take("scales", np.uint8)
        error = difference(size.a, got, want, offsets, scale)
        problems.append("" if error <= _NEAR else f"error {error:.2e} exceeds {_NEAR:.0e}")
        problems += [written_besides(got, offsets), padding_columns(size.a, got, size.n // 2, offsets)]
        memory.close()
        yield kernel.cubin, "; ".join(p for p in problems if p), error


def _wanted(case: GatedCase, made: Product) -> Array:
    """The activations of groups' rows, of sums as they are rounded before."""
    with np.errstate(all="ignore"):
        sums = made.expected()[0][0][: sum(case.product.rows)].astype(DTYPES[case.product.out]).astype(np.float64)
        values = moe.activate(np.ascontiguousarray(parted(sums.T).T), case.activation, alpha=_ALPHA, limit=_LIMIT)
        return values.astype(np.float32)


def _launch(
    bench: Bench, memory: Memory, kernel: PreparedKernel, case: GatedCase, made: Product, scale: Array | None
) -> str:
    """Run twice: codes and scales are in `memory`."""
    product = case.product
    row = bench.catalog.kernel(kernel.cubin.kernel)
    launch = _plan(case, made, tile_of(row, kernel.cubin.variant), device_facts(bench.device, bench.driver).sm_count)
    maps = [
        encode(bench.driver, bench.device, memory.give(name, side.memory), spec)
        for name, side, spec in (("a", made.a, launch.a), ("b", made.b, launch.b))
    ]
    shape = FORMATS[product.a].scale_shape(TILED, (), product.m, product.n // 2, product.batches)
    rows = memory.make("codes", product.m * FORMATS[product.a].data_columns(product.n // 2))
    pointers = (
        memory.give("a_scales", made.a.scales), memory.give("b_scales", made.b.scales), rows,
        memory.give("bias", made.bias), 0, memory.give("a_scale", made.a_scale),
        memory.give("b_scale", made.b_factor), memory.give("index", made.index), 0, 0,
    )  # fmt: skip
    beside = memory.make("scales", shape[0] * shape[1]), memory.give("d_scale", scale)
    tail = (*launch.tail, *beside, ACTIVATIONS[case.activation], _ALPHA, _LIMIT)
    return twice(bench, memory, [(kernel, launch.grid, (*maps, *pointers, *tail))], ["codes", "scales"])


def _plan(case: GatedCase, made: Product, tile: MapTile, sm_count: int) -> MapLaunch:
    product = case.product
    a, b = (
        arguments.Operand(
            format, side.memory.shape[-1], side.memory.shape[-2] * side.memory.shape[-1], side.layout,
            0 if side.scales is None or side.scales.ndim < 3 else side.scales[0].nbytes, product.scale_each,
        )
        for format, side in ((product.a, made.a), (product.b, made.b))
    )  # fmt: skip
    bias_row = 0 if made.bias is None else made.bias[0].nbytes
    width = FORMATS[product.a].data_columns(product.n // 2)
    output = arguments.Output(product.out, width, 0, product.bias, bias_row)
    return gated_launch(
        tile, product.size, a, b, output, sm_count=sm_count, scale_per_group=len(case.scale) > 1, wide=product.wide,
    )  # fmt: skip
