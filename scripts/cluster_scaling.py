# SPDX-License-Identifier: Apache-2.0
"""How far a cluster build scales: tasks a second through one coordinator and one scheduler, with stub compiles.

A stub takes a job of a real one's size, sleeps as long as a compile takes, and returns a cubin's worth of bytes. It
goes through the same `Cluster` as a build. Workers are threads of a few processes, so that many fit on a small machine;
all processes share it, hence the rates are lower bounds. Prints one line of JSON a case. Needs
``warpsmith[build,cluster]``.

    python scripts/cluster_scaling.py [--tasks 100000] [--minutes 12]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "compile"))
from cluster_samples import Machines

from warpsmith.compiler.cluster import Cluster

JOB_BYTES, CUBIN_BYTES = 43_000, 39_000  # means over the quantization module for sm_121a
COMPILE_SECONDS = 0.3  # one core, NVRTC 13.5, the same module
PROCESSES = 2


@dataclass(frozen=True)
class Stub:
    """A job without work."""

    cubin: str
    content: bytes
    seconds: float

    def __reduce__(self) -> tuple[type[Stub], tuple[str, bytes, float]]:
        """With bytes of its own: what jobs of one batch share is sent once, and real ones share their headers."""
        return Stub, (self.cubin, bytes(bytearray(self.content)), self.seconds)


def stub(job: Stub) -> bytes:
    """What a worker does with it."""
    time.sleep(job.seconds)
    return bytes(CUBIN_BYTES)


def measure(machines: Machines, workers: int, tasks: int, seconds: float, limit: float) -> dict[str, float]:
    """Send stubs until all are back or the limit is reached; what came back by then."""
    content, done = os.urandom(JOB_BYTES), 0
    with Cluster(machines.address) as cluster:
        start, cpu = time.monotonic(), time.process_time()
        futures = [cluster.submit(stub, Stub(str(number), content, seconds)) for number in range(tasks)]
        for future in as_completed(futures):
            future.result()
            done += 1
            if time.monotonic() - start > limit:
                break
        elapsed = time.monotonic() - start
        cpu = time.process_time() - cpu
        cluster.shutdown(cancel_futures=True)
    best = done * seconds / workers
    return {
        "workers": workers,
        "stub_s": seconds,
        "tasks": done,
        "of": tasks,
        "seconds": round(elapsed, 1),
        "per_second": round(done / elapsed, 1),
        "efficiency": round(best / elapsed, 2),
        "client_cpu_ms_per_task": round(cpu / done * 1e3, 2),
        "client_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "scheduler_peak_mb": peak(machines.scheduler.pid),
        "scheduler_cpu_ms_per_task": round(seconds_of(machines.scheduler.pid) / done * 1e3, 2),
        "workers_cpu_ms_per_task": round(sum(seconds_of(p.pid) for p in machines.processes[1:]) / done * 1e3, 2),
    }


def peak(pid: int) -> int:
    """A process's largest resident memory in MB, as Linux tells it; 0 elsewhere."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def seconds_of(pid: int) -> float:
    """A process's CPU time, as Linux tells it; 0 elsewhere."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure each case in a fresh cluster, within the time given."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--tasks", type=int, default=100_000)
    options.add_argument("--minutes", type=float, default=12.0)
    given = options.parse_args()
    cases = [
        *((workers, 8 * workers + 40, COMPILE_SECONDS) for workers in (1, 8, 64)),
        *((workers, 3_000, COMPILE_SECONDS) for workers in (128, 256)),
        (64, given.tasks, 0.0),
    ]
    end = time.monotonic() + 60 * given.minutes
    for workers, tasks, seconds in cases:
        with tempfile.TemporaryDirectory() as folder, Machines(Path(folder)) as machines:
            processes = min(PROCESSES, workers)
            for number in range(processes):
                path = str(Path(__file__).parent)
                machines.worker(str(number), threads=workers // processes, PYTHONPATH=path)
            machines.client(processes).close()
            left = end - time.monotonic()
            print(json.dumps(measure(machines, workers, tasks, seconds, max(left, 10.0))), flush=True)


if __name__ == "__main__":
    from cluster_scaling import main as run  # so that workers find the stub by this module's name

    run()
