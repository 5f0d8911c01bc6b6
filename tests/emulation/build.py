# SPDX-License-Identifier: Apache-2.0
"""Compile variants of the SM12x GEMMs for the CPU emulator: build.py FOLDER [TEXT that names must hold [hw | sw]].

Names of gated products (`sm12x_gated_gemm`) begin with ``gated_``; they have no form with the software MMA.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import warpsmith

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "gpu"))
from sm12x.kernels import GEMM  # noqa: E402 - the tests' table of variants

from warpsmith.catalog.fp4_gemm_gated import KERNELS as GATED  # noqa: E402

KERNELS = Path(warpsmith.__file__).parent / "kernels"


def write_tma(folder: Path) -> None:
    """The host's copies, with the device's own description of swizzled tiles."""
    device = (KERNELS / "common/tma.cuh").read_text(encoding="utf-8")
    kept = device[device.index("// Byte offset of a 16-byte chunk") : device.index("}  // namespace ws")]
    host = (HERE / "include/common/tma_host.h").read_text(encoding="utf-8")
    (folder / "common").mkdir()
    (folder / "common/tma.cuh").write_text(f"{host}{kept}}}\n", encoding="utf-8")


def main() -> None:
    """Compile."""
    out, text = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    mma = sys.argv[3] if len(sys.argv) > 3 else "hw"  # a model of the instruction, or the software MMA
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        write_tma(Path(scratch))
        folders = (Path(scratch), HERE / mma, HERE / "include", HERE, KERNELS)
        options = ["-std=c++17", "-O2", "-ffp-contract=off", "-w", "-shared", "-fPIC", "-march=native"]
        named = [(v.name, v.macros) for v in GEMM.variants]
        gated = (("EMU_GATED", "1"),)
        named += [(f"gated_{v.name}", (*v.macros, *gated)) for v in GATED[0].variants if mma == "hw"]
        for name, defined in named:
            if text in name:
                macros = [f"-D{macro}={value}" for macro, value in defined]
                includes = [f"-I{folder}" for folder in folders]
                target = ["-o", str(out / f"{name}.so")]
                subprocess.run(["g++", *options, *macros, *includes, str(HERE / "one.cpp"), *target], check=True)
                print(name, flush=True)


if __name__ == "__main__":
    main()
