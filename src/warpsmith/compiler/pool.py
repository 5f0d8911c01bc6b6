# SPDX-License-Identifier: Apache-2.0
"""Compile workers of this machine behind the interface of `concurrent.futures.Executor`.

A build hands `compile_job` and `inspect_job` to an executor. `LocalWorkers` runs them in its own worker processes; any
other executor (dask's, say) runs the functions where it likes, and they start workers on that machine.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from warpsmith.compiler.process import Job, Worker, WorkerDied
from warpsmith.compiler.sass import Census
from warpsmith.compiler.toolchain import Toolchain, find_toolchain
from warpsmith.compiler.unit import Compiled, CompileJob, InspectJob
from warpsmith.errors import InvalidArgumentError, ToolchainError, WorkerError

T = TypeVar("T")
_GIB = 1 << 30
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def compile_job(job: CompileJob) -> Compiled:
    """Compile one cubin in a worker process of this machine."""
    return _own_workers(os.getpid()).call(job)


def inspect_job(job: InspectJob) -> tuple[Census, ...]:
    """Disassemble the code of some cubins in a worker process of this machine."""
    return _own_workers(os.getpid()).call(job)


@lru_cache(maxsize=1)
def _own_workers(_process: int) -> LocalWorkers:
    return LocalWorkers()


def default_jobs() -> int:
    """Workers that this machine bears: one a core it may use, each with 1 GiB of memory."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cores, _memory() // _GIB))


def _memory() -> int:
    """Bytes that this process may use; plenty where the system does not say."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        found = 1 << 62
    for path in map(Path, _CGROUP_LIMITS):
        try:
            found = min(found, int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue  # no such group, or "max"
    return found


class LocalWorkers(Executor):
    """Compile workers on this machine.

    Parameters
    ----------
    jobs
        How many at most; by default `default_jobs`. They start when they are needed.
    toolchain
        What they compile with; by default what `find_toolchain` finds.

    Notes
    -----
    A worker that dies (the kernel's out-of-memory killer, a crash of the compiler) costs its own job: once no other
    job is running, that is tried again in a fresh worker, and if that dies too, its future raises `WorkerError`.
    Leaving a ``with`` block through an exception (Ctrl-C too) kills the workers at once.
    """

    def __init__(self, jobs: int | None = None, toolchain: Toolchain | None = None) -> None:
        if jobs is not None and jobs < 1:
            raise InvalidArgumentError(f"jobs={jobs}; expected a number of at least 1")
        self.jobs = jobs or default_jobs()
        self._toolchain = toolchain or find_toolchain()
        self._threads = ThreadPoolExecutor(self.jobs, thread_name_prefix="warpsmith-compile")
        self._lock = threading.Lock()
        self._all: set[Worker] = set()
        self._idle: list[Worker] = []
        self._killed = False
        self._traffic = _Traffic()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run ``compile_job(job)`` or ``inspect_job(job)`` in a worker.

        Raises
        ------
        InvalidArgumentError
            For any other function: workers understand these two.
        """
        if fn not in (compile_job, inspect_job) or len(args) != 1 or kwargs:
            raise InvalidArgumentError(f"compile workers run compile_job(job) and inspect_job(job), not {fn!r}")
        return self._threads.submit(self.call, args[0])

    def call(self, job: Job[T]) -> T:
        """Run a job in a worker, in the calling thread.

        Raises
        ------
        WorkerError
            If two workers died over it; with its name, exit status and the end of stderr.
        ToolchainError
            If the job is for another version of the compiler or disassembler than this machine has.
        CompileError
            What the job reports.
        """
        here = (self._toolchain.compiler, self._toolchain.disassembler)
        if job.tool and job.tool not in here:
            raise ToolchainError(
                f"{job.cubin}: the build was started with {job.tool}, and this machine has {' and '.join(here)}; "
                "install the same versions on every machine that builds"
            )
        try:
            with self._traffic.shared():
                return self._attempt(job, self._take())
        except WorkerDied as first:
            with self._traffic.alone():
                try:
                    return self._attempt(job, self._start())
                except WorkerDied as second:
                    raise WorkerError(
                        f"{job.cubin}: the compile worker died ({first}), and died again when the job was retried "
                        f"alone ({second}); if the system ran out of memory, build with fewer --jobs"
                    ) from second

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs and end the workers: once all jobs are done, or at once with ``cancel_futures``."""
        if cancel_futures:
            self._kill()
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)
        if wait:
            self._kill()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self.shutdown(cancel_futures=kind is not None)
        return None

    def _attempt(self, job: Job[T], worker: Worker) -> T:
        healthy = True
        try:
            return worker.call(job)
        except WorkerDied:
            healthy = False
            raise
        finally:
            self._give_back(worker, healthy)

    def _take(self) -> Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.alive:
                    return worker
                self._all.discard(worker)
                worker.close()
        return self._start()

    def _start(self) -> Worker:
        with self._lock:
            if self._killed:
                raise WorkerError("the workers were shut down before the job was done")
            worker = Worker(self._toolchain.nvrtc, self._toolchain.nvdisasm)
            self._all.add(worker)
            return worker

    def _give_back(self, worker: Worker, healthy: bool) -> None:
        with self._lock:
            if healthy and not self._killed:
                self._idle.append(worker)
                return
            self._all.discard(worker)
        worker.close()

    def _kill(self) -> None:
        with self._lock:
            self._killed = True
            running, idle = self._all - set(self._idle), self._idle
            self._all, self._idle = set(), []
        for worker in running:
            worker.kill()  # the thread that waits for its reply closes it
        for worker in idle:
            worker.close()


class _Traffic:
    """Jobs side by side, or one alone: a retry after a death must not meet the load that may have caused it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._alone = True
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._running)
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
