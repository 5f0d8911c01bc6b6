# SPDX-License-Identifier: Apache-2.0
"""A bundle's wheel: its names, and its files read in place.

A wheel is unpacked by others with whatever rights they have, so anything in it that is not a bundle's data is refused
before a single file is read: code, paths that lead elsewhere, links, a second file of the same name, encryption, sizes
that no bundle has.
"""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable
from email.parser import HeaderParser
from pathlib import Path

from warpsmith.arch import Target
from warpsmith.bundle.elf import MAX_CUBIN_BYTES
from warpsmith.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest
from warpsmith.errors import BundleError

ENTRY_POINTS = "warpsmith.bundles"
"""The entry-point group by which installed bundles are found."""

_DATA = re.compile(r"(warpsmith_bundle_[a-z0-9_]+)/(manifest\.json|manifest\.sig|cubins/[0-9a-f]{64}\.cubin(\.z)?)")
_META = re.compile(r"(warpsmith_bundle_[a-z0-9_]+)-[^/\\]+\.dist-info/(METADATA|WHEEL|RECORD|entry_points\.txt)")
_METADATA_FILES = ("METADATA", "RECORD", "WHEEL", "entry_points.txt")
_HEADERS = {"Metadata-Version", "Name", "Version", "Summary", "License"}
_MAX_DIRECTORY_BYTES = 64 << 20
_END_BYTES, _LOCATOR_BYTES, _HEADER_BYTES = 22, 20, 30
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, ValueError, NotImplementedError, EOFError, OverflowError)


def package_name(target: Target) -> str:
    """The folder of a target's bundle in a wheel and in site-packages."""
    return f"warpsmith_bundle_{target}"


def distribution_name(target: Target) -> str:
    """The name by which pip knows a target's bundle."""
    return package_name(target).replace("_", "-")


def entry_points(target: Target) -> str:
    """The text of a wheel's ``entry_points.txt``."""
    return f"[{ENTRY_POINTS}]\n{target} = {package_name(target)}\n"


def wheel_version(manifest: Manifest) -> str:
    """The version of a bundle's wheel: a part of the catalog says which in its local version.

    Otherwise pip would take two selections of one version for the same thing, and install the second one never.
    """
    version, tag = manifest.package_version, manifest.selection.tag()
    if not tag:
        return version
    return f"{version}.{tag}" if "+" in version else f"{version}+{tag}"


class WheelFiles:
    """The files of the bundle in a wheel. Nothing is unpacked, and no file stays open for threads or forks to share.

    Raises
    ------
    BundleError
        If the file is no wheel, or holds anything but one bundle's data.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            _check_directory(path)
            with zipfile.ZipFile(path) as archive:
                found = archive.infolist()
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error.strerror}") from error
        except _BROKEN as error:
            raise BundleError(f"{path} is not a wheel, or is damaged: {error}; download or build it again") from error
        self.folder, self._members, self._metadata = _members(path, found)

    def names(self) -> tuple[str, ...]:
        """The names of the bundle's files, sorted."""
        return tuple(sorted(self._members))

    def read(self, name: str, limit: int) -> bytes:
        """One file's bytes.

        Raises
        ------
        FileNotFoundError
            If there is none of that name.
        BundleError
            If it is larger than `limit`, or damaged.
        """
        member = self._members.get(name)
        if member is None:
            raise FileNotFoundError(2, "no such file in the wheel", f"{self._path}/{name}")
        if member.file_size > limit or member.compress_size > limit + limit // 1000 + 64:
            raise BundleError(
                f"{name} in {self._path} claims {member.file_size} bytes, {member.compress_size} packed; "
                f"expected at most {limit}"
            )
        try:
            data = self._extract(member)
        except OSError as error:
            raise BundleError(f"cannot read {self._path}: {error.strerror}") from error
        except _BROKEN as error:
            raise BundleError(f"{name} in {self._path} is damaged: {error}; download or build it again") from error
        return data

    def stored(self, name: str) -> int:
        """Bytes that a file takes in the wheel; 0 if there is none of that name."""
        member = self._members.get(name)
        return 0 if member is None else member.compress_size

    def faults(self, manifest: Manifest) -> list[str]:
        """What the wheel's metadata would have an installer do besides placing this bundle's files."""
        texts = {}
        for name, member in self._metadata.items():
            try:
                texts[name] = self._extract(member).decode("utf-8")
            except (*_BROKEN, OSError) as error:
                return [f"{name} cannot be read ({error})"]
        found = [f"{name} is missing" for name in sorted(set(_METADATA_FILES) - set(texts))]
        if not found and texts["entry_points.txt"] != entry_points(manifest.target):
            found.append("entry_points.txt names more than the bundle, or something else")
        headers = HeaderParser().parsestr(texts.get("METADATA", ""))
        said = {name: headers.get_all(name, []) for name in headers}
        expected = {"Name": [distribution_name(manifest.target)], "Version": [wheel_version(manifest)]}
        for name, value in expected.items():
            if said.get(name) != value:
                found.append(f"METADATA has {name} {said.get(name)}, expected {value}")
        for name in sorted(set(said) - _HEADERS):
            found.append(f"METADATA has {name}, which a bundle's has not: {', '.join(said[name])}")
        tags = HeaderParser().parsestr(texts.get("WHEEL", ""))
        if (tags.get_all("Tag"), tags.get_all("Root-Is-Purelib")) != (["py3-none-any"], ["true"]):
            found.append("WHEEL is not that of a pure wheel for py3-none-any")
        return found

    def _extract(self, member: zipfile.ZipInfo) -> bytes:
        with self._path.open("rb") as file:
            file.seek(member.header_offset)
            header = file.read(_HEADER_BYTES)
            if header[:4] != b"PK\3\4" or len(header) != _HEADER_BYTES:
                raise ValueError("its local header is missing")
            file.seek(sum(struct.unpack_from("<2H", header, 26)), 1)
            raw = file.read(member.compress_size)
        if member.compress_type == zipfile.ZIP_DEFLATED:
            raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, member.file_size + 1)
        if len(raw) != member.file_size or zlib.crc32(raw) != member.CRC:
            raise ValueError("its content does not match its size and checksum")
        return raw


def _check_directory(path: Path) -> None:
    """Bound the archive's own directory before `zipfile` reads it whole."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - _END_BYTES - _LOCATOR_BYTES, 0))
        tail = file.read()
    end = tail[-_END_BYTES:]
    if len(end) != _END_BYTES or end[:4] != b"PK\5\6":
        raise ValueError("it does not end as a zip archive does")
    count, directory = struct.unpack_from("<HI", end, 10)
    if count == 0xFFFF or tail[:4] == b"PK\6\7" or directory > _MAX_DIRECTORY_BYTES:
        raise ValueError("it lists more files than a bundle has")


_Members = dict[str, zipfile.ZipInfo]


def _members(path: Path, found: Iterable[zipfile.ZipInfo]) -> tuple[str, _Members, _Members]:
    """(package folder, bundle-relative name → member, metadata name → member), once every member has been checked."""
    folders, seen = set(), set()
    members: _Members = {}
    metadata: _Members = {}
    for member in found:
        name = member.orig_filename
        data, meta = _DATA.fullmatch(name), _META.fullmatch(name)
        kind = stat.S_IFMT(member.external_attr >> 16)
        if data is None and meta is None:
            raise BundleError(
                f"{path} holds {name!a}; a bundle's wheel holds its manifest, its cubins and their metadata, "
                "nothing else: do not install it"
            )
        limit = MAX_CUBIN_BYTES if name.endswith((".cubin", ".cubin.z")) else MAX_MANIFEST_BYTES
        if name in seen or kind not in (0, stat.S_IFREG) or member.flag_bits & 1 or member.file_size > limit:
            raise BundleError(
                f"{path}: {name} is there twice, is a link, is encrypted or is larger than {limit} bytes: "
                "do not install it"
            )
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BundleError(f"{path}: {name} is compressed by method {member.compress_type}; expected 0 or 8")
        seen.add(name)
        if data is not None:
            folders.add(data[1])
            members[data[2]] = member
        elif meta is not None:
            folders.add(meta[1])
            metadata[meta[2]] = member
    if len(folders) != 1 or MANIFEST not in members:
        raise BundleError(f"{path} does not hold one bundle with a {MANIFEST}; expected a wheel by `warpsmith build`")
    return folders.pop(), members, metadata
