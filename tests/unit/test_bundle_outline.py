# SPDX-License-Identifier: Apache-2.0
"""Bundles opened lazily: the same answers as a whole manifest gives, and damage named when it is met."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bundle_samples import parts, sources

from warpsmith.arch import parse
from warpsmith.bundle import outline
from warpsmith.bundle.manifest import MANIFEST, CubinEntry, Manifest, Tables
from warpsmith.bundle.outline import Outline, read_outline
from warpsmith.bundle.reader import open_bundle
from warpsmith.bundle.writer import write_bundle
from warpsmith.catalog.spec import CubinId
from warpsmith.errors import ManifestError

TARGET = parse("12.1")


@pytest.fixture
def manifest(monkeypatch: pytest.MonkeyPatch) -> Manifest:
    sources(monkeypatch)
    return parts(TARGET)[0]


def laid_out(document: dict[str, Any]) -> bytes:
    """A document as `Manifest.to_json` writes it: one line for each field, and for each cubin and parameter list."""
    lines = []
    for name, value in sorted(document.items()):
        compact = partial(json.dumps, sort_keys=True, separators=(",", ":"))
        rows = ",".join(f"\n  {compact(row)}" for row in value) if name in ("cubins", "params") else ""
        lines.append(f' "{name}": ' + (f"[{rows}\n ]" if rows else compact(value)))
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def changed(manifest: Manifest, change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(manifest.to_json())
    change(document)
    return laid_out(document)


def test_it_says_what_the_whole_manifest_says(manifest: Manifest) -> None:
    read = read_outline(manifest.to_json().encode())
    assert isinstance(read, Outline)
    assert len(read) == len(manifest.cubins) > 1
    assert [read.entry(c.kernel, c.variant) for c in manifest.cubins] == list(manifest.cubins)
    assert read.entry("none", "none") is None
    assert (read.head.target, read.head.selection) == (manifest.target, manifest.selection)
    assert read.head.cubins == ()
    assert read.whole() == manifest


def test_only_the_entry_that_is_asked_for_is_read(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, parse_entry = [], outline.parse_entry

    def watched(text: bytes, where: str, tables: Tables) -> CubinEntry:
        asked.append(where)
        return parse_entry(text, where, tables)

    monkeypatch.setattr(outline, "parse_entry", watched)
    read = read_outline(manifest.to_json().encode())
    assert isinstance(read, Outline)
    read.entry(manifest.cubins[1].kernel, manifest.cubins[1].variant)
    assert asked == ["cubins[1]"]


def test_a_text_that_is_laid_out_otherwise_is_read_whole(manifest: Manifest) -> None:
    document = json.loads(manifest.to_json())
    assert read_outline(json.dumps(document).encode()) == manifest
    assert read_outline(json.dumps(document, indent=2).encode()) == manifest
    assert isinstance(read_outline(laid_out(document)), Outline)
    empty = changed(manifest, lambda d: d.update(cubins=[]))
    assert not isinstance(read_outline(empty), Outline)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=9), "upgrade warpsmith"),
        (lambda d: d.update(min_driver=-1), "min_driver: given -1"),
        (lambda d: d.update(target="12.1"), "a target spelled out"),
        (lambda d: d.update(signature=""), "'signature' is unknown"),
        (lambda d: d.pop("toolchain"), "'toolchain' is missing"),
        (lambda d: d["cubins"].append(d["cubins"][0]), "each kernel and variant once"),
        (lambda d: d["cubins"][1].pop("kernel"), r"cubins\[1\]: the field 'kernel' is missing"),
        (lambda d: d["cubins"][1].update(variant="a/b"), r"cubins\[1\].variant: given 'a/b'"),
    ],
)
def test_a_damaged_head_or_list_is_refused_at_once(
    manifest: Manifest, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        read_outline(changed(manifest, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(size=0), r"cubins\[1\].size: given 0"),
        (lambda c: c.update(sha256="../../etc/passwd"), r"cubins\[1\].sha256: given '../../etc"),
        (lambda c: c.update(params={}), r"cubins\[1\].params: given an object of 0"),
        (lambda c: c.update(threads=10**80), "is none that a manifest has"),
        (lambda c: c.update(path="x"), r"cubins\[1\]: the field 'path' is unknown"),
    ],
)
def test_a_damaged_entry_is_refused_when_it_is_asked_for(
    manifest: Manifest, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    read = read_outline(changed(manifest, lambda d: change(d["cubins"][1])))
    assert isinstance(read, Outline)
    first, second = manifest.cubins[:2]
    assert read.entry(first.kernel, first.variant) == first
    with pytest.raises(ManifestError, match=message):
        read.entry(second.kernel, second.variant)
    with pytest.raises(ManifestError, match=message):
        read.whole()


def test_an_entry_with_two_names_is_refused(manifest: Manifest) -> None:
    name = f'"kernel":"{manifest.cubins[0].kernel}",'
    text = manifest.to_json().replace(name, f'"kernel":"other",{name}', 1)
    with pytest.raises(ManifestError, match="there twice"):
        read_outline(text.encode())


def test_a_bundle_opened_lazily_answers_alike_and_names_the_file(manifest: Manifest, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", *parts(TARGET))
    path = Path(getattr(bundle, "path", bundle))
    strict, lazy = open_bundle(path), open_bundle(path, lazily=True)
    assert (len(lazy), repr(lazy)) == (len(strict), repr(strict))
    for entry in strict.manifest.cubins:
        assert lazy.entry(strict.manifest.id(entry)) == entry
        assert lazy.cubin(entry) == strict.cubin(entry)
    assert lazy.entry(CubinId(entry.kernel, entry.variant, parse("sm_90a"))) is None
    assert lazy.manifest == strict.manifest
    (path / MANIFEST).write_bytes(changed(manifest, lambda d: d["cubins"][0].update(size=0)))
    with pytest.raises(ManifestError, match=r"manifest.json: cubins\[0\].size"):
        open_bundle(path)
    broken, first = open_bundle(path, lazily=True), manifest.cubins[0]
    with pytest.raises(ManifestError, match=r"manifest.json: cubins\[0\].size"):
        broken.entry(manifest.id(first))
    with pytest.raises(ManifestError, match=r"manifest.json: cubins\[0\].size"):
        _ = broken.manifest
