# SPDX-License-Identifier: Apache-2.0
"""Packed cubins: each damage is found and named, none unpacks beyond its size, and bundles of before stay readable."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_samples import parts, sample_bundle, sources
from hypothesis import given
from hypothesis import strategies as st
from synthetic import CATALOG

from warpsmith.arch import parse
from warpsmith.bundle.audit import audit
from warpsmith.bundle.index import write_index
from warpsmith.bundle.manifest import MANIFEST, RAW
from warpsmith.bundle.packing import pack, unpack
from warpsmith.bundle.reader import Bundle, open_bundle
from warpsmith.bundle.writer import write_bundle, write_wheel
from warpsmith.catalog.plan import Selection
from warpsmith.errors import DigestError

TARGET = parse("12.1")
SMALL = Selection(formats=("f8",))


@pytest.fixture(autouse=True)
def _sources(monkeypatch: pytest.MonkeyPatch) -> None:
    sources(monkeypatch)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return sample_bundle(tmp_path / "b", TARGET, SMALL)


def sealed(stream: bytes) -> bytes:
    """A stream with the checksum that fits it."""
    return stream + zlib.crc32(stream).to_bytes(4, "little")


def stream(data: bytes) -> bytes:
    return pack(data)[:-4]


def refused(bundle: Bundle, packed: bytes) -> str:
    """What reading the first cubin says once its file holds something else."""
    entry = bundle.manifest.cubins[0]
    file = bundle.manifest.file(entry)
    (bundle.path / file).write_bytes(packed)
    with pytest.raises(DigestError) as caught:
        bundle.cubin(entry)
    said = str(caught.value)
    assert f"{file} in {bundle.path} ({entry.kernel}/{entry.variant}@sm_121a)" in said
    assert "build or install the bundle again" in said
    return said


@given(st.binary(max_size=5000))
def test_what_is_packed_unpacks(data: bytes) -> None:
    assert unpack(pack(data), len(data)) == data


@given(st.binary(max_size=300), st.integers(0, 400))
def test_whatever_lies_there_gives_that_size_or_an_error(data: bytes, size: int) -> None:
    for packed in (data, sealed(data), sealed(stream(data) + data[:1])):
        with suppress(ValueError):
            assert len(unpack(packed, size)) == size


def test_every_flipped_bit_is_found(bundle: Bundle) -> None:
    whole = (bundle.path / bundle.manifest.file(bundle.manifest.cubins[0])).read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        assert "its checksum is not that of its content" in refused(bundle, bytes(changed))


def test_every_cut_and_anything_behind_is_found(bundle: Bundle) -> None:
    whole = (bundle.path / bundle.manifest.file(bundle.manifest.cubins[0])).read_bytes()
    for length in range(len(whole)):
        refused(bundle, whole[:length])
    for more in (b"\0", b"\0" * 4, whole):
        refused(bundle, whole + more)


def test_a_stream_that_is_not_the_cubins_is_found_whatever_its_checksum(bundle: Bundle) -> None:
    entry = bundle.manifest.cubins[0]
    cubin = bundle.cubin(entry)
    size = f"does not unpack to {entry.size} bytes"
    assert size in refused(bundle, sealed(b""))
    assert size in refused(bundle, sealed(stream(cubin)[:-1]))
    assert size in refused(bundle, sealed(stream(cubin) + b"\0"))
    assert size in refused(bundle, pack(cubin[:-1]))
    assert size in refused(bundle, pack(cubin + b"\0"))
    assert "the manifest says" in refused(bundle, pack(bytes(len(cubin))))
    assert "is damaged: Error -3" in refused(bundle, sealed(b"\xff" * 50))
    assert {f.code for f in audit([open_bundle(bundle.path)], (), CATALOG)} == {"digest-mismatch"}


@pytest.mark.parametrize("form", ["directory", "wheel"])
def test_a_stream_without_end_costs_no_memory(bundle: Bundle, tmp_path: Path, form: str) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = sealed(b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush())
    assert len(bomb) < 1 << 20
    if form == "wheel":
        (tmp_path / "w").mkdir()
        wheel = write_wheel(tmp_path / "w", *parts(TARGET, SMALL))
        changed = wheel.with_name("changed.whl")
        with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(changed, "w") as new:
            for member in old.infolist():
                new.writestr(member, bomb if member.filename.endswith(".z") else old.read(member))
        bundle = open_bundle(changed)
    tracemalloc.start()
    try:
        if form == "wheel":
            with pytest.raises(DigestError, match="does not unpack to"):
                bundle.cubin(bundle.manifest.cubins[0])
        else:
            refused(bundle, bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_bundle_of_before_is_read_audited_and_replaced(tmp_path: Path) -> None:
    manifest, cubins = parts(TARGET)
    raw = replace(manifest, encoding=RAW)
    for path in (write_bundle(tmp_path / "b", raw, cubins), write_wheel(tmp_path, raw, cubins)):
        for lazily in (False, True):
            opened = open_bundle(path, lazily=lazily)
            assert opened.manifest == raw
            assert {e.sha256: opened.cubin(e) for e in opened.manifest.cubins} == cubins
        assert all(name.endswith((".json", ".cubin")) for name in opened.files())
        assert audit([opened], None, CATALOG) == []
    document = json.loads((tmp_path / "b" / MANIFEST).read_text())
    assert document["schema"] == 3
    assert "encoding" not in document
    write_bundle(tmp_path / "b", manifest, cubins)
    assert open_bundle(tmp_path / "b").manifest == manifest
    assert not list((tmp_path / "b" / "cubins").glob("*.cubin"))


def test_a_raw_file_in_the_place_of_a_packed_one_is_found(bundle: Bundle) -> None:
    refused(bundle, bundle.cubin(bundle.manifest.cubins[0]))


def test_a_wheel_holds_what_a_directory_holds_and_packs_nothing_twice(bundle: Bundle, tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, *parts(TARGET, SMALL))
    opened = open_bundle(wheel)
    with zipfile.ZipFile(wheel) as archive:
        for name in bundle.files():
            member = archive.getinfo(f"warpsmith_bundle_sm_121a/{name}")
            assert archive.read(member) == (bundle.path / name).read_bytes()
            assert member.compress_type == (zipfile.ZIP_STORED if name.endswith(".z") else zipfile.ZIP_DEFLATED)
    for entry in bundle.manifest.cubins:
        size = (bundle.path / bundle.manifest.file(entry)).stat().st_size
        assert bundle.stored(entry) == opened.stored(entry) == size < entry.size
    (row, *_) = write_index(tmp_path)["wheels"][0]["modules"][0]["kernels"][0]["cubins"]
    first = next(e for e in bundle.manifest.cubins if e.variant == row["variant"])
    assert (row["bytes"], row["stored_bytes"]) == (first.size, opened.stored(first))
    (bundle.path / bundle.manifest.file(first)).unlink()
    assert bundle.stored(first) == 0
