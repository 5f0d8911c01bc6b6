# SPDX-License-Identifier: Apache-2.0
"""Run `warpsmith verify`'s cases of gated products in the CPU emulator: gated.py FOLDER [TEXT [SEED]].

FOLDER holds what ``build.py FOLDER gated_`` has made; TEXT is what names of variants must hold.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "gpu"), str(HERE.parent / "unit")]
from sm12x.emulated import EmulatedProgram  # noqa: E402
from test_evidence_gemm import FACTS, HostBuffer  # noqa: E402

from warpsmith.arch import parse  # noqa: E402
from warpsmith.catalog import CATALOG  # noqa: E402
from warpsmith.catalog.fp4_gemm_gated import KERNELS  # noqa: E402
from warpsmith.catalog.spec import CubinId, Problem  # noqa: E402
from warpsmith.evidence import device, gated  # noqa: E402

KERNEL = KERNELS[1]
MOST = 1 << 28  # multiplications of a case


def encode(_: Any, __: int, pointer: int, spec: Any) -> bytes:
    """A tensor map as the emulator reads it."""
    row, rows, batches, row_stride, batch_stride, box_bytes, box_rows = spec[:7]
    fields = pointer, row, rows, batches, row_stride, batch_stride, box_bytes, box_rows
    return struct.pack("=8Q", *fields).ljust(128, b"\0")


class Bench:
    """A bench whose kernels are emulated; bulk copies may read any memory."""

    catalog, device, driver = CATALOG, 0, None
    stream = SimpleNamespace(handle=0, synchronize=lambda: None)

    def __init__(self, folder: Path, text: str, seed: int) -> None:
        names = [v.name for v in KERNEL.variants if text in v.name]
        paths = {name: folder / f"gated_{name}.so" for name in names}
        self._programs = {n: EmulatedProgram(p, KERNEL, seed) for n, p in paths.items() if p.is_file()}

    def kernels(self, problem: Problem) -> dict[str, Any]:
        """Those of a problem's format, by name."""

        def kernel(name: str, program: EmulatedProgram) -> Any:
            def launch(grid: tuple[int, int, int], given: tuple[Any, ...], stream: int) -> None:
                assert stream == 0
                program.launch(grid[0], given, ((0, 1 << 62),))

            return SimpleNamespace(cubin=CubinId(KERNEL.name, name, parse("sm_90a")), launch=launch)

        wanted = {v.name for v in KERNEL.variants if v.mismatch(problem) is None}
        return {name: kernel(name, program) for name, program in self._programs.items() if name in wanted}


def main() -> int:
    """How many cases failed."""
    folder, text = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    device.DeviceBuffer = HostBuffer
    gated.device_facts, gated.encode = lambda *_: FACTS, encode
    bench, rng, count, failed = Bench(folder, text, seed), np.random.default_rng(seed), 0, 0
    for case in gated.gated_cases():
        if case.product.n * case.product.k * sum(case.product.rows) > MOST:
            continue
        for cubin, mismatch, error in gated.run_gated(bench, case, rng):
            count, failed = count + 1, failed + bool(mismatch)
            print(f"{cubin.variant:20s} {error:.2e} {mismatch or 'ok'} {case}", flush=True)
    print(f"{count} launches, twice each, {failed} failed")
    return min(failed or not count, 1)


if __name__ == "__main__":
    sys.exit(main())
