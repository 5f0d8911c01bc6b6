# SPDX-License-Identifier: Apache-2.0
"""Local workers, with a program in the real worker's place that does as its jobs say."""

from __future__ import annotations

import os
import pickle
import time
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from warpsmith.compiler import process
from warpsmith.compiler.pool import LocalWorkers, compile_job, default_jobs, inspect_job
from warpsmith.compiler.toolchain import Toolchain
from warpsmith.errors import InvalidArgumentError, ToolchainError, WarpsmithError, WorkerError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes by signal")

# A worker that notes when it starts and ends a job, and does what the job says: die, say nonsense, sleep, or answer.
WORKER = """
import os, sys, time
sys.path.append(sys.argv.pop(1))
from warpsmith.compiler.worker import read_frame, write_frame
if sys.argv[1] == "no-nvrtc":
    write_frame(sys.stdout.buffer, {"error": "cannot load NVRTC"})
    sys.exit()
write_frame(sys.stdout.buffer, {"error": ""})
while (frame := read_frame(sys.stdin.buffer)) is not None:
    job, _ = frame
    log = open(job["log"], "a")
    print("start", job["name"], os.getpid(), file=log, flush=True)
    first = job["once"] and not os.path.exists(job["log"] + job["name"])
    open(job["log"] + job["name"], "w").close()
    if job["act"] == "die" or (first and job["act"] == "die once"):
        print("out of luck", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 9)
    if job["act"] == "half" and first:
        os.write(1, b"WSJ1\\x40\\0\\0\\0")
        os._exit(3)
    if job["act"] == "nonsense" and first:
        os.write(1, b"Segmentation fault, core dumped")
        time.sleep(60)
    time.sleep(job["seconds"])
    print("end", job["name"], os.getpid(), file=log, flush=True)
    write_frame(sys.stdout.buffer, {"pid": os.getpid()})
"""


@dataclass(frozen=True)
class Act:
    """A job for that worker."""

    cubin: str
    log: Path
    act: str = "answer"
    seconds: float = 0.0
    tool: str = ""

    def request(self) -> tuple[dict[str, Any], bytes]:
        once = self.act in ("die once", "half", "nonsense")
        return {
            "name": self.cubin,
            "log": str(self.log),
            "act": self.act,
            "once": once,
            "seconds": self.seconds,
        }, b"x" * 100_000

    def result(self, header: dict[str, Any], _: bytes) -> int:
        return int(header["pid"])


TOOLS = Toolchain(Path("nvrtc"), Path("nvdisasm"), "13.5.37", "13.5.37")


@pytest.fixture(autouse=True)
def _worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_START", WORKER)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def alive(pid: int) -> bool:
    """Whether a process is there, if only as one that ended and was not waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def submit(workers: LocalWorkers, *acts: Act) -> list[Any]:
    return [workers.submit(compile_job, act) for act in acts]  # type: ignore[arg-type]


def test_a_worker_is_kept_for_the_next_job(log: Path) -> None:
    with LocalWorkers(1, TOOLS) as workers:
        first, second = (f.result() for f in submit(workers, Act("a", log), Act("b", log)))
    assert first == second
    assert not alive(first)


def test_jobs_run_side_by_side_up_to_the_limit(log: Path) -> None:
    with LocalWorkers(2, TOOLS) as workers:
        pids = {f.result() for f in submit(workers, *[Act(str(i), log, seconds=0.1) for i in range(5)])}
    assert len(pids) == 2


@pytest.mark.parametrize("act", ["die once", "half", "nonsense"])
def test_a_job_whose_worker_fails_is_retried_in_a_fresh_one(log: Path, act: str) -> None:
    with LocalWorkers(3, TOOLS) as workers:
        used = {f.result() for f in submit(workers, *[Act(str(i), log, seconds=0.1) for i in range(3)])}
        (future,) = submit(workers, Act("bad", log, act))
        pid = future.result(timeout=20)
    started = [int(line.split()[2]) for line in log.read_text().splitlines() if line.startswith("start bad")]
    assert len(started) == 2
    assert started[0] in used
    assert started[1] == pid not in used


def test_a_retry_runs_alone(log: Path) -> None:
    with LocalWorkers(3, TOOLS) as workers:
        slow = [Act(f"slow{i}", log, seconds=0.3) for i in range(4)]
        wait(submit(workers, *slow[:1], Act("bad", log, "die once", 0.2), *slow[1:]))
    lines = [line.split()[:2] for line in log.read_text().splitlines()]
    retry = lines.index(["start", "bad"], lines.index(["start", "bad"]) + 1)
    assert lines[retry + 1] == ["end", "bad"]
    before = lines[:retry]
    running = {n for what, n in before if what == "start"} - {n for what, n in before if what == "end"}
    assert running == {"bad"}


def test_a_job_that_kills_its_workers_twice_is_named_with_status_and_stderr(log: Path) -> None:
    with LocalWorkers(2, TOOLS) as workers:
        bad, good = submit(workers, Act("gemm:t128@sm_121a", log, "die"), Act("good", log))
        assert good.result() > 0
        with pytest.raises(WorkerError, match=r"gemm:t128@sm_121a: .*killed by signal 9.*out of luck.*alone.*--jobs"):
            bad.result()
        assert submit(workers, Act("later", log))[0].result() > 0


def test_a_worker_that_died_while_idle_costs_no_job_its_retry(log: Path) -> None:
    with LocalWorkers(1, TOOLS) as workers:
        pid = submit(workers, Act("a", log))[0].result()
        os.kill(pid, 9)
        while any(w.alive for w in workers._all):
            time.sleep(0.01)
        assert submit(workers, Act("b", log, "die once"))[0].result() != pid


def interrupt(log: Path, futures: list[Any]) -> None:
    with LocalWorkers(2, TOOLS) as workers:
        futures += submit(workers, *[Act(str(i), log, seconds=30) for i in range(6)])
        while not log.exists() or log.read_text().count("start") < 2:
            time.sleep(0.01)
        raise KeyboardInterrupt


def test_an_exception_ends_running_and_waiting_jobs_at_once(log: Path) -> None:
    start = time.monotonic()
    futures: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        interrupt(log, futures)
    assert time.monotonic() - start < 10
    pids = [int(line.split()[2]) for line in log.read_text().splitlines()]
    assert len(pids) == 2
    assert not any(map(alive, pids))
    assert all(f.cancelled() or isinstance(f.exception(), WorkerError) for f in futures)


def test_a_worker_without_nvrtc_is_an_error_of_the_toolchain(log: Path) -> None:
    with (
        LocalWorkers(1, Toolchain(Path("no-nvrtc"), Path("nvdisasm"), "13.5.37", "13.5.37")) as workers,
        pytest.raises(ToolchainError, match="cannot load NVRTC"),
    ):
        submit(workers, Act("a", log))[0].result()


@pytest.mark.parametrize("tool", ["nvrtc 13.5.37", "nvdisasm 13.5.37"])
def test_a_job_for_another_toolchain_is_refused(log: Path, tool: str) -> None:
    with LocalWorkers(1, TOOLS) as workers:
        same, other = submit(workers, Act("a", log, tool=tool), Act("b", log, tool=tool.replace("13.5", "13.6")))
        assert same.result() > 0
        with pytest.raises(
            ToolchainError, match=r"b: the build was started with nv\w+ 13\.6\.37, and this machine has"
        ):
            other.result()


def test_only_the_two_jobs_are_taken() -> None:
    with LocalWorkers(1, TOOLS) as workers:
        for function, arguments in ((print, ("x",)), (inspect_job, ()), (compile_job, (1, 2))):
            with pytest.raises(InvalidArgumentError, match="compile workers run compile_job"):
                workers.submit(function, *arguments)


def test_jobs_are_at_least_one_and_bounded_by_cores() -> None:
    assert 1 <= default_jobs() <= (os.cpu_count() or 1)
    with pytest.raises(InvalidArgumentError, match="jobs=0"):
        LocalWorkers(0, TOOLS)


@pytest.mark.parametrize("error", [WorkerError("a"), ToolchainError("b")])
def test_errors_cross_process_borders(error: WarpsmithError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(again), str(again)) == (type(error), str(error))
