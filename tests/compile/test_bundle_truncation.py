# SPDX-License-Identifier: Apache-2.0
"""A real small wheel, manifest, signature and cubin, cut at every byte; and the archives that would fill a disk."""

from __future__ import annotations

import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_catalog as toys

from warpsmith.arch import parse
from warpsmith.bundle.elf import read_cubin
from warpsmith.bundle.manifest import MANIFEST, parse_manifest
from warpsmith.bundle.reader import open_bundle
from warpsmith.compiler.build import build
from warpsmith.errors import BundleError, ElfError, ManifestError


@pytest.fixture(autouse=True)
def _toys() -> Iterator[None]:
    with toys.installed():
        yield


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    catalog = toys.one_kernel(toys.REVERSE_ROW)
    (made,) = build(catalog, [parse("12.1")], tmp_path / "out", wheel=True).bundles
    return made


def test_a_wheel_cut_at_any_byte_is_one_clear_error(wheel: Path, tmp_path: Path) -> None:
    data = wheel.read_bytes()
    cut = tmp_path / "cut.whl"
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        with pytest.raises(
            BundleError, match=r"cut\.whl is not a wheel, or is damaged: .*; download or build it again"
        ):
            open_bundle(cut)
    assert len(open_bundle(wheel).manifest.cubins) == 1


def test_a_manifest_and_a_cubin_cut_at_any_byte_are_one_clear_error(wheel: Path) -> None:
    bundle = open_bundle(wheel)
    text = bundle.manifest.to_json().encode()
    for length in range(len(text) - 1):  # without its last line feed it is whole
        with pytest.raises(ManifestError):
            parse_manifest(text[:length])
    (entry,) = bundle.manifest.cubins
    data = bundle.cubin(entry)
    for length in range(len(data)):
        with pytest.raises(ElfError):
            read_cubin(data[:length])


def test_a_zip_bomb_costs_no_memory(wheel: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.whl"
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            name, data = member.filename, source.read(member)
            target.writestr(name, bytes(60 << 20) if name.endswith(".z") else data)
    assert bomb.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        bundle = open_bundle(bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        with pytest.raises(BundleError):
            bundle.cubin(bundle.manifest.cubins[0])
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


def test_a_manifest_that_unpacks_to_gigabytes_is_not_unpacked(wheel: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.whl"
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            with target.open(member.filename, "w") as file:
                if member.filename.endswith(MANIFEST):
                    for _ in range(17):
                        file.write(b" " * (1 << 20))
                file.write(source.read(member))
    with pytest.raises(BundleError, match=r"manifest\.json is there twice, .* or is larger than"):
        open_bundle(bomb)
    data = bytearray(bomb.read_bytes())
    central = data.rindex(MANIFEST.encode()) - 46 - len("warpsmith_bundle_sm_121a/")
    data[central + 24 : central + 28] = (1000).to_bytes(4, "little")  # it claims to be small
    bomb.write_bytes(data)
    with pytest.raises(BundleError, match="does not match its size and checksum"):
        open_bundle(bomb)
