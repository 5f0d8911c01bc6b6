# SPDX-License-Identifier: Apache-2.0
"""Jobs in batches: each has its own outcome, and one that takes others down with it is found. Dask is stood in for."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from warpsmith.compiler import cluster
from warpsmith.compiler.cluster import Cluster, run_all
from warpsmith.compiler.toolchain import Toolchain
from warpsmith.errors import CompileError, ToolchainError, WorkerError

scheduler = pytest.importorskip("distributed.scheduler")
THREADS = 2
MANY = 600


@dataclass(frozen=True)
class Task:
    """A job."""

    cubin: str


def name_of(task: Task) -> str:
    return task.cubin.upper()


def fails(task: Task) -> str:
    raise CompileError(f"{task.cubin}: line 1")


class Unsendable(Exception):  # noqa: N818
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fails_strangely(_: Task) -> str:
    raise Unsendable(1, 2)


def refuses_once(task: Task) -> str:
    if task.cubin not in refused:
        refused.append(task.cubin)
        raise ToolchainError("it has another NVRTC")
    return task.cubin


refused: list[str] = []


@dataclass
class FakeClient:
    """A scheduler with one worker, and the executor that it gives.

    `kills` is what a batch must hold to kill. The worker waits for `begins`, so that a test can hand in all of its jobs
    before the first one is done: how they are divided does not depend on which thread is faster.
    """

    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS))
    kills: bytes = b"\0no such job\0"
    sizes: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    fit: str = ""
    begins: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.begins.set()

    @contextmanager
    def idle(self) -> Iterator[None]:
        self.begins.clear()
        yield
        self.begins.set()

    def get_executor(self, **_: Any) -> FakeClient:
        return self

    def nthreads(self) -> dict[str, int]:
        return {"tcp://worker": THREADS}

    def run(self, *_: Any, workers: list[str], **__: Any) -> dict[str, str]:
        return dict.fromkeys(workers, self.fit)

    def close(self, **_: Any) -> None:
        self.pool.shutdown(wait=False)

    def submit(self, fn: Callable[..., Any], data: bytes, *, key: str, workers: Any) -> Future[Any]:
        assert fn is pickle.loads
        assert workers is None
        self.keys.append(key)

        def call() -> Any:
            self.begins.wait(30)
            if self.kills in data:
                raise scheduler.KilledWorker(key, SimpleNamespace(address="tcp://worker"), 3)
            outcomes = fn(data)
            self.sizes.append(len(outcomes))
            return outcomes

        return self.pool.submit(call)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeClient]:
    made = FakeClient()
    monkeypatch.setattr(cluster, "_client", lambda *_: made)
    refused.clear()
    yield made
    made.pool.shutdown(wait=False)


def start() -> Cluster:
    return Cluster("tcp://nowhere:1", Toolchain(Path("nvrtc"), Path("nvdisasm"), "13.5.37", "13.5.37"))


def test_many_jobs_go_in_few_tasks_and_each_has_its_own_result(client: FakeClient) -> None:
    with start() as workers:
        with client.idle():
            futures = [workers.submit(name_of, Task(f"job{i}")) for i in range(MANY)]
        assert [f.result(30) for f in futures] == [f"JOB{i}" for i in range(MANY)]
    assert sum(client.sizes) == MANY
    assert max(client.sizes) == 8
    assert len(client.sizes) < MANY / 2
    assert client.sizes[-1] <= 2  # at the end nobody waits for a batch
    assert len(set(client.keys)) == len(client.keys)
    assert {key.split("-")[0] for key in client.keys} == {"name_of"}


def test_few_jobs_go_one_by_one(client: FakeClient) -> None:
    with start() as workers:
        assert [f.result(30) for f in [workers.submit(name_of, Task("a")) for _ in range(7)]] == ["A"] * 7
    assert client.sizes == [1] * 7


def test_an_error_is_that_of_its_job_alone(client: FakeClient) -> None:
    with start() as workers:
        functions = [(fails, fails_strangely, name_of)[i % 3] for i in range(MANY)]
        with client.idle():
            futures = [workers.submit(fn, Task(f"job{i}")) for i, fn in enumerate(functions)]
        for number, future in enumerate(futures):
            if number % 3 == 2:
                assert future.result(30) == f"JOB{number}"
            elif number % 3:
                assert f"job{number}: it failed on the cluster" in str(future.exception(30))
                assert "Unsendable: 1 and 2" in str(future.exception(30))
            else:
                assert type(future.exception(30)) is CompileError
                assert str(future.exception(30)) == f"job{number}: line 1"
    assert max(client.sizes) > 1


def test_a_job_that_kills_its_workers_is_found_among_those_that_it_was_sent_with(client: FakeClient) -> None:
    client.kills = b"poison"
    with start() as workers:
        names = [f"job{i}" for i in range(MANY)]
        names[MANY - 300] = "poison"
        with client.idle():
            futures = {name: workers.submit(name_of, Task(name)) for name in names}
        with pytest.raises(WorkerError, match="poison: the cluster's workers died over it"):
            futures.pop("poison").result(30)
        assert [f.result(30) for f in futures.values()] == [name.upper() for name in futures]


@pytest.mark.usefixtures("client")
def test_what_the_only_worker_refuses_is_its_error() -> None:
    with start() as workers:
        futures = [workers.submit(refuses_once, Task(f"job{i}")) for i in range(40)]
        errors = [f.exception(30) for f in futures]
    assert {type(e) for e in errors} == {ToolchainError}
    assert sorted(refused) == sorted(f"job{i}" for i in range(40))


def test_leaving_fails_what_is_left(client: FakeClient) -> None:
    client.pool.shutdown()
    client.pool = ThreadPoolExecutor(1)
    workers = start()
    client.pool.submit(time.sleep, 0.3)
    futures = [workers.submit(name_of, Task(f"job{i}")) for i in range(MANY)]
    workers.shutdown(cancel_futures=True)
    assert all(f.done() for f in futures)
    assert any(isinstance(f.exception(), WorkerError) for f in futures)


def test_calls_run_in_turn_with_their_outcomes() -> None:
    outcomes = run_all([(name_of, Task("a")), (fails, Task("b")), (name_of, Task("c"))])
    assert [value for value, _ in outcomes] == ["A", None, "C"]
    assert [type(error) for _, error in outcomes] == [type(None), CompileError, type(None)]
