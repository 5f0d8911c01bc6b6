# SPDX-License-Identifier: Apache-2.0
"""All checks of all variants on device 0, or, for the GEMM, in an emulator."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from warpsmith.arch import default_target, parse

from .cases import Suite
from .device import Device, Gpu, gpu_capability
from .gemm import Gemm
from .kernels import GEMM, PROBE
from .probe import Probe


def check_probe(device: Device, kind: str, seed: int) -> int:
    """Run and print the checks of one form of the MMA; how many failed."""
    failed = 0
    probe = Probe(device, kind, seed)
    for name, inputs, exact in probe.checks():
        wrong = probe.wrong(inputs, exact)
        failed += bool(wrong)
        print(f"{kind:12s} {name:32s} {len(inputs.a):6d} cases {'FAIL' if wrong else 'ok'}", *wrong, sep="\n  ")
    return failed


def check_gemm(device: Device, variant: str, seed: int, quick: bool, most: float) -> int:
    """Run and print the cases of one variant, of at most so many multiplications; how many failed."""
    total = 0
    gemm = Gemm(device, variant, seed)
    for kind, cases in Suite(gemm.pair, gemm.tile[0], quick, seed).kinds().items():
        start, count, failed = time.monotonic(), 0, 0
        for case in (c for c in cases if c.work <= most):
            found = gemm.problems(case)
            count, failed = count + 1, failed + bool(found)
            for problem in found:
                print(f"FAIL {variant} {case}: {problem}", flush=True)
        elapsed = time.monotonic() - start
        print(f"{variant:20s} {kind:12s} {count:4d} cases, {failed} failed, {elapsed:.1f} s", flush=True)
        total += failed
    print(f"{variant:20s} worst error / limit:", ", ".join(f"{o} {v:.2f}" for o, v in gemm.worst.items()), flush=True)
    return total


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sm12x", description=__doc__)
    parser.add_argument("--target", help="default: that of device 0")
    parser.add_argument("--folder", type=Path, help="cubins; what is missing is compiled and put there")
    parser.add_argument("--only", default="", help="text that the names of variants must hold")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--quick", action="store_true", help="a part of the GEMM's cases")
    parser.add_argument("--most", type=float, default=1e18, help="multiplications of the largest GEMM")
    parser.add_argument("--emulate", type=Path, help="a folder of emulated GEMMs (tests/emulation): no GPU is used")
    parser.add_argument("--racecheck", action="store_true", help="use cubins whose barriers racecheck can follow")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the variants")
    parser.add_argument("--part", default="0/1", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """How many checks failed; 1 if there was none."""
    options = _options()
    if options.jobs > 1:
        command = [sys.executable, "-m", "sm12x", *sys.argv[1:], "--jobs", "1", "--seed", str(options.seed)]
        parts = [[*command, "--part", f"{i}/{options.jobs}"] for i in range(options.jobs)]
        running = [subprocess.Popen(part) for part in parts]
        return sum([bool(process.wait()) for process in running])
    print("seed", options.seed)
    device: Device
    if options.emulate:
        from .emulated import Emulator

        device = Emulator(options.emulate)
    else:
        target = parse(options.target) if options.target else default_target(gpu_capability())
        device = Gpu(target, options.folder, racecheck=options.racecheck)
    mine, processes = (int(x) for x in options.part.split("/"))
    kernels = (GEMM,) if options.emulate else (PROBE, GEMM)
    names = [(kernel, variant.name) for kernel in kernels for variant in kernel.variants]
    chosen = [(kernel, name) for kernel, name in names if options.only in name]
    failed = 0 if chosen else 1
    for kernel, name in chosen[mine::processes]:
        if kernel is PROBE:
            failed += check_probe(device, name, options.seed)
        else:
            failed += check_gemm(device, name, options.seed, options.quick, options.most)
    print(f"{failed} failed" if failed else "passed")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
