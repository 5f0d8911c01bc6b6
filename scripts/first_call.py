# SPDX-License-Identifier: Apache-2.0
"""What the first call from a bundle costs the host, without a GPU: each part's time in fresh processes.

numpy, ml_dtypes, cuda.bindings and (if it is there) torch are imported before the clock starts, as in a program that
uses them. Then: import the operations, open the bundle, decide, read the cubin, check it as loading does. Prints one
line of JSON a part: the median and the least of its times. The driver's own part, loading the module, needs a GPU.

    python scripts/first_call.py BUNDLE [--capability 9.0] [--processes 15] [--operation quantize]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

PROGRAM = """
import gc, json, sys, time
import numpy, ml_dtypes
try:
    from cuda.bindings import driver
    import torch
except ImportError:
    pass
from pathlib import Path

parts, last = {}, time.perf_counter()

def lap(name):
    global last
    now = time.perf_counter()
    parts[name] = 1e3 * (now - last)
    last = time.perf_counter()

import warpsmith
lap("import warpsmith")
import warpsmith.ops.quantization
lap("import operations")
from warpsmith.ops.state import runtime
shared = runtime()
lap("runtime")
next(shared._search())
lap("open bundles")
from warpsmith.arch import Capability
from warpsmith.catalog.resolve import DeviceFacts
facts = DeviceFacts(Capability.parse(sys.argv[1]), 132, 13000)
problem = shared.catalog.operation(sys.argv[2]).problem({})
found = shared.locate(problem, facts)
lap("decide")
data = found.bundle.cubin(found.entry)
lap("read cubin")
from warpsmith.runtime.modules import _checked_record
row = shared.catalog.kernel(found.cubin.kernel)
_checked_record(row, found.cubin, data, facts.capability, found.origin)
lap("check cubin")
parts["all"] = sum(parts.values())
print(json.dumps(parts))
"""


def main() -> None:
    """Measure, and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("bundle")
    options.add_argument("--capability", default="9.0")
    options.add_argument("--operation", default="quantize")
    options.add_argument("--processes", type=int, default=15)
    given = options.parse_args()
    command = [sys.executable, "-c", PROGRAM, given.capability, given.operation]
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
            "PYTHONPYCACHEPREFIX": folder,  # byte code lies ready, as where pip installed the package
            "WARPSMITH_BUNDLE_PATH": given.bundle,
            "WARPSMITH_JIT": "forbid",
        }
        for _ in range(given.processes + 1):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout))
    del runs[0]  # it wrote the byte code, and warmed the file system's cache
    for part in runs[0]:
        times = [run[part] for run in runs]
        row = {"part": part, "median_ms": round(statistics.median(times), 2), "least_ms": round(min(times), 2)}
        print(json.dumps(row))


if __name__ == "__main__":
    main()
