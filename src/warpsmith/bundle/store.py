# SPDX-License-Identifier: Apache-2.0
"""The compile cache: bytes under content keys, safe against crashes, full disks and other processes.

There is no lock, and no reader tests for membership: an entry is written beside its place, put on the disk and renamed,
and whoever reads one checks it, so that a reader sees a whole entry or none.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from warpsmith.bundle.files import is_stale, read_file, temporary_name, write_file
from warpsmith.errors import BundleError, InvalidArgumentError, StoreError

MAX_ENTRY_BYTES = 256 << 20
"""The largest value that is kept."""

_KEY = re.compile(r"[0-9a-f]{64}")
_MAGIC = b"WSSTORE1"
_HEADER = struct.Struct("<8sQ32s")  # magic, bytes of the value, SHA-256 over key, length and value
HEADER_BYTES = _HEADER.size
_TEMPORARY = ".new-"

DamageReport = Callable[[str, str], None]
"""Called with the key and what is wrong with its entry."""


class Store:
    """A folder of cached values. Keys are SHA-256 in hex, values are bytes.

    Parameters
    ----------
    root
        The folder. It is made by the first `put`, not before.
    on_damage
        Told of each entry that is damaged or cannot be read.
    """

    def __init__(self, root: Path, on_damage: DamageReport | None = None) -> None:
        self.root = root
        self._on_damage = on_damage
        self._swept = False

    def get(self, key: str) -> bytes | None:
        """The value kept under a key, or None; a damaged one is reported, removed where possible, and None.

        Raises
        ------
        InvalidArgumentError
            If the key is not 64 hexadecimal digits.
        """
        path = self._path(key)
        try:
            data = read_file(path, MAX_ENTRY_BYTES + HEADER_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._report(key, f"cannot be read ({error.strerror})")
            return None
        except BundleError as error:
            reason = str(error)
        else:
            reason = damage(key, data)
            if not reason:
                return data[HEADER_BYTES:]
        self._report(key, reason)
        with suppress(OSError):  # in a folder that cannot be written it stays, and is refused each time
            path.unlink()
        return None

    def has(self, key: str) -> bool:
        """Whether an entry is there, whole or not: for sharing; whoever wants a value uses `get`.

        Raises
        ------
        InvalidArgumentError
            If the key is not 64 hexadecimal digits.
        """
        return self._path(key).exists()

    def put(self, key: str, data: bytes) -> None:
        """Keep a value; one that is there is replaced.

        Raises
        ------
        InvalidArgumentError
            If the key is not 64 hexadecimal digits, or the value is larger than `MAX_ENTRY_BYTES`.
        StoreError
            If it cannot be written (a read-only folder, a full disk). What the store held before is intact.
        """
        path = self._path(key)
        if len(data) > MAX_ENTRY_BYTES:
            raise InvalidArgumentError(f"a value of {len(data)} bytes is more than the {MAX_ENTRY_BYTES} that are kept")
        fresh = path.with_name(temporary_name(_TEMPORARY))
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._sweep()
            try:
                write_file(fresh, [header(key, data), data])
                fresh.replace(path)
            finally:
                fresh.unlink(missing_ok=True)
        except OSError as error:
            if isinstance(error, PermissionError) and self.get(key) == data:
                return  # Windows refuses to replace an entry that is being read; it holds the same value
            raise StoreError(
                f"cannot write the compile cache {self.root}: {error.strerror or error}; make room there, or set "
                "WARPSMITH_CACHE_DIR to a folder that can be written"
            ) from error

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise InvalidArgumentError(f"{key!r} is not a key of the store; expected 64 lower-case hexadecimal digits")
        return self.root / f"{key}.entry"

    def _report(self, key: str, reason: str) -> None:
        if self._on_damage is not None:
            self._on_damage(key, reason)

    def _sweep(self) -> None:
        """Remove what writers left that were killed long ago; once for each store."""
        if self._swept:
            return
        self._swept = True
        for path in self.root.glob(f"{_TEMPORARY}*"):
            if is_stale(path):
                with suppress(OSError):
                    path.unlink()


def examine(root: Path) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of each damaged entry of a store; nothing is removed."""
    for path in sorted(root.glob("*.entry")):
        try:
            reason = damage(path.stem, read_file(path, MAX_ENTRY_BYTES + _HEADER.size))
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        except (BundleError, ValueError) as error:
            reason = str(error)
        if reason:
            yield path.stem, reason


def _digest(key: str, data: bytes) -> bytes:
    state = hashlib.sha256(bytes.fromhex(key))
    state.update(len(data).to_bytes(8, "little"))
    state.update(data)
    return state.digest()


def header(key: str, data: bytes) -> bytes:
    """What stands before a value in its entry."""
    return _HEADER.pack(_MAGIC, len(data), _digest(key, data))


def damage(key: str, entry: bytes) -> str:
    """What is wrong with an entry's bytes, or nothing; then the value begins at `HEADER_BYTES`."""
    if len(entry) < HEADER_BYTES:
        return f"is cut short ({len(entry)} bytes)"
    magic, length, digest = _HEADER.unpack_from(entry)
    if magic != _MAGIC:
        return "is not an entry of this store, or of another version of it"
    if length != len(entry) - HEADER_BYTES:
        return f"should hold {length} bytes, but holds {len(entry) - HEADER_BYTES}"
    if digest != _digest(key, entry[HEADER_BYTES:]):
        return "does not match its digest"
    return ""
