# SPDX-License-Identifier: Apache-2.0
"""Whole builds of a toy catalog: what is written, what is kept, and what is refused."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy_catalog as toys

from warpsmith.arch import Capability, parse, parse_list
from warpsmith.bundle.audit import audit
from warpsmith.bundle.reader import open_bundle
from warpsmith.bundle.store import Store
from warpsmith.catalog.plan import Selection
from warpsmith.catalog.spec import Catalog, CubinId
from warpsmith.compiler.build import BuildReport, build, compile_one
from warpsmith.errors import (
    BundleError,
    CatalogError,
    CompileError,
    CubinCheckError,
    InvalidArgumentError,
    StoreError,
    WarpsmithError,
)
from warpsmith.tuning import Rule

FOLDER = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def _toys() -> Iterator[None]:
    with toys.installed(), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def run(out: Path, arch: str = "12x", catalog: Catalog = toys.CATALOG, **options: Any) -> BuildReport:
    return build(catalog, parse_list(arch), out, **options)


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its digest."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def refusal(kind: type[WarpsmithError], out: Path, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        run(out, **options)
    assert not out.exists() or not list(out.iterdir())
    return str(caught.value)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build for 12x without a cache, to compare others with."""
    out = tmp_path_factory.mktemp("built")
    with toys.installed():
        run(out)
    return out


def test_a_build_writes_one_sound_bundle_a_target(tmp_path: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    report = run(tmp_path, "8.0 9.0", progress=lambda *step: steps.append(step))
    assert report.bundles == (tmp_path / "sm_80", tmp_path / "sm_90a")
    assert (report.compiled, report.cached, report.findings) == (5, 0, ())
    assert [s[:2] for s in steps] == [(i + 1, 5) for i in range(5)]
    assert {s[2] for s in steps} == {
        "scale/plain@sm_80",
        "scale/rounded@sm_80",
        "scale/plain@sm_90a",
        "scale/rounded@sm_90a",
        "reverse/plain@sm_90a",
    }
    bundle = open_bundle(tmp_path / "sm_90a")
    assert audit([bundle], (Capability(9, 0),), toys.CATALOG) == []
    entry = bundle.entry(CubinId("reverse", "plain", parse("9.0")))
    assert entry is not None
    assert (entry.module, entry.entry, entry.threads, entry.dynamic_shared, entry.flags) == (
        "others",
        "ws_reverse",
        128,
        1024,
        1,
    )
    assert entry.params == (("out", "ptr", 0), ("x", "ptr", 8))
    assert dict(entry.instructions)["ACQBULK"] == 1
    assert bundle.manifest.toolchain.startswith("nvrtc 13.")


def test_two_builds_are_byte_identical_wherever_and_however_they_run(tmp_path: Path, built: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {FOLDER!r}); import toy_catalog as toys\n"
        "from pathlib import Path; from warpsmith.arch import parse_list; from warpsmith.compiler.build import build\n"
        "if __name__ == '__main__':\n"
        "  with toys.installed(): build(toys.CATALOG, parse_list('12x'), Path('out'), jobs=1)\n"
    )
    environment = {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert tree(tmp_path / "out") == tree(built)


def test_targets_of_one_cubin_are_built_once(tmp_path: Path, built: Path) -> None:
    report = run(tmp_path, "12x 12.0 120f")
    assert report.compiled == 3
    assert tree(tmp_path) == tree(built)


def test_a_second_build_takes_everything_from_the_cache(tmp_path: Path, built: Path) -> None:
    store = Store(tmp_path / "cache")
    assert run(tmp_path / "one", store=store).compiled == 3
    report = run(tmp_path / "two", store=store)
    assert (report.compiled, report.cached, report.findings) == (0, 3, ())
    assert tree(tmp_path / "one") == tree(tmp_path / "two") == tree(built)


def test_a_wheel_holds_the_same_bundle(tmp_path: Path, built: Path) -> None:
    (wheel,) = run(tmp_path, wheel=True).bundles
    assert wheel.name.startswith("warpsmith_bundle_sm_120f-")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.json", "index.md", wheel.name]
    ours, reference = open_bundle(wheel), open_bundle(built / "sm_120f")
    assert ours.manifest == reference.manifest
    assert [ours.cubin(e) for e in ours.manifest.cubins] == [reference.cubin(e) for e in reference.manifest.cubins]


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.entry"))


def swap(cache: Path, _: Path) -> None:
    """File each entry's value under the next one's key."""
    store, files = Store(cache), entries(cache)
    values = [store.get(file.stem) for file in files]
    for file, value in zip(files, [*values[1:], values[0]], strict=True):
        store.put(file.stem, value or b"")


def forge(cache: Path, scratch: Path) -> None:
    """Put the same kernels for another target under these keys, with headers that claim to belong there."""
    run(scratch / "out", "9.0", store=Store(scratch / "cache"))
    others = [Store(scratch / "cache").get(f.stem) for f in entries(scratch / "cache")]
    for file, other in zip(entries(cache), others, strict=True):
        old = next(f.stem for f in entries(scratch / "cache") if Store(scratch / "cache").get(f.stem) == other)
        Store(cache).put(file.stem, (other or b"").replace(old.encode(), file.stem.encode()))


def fill(cache: Path, _: Path) -> None:
    for file in entries(cache):
        Store(cache).put(file.stem, b"not a compile result")


def flip(cache: Path, _: Path) -> None:
    for index, file in enumerate(entries(cache)):
        data = bytearray(file.read_bytes())
        data[len(data) * (index + 1) // 4] ^= 4
        file.write_bytes(data)


def cut(cache: Path, _: Path) -> None:
    for index, file in enumerate(entries(cache)):
        file.write_bytes(file.read_bytes()[: 1000 * index])


@pytest.mark.parametrize("poison", [swap, forge, fill, flip, cut])
def test_what_is_wrong_in_the_cache_is_reported_and_compiled_again(
    poison: Callable[[Path, Path], None], tmp_path: Path, built: Path
) -> None:
    cache = tmp_path / "cache"
    run(tmp_path / "one", store=Store(cache))
    poison(cache, tmp_path / "scratch")
    damaged: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = run(tmp_path / "two", store=Store(cache, lambda key, _: damaged.append(key)))
    assert (report.compiled, report.findings) == (3, ())
    assert len(caught) + len(damaged) == 3
    assert tree(tmp_path / "two") == tree(built)
    assert run(tmp_path / "three", store=Store(cache)).cached == 3


class Unwritable(Store):
    def put(self, key: str, data: bytes) -> None:
        raise StoreError(f"cannot write {key} ({len(data)} bytes): the file system is read-only")


def test_a_cache_that_cannot_be_written_costs_one_warning_and_no_build(tmp_path: Path, built: Path) -> None:
    with pytest.warns(RuntimeWarning, match="read-only") as caught:
        report = run(tmp_path, store=Unwritable(tmp_path / "cache"))
    assert len(caught) == 1
    assert (report.compiled, report.findings) == (3, ())
    assert tree(tmp_path) == tree(built)


# The catalog broken on purpose: the build names the gap, and compiles nothing.


def test_a_capability_dropped_from_a_row_is_named(tmp_path: Path) -> None:
    row = replace(toys.REVERSE_ROW, capabilities=tuple(c for c in toys.NEWER if str(c) != "12.1"))
    broken = replace(toys.CATALOG, kernels=(toys.SCALE_ROW, row))
    assert "[promise-broken] reverse/plain@12.1 promises reverse" in refusal(CatalogError, tmp_path, catalog=broken)
    assert "reverse/plain@12.1" in refusal(CatalogError, tmp_path, catalog=broken, arch="9.0")
    report = run(tmp_path, catalog=broken, selection=Selection(modules=("toys",)))
    assert report.compiled == 2


def test_a_variant_that_nothing_reaches_is_named(tmp_path: Path) -> None:
    twin = replace(toys.SCALE_ROW.variants[0], name="twin")
    row = replace(toys.SCALE_ROW, variants=(*toys.SCALE_ROW.variants, twin))
    broken = replace(toys.CATALOG, kernels=(row, toys.REVERSE_ROW))
    assert "[variant-dead] scale/twin" in refusal(CatalogError, tmp_path, catalog=broken)


def test_a_tuning_table_that_names_an_unplanned_variant_is_named(tmp_path: Path) -> None:
    broken = replace(toys.CATALOG, tuning=(Rule("scale", "huge"),))
    assert "[tuning-unplanned] a tuning table names scale/huge" in refusal(CatalogError, tmp_path, catalog=broken)


def test_a_target_with_nothing_to_build_is_named(tmp_path: Path) -> None:
    said = refusal(InvalidArgumentError, tmp_path, arch="8.0 9.0", selection=Selection(modules=("others",)))
    assert "nothing to build for sm_80" in said
    with pytest.raises(InvalidArgumentError, match="no target was given"):
        build(toys.CATALOG, (), tmp_path)


def test_a_selection_is_written_the_same_in_any_order(tmp_path: Path) -> None:
    run(tmp_path / "one", selection=Selection(modules=("toys", "others")))
    run(tmp_path / "two", selection=Selection(modules=("others", "toys", "toys")))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    run(tmp_path / "three", selection=Selection(formats=("rounded",)))
    assert [c.variant for c in open_bundle(tmp_path / "three" / "sm_120f").manifest.cubins] == ["rounded"]


# Failures: everything that failed is named, and nothing is left at the place of the bundle.


def test_every_cubin_that_fails_is_named(tmp_path: Path) -> None:
    broken = {**toys.SOURCES, "toy/scale.cuh": toys.SCALE.replace("out[i] =", "")}
    with toys.installed(broken):
        said = refusal(CubinCheckError, tmp_path, arch="9.0 12x")
    assert said.startswith("4 of 6 cubins failed")
    for name in ("plain@sm_90a", "rounded@sm_90a", "plain@sm_120f", "rounded@sm_120f"):
        assert f"scale/{name}: it writes no global memory" in said


def test_every_source_that_does_not_compile_is_named_and_logs_are_shown(tmp_path: Path) -> None:
    with toys.installed({**toys.SOURCES, "toy/scale.cuh": toys.SCALE.replace("factor);", "missing);")}):
        said = refusal(CompileError, tmp_path, arch="9.0 12x")
    assert said.startswith("4 of 6 cubins failed")
    assert said.count('identifier "missing" is undefined') == 3
    assert "and likewise, to be seen in full once the above are mended: scale/rounded@sm_120f" in said


def test_cubins_that_are_sound_are_kept_when_others_fail(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    with toys.installed({**toys.SOURCES, "toy/reverse.cuh": "#error no\n"}), pytest.raises(CompileError):
        run(tmp_path / "one", store=store)
    assert run(tmp_path / "two", store=store).cached == 2


def test_a_place_that_cannot_be_made_is_said_before_anything_compiles(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    steps: list[str] = []
    with pytest.raises(BundleError, match=r"cannot make .*/file/out for the bundles"):
        run(tmp_path / "file" / "out", progress=lambda *_: steps.append(""))
    assert steps == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX systems can")
def test_a_disk_that_fills_up_leaves_the_bundle_that_was_there(tmp_path: Path) -> None:
    code = (
        f"import sys, resource, signal; sys.path.insert(0, {FOLDER!r}); import toy_catalog as toys\n"
        "from pathlib import Path; from warpsmith.arch import parse_list; from warpsmith.compiler import build\n"
        "write = build.write_bundle\n"
        "def full(*given):\n"
        "  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "  return write(*given)\n"
        "build.write_bundle = full\n"
        "with toys.installed(): build.build(toys.CATALOG, parse_list('12x'), Path('out'))\n"
    )
    run(tmp_path / "out", selection=Selection(modules=("toys",)))
    before = tree(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "BundleError: cannot write" in done.stderr
    assert "File too large" in done.stderr
    assert tree(tmp_path) == before


# Other executors, other processes, single cubins.


class Elsewhere(Executor):
    """Runs what has been pickled, as an executor on another machine would."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(2)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def there(data: bytes) -> Any:
            function, given, named = pickle.loads(data)  # noqa: S301 - our own bytes
            return pickle.loads(pickle.dumps(function(*given, **named)))  # noqa: S301

        return self.threads.submit(there, pickle.dumps((fn, args, kwargs)))


def test_any_executor_builds_the_same(tmp_path: Path, built: Path) -> None:
    report = run(tmp_path, executor=Elsewhere())
    assert report.compiled == 3
    assert tree(tmp_path) == tree(built)


def test_two_processes_may_build_into_one_cache_at_once(tmp_path: Path, built: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {FOLDER!r}); import toy_catalog as toys\n"
        "from pathlib import Path; from warpsmith.arch import parse_list; from warpsmith.compiler.build import build\n"
        "from warpsmith.bundle.store import Store\n"
        "with toys.installed():\n"
        "  build(toys.CATALOG, parse_list('12x'), Path(sys.argv[1]), store=Store(Path('cache')))\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    builders = [subprocess.Popen([*command, name], cwd=tmp_path) for name in ("one", "two")]
    assert [b.wait() for b in builders] == [0, 0]
    assert tree(tmp_path / "one") == tree(tmp_path / "two") == tree(built)
    assert run(tmp_path / "three", store=Store(tmp_path / "cache")).cached == 3


def test_one_cubin_is_made_as_in_a_build(tmp_path: Path, built: Path) -> None:
    store, bundle = Store(tmp_path / "cache"), open_bundle(built / "sm_120f")
    cubin = CubinId("reverse", "plain", parse("12x"))
    for _ in range(2):
        entry, data = compile_one(toys.CATALOG, cubin, store)
        assert entry == bundle.entry(cubin)
        assert data == bundle.cubin(entry)
    assert len(entries(tmp_path / "cache")) == 1
