# SPDX-License-Identifier: Apache-2.0
"""Installed bundles are found by metadata alone; whatever is wrong with one does not hide the others."""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle_samples import parts, sources

from warpsmith.arch import parse
from warpsmith.bundle.find import installed_bundles
from warpsmith.bundle.manifest import MANIFEST
from warpsmith.bundle.reader import Bundle
from warpsmith.bundle.writer import write_wheel
from warpsmith.catalog.plan import Selection
from warpsmith.errors import BundleError, ManifestError

SMALL = Selection(formats=("f8",))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A site-packages folder with two bundles, of which none is ever imported."""
    sources(monkeypatch)
    place = tmp_path / "site"
    for arch in ("9.0", "12.1"):
        with zipfile.ZipFile(write_wheel(tmp_path, *parts(parse(arch), SMALL))) as archive:
            archive.extractall(place)
    monkeypatch.syspath_prepend(place)
    yield place
    assert not [sys.modules.pop(name) for name in list(sys.modules) if name.startswith("warpsmith_bundle")]


def test_installed_bundles_are_found_in_order(site: Path) -> None:
    found = installed_bundles()
    assert all(isinstance(bundle, Bundle) for bundle in found)
    assert [str(b.manifest.target) for b in found if isinstance(b, Bundle)] == ["sm_121a", "sm_90a"]
    for bundle in found:
        assert isinstance(bundle, Bundle)
        assert bundle.path == site / f"warpsmith_bundle_{bundle.manifest.target}"
        for entry in bundle.manifest.cubins:
            bundle.cubin(entry)


def test_code_beside_a_bundle_is_not_run(site: Path) -> None:
    code = "raise SystemExit('imported')"
    (site / "warpsmith_bundle_sm_90a" / "__init__.py").write_text(code)
    (site / "warpsmith_bundle_sm_90a.py").write_text(code)
    assert all(isinstance(bundle, Bundle) for bundle in installed_bundles())


def one_bad() -> BundleError:
    """The first of the two is whole still; the second is the error."""
    good, bad = installed_bundles()
    assert isinstance(good, Bundle)
    assert isinstance(bad, BundleError)
    return bad


def test_a_damaged_manifest_is_an_error_beside_the_others(site: Path) -> None:
    (site / "warpsmith_bundle_sm_90a" / MANIFEST).write_text("{")
    assert isinstance(one_bad(), ManifestError)
    (site / "warpsmith_bundle_sm_90a" / MANIFEST).unlink()
    assert re.search(r"has no manifest\.json|lists no .*manifest\.json", str(one_bad()))  # 3.12 hides what is gone


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("entry_points.txt", "[warpsmith.bundles]\nx = ../../etc\n", "names '../../etc' as its bundle"),
        ("entry_points.txt", "[warpsmith.bundles]\nx = json\n", "lists no json/manifest.json among its files"),
        ("entry_points.txt", "[warpsmith.bundles]\nx = warpsmith.bundle\n", "lists no warpsmith/bundle/manifest.json"),
        ("RECORD", "", "reinstall it with pip"),
        ("RECORD", "warpsmith_bundle_sm_90a/manifest.json,sha256=x,y\n", "file list"),
        ("RECORD", None, "reinstall it with pip"),
    ],
)
def test_a_distribution_that_does_not_list_its_bundle_is_refused(
    site: Path, file: str, text: str | None, message: str
) -> None:
    (info,) = site.glob("warpsmith_bundle_sm_90a-0.1.0*.dist-info")
    path = info / file
    path.unlink() if text is None else path.write_text(text)
    assert message in str(one_bad())
    assert "warpsmith-bundle-sm-90a" in str(one_bad())


def test_without_bundles_the_list_is_empty() -> None:
    assert [b for b in installed_bundles() if isinstance(b, BundleError)] == []
