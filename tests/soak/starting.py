# SPDX-License-Identifier: Apache-2.0
"""Many processes that start at once from one bundle: each finds and checks its kernels, and says what it touched."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROGRAM = """
import json, os, sys, time

touched = []

def hook(event, args):
    if event == "open":
        path, mode, flags = args
        if (isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            touched.append(f"open {path}")
    elif event in WATCHED:
        touched.append(f"{event} {args}")

WATCHED = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.symlink", "os.link", "os.chmod",
           "os.utime", "fcntl.flock", "fcntl.lockf", "msvcrt.locking", "socket.connect", "socket.bind"}
sys.addaudithook(hook)
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.readline()
started = time.perf_counter()
from pathlib import Path
from warpsmith.arch import Capability
from warpsmith.catalog import CATALOG
from warpsmith.catalog.plan import probe_problems
from warpsmith.catalog.resolve import DeviceFacts
from warpsmith.runtime.kernels import Runtime
from warpsmith.settings import Settings

imported = time.perf_counter()
runtime = Runtime(Settings(bundle_path=(Path(sys.argv[1]),), jit=False), CATALOG, installed=list)
facts = DeviceFacts(Capability.parse(sys.argv[2]), 48, 13000)
problems = [p for o in CATALOG.operations for f in o.formats for p in probe_problems(o, f)]
located = [runtime.locate(problems[0], facts)]
data = located[0].bundle.cubin(located[0].entry)
first = time.perf_counter()
for problem in problems[1:]:
    found = runtime.locate(problem, facts)
    if found.bundle is not None:
        data = found.bundle.cubin(found.entry)
        located.append(found)
done = time.perf_counter()
print(json.dumps({"touched": touched, "kernels": len({l.cubin for l in located}), "import": imported - started,
                  "first": first - started, "all": done - started}))
"""


def start(bundle: Path, capability: str, processes: int) -> dict[str, Any]:
    """Start them, let all go at the same moment, and gather what they say."""
    command = [sys.executable, "-B", "-c", PROGRAM, str(bundle), capability]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for process in running:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise RuntimeError("a process did not start")
    before = snapshot(bundle)
    started = time.perf_counter()
    for process in running:
        if process.stdin is not None:
            process.stdin.write("go\n")
            process.stdin.flush()
    said = [json.loads(process.communicate()[0]) for process in running]
    wall = time.perf_counter() - started
    return {
        "processes": processes,
        "wall_seconds": round(wall, 3),
        **{
            f"{what}_seconds": {
                "median": round(statistics.median(s[what] for s in said), 3),
                "slowest": round(max(s[what] for s in said), 3),
            }
            for what in ("import", "first", "all")
        },
        "kernels": min(s["kernels"] for s in said),
        "touched": sorted({t for s in said for t in s["touched"]}),
        "changed": before != snapshot(bundle),
    }


def snapshot(root: Path) -> dict[str, tuple[int, int, int]]:
    """Every file with what would change if it was written."""
    paths = [root, root.parent, *(root.rglob("*") if root.is_dir() else [])]
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_ctime_ns, p.stat().st_size) for p in sorted(paths)}
