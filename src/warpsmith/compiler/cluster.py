# SPDX-License-Identifier: Apache-2.0
"""Compiles on a dask cluster, behind the interface of `concurrent.futures.Executor`.

dask.distributed schedules, moves and repeats the jobs. This module adds what it cannot know: which workers have the
toolchain of this build, what an error means for a cubin, and how much is worth sending ahead.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import pickle
import threading
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from warpsmith.compiler.daemons import DaemonThreads
from warpsmith.compiler.toolchain import Toolchain, find_toolchain
from warpsmith.errors import CompileError, InvalidArgumentError, ToolchainError, WarpsmithError, WorkerError

T = TypeVar("T")
CONNECT = 20.0
"""Seconds that the scheduler, its first worker, and each worker's answer about its toolchain may take."""

PATIENCE = 120.0
"""Seconds that a build waits for a cluster that has lost all its workers."""

_POLL = 1.0
_AHEAD = 3  # jobs sent for each thread of the cluster: one runs, one waits there, one is on its way
_MINIMUM = 64
_BATCH = 8  # jobs in one of dask's tasks at most: what a task costs beside its bytes is shared by them
_SHARES = 4  # tasks that each thread of the cluster is left with at least, so that no batch is waited for at the end
_ATTEMPTS = 4
_PROBES = 16
_TIMEOUTS = (TimeoutError, asyncio.TimeoutError, concurrent.futures.TimeoutError)  # three types before Python 3.11


def unfit(compiler: str, disassembler: str) -> str:
    """Why the machine that runs this cannot take part in a build with these tools, or nothing."""
    try:
        here = find_toolchain()
    except CompileError as error:  # also of the probe that asks NVRTC for its version
        return str(error)
    if (here.compiler, here.disassembler) == (compiler, disassembler):
        return ""
    return f"it has {here.compiler} and {here.disassembler}, the build was started with {compiler} and {disassembler}"


class Cluster(Executor):
    """The workers of a dask scheduler that have the toolchain of this build.

    Parameters
    ----------
    address
        The scheduler's, such as ``tcp://10.0.0.1:8786`` or ``tls://…``; certificates come from dask's configuration.
    toolchain
        What the build is started with; by default what `find_toolchain` finds here.
    connect, patience
        See `CONNECT` and `PATIENCE`.

    Raises
    ------
    InvalidArgumentError
        If dask.distributed is not installed, or the address is none.
    WorkerError
        If the scheduler does not answer, or has no workers.
    ToolchainError
        If none of the workers has the toolchain; with the reason of each.

    Notes
    -----
    A worker with another toolchain is warned of, with the reason, and gets no jobs; one that joins later and takes a
    job refuses it, and the job goes to another. A worker that dies loses nothing: dask gives its jobs to others.
    """

    def __init__(
        self, address: str, toolchain: Toolchain | None = None, *, connect: float = CONNECT, patience: float = PATIENCE
    ) -> None:
        self.address, self._connect, self._patience = address, connect, patience
        self._toolchain = toolchain or find_toolchain()
        self._lock, self._looking, self._closed = threading.Lock(), threading.Lock(), threading.Event()
        self._waiting: deque[_Job] = deque()
        self._running: dict[Future[Any], _Batch] = {}
        self._name, self._sent = uuid.uuid4().hex, 0
        self._fit: dict[str, int] = {}  # addresses with their threads
        self._unfit: dict[str, str] = {}  # addresses with the reason
        self._helper = DaemonThreads(1, "warpsmith-cluster")
        self._probes = DaemonThreads(_PROBES, "warpsmith-probe")
        self._client = _client(address, connect)
        try:
            self._executor: Any = self._client.get_executor(pure=False)
            self._look()
            if not self._fit:
                raise ToolchainError(f"no worker of {address} can take part in this build:\n{self._reasons()}")
        except BaseException:
            self.shutdown(cancel_futures=True)
            raise
        threading.Thread(target=self._watch, name="warpsmith-cluster-watch", daemon=True).start()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run ``fn(job)`` on a worker, where `fn` has to be importable; `job` names a ``cubin``.

        Raises
        ------
        InvalidArgumentError
            For anything but one positional argument.
        WorkerError
            If the cluster was left.
        """
        if len(args) != 1 or kwargs:
            raise InvalidArgumentError(f"a cluster runs functions of one job, not {fn!r} of {args!r} and {kwargs!r}")
        if self._closed.is_set():
            raise WorkerError(f"the cluster {self.address} was left before the job was given to it")
        job = _Job(fn, args[0])
        with self._lock:
            self._waiting.append(job)
        self._send()
        return job.outer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, once all jobs are done or at once with ``cancel_futures``."""
        if wait and not cancel_futures:
            with self._lock:
                left = [job.outer for job in self._unfinished()]
            concurrent.futures.wait(left)
        self._closed.set()
        self._fail_all("the cluster was left before the job was done")
        self._helper.stop()
        self._probes.stop()
        self._client.close(timeout=5)

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        """Leave the cluster; after an exception without waiting for jobs."""
        self.shutdown(cancel_futures=kind is not None)

    def _send(self) -> None:
        """Hand over what keeps the workers busy; the rest waits here, where it costs the scheduler nothing."""
        while not self._closed.is_set():
            with self._lock:
                threads = sum(self._fit.values())
                room = max(_MINIMUM, _AHEAD * threads) - len(self._running)
                if not self._waiting or not self._fit or room <= 0:
                    return
                jobs = self._next(min(_BATCH, len(self._waiting) // (_SHARES * threads)))
                if not jobs:
                    continue
                self._sent += 1
                batch = _Batch(jobs, frozenset(self._fit) if self._unfit else frozenset())
                key = f"{jobs[0].fn.__name__}-{self._name}-{self._sent}"  # dask's dashboard groups by the first part
                inner = self._executor.submit(pickle.loads, batch.pickled(), key=key, workers=list(batch.only) or None)
                self._running[inner] = batch
            inner.add_done_callback(self._done)

    def _next(self, limit: int) -> list[_Job]:
        """The jobs to send next, at most `limit` or one; one that failed in company goes alone."""
        jobs: list[_Job] = []
        while self._waiting and len(jobs) < max(limit, 1) and not (jobs and (jobs[-1].alone or self._waiting[0].alone)):
            job = self._waiting.popleft()
            if job.begin():
                jobs.append(job)
        return jobs

    def _done(self, inner: Future[Any]) -> None:
        """Called in dask's own thread: what takes time is left to the helper."""
        with self._lock:
            batch = self._running.pop(inner, None)
        if batch is None:
            return
        try:
            outcomes = inner.result()
        except concurrent.futures.CancelledError:
            for job in batch.jobs:
                job.fail(WorkerError(f"{job.name}: the scheduler {self.address} is gone, or dropped the job"))
        except Exception as error:
            if len(batch.jobs) > 1 and not isinstance(error, (ToolchainError, ImportError)):
                with self._lock:  # one of them is to blame, perhaps: it will be named
                    for job in reversed(batch.jobs):
                        job.alone = True
                        self._waiting.appendleft(job)
            else:
                for job in batch.jobs:
                    self._failed(job, error)
        else:
            for job, (value, wrong) in zip(batch.jobs, outcomes, strict=True):
                if wrong is None:
                    job.outer.set_result(value)
                else:
                    self._failed(job, wrong)
        self._helper.submit(self._send)

    def _failed(self, job: _Job, error: Exception) -> None:
        if isinstance(error, (ToolchainError, ImportError)):
            self._helper.submit(self._refused, job, error)
        else:
            job.fail(_translated(job.name, error))

    def _refused(self, job: _Job, error: Exception) -> None:
        """A job that comes back from a worker without the toolchain goes to one that has it."""
        try:
            self._look()
        except WarpsmithError as gone:
            job.fail(gone)
            return
        if self._unfit and job.attempts < _ATTEMPTS:
            with self._lock:
                self._waiting.appendleft(job)
        else:  # no worker is to blame: it would be the same everywhere
            job.fail(_translated(job.name, error))
        self._send()

    def _look(self) -> None:
        """Find out which workers there are, and ask the new ones for their toolchain."""
        with self._looking:
            try:
                threads: dict[str, int] = self._probes.submit(self._client.nthreads).result(self._connect)
            except (*_TIMEOUTS, OSError, RuntimeError) as error:
                raise WorkerError(
                    f"the scheduler {self.address} does not answer ({error or type(error).__name__})"
                ) from error
            new = {a: self._probes.submit(self._ask, a) for a in threads if a not in self._fit and a not in self._unfit}
            concurrent.futures.wait(new.values(), self._connect)
            reasons = {a: f.result() if f.done() else f"no answer within {self._connect:g} s" for a, f in new.items()}
            with self._lock:
                self._unfit.update((a, reason) for a, reason in reasons.items() if reason)
                self._fit = {a: n for a, n in threads.items() if a not in self._unfit}
        for address, reason in reasons.items():
            if reason:
                warnings.warn(f"the worker {address} gets nothing to compile: {reason}", RuntimeWarning, stacklevel=3)

    def _ask(self, worker: str) -> str:
        """Why a worker is not fit, or nothing."""
        tools = (self._toolchain.compiler, self._toolchain.disassembler)
        answer = self._client.run(unfit, *tools, workers=[worker], on_error="return").get(worker, "it is gone")
        if isinstance(answer, BaseException):
            return f"{type(answer).__name__}: {answer}; install the same warpsmith[build,cluster] there"
        return str(answer)

    def _reasons(self) -> str:
        return "\n".join(f"  {address}: {reason}" for address, reason in sorted(self._unfit.items()))

    def _watch(self) -> None:
        """Follow workers that come and go; end the wait for a cluster that stays empty."""
        last = time.monotonic()
        while not self._closed.wait(_POLL):
            try:
                self._look()
            except WarpsmithError as error:
                self._fail_all(str(error))
                continue
            if self._fit:
                last = time.monotonic()
                self._recall()
                self._send()
            elif time.monotonic() - last > self._patience:
                self._fail_all(f"{self.address} has had no usable worker for {self._patience:g} s\n{self._reasons()}")

    def _recall(self) -> None:
        """Take back jobs that only workers may run which are all gone: dask would keep them for their return."""
        with self._lock:
            lost = [inner for inner, batch in self._running.items() if batch.only and batch.only.isdisjoint(self._fit)]
            for inner in lost:
                self._waiting.extendleft(reversed(self._running.pop(inner).jobs))
        for inner in lost:
            inner.cancel()

    def _fail_all(self, reason: str) -> None:
        with self._lock:
            jobs = self._unfinished()
            self._waiting.clear()
            self._running.clear()
        for job in jobs:
            if job.begin():
                job.fail(WorkerError(f"{job.name}: {reason}"))

    def _unfinished(self) -> list[_Job]:
        return [*self._waiting, *(job for batch in self._running.values() for job in batch.jobs)]


class _Job:
    """A job on its way: what to run, and the future that the caller holds."""

    def __init__(self, fn: Callable[..., Any], argument: Any) -> None:
        self.fn, self.argument, self.attempts = fn, argument, 0
        self.alone = False  # whether it has to be sent without others
        self.outer: Future[Any] = Future()

    @property
    def name(self) -> str:
        """What it is about, for messages."""
        return str(getattr(self.argument, "cubin", self.argument))

    def begin(self) -> bool:
        """Whether the caller still wants it."""
        self.attempts += 1
        return not self.outer.done() and (self.outer.running() or self.outer.set_running_or_notify_cancel())

    def fail(self, error: BaseException) -> None:
        """Tell the caller, unless it knows."""
        if not self.outer.done():
            self.outer.set_exception(error)


class _Batch:
    """Jobs that are sent together, and the workers that may run them; none for any.

    A scheduler imports what it is told to run, and would need this package; `pickle.loads` it has. So what is sent is
    bytes that are the calls' outcomes once they are unpickled.
    """

    def __init__(self, jobs: list[_Job], only: frozenset[str]) -> None:
        self.jobs, self.only = jobs, only

    def pickled(self) -> bytes:
        return pickle.dumps(self)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any]]:
        return run_all, ([(job.fn, job.argument) for job in self.jobs],)


def run_all(calls: list[tuple[Callable[..., Any], Any]]) -> list[tuple[Any, Exception | None]]:
    """What each function returns for its argument, or the exception that it raises."""
    outcomes: list[tuple[Any, Exception | None]] = []
    for fn, argument in calls:
        try:
            outcomes.append((fn(argument), None))
        except Exception as error:
            outcomes.append((None, _sendable(error)))
    return outcomes


def _sendable(error: Exception) -> Exception:
    """The error, or one that says the same if it does not survive being sent."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - its own
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _client(address: str, timeout: float) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise InvalidArgumentError(
            f"a build on the cluster {address} needs dask.distributed: pip install 'warpsmith[cluster]'"
        ) from error
    client = None
    try:
        client = Client(address, timeout=timeout, set_as_default=False, name="warpsmith")
        client.wait_for_workers(1, timeout=timeout)
    except (*_TIMEOUTS, OSError) as error:
        if client is None:
            raise WorkerError(f"no scheduler answers at {address} within {timeout:g} s: {error}") from error
        client.close(timeout=5)
        raise WorkerError(
            f"the scheduler {address} has no workers, and none came within {timeout:g} s; start some with "
            f"`dask worker {address}`"
        ) from error
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(
            f"{address!r} is no scheduler's address: {error}; expected tcp://host:8786"
        ) from error
    return client


def _translated(name: str, error: Exception) -> Exception:
    """What dask says in words of a build."""
    from distributed.scheduler import KilledWorker

    if isinstance(error, WarpsmithError):
        return error
    if isinstance(error, KilledWorker):
        return WorkerError(f"{name}: the cluster's workers died over it again and again: {error}")
    return WorkerError(f"{name}: it failed on the cluster: {type(error).__name__}: {error}")
