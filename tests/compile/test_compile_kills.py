# SPDX-License-Identifier: Apache-2.0
"""Builders and workers killed at random moments: a worker's death costs nothing, a builder's the rest of its build."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import toy_catalog as toys

from warpsmith.arch import parse_list
from warpsmith.bundle.store import Store
from warpsmith.compiler.build import BuildReport, build
from warpsmith.compiler.pool import LocalWorkers
from warpsmith.compiler.process import Worker, WorkerDied
from warpsmith.compiler.toolchain import find_toolchain
from warpsmith.compiler.unit import InspectJob
from warpsmith.errors import WorkerError

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes through /proc")
READ = InspectJob(parse_list("12x")[0], ("a",), (bytes(128),))
SEED = 20260729
CATALOG = toys.many(8)
BUILDER = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import toy_catalog as toys
from pathlib import Path
from warpsmith.arch import parse_list
from warpsmith.bundle.store import Store
from warpsmith.compiler.build import build
with toys.installed():
    build(toys.many(8), parse_list("12x 8.0"), Path("out"), jobs=2, store=Store(Path("cache")))
"""


def run(out: Path, store: Store | None = None, executor: LocalWorkers | None = None) -> BuildReport:
    with toys.installed():
        return build(CATALOG, parse_list("12x 8.0"), out, store=store, executor=executor)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the bundles in a folder; what a killed writer left beside them has a name with a dot."""
    files = (p for bundle in folder.glob("[!.]*") for p in bundle.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("reference")
    run(folder)
    return contents(folder)


def descendants(pid: int) -> Iterator[int]:
    """The processes below a process, as /proc tells their parents."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            child = int(stat.parent.name)
            yield child
            yield from descendants(child)


def gone(pids: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if all(state(pid) in ("", "Z") for pid in pids):
            return True
        time.sleep(0.02)
    return False


def state(pid: int) -> str:
    """The letter that /proc has for a process; Z for one that ended and was not waited for, nothing for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


Record = Callable[[str, object], None]
"""Keeps a figure beside the test's outcome, for `scripts/soak`."""


def test_a_builder_killed_at_any_moment_leaves_no_process_and_a_state_to_go_on_from(
    tmp_path: Path, reference: dict[str, bytes], kill_rounds: int, record_property: Record
) -> None:
    moments = random.Random(SEED)  # noqa: S311 - repeatable, not secret
    store = Store(tmp_path / "cache", on_damage=lambda key, reason: pytest.fail(f"{key} {reason}"))
    killed = rounds = 0
    while killed < kill_rounds and rounds < 10 * kill_rounds:
        rounds += 1
        builder = subprocess.Popen([sys.executable, "-c", BUILDER], cwd=tmp_path, stderr=subprocess.PIPE)
        time.sleep(moments.uniform(0.1, 1.1))
        below = list(descendants(builder.pid))
        builder.kill()
        builder.communicate()
        killed += builder.returncode == -signal.SIGKILL
        assert gone(below, 5), below
        report = run(tmp_path / "out", store)
        assert report.findings == ()
        assert contents(tmp_path / "out") == reference
        for entry in (tmp_path / "cache").glob("*.entry"):
            if moments.random() < 0.5:
                entry.unlink()  # so that the next builder has something to do
    assert killed == kill_rounds  # the others were done before their moment came
    record_property("killed", killed)


def kill_one(workers: LocalWorkers, after: float, killed: list[int]) -> None:
    """Kill a worker, once there is one."""
    time.sleep(after)
    while not workers._killed:
        alive = [w for w in tuple(workers._all) if w.alive]
        if alive:
            os.kill(alive[0]._process.pid, signal.SIGKILL)
            killed.append(alive[0]._process.pid)
            return
        time.sleep(0.001)


def test_a_worker_killed_at_any_moment_costs_no_build(
    tmp_path: Path, reference: dict[str, bytes], kill_rounds: int, record_property: Record
) -> None:
    moments = random.Random(SEED)  # noqa: S311 - repeatable, not secret
    killed: list[int] = []
    for number in range(kill_rounds):
        with LocalWorkers(2) as workers:
            killer = threading.Thread(target=kill_one, args=(workers, moments.uniform(0, 0.7), killed))
            killer.start()
            report = run(tmp_path / str(number), executor=workers)
        killer.join()
        assert report.findings == ()
        assert contents(tmp_path / str(number)) == reference
    record_property("killed", len(killed))


def test_workers_killed_without_end_are_an_error_that_names_a_cubin(tmp_path: Path) -> None:
    with LocalWorkers(2) as workers:
        done = threading.Event()

        def keep_killing() -> None:
            while not done.is_set():
                for worker in tuple(workers._all):
                    worker.kill()

        killer = threading.Thread(target=keep_killing)
        killer.start()
        try:
            with pytest.raises(WorkerError, match=r"scale/v\d@sm_\w+: the compile worker died \(killed by signal 9"):
                run(tmp_path, executor=workers)
        finally:
            done.set()
            killer.join()
    assert list(tmp_path.iterdir()) == []


def test_a_busy_worker_ends_with_its_caller(tmp_path: Path) -> None:
    slow = tmp_path / "nvdisasm"
    slow.write_text("#!/bin/sh\ntouch $0.started\nexec sleep 5\n", encoding="ascii")
    slow.chmod(0o755)
    worker = Worker(find_toolchain().nvrtc, slow)
    died: list[WorkerDied] = []

    def call() -> None:
        try:
            worker.call(READ)
        except WorkerDied as error:
            died.append(error)

    calling = threading.Thread(target=call)
    calling.start()
    while not Path(f"{slow}.started").exists():
        time.sleep(0.01)
    worker._stdin.close()  # as the system does when the caller is killed
    start = time.monotonic()
    calling.join()
    assert time.monotonic() - start < 3
    assert "exit status 0" in str(died[0])
    worker.close()
