# SPDX-License-Identifier: Apache-2.0
"""Writing bundles: the same bytes each time; whole or not at all, whatever fails and whoever is killed."""

from __future__ import annotations

import base64
import csv
import errno
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.parser import Parser
from pathlib import Path

import pytest
from bundle_samples import parts, sources

from warpsmith.arch import parse
from warpsmith.bundle import files, writer
from warpsmith.bundle.manifest import MANIFEST, Manifest
from warpsmith.bundle.packing import pack
from warpsmith.bundle.reader import open_bundle
from warpsmith.bundle.writer import write_bundle, write_wheel
from warpsmith.catalog.plan import Selection
from warpsmith.errors import BundleError, ManifestError

TARGET = parse("12.1")
SMALL = Selection(formats=("f8",))
Parts = tuple[Manifest, dict[str, bytes]]
KILLS = int(os.environ.get("WARPSMITH_TEST_KILLS", "15"))


@pytest.fixture(autouse=True)
def _sources(monkeypatch: pytest.MonkeyPatch) -> None:
    sources(monkeypatch)


@pytest.fixture
def made() -> Parts:
    return parts(TARGET, SMALL)


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def only(root: Path, *names: str) -> None:
    """Nothing temporary is left."""
    assert sorted(p.name for p in root.iterdir()) == sorted(names)


def test_a_directory_is_byte_identical_each_time(tmp_path: Path, made: Parts) -> None:
    manifest, cubins = made
    assert write_bundle(tmp_path / "a", manifest, cubins) == tmp_path / "a"
    write_bundle(tmp_path / "b", replace(manifest, cubins=manifest.cubins[::-1]), dict(reversed(cubins.items())))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") == {
        MANIFEST: manifest.to_json().encode(),
        **{f"cubins/{digest}.cubin.z": pack(data) for digest, data in cubins.items()},
    }
    only(tmp_path, "a", "b")


def test_a_bundle_is_replaced_whole(tmp_path: Path, made: Parts) -> None:
    write_bundle(tmp_path / "deep" / "b", *parts(TARGET))
    write_bundle(tmp_path / "deep" / "b", *made)
    assert len(contents(tmp_path / "deep" / "b")) == 1 + len(made[1])
    only(tmp_path / "deep", "b")
    (tmp_path / "empty").mkdir()
    assert open_bundle(write_bundle(tmp_path / "empty", *made)).manifest == made[0]


def test_only_a_bundle_is_replaced(tmp_path: Path, made: Parts) -> None:
    place = write_bundle(tmp_path / "b", *made)
    (place / "cubins" / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match=r"holds cubins/thesis\.tex, which is no part of a bundle"):
        write_bundle(place, *made)
    assert (place / "cubins" / "thesis.tex").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match="not a directory of its own"):
        write_bundle(tmp_path / "file", *made)
    with pytest.raises(BundleError, match="not a directory of its own"):
        write_bundle(Path("/"), *made)
    assert (tmp_path / "file").read_text() == "mine"
    only(tmp_path, "b", "file")


@pytest.mark.parametrize("write", [write_bundle, write_wheel])
def test_manifest_and_cubins_must_fit(tmp_path: Path, made: Parts, write: Callable[..., Path]) -> None:
    manifest, cubins = made
    first = manifest.cubins[0]
    with pytest.raises(BundleError, match=f"{first.kernel}/{first.variant}@sm_121a: the manifest's digest"):
        write(tmp_path / "b", manifest, {k: v for k, v in cubins.items() if k != first.sha256})
    with pytest.raises(BundleError, match="digest or size"):
        write(tmp_path / "b", manifest, {**cubins, first.sha256: b"other"})
    with pytest.raises(BundleError, match="does not list it"):
        write(tmp_path / "b", manifest, {**cubins, "0" * 64: b"x"})
    with pytest.raises(ManifestError, match="kernel: given 'a/b'"):
        write(tmp_path / "b", replace(manifest, cubins=(replace(first, kernel="a/b"),)), cubins)
    twice = replace(first, instructions=(("FADD", 1), ("FADD", 2)))
    with pytest.raises(BundleError, match="ascending, each with its count"):
        write(tmp_path / "b", replace(manifest, cubins=(twice,)), {first.sha256: cubins[first.sha256]})
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_failing_disk_leaves_the_old_bundle(
    tmp_path: Path, made: Parts, monkeypatch: pytest.MonkeyPatch, code: int, calls: int
) -> None:
    place = write_bundle(tmp_path / "b", *parts(TARGET))
    wheel = write_wheel(tmp_path, *parts(TARGET, SMALL))
    before, wheel_before = contents(place), wheel.read_bytes()
    left = [calls]

    def failing(_: int) -> None:
        if left[0] == 0:
            raise OSError(code, os.strerror(code))
        left[0] -= 1

    monkeypatch.setattr(files.os, "fsync", failing)
    with pytest.raises(BundleError, match=os.strerror(code)):
        write_bundle(place, *made)
    left[0] = 0
    with pytest.raises(BundleError, match="make room"):
        write_wheel(tmp_path, *made)
    assert contents(place) == before
    assert wheel.read_bytes() == wheel_before
    only(tmp_path, "b", wheel.name)


def test_a_failing_rename_puts_the_old_bundle_back(
    tmp_path: Path, made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_bundle(tmp_path / "b", *parts(TARGET))
    before = contents(place)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".new-" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(BundleError, match="Input/output error"):
        write_bundle(place, *made)
    assert contents(place) == before
    only(tmp_path, "b")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, made: Parts) -> None:
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("rights do not bind this user")
        with pytest.raises(BundleError, match="Permission denied"):
            write_bundle(tmp_path / "b", *made)
    finally:
        tmp_path.chmod(0o700)


def test_leftovers_of_killed_writers_are_removed_when_old(tmp_path: Path, made: Parts) -> None:
    for name in (".b.new-0", ".b.new-1", ".b.old-0", ".bb.new-0"):
        (tmp_path / name / "cubins").mkdir(parents=True)
    old = time.time() - files.STALE_SECONDS - 60
    os.utime(tmp_path / ".b.new-0", (old, old))
    os.utime(tmp_path / ".bb.new-0", (old, old))
    write_bundle(tmp_path / "b", *made)
    only(tmp_path, "b", ".b.new-1", ".bb.new-0")


def test_writers_may_replace_a_bundle_at_once(tmp_path: Path, made: Parts) -> None:
    other = parts(TARGET, Selection(formats=("f4",)))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: write_bundle(tmp_path / "b", *(made if i % 2 else other)), range(24)))
    bundle = open_bundle(tmp_path / "b")
    assert bundle.manifest in (made[0], other[0])
    for entry in bundle.manifest.cubins:
        bundle.cubin(entry)
    only(tmp_path, "b")


LOOP = """
import sys
from pathlib import Path
from unittest import mock
sys.path.insert(0, sys.argv[2])
from bundle_samples import parts
from warpsmith.arch import parse
from warpsmith.bundle.writer import write_bundle
from warpsmith.catalog import source
from warpsmith.catalog.plan import Selection
source.kernel_sources = lambda: {"scale.cuh": "// scale\\n"}
made = [parts(parse("12.1"), Selection(formats=(f,))) for f in ("f4", "f8")]
print("ready", flush=True)
while True:
    for one in made:
        write_bundle(Path(sys.argv[1]), *one)
"""


@pytest.mark.skipif(os.name == "nt", reason="kills by signal")
def test_a_killed_writer_leaves_the_old_or_the_new(tmp_path: Path, made: Parts) -> None:
    place = tmp_path / "b"
    chance = random.Random(7)  # noqa: S311  no secret
    for _ in range(KILLS):
        with subprocess.Popen(
            [sys.executable, "-c", LOOP, str(place), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0.0, 0.03))
            child.send_signal(signal.SIGKILL)
        asides = [p for p in tmp_path.iterdir() if ".old-" in p.name]
        if not place.exists():
            with pytest.raises(BundleError, match="rename that to b" if asides else "does not exist"):
                open_bundle(place)
        for whole in [*asides, *([place] if place.exists() else [])]:
            bundle = open_bundle(whole)
            for entry in bundle.manifest.cubins:
                bundle.cubin(entry)
    write_bundle(place, *made)
    assert open_bundle(place).manifest == made[0]


def test_a_wheel_is_byte_identical_and_data_only(tmp_path: Path) -> None:
    manifest, cubins = parts(TARGET)
    wheel = write_wheel(tmp_path / "a", manifest, cubins)
    again = write_wheel(tmp_path / "b", manifest, dict(reversed(cubins.items())))
    assert wheel.name == again.name == "warpsmith_bundle_sm_121a-0.1.0-py3-none-any.whl"
    assert wheel.read_bytes() == again.read_bytes()
    info = "warpsmith_bundle_sm_121a-0.1.0.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert all(m.date_time == (1980, 1, 1, 0, 0, 0) for m in archive.infolist())
        assert {m.external_attr >> 16 for m in archive.infolist()} == {0o100644}
        record = list(csv.reader(archive.read(f"{info}/RECORD").decode().splitlines()))
        for name, digest, size in record[:-1]:
            data = archive.read(name)
            assert int(size) == len(data)
            assert digest == "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        assert archive.read(f"{info}/entry_points.txt") == b"[warpsmith.bundles]\nsm_121a = warpsmith_bundle_sm_121a\n"
    assert [row[0] for row in record] == names
    assert record[-1] == [f"{info}/RECORD", "", ""]
    assert not any(name.endswith(".py") for name in names)
    assert (metadata["Name"], metadata["Version"]) == ("warpsmith-bundle-sm-121a", "0.1.0")
    assert metadata["Requires-Dist"] is None  # any warpsmith whose kernels match may use it
    only(tmp_path / "a", wheel.name)


def test_a_wheel_is_replaced_by_a_rename(tmp_path: Path, made: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = write_wheel(tmp_path, *parts(TARGET, SMALL))
    before = wheel.read_bytes()

    def failing(self: Path, target: Path) -> Path:
        raise OSError(errno.EIO, f"{self.name} to {target.name}")

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(BundleError, match=f"new-.* to {re.escape(wheel.name)}"):
        write_wheel(tmp_path, replace(made[0], toolchain="nvrtc 13.5.38"), made[1])
    assert wheel.read_bytes() == before
    only(tmp_path, wheel.name)


def test_more_than_a_wheel_can_hold_is_an_error(tmp_path: Path, made: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 4)
    with pytest.raises(BundleError, match="more than a wheel can"):
        write_wheel(tmp_path, *made)
    only(tmp_path)


def test_a_version_must_be_one_that_a_wheel_can_have(tmp_path: Path, made: Parts) -> None:
    with pytest.raises(BundleError, match="version '1-2'"):
        write_wheel(tmp_path, replace(made[0], package_version="1-2"), made[1])
    assert write_wheel(tmp_path, replace(made[0], package_version="0.2.0rc1.dev3+g1a"), made[1]).exists()


def test_pip_installs_and_uninstalls_the_wheel(tmp_path: Path, made: Parts) -> None:
    pytest.importorskip("pip")
    wheel, home = write_wheel(tmp_path, *made), tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    (site,) = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    before = contents(Path(site))

    def pip(*arguments: str) -> str:
        command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip("install", "--no-deps", "--no-index", str(wheel))
    bundle = open_bundle(Path(site) / "warpsmith_bundle_sm_121a")
    assert bundle.manifest == made[0]
    for entry in bundle.manifest.cubins:
        bundle.cubin(entry)
    assert not [name for name in set(contents(Path(site))) - set(before) if name.endswith((".py", ".pyc", ".pth"))]
    assert "No broken requirements" in pip("check")
    pip("uninstall", "-y", "warpsmith-bundle-sm-121a")
    assert contents(Path(site)) == before
    assert not (Path(site) / "warpsmith_bundle_sm_121a").exists()


def test_the_number_of_attempts_is_bounded(tmp_path: Path, made: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "b"
    rename = Path.rename

    def raced(self: Path, target: Path) -> Path:
        if ".new-" in self.name:
            place.mkdir()
            (place / MANIFEST).write_text("another writer's")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", raced)
    with pytest.raises(BundleError, match="times another writer replaced it"):
        write_bundle(place, *made)
    assert writer._ATTEMPTS > 1
    only(tmp_path, "b")
