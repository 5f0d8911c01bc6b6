# SPDX-License-Identifier: Apache-2.0
"""A dask cluster on this machine: a scheduler and workers, each a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

OLDER = """
import dataclasses
from warpsmith.compiler import cluster, pool
from warpsmith.compiler.toolchain import find_toolchain

def dask_setup(worker):
    other = dataclasses.replace(find_toolchain(), nvrtc_version="13.0.88")
    cluster.find_toolchain = pool.find_toolchain = lambda: other
"""
"""Preloaded by a worker: it says that its NVRTC is another."""


class Machines:
    """A scheduler and the workers that are started for it; all end with the block."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.processes = folder, list[subprocess.Popen[bytes]]()
        file = folder / "scheduler.json"
        command = ["dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file"]
        self.scheduler = self._start(*command, str(file))
        self.address = ""
        while not self.address:
            time.sleep(0.05)
            if self.scheduler.poll() is not None:
                raise RuntimeError((folder / "0.log").read_text())
            if file.exists() and (text := file.read_text()).rstrip().endswith("}"):
                self.address = json.loads(text)["address"]

    def worker(self, name: str, preload: str = "", threads: int = 1, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker."""
        options = ["--no-nanny", "--no-dashboard", "--nthreads", str(threads), "--name", name]
        options += ["--local-directory", str(self._folder)]
        if preload:
            path = self._folder / f"{name}_preload.py"
            path.write_text(preload)
            options += ["--preload", str(path)]
        return self._start("dask_worker", self.address, *options, **environment)

    def _start(self, module: str, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{len(self.processes)}.log").open("wb") as log:
            made = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{module}", *options],
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
            )
        self.processes.append(made)
        return made

    def client(self, workers: int) -> Any:
        """Dask's own client, once there are so many workers."""
        from distributed import Client

        made = Client(self.address, set_as_default=False, timeout=30)
        made.wait_for_workers(workers, timeout=60)
        return made

    def __enter__(self) -> Machines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()
