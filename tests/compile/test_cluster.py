# SPDX-License-Identifier: Apache-2.0
"""Builds on a dask cluster of this machine: what is lost with a worker, and what another toolchain may do (nothing)."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import toy_catalog as toys
from cluster_samples import OLDER, Machines
from typer.testing import CliRunner

from warpsmith.arch import parse_list
from warpsmith.cli.app import app
from warpsmith.compiler.build import build
from warpsmith.compiler.cluster import Cluster
from warpsmith.compiler.pool import compile_job
from warpsmith.compiler.toolchain import find_toolchain
from warpsmith.compiler.unit import CompileJob
from warpsmith.errors import CompileError, InvalidArgumentError, ToolchainError, WorkerError

pytest.importorskip("distributed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="kills processes by signal"),
]
MANY = toys.many(12)
FAST = {"connect": 15.0, "patience": 4.0}


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    folder = tmp_path / "machines"
    folder.mkdir()
    with Machines(folder) as made:
        yield made


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def make(out: Path, executor: Cluster | None = None, progress: Callable[[int, int, str], None] | None = None) -> int:
    with toys.installed():
        return build(MANY, parse_list("12x 8.0"), out, executor=executor, progress=progress).compiled


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("local")
    make(folder)
    return tree(folder)


def said(run: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught if "gets nothing to compile" in str(w.message)]


def job(name: str = "one", program: str = 'extern "C" __global__ void f() {}', tool: str = "") -> CompileJob:
    return CompileJob(name, program, (), (), "sm_80", tool or find_toolchain().compiler)


@dataclass(frozen=True)
class Task:
    """A job for the functions below."""

    cubin: str
    seconds: float = 0.0


def test_a_killed_worker_costs_no_build(machines: Machines, tmp_path: Path, expected: dict[str, bytes]) -> None:
    victim, _ = machines.worker("victim"), machines.worker("other")
    machines.client(2).close()
    killed: list[int] = []

    def kill(done: int, _: int, __: str) -> None:
        if done == 4:
            victim.kill()
            killed.append(done)

    with Cluster(machines.address, **FAST) as cluster:
        assert make(tmp_path / "out", cluster, kill) == 24
    assert killed == [4]
    assert tree(tmp_path / "out") == expected


def test_another_nvrtc_is_refused_with_the_reason_and_never_mixed_in(
    machines: Machines, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    machines.worker("older", OLDER)
    machines.client(1).close()
    with pytest.raises(ToolchainError, match=r"no worker of tcp.*\n.*it has nvrtc 13\.0\.88 and .* was started with"):
        Cluster(machines.address, **FAST)
    machines.worker("same")
    machines.client(2).close()

    def run() -> None:
        with Cluster(machines.address, **FAST) as cluster:
            make(tmp_path / "out", cluster)

    warned = said(run)
    assert len(warned) == 1
    assert "it has nvrtc 13.0.88" in warned[0]
    assert tree(tmp_path / "out") == expected


def test_one_that_joins_later_refuses_and_its_jobs_go_to_others(
    machines: Machines, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    machines.worker("same")
    monkeypatch.setattr("warpsmith.compiler.cluster._POLL", 600)  # so that only a refusal tells of it
    with Cluster(machines.address, **FAST) as cluster:
        machines.worker("older", OLDER)
        machines.client(2).close()
        warned = said(lambda: make(tmp_path / "out", cluster))
    assert len(warned) == 1
    assert tree(tmp_path / "out") == expected


def test_a_cluster_that_loses_all_workers_waits_for_new_ones_and_then_gives_up(machines: Machines) -> None:
    first = machines.worker("first")
    with Cluster(machines.address, **FAST) as cluster:
        first.kill()
        first.wait()
        future = cluster.submit(compile_job, job())
        time.sleep(1)
        assert not future.done()
        second = machines.worker("second")
        assert future.result(60).cubin
        second.kill()
        with pytest.raises(WorkerError, match="has had no usable worker for 4 s"):
            cluster.submit(compile_job, job()).result(60)


def test_jobs_kept_for_workers_that_are_gone_go_to_new_ones(machines: Machines) -> None:
    path = str(Path(__file__).parent)
    first = machines.worker("first", PYTHONPATH=path)
    machines.worker("older", OLDER, PYTHONPATH=path)
    machines.client(2).close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Cluster(machines.address, connect=15, patience=30) as cluster:
            futures = [cluster.submit(time_passes, Task(str(number), 0.5)) for number in range(6)]
            time.sleep(0.7)
            first.kill()
            machines.worker("second", PYTHONPATH=path)
            assert [future.result(60) for future in futures] == [0.5] * 6


def test_a_scheduler_that_goes_away_is_an_error_that_names_the_job(machines: Machines) -> None:
    machines.worker("only", PYTHONPATH=str(Path(__file__).parent))
    with Cluster(machines.address, **FAST) as cluster:
        futures = [cluster.submit(time_passes, Task(f"job{i}", 30)) for i in range(3)]
        threading.Timer(0.5, machines.scheduler.kill).start()
        for number, future in enumerate(futures):
            with pytest.raises(WorkerError, match=f"job{number}: the scheduler tcp.* is gone|does not answer"):
                future.result(60)


def time_passes(task: Task) -> float:
    time.sleep(task.seconds)
    return task.seconds


def die(task: Task) -> None:
    os._exit(int(task.seconds))


def test_errors_say_what_went_wrong(machines: Machines) -> None:
    for name in "abcde":
        machines.worker(name, PYTHONPATH=str(Path(__file__).parent))
    machines.client(5).close()
    with Cluster(machines.address, **FAST) as cluster:
        with pytest.raises(CompileError, match='identifier "missing" is undefined'):
            cluster.submit(compile_job, job(program="int f() { return missing; }")).result(60)
        with pytest.raises(ToolchainError, match=r"started with nvrtc 12\.0\.0, and this machine has"):
            cluster.submit(compile_job, job(tool="nvrtc 12.0.0")).result(60)
        with pytest.raises(InvalidArgumentError, match="functions of one job"):
            cluster.submit(compile_job)
        with pytest.raises(WorkerError, match="poison: the cluster's workers died over it"):
            cluster.submit(die, Task("poison")).result(60)
        waiting = [cluster.submit(time_passes, Task(str(i), 60)) for i in range(100)]
        cluster.shutdown(cancel_futures=True)
        assert all(isinstance(f.exception(1), WorkerError) for f in waiting)
        with pytest.raises(WorkerError, match="was left before"):
            cluster.submit(compile_job, job())


def test_a_cluster_without_workers_or_scheduler_is_an_error(machines: Machines) -> None:
    with pytest.raises(WorkerError, match=r"has no workers, .*dask worker tcp://"):
        Cluster(machines.address, connect=1)
    with pytest.raises(WorkerError, match=r"no scheduler answers at tcp://127\.0\.0\.1:9 within 1 s"):
        Cluster("tcp://127.0.0.1:9", connect=1)
    with pytest.raises(InvalidArgumentError, match="no scheduler's address"):
        Cluster("carrier-pigeon://roof", connect=1)


def test_the_command_line_builds_on_a_cluster(machines: Machines, tmp_path: Path) -> None:
    machines.worker("only")
    out = str(tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch, toys.installed():
        patch.setenv("WARPSMITH_CACHE_DIR", str(tmp_path / "cache"))
        patch.setattr("warpsmith.cli.build.CATALOG", toys.CATALOG)
        options = ["build", "--arch", "12x", "--out", out, "--json", "--scheduler", machines.address]
        made = CliRunner().invoke(app, options)
        both = CliRunner().invoke(app, [*options, "--jobs", "2"])
    assert (made.exit_code, json.loads(made.stdout)["build"]["compiled"]) == (0, 3), made.output
    assert both.exit_code == 2
    assert "leave one of them out" in both.stderr


def test_what_is_not_installed_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setenv("WARPSMITH_CACHE_DIR", str(tmp_path / "cache"))
    options = ["build", "--arch", "12x", "--out", str(tmp_path), "--scheduler", "tcp://127.0.0.1:9"]
    made = CliRunner().invoke(app, options)
    assert made.exit_code == 2
    assert "pip install 'warpsmith[cluster]'" in made.stderr
