# SPDX-License-Identifier: Apache-2.0
"""Finding and loading a bundle executes nothing of its package's, and many processes may start from one at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from bundle_samples import parts, sources
from synthetic import CATALOG

from warpsmith.arch import parse
from warpsmith.bundle.manifest import MANIFEST
from warpsmith.bundle.writer import write_wheel

HERE = Path(__file__).parent
FOLDER = "warpsmith_bundle_sm_121a"
POISON = "import os; os.write(2, b'POISONED'); os._exit(66)\n"

# Loads every kernel of the installed bundle with a driver that is made up, and tells of each file below the bundle's
# place that Python compiled, executed or imported, and of every process and library that was asked for.
PROGRAM = """
import json, sys
from pathlib import Path

site, tests = sys.argv[1], sys.argv[2]
sys.path[:0] = [tests]
import warnings
import pytest
from bundle_samples import sources
from driver_fake import FakeApi
from synthetic import CATALOG
from warpsmith.arch import Capability
from warpsmith.bundle.find import installed_bundles
from warpsmith.catalog.plan import probe_problems
from warpsmith.runtime.driver import Driver
from warpsmith.runtime.kernels import Runtime
from warpsmith.settings import Settings

sources(pytest.MonkeyPatch())
sys.path.insert(0, site)
seen, names = [], set(sys.modules)

def hook(event, args):
    if event == "exec" and site in args[0].co_filename:
        seen.append(f"exec {args[0].co_filename}")
    elif event == "compile" and site in str(args[1]):
        seen.append(f"compile {args[1]}")
    elif event == "import" and (site in str(args[1]) or "bundle_sm" in str(args[0])):
        seen.append(f"import {args[0]}")
    elif event.split(".")[0] in ("subprocess", "socket") or event in ("os.system", "os.exec", "os.posix_spawn"):
        seen.append(event)
    elif event == "ctypes.dlopen" and args[0] and site in str(args[0]):
        seen.append(f"dlopen {args[0]}")

sys.addaudithook(hook)
runtime = Runtime(Settings(jit=False), CATALOG, Driver(FakeApi()), installed=installed_bundles)
problems = [p for o in CATALOG.operations for f in o.formats for p in probe_problems(o, f)]
kernels = runtime.load(problems, 0)
(bundle,) = [b for place in runtime.places() for b in place.bundles]
new = sorted(n for n in set(sys.modules) - names if "bundle_sm" in n)
print(json.dumps({"seen": seen, "modules": new, "kernels": len({id(k) for k in kernels}), "path": str(bundle.path)}))
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site-packages folder with a bundle whose package is full of code that must not run."""
    sources(monkeypatch)
    place = tmp_path / "site"
    with zipfile.ZipFile(write_wheel(tmp_path, *parts(parse("12.1")))) as archive:
        archive.extractall(place)
    for name in (f"{FOLDER}/__init__.py", f"{FOLDER}/__main__.py", f"{FOLDER}.py", f"{FOLDER}/cubins/__init__.py"):
        (place / name).write_text(POISON)
    return place


def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_finding_and_loading_executes_nothing_of_the_bundle(site: Path) -> None:
    done = run(PROGRAM, site, HERE)
    assert done.returncode == 0, done.stderr
    assert "POISONED" not in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"seen": [], "modules": [], "kernels": 8, "path": str(site / FOLDER)}


def test_the_poison_works(site: Path) -> None:
    done = run(f"import sys; sys.path.insert(0, sys.argv[1]); import {FOLDER}", site)
    assert (done.returncode, done.stderr) == (66, "POISONED")
    hooked = PROGRAM.replace("kernels = runtime.load", f"__import__({FOLDER!r}); kernels = runtime.load")
    assert run(hooked, site, HERE).returncode == 66


def test_processes_that_start_at_once_take_no_lock_and_write_nothing(site: Path) -> None:
    assert len(CATALOG.operations) == 1
    program = PROGRAM.replace("sys.addaudithook(hook)", WATCH_WRITES + "sys.addaudithook(hook)")
    command = [sys.executable, "-B", "-c", program, str(site), str(HERE)]
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in [site, *site.rglob("*")]}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    said = [json.loads(p.communicate()[0].splitlines()[-1]) for p in running]
    assert {(tuple(s["seen"]), s["kernels"]) for s in said} == {((), 8)}
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in [site, *site.rglob("*")]}
    assert (site / FOLDER / MANIFEST).exists()


WATCH_WRITES = """
import os
inner = hook

def hook(event, args):
    inner(event, args)
    if event == "open":
        path, mode, flags = args
        if (isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen.append(f"open {path} for writing")
    elif event in ("fcntl.flock", "fcntl.lockf", "msvcrt.locking", "os.mkdir", "os.rename", "os.remove", "os.utime"):
        seen.append(f"{event} {args}")

"""


@pytest.mark.skipif(os.name == "nt", reason="locks have another name there")
def test_the_watch_sees_writes_and_locks(site: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    harm = f"f = open({str(file)!r}, 'w'); import fcntl; fcntl.flock(f, fcntl.LOCK_EX); "
    program = PROGRAM.replace("sys.addaudithook(hook)", WATCH_WRITES + "sys.addaudithook(hook)")
    done = run(program.replace("kernels = runtime.load", f"{harm}kernels = runtime.load"), site, HERE)
    seen = json.loads(done.stdout.splitlines()[-1])["seen"]
    assert [text.split()[0] for text in seen] == ["open", "fcntl.flock"]
