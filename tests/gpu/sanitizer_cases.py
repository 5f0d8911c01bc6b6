# SPDX-License-Identifier: Apache-2.0
"""Small launches of every kernel of a module, to run under compute-sanitizer; torch is not needed.

``compute-sanitizer --tool memcheck python tests/gpu/sanitizer_cases.py --module gemm``, or another tool (racecheck,
initcheck, synccheck). Kernels come from ``WARPSMITH_BUNDLE_PATH``: compiling under the sanitizer takes long. Exit code
1 on a mismatch with the reference, a write outside of an output, or a kernel that was not run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace

from warpsmith.arch import default_target
from warpsmith.catalog import CATALOG
from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.fp4_gemm import PAIRS as BLOCK_SCALED
from warpsmith.catalog.gemm import FEW_ROWS, PAIRS
from warpsmith.catalog.gemm_mixed import PAIRS as MIXED
from warpsmith.catalog.gemm_stream import PAIRS as STREAMED
from warpsmith.catalog.plan import plan
from warpsmith.catalog.spec import operands
from warpsmith.evidence.cases import DTYPES, Case
from warpsmith.evidence.gated import GatedCase, gated_cases
from warpsmith.evidence.gemm import GemmCase, emulated_cases, gemm_cases, mixed_cases, packed_cases, stream_cases
from warpsmith.evidence.gemm_packed_cases import many_rows_cases
from warpsmith.evidence.moe_cases import MoeCase, SortCase, all_moe_cases
from warpsmith.evidence.verify import verify
from warpsmith.runtime.device import device_facts
from warpsmith.runtime.driver import default_driver
from warpsmith.settings import Settings

OFFSETS = (0, 0, 1, 130, 130, 141)


MOST_GEMM = 1 << 22
"""Multiplications of the largest product: of each pair, those of the evidence that are no larger."""


def gemm() -> list[GemmCase]:
    """Small products of each pair: tails, bias, padding, groups with 0 and 1 rows, counts, splits of K."""
    found = [c for a, b in PAIRS for c in gemm_cases(a, b)]
    found += [c for a, b in STREAMED for c in stream_cases(a, b)]
    found += [c for a, b in MIXED for c in mixed_cases(a, b)]
    found += [c for format in FEW_ROWS for c in packed_cases(*operands(format))]
    found += many_rows_cases()
    found = [c for c in found if c.kind in ("normal", "not_finite")]
    return [c for c in found if _size(c) <= MOST_GEMM]


def fp4_gemm() -> list[GemmCase | GatedCase]:
    """The same of block-scaled products, and of those that are activated: blocks in one warp and in two."""
    products = [c for a, b in BLOCK_SCALED for c in emulated_cases(a, b) if c.kind in ("normal", "not_finite")]
    found: list[GemmCase | GatedCase] = [c for c in products if _size(c) <= MOST_GEMM]
    return [*found, *(c for c in gated_cases() if _size(c.product) <= 4 * MOST_GEMM)]


def _size(case: GemmCase) -> int:
    return (sum(case.rows) or case.batches * case.m) * case.n * case.k


def fused_moe() -> list[MoeCase]:
    """Every case of the module but the longest sort."""
    return [c for c in all_moe_cases() if not isinstance(c, SortCase) or c.tokens * c.top_k <= 1 << 14]


def cases() -> list[Case]:
    """Of `fp4_quantization`, one case for each kernel of an input type: misaligned, grouped, or batched.

    Layouts come in turn. Both tiles of a kernel run in each case.
    """
    return [*_quantize("quantize", 0), *_quantize("silu_and_mul_quantize", 1), *_dequantize(), *_amax()]


def _quantize(operation: str, turn: int) -> Iterator[Case]:
    for format in CATALOG.operation(operation).formats:
        spec = FORMATS[format]
        for number, dtype in enumerate(DTYPES):
            layout = spec.layouts[(number + turn) % len(spec.layouts)]
            base = Case(operation, format, dtype, layout, 1, 37, 6 * spec.block[1])
            if number == 0:
                yield replace(base, row_padding=3, misaligned=True, distribution="not_finite")
            elif number == 1 and spec.block[0] == 1 and not spec.whole:
                yield _grouped(base)
            else:
                rounding = spec.roundings[-1] if spec.roundings else "ceil"
                yield replace(base, batches=2, m=131, row_padding=16, rounding=rounding, distribution="outliers")


def _dequantize() -> Iterator[Case]:
    for format in CATALOG.operation("dequantize").formats:
        spec = FORMATS[format]
        for number, dtype in enumerate(DTYPES):
            base = Case("dequantize", format, dtype, spec.layouts[number % len(spec.layouts)], 1, 37, 5 * spec.block[1])
            if number == 0:
                yield replace(base, misaligned=True)
            elif number == 1 and spec.block[0] == 1 and not spec.whole:
                yield _grouped(base)
            else:
                yield replace(base, batches=2, m=131, distribution="exhaustive")


def _amax() -> Iterator[Case]:
    for number, dtype in enumerate(DTYPES):
        base = Case("amax_partial", "-", dtype, "linear", 2, 70, 129, distribution="not_finite")
        yield replace(base, row_padding=3, misaligned=True) if number == 0 else replace(base, k=64 * number)


def _grouped(case: Case) -> Case:
    """The case with groups, some of them empty, and two rows of none; nvfp4 with a global scale for each."""
    each = tuple(0.5 + g for g in range(len(OFFSETS) - 1)) if FORMATS[case.format].has_global_scale else None
    return replace(
        case, m=OFFSETS[-1] + 2, offsets=OFFSETS, wide_offsets=case.operation == "quantize", global_scale=each
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the cases; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--module", choices=("fp4_quantization", "gemm", "fp4_gemm", "fused_moe"), default="fp4_quantization"
    )
    parser.add_argument("--only", default="", help="cases whose class's name holds this text, such as PackedCase")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=int, default=0)
    given = parser.parse_args(arguments)
    of_module = {"fp4_quantization": cases, "gemm": gemm, "fp4_gemm": fp4_gemm, "fused_moe": fused_moe}
    every: list[Case | GemmCase | GatedCase | MoeCase] = [*of_module[given.module]()]
    wanted = [case for case in every if given.only in type(case).__name__]
    settings = Settings.from_environment()
    outcomes = verify(CATALOG, settings, given.device, default_driver(), seed=given.seed, cases=wanted)
    problems = [f"{outcome.cubin}: {mismatch}" for outcome in outcomes for mismatch in outcome.mismatches]
    run = {(outcome.cubin.kernel, outcome.cubin.variant) for outcome in outcomes}
    target = default_target(device_facts(given.device, default_driver()).capability)
    planned = {
        (c.kernel, c.variant) for c in plan(CATALOG, [target]).cubins if CATALOG.kernel(c.kernel).module == given.module
    }
    if not given.only:
        problems += [f"{kernel}/{variant} was not run" for kernel, variant in sorted(planned - run)]
    for problem in problems:
        print(problem)
    print(f"{len(wanted)} cases, {len(run)} kernels, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
