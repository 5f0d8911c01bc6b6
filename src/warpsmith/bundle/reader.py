# SPDX-License-Identifier: Apache-2.0
"""Opening bundles: the manifest is read, a cubin when asked for, its digest checked. Nothing is written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from warpsmith.bundle.elf import MAX_CUBIN_BYTES
from warpsmith.bundle.files import read_file
from warpsmith.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, RAW, CubinEntry, Manifest, parse_manifest
from warpsmith.bundle.outline import Outline, read_outline
from warpsmith.bundle.packing import unpack
from warpsmith.bundle.wheel import WheelFiles, package_name
from warpsmith.catalog.spec import CubinId
from warpsmith.errors import BundleError, DigestError, ManifestError, SignatureError

if TYPE_CHECKING:
    from warpsmith.bundle.signature import PublicKey

_T = TypeVar("_T")
ASIDE, UNFINISHED = ".old-", ".new-"
"""While a bundle is replaced, ``.<name>.old-…`` beside it is what was there, ``.<name>.new-…`` what comes."""


class _Files(Protocol):
    def names(self) -> tuple[str, ...]: ...
    def read(self, name: str, limit: int) -> bytes: ...
    def stored(self, name: str) -> int: ...
    def faults(self, manifest: Manifest) -> list[str]: ...


class Bundle:
    """A bundle open for reading; threads and forked processes may share it.

    Attributes
    ----------
    path
        The directory or wheel, as it was given.
    head
        Its manifest, without the cubins if it was opened lazily.
    """

    def __init__(self, path: Path, manifest: Manifest | Outline, files: _Files, digest: bytes) -> None:
        self.path = path
        self._digest = digest
        self._files = files
        self._outline = manifest if isinstance(manifest, Outline) else None
        self.head = manifest.head if isinstance(manifest, Outline) else manifest
        self._entries: dict[CubinId, CubinEntry | None] = {self.head.id(entry): entry for entry in self.head.cubins}

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, {self.head.target}, {len(self)} cubins)"

    def __len__(self) -> int:
        return len(self.head.cubins if self._outline is None else self._outline)

    @cached_property
    def manifest(self) -> Manifest:
        """Its manifest.

        Raises
        ------
        ManifestError
            If the bundle was opened lazily, and an entry that was not read so far is damaged.
        """
        return self.head if self._outline is None else self._read(self._outline.whole)

    def entry(self, cubin: CubinId) -> CubinEntry | None:
        """What the manifest says of a cubin, or None if the bundle does not claim to have it.

        Raises
        ------
        ManifestError
            If the bundle was opened lazily, and that entry is damaged.
        """
        if cubin not in self._entries and self._outline is not None and cubin.target == self.head.target:
            self._entries[cubin] = self._read(partial(self._outline.entry, cubin.kernel, cubin.variant))
        return self._entries.get(cubin)

    def _read(self, read: Callable[[], _T]) -> _T:
        try:
            return read()
        except ManifestError as error:
            raise ManifestError(f"{self.path / MANIFEST}: {error}") from error

    def files(self) -> tuple[str, ...]:
        """The names of all files in the bundle, relative to it, sorted.

        Raises
        ------
        BundleError
            If the folder cannot be listed.
        """
        return self._files.names()

    def faults(self) -> list[str]:
        """What is wrong with the metadata of a bundle's wheel; a directory has none."""
        return self._files.faults(self.manifest)

    def signer(self) -> str:
        """The id of the key that signed it, unchecked; empty if none did."""
        from warpsmith.bundle.signature import signer

        return signer(self._signature())

    def check_signature(self, key: PublicKey) -> None:
        """Hold the manifest that was read against its signature; each cubin is held against the manifest when read.

        Raises
        ------
        SignatureError
            If the bundle is not signed, signed by another key, or was changed since.
        """
        signature = self._signature()
        if not signature:
            raise SignatureError(
                f"{self.path} is not signed, and a signature by {key.id} ({key.name}) is required: sign it when it is "
                "built, with warpsmith build --sign"
            )
        try:
            key.check(self._digest, signature)
        except SignatureError as error:
            raise SignatureError(f"{self.path}: {error}") from error

    def _signature(self) -> bytes:
        from warpsmith.bundle.signature import MAX_SIGNATURE_BYTES, SIGNATURE

        try:
            return self._files.read(SIGNATURE, MAX_SIGNATURE_BYTES)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise SignatureError(f"cannot read {SIGNATURE} in {self.path}: {error.strerror}") from error

    def cubin(self, entry: CubinEntry) -> bytes:
        """The bytes of a cubin, always those that its digest names.

        Raises
        ------
        DigestError
            If the file's bytes are not those that the manifest's digest and size say.
        BundleError
            If the file is missing or cannot be read.
        """
        name, file = self.head.id(entry), self.head.file(entry)
        try:
            data = self._files.read(file, MAX_CUBIN_BYTES)
        except FileNotFoundError as error:
            raise BundleError(f"{self.path} has no {file} ({name}): build the bundle again") from error
        except OSError as error:
            raise BundleError(f"cannot read {file} in {self.path} ({name}): {error.strerror}") from error
        if self.head.encoding != RAW:
            try:
                data = unpack(data, entry.size)
            except ValueError as error:
                raise DigestError(
                    f"{file} in {self.path} ({name}) is damaged: {error}; build or install the bundle again"
                ) from error
        found = hashlib.sha256(data).hexdigest()
        if (found, len(data)) != (entry.sha256, entry.size):
            raise DigestError(
                f"{file} in {self.path} ({name}) holds {len(data)} bytes with SHA-256 {found}; the manifest says "
                f"{entry.size} bytes with {entry.sha256}: the file is damaged, build or install the bundle again"
            )
        return data

    def stored(self, entry: CubinEntry) -> int:
        """Bytes that a cubin takes in the bundle; 0 if its file is not there."""
        return self._files.stored(self.head.file(entry))


def open_bundle(path: Path, *, lazily: bool = False) -> Bundle:
    """Open a bundle: a directory with a ``manifest.json``, or a wheel, which is read in place.

    Parameters
    ----------
    lazily
        Whether each cubin's entry of the manifest is read, and checked, when it is first asked for.

    Raises
    ------
    ManifestError
        If its manifest is damaged or newer than this package.
    BundleError
        If there is no bundle, or a wheel holds anything else; the message says what to do.
    """
    if path.suffix == ".whl":
        files: _Files = WheelFiles(path)
    elif path.is_dir():
        files = _FolderFiles(path)
    else:
        raise BundleError(_absent(path))
    try:
        text = files.read(MANIFEST, MAX_MANIFEST_BYTES)
        manifest = read_outline(text) if lazily else parse_manifest(text)
    except FileNotFoundError as error:
        raise BundleError(f"{path} has no {MANIFEST}; expected a bundle as `warpsmith build` writes it") from error
    except OSError as error:
        raise BundleError(f"cannot read {path / MANIFEST}: {error.strerror}") from error
    except ManifestError as error:
        raise ManifestError(f"{path / MANIFEST}: {error}") from error
    bundle = Bundle(path, manifest, files, hashlib.sha256(text).digest())
    target = bundle.head.target
    if isinstance(files, WheelFiles) and files.folder != package_name(target):
        raise BundleError(f"{path} holds {files.folder}, but its manifest is for {target}: do not install it")
    return bundle


def open_bundles(path: Path, *, lazily: bool = False) -> tuple[Bundle, ...]:
    """Open a bundle, or each bundle in a directory of them, in the order of their names; as `open_bundle`.

    Raises
    ------
    BundleError
        If there is none, or one of them cannot be opened.
    """
    if not path.is_dir() or (path / MANIFEST).exists():
        return (open_bundle(path, lazily=lazily),)
    try:
        children = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise BundleError(f"cannot list {path}: {error.strerror}") from error
    found = [p for p in children if p.suffix == ".whl" or (p / MANIFEST).exists()]
    if not found:
        raise BundleError(
            f"{path} is neither a bundle nor a directory of bundles; expected what `warpsmith build` writes"
        )
    return tuple(open_bundle(p, lazily=lazily) for p in found)


class _FolderFiles:
    """The files of a bundle in a directory; a link that leads out of it is refused."""

    def __init__(self, path: Path) -> None:
        self._root = Path(os.path.realpath(path))

    def names(self) -> tuple[str, ...]:
        found = []

        def failed(error: OSError) -> None:
            raise BundleError(f"cannot list {error.filename}: {error.strerror}") from error

        for folder, folders, files in os.walk(self._root, onerror=failed):
            links = [f for f in folders if Path(folder, f).is_symlink()]
            found += [Path(folder, name).relative_to(self._root).as_posix() for name in (*files, *links)]
        return tuple(sorted(found))

    def faults(self, _: Manifest) -> list[str]:
        return []

    def read(self, name: str, limit: int) -> bytes:
        real = Path(os.path.realpath(self._root / name))
        if not real.is_relative_to(self._root):
            raise BundleError(f"{self._root / name} is a link that leads out of the bundle, to {real}: it is not read")
        return read_file(real, limit)

    def stored(self, name: str) -> int:
        try:
            return (self._root / name).stat().st_size
        except OSError:
            return 0


def beside(path: Path, what: str) -> list[Path]:
    """The folders that a replacement of `path` left beside it."""
    try:
        return sorted(p for p in path.parent.iterdir() if p.name.startswith(f".{path.name}{what}"))
    except OSError:
        return []


def _absent(path: Path) -> str:
    """Why nothing can be opened there; a replacement that was cut short leaves its traces beside it."""
    asides = beside(path, ASIDE)
    if asides:
        return (
            f"{path} does not exist: it is being replaced, or that was interrupted; the bundle before lies in "
            f"{asides[0]}: rename that to {path.name}, or build again"
        )
    return f"{path} does not exist; expected a bundle's directory or wheel"
