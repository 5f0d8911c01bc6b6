# SPDX-License-Identifier: Apache-2.0
"""A folder of wheels for a fleet: the index, versions that carry the promise, metadata that installs nothing else."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_samples import parts, sources
from synthetic import CATALOG

from warpsmith.arch import parse
from warpsmith.bundle.audit import audit
from warpsmith.bundle.index import INDEX_JSON, INDEX_TABLE, write_index
from warpsmith.bundle.manifest import parse_manifest
from warpsmith.bundle.reader import open_bundle, open_bundles
from warpsmith.bundle.wheel import wheel_version
from warpsmith.bundle.writer import write_wheel
from warpsmith.catalog.plan import Selection
from warpsmith.catalog.shapes import Model, Shapes
from warpsmith.errors import BundleError

SHAPES = Shapes(
    "scale", (("format", ("f8",)), ("input", ("bf16",)), ("layout", ("linear",))), (("k", 32, 32), ("m", 1, 9))
)
PARTS = [Selection(), Selection(formats=("f8",)), Selection(models=(Model("a|b", (SHAPES,)),))]


@pytest.fixture(autouse=True)
def _sources(monkeypatch: pytest.MonkeyPatch) -> None:
    sources(monkeypatch)


def test_the_index_says_what_is_in_each_wheel(tmp_path: Path) -> None:
    wheels = {w.name: w for s in PARTS for w in [write_wheel(tmp_path, *parts(parse("12.1"), s))]}
    other = write_wheel(tmp_path, *parts(parse("9.0")))
    document = write_index(tmp_path)
    assert document == json.loads((tmp_path / INDEX_JSON).read_text())
    assert [w["file"] for w in document["wheels"]] == sorted([*wheels, other.name])
    text = (tmp_path / INDEX_TABLE).read_text()
    assert "a\\|b" in text
    for row in document["wheels"]:
        path = tmp_path / row["file"]
        manifest = open_bundle(path).manifest
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert row["bytes"] == path.stat().st_size
        assert f"-{row['version']}-py3" in row["file"]
        listed = [
            (module["name"], kernel["name"], cubin["variant"], cubin["sha256"], cubin["bytes"])
            for module in row["modules"]
            for kernel in module["kernels"]
            for cubin in kernel["cubins"]
        ]
        assert listed == [(c.module, c.kernel, c.variant, c.sha256, c.size) for c in manifest.cubins]
        assert row["serves"] == [str(c) for c in manifest.target.serves]
        assert row["file"] in text
        assert row["sha256"] in text
    before = (tmp_path / INDEX_JSON).read_bytes()
    write_index(tmp_path)
    assert (tmp_path / INDEX_JSON).read_bytes() == before
    assert len(open_bundles(tmp_path)) == 4  # the index does not stand in the way
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_wheel_that_cannot_be_read_is_not_indexed_in_silence(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, *parts(parse("12.1")))
    wheel.write_bytes(wheel.read_bytes()[:-1])
    with pytest.raises(BundleError, match="is not a wheel"):
        write_index(tmp_path)
    assert not (tmp_path / INDEX_JSON).exists()


@pytest.mark.parametrize("selection", PARTS[1:])
def test_a_part_carries_its_promise_in_its_local_version(selection: Selection) -> None:
    manifest, _ = parts(parse("12.1"), selection)
    assert parse_manifest(manifest.to_json().encode()) == manifest
    version = wheel_version(manifest)
    assert re.fullmatch(r"0\.1\.0\+[a-f][0-9a-f]{7}", version)
    assert wheel_version(replace(manifest, package_version="0.1.0+g1")) == f"0.1.0+g1.{selection.tag()}"


def test_the_tag_follows_from_what_was_asked_alone() -> None:
    def tag(*formats: str, modules: tuple[str, ...] = ()) -> str:
        return Selection(modules, formats).tag()

    assert tag() == ""
    assert tag("f4", "f8") == tag("f8", "f4", "f4")
    assert len({tag("f4"), tag("f8"), tag("f4", "f8"), tag(modules=("f4",)), PARTS[2].tag()}) == 5
    assert tag("f8") == "f969f2d5"  # for ever: installed wheels carry it


def add(name: str, data: bytes) -> Callable[[Path], None]:
    def change(wheel: Path) -> None:
        with zipfile.ZipFile(wheel, "a") as archive:
            archive.writestr(name, data)

    return change


@pytest.mark.parametrize(
    "name",
    [
        "warpsmith_bundle_sm_121a/__init__.py",
        "warpsmith_bundle_sm_121a/cubins/x.pyc",
        "evil.pth",
        "warpsmith_bundle_sm_121a-0.1.0.data/purelib/x",
        "warpsmith_bundle_sm_121a-0.1.0.data/scripts/python",
        "warpsmith_bundle_sm_121a-0.1.0.dist-info/x.py",
    ],
)
def test_a_wheel_with_anything_else_is_refused(tmp_path: Path, name: str) -> None:
    wheel = write_wheel(tmp_path, *parts(parse("12.1")))
    assert audit([open_bundle(wheel)], None, CATALOG) == []
    add(name, b"")(wheel)
    with pytest.raises(BundleError, match="do not install it"):
        open_bundle(wheel)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("METADATA", b"License", b"Requires-Dist: evil\nLicense", "Requires-Dist, which a bundle's has not: evil"),
        ("METADATA", b"Version: 0.1.0", b"Version: 9.9", "Version ['9.9']"),
        ("METADATA", b"Name: warpsmith", b"Name: numpy", "Name ['numpy-bundle-sm-121a']"),
        ("WHEEL", b"true", b"false", "pure wheel"),
        ("entry_points.txt", b"[warp", b"[console_scripts]\nls = os:system\n[warp", "names more than the bundle"),
        ("RECORD", None, b"", "RECORD is missing"),
    ],
)
def test_metadata_that_would_install_something_else_is_found(
    tmp_path: Path, file: str, old: bytes | None, new: bytes, message: str
) -> None:
    wheel = write_wheel(tmp_path, *parts(parse("12.1")))
    changed = tmp_path / "changed.whl"
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(changed, "w") as target:
        for member in source.infolist():
            data = source.read(member)
            if member.filename.endswith(f"/{file}"):
                if old is None:
                    continue
                assert old in data
                data = data.replace(old, new)
            target.writestr(member, data)
    found = audit([open_bundle(changed)], None, CATALOG)
    assert [f.code for f in found] == ["wheel-metadata"]
    assert message in found[0].message


def test_targets_and_parts_install_side_by_side_and_leave_cleanly(tmp_path: Path) -> None:
    pytest.importorskip("pip")
    home = tmp_path / "site"

    def pip(*arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    wheels = [str(write_wheel(tmp_path, *parts(parse(arch), PARTS[1]))) for arch in ("9.0", "12x", "12.1")]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    site = next(p.resolve() for p in home.glob("[lL]ib*/**/site-packages"))
    pip("--python", str(home), "install", "--no-index", *wheels)  # with dependencies: there are none to find
    assert sorted(str(b.manifest.target) for b in open_bundles(site)) == ["sm_120f", "sm_121a", "sm_90a"]
    whole = write_wheel(tmp_path, *parts(parse("12.1")))
    pip("--python", str(home), "install", "--no-index", str(whole))  # the same version, another promise
    assert len(open_bundle(site / "warpsmith_bundle_sm_121a").manifest.cubins) == 8
    pip("--python", str(home), "uninstall", "-y", *(f"warpsmith-bundle-sm-{t}" for t in ("90a", "120f", "121a")))
    assert not list(site.glob("warpsmith*"))
