# SPDX-License-Identifier: Apache-2.0
"""The compile cache that many machines share, at any URL that fsspec knows.

It holds the same entries as the local store, under the same names, and whoever reads one checks it. What a slow, full,
read-only or absent cache does to a build is no matter of this module: see `warpsmith.compiler.layers`.
"""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

from warpsmith.bundle.store import HEADER_BYTES, MAX_ENTRY_BYTES, DamageReport, Store, damage, header
from warpsmith.compiler.cache import SharedStore
from warpsmith.errors import InvalidArgumentError, StoreError

_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]+::)*([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_USER = re.compile(r"//[^/@]*@")


def open_shared(url: str, on_damage: DamageReport | None = None) -> SharedStore:
    """The store behind a URL; nothing is contacted yet.

    Parameters
    ----------
    url
        ``s3://bucket/folder``, ``memory://name``, or any other that fsspec knows; ``file:///folder`` or a plain path
        for a folder, which is written as the local store is, so that a reader never meets half an entry.
    on_damage
        Told of each entry that is damaged.

    Raises
    ------
    InvalidArgumentError
        If the URL cannot be understood, or what it needs is not installed; says what to install.
    """
    match = _URL.fullmatch(url)
    if not url or (match is None and "://" in url):
        raise InvalidArgumentError(f"{url!r} is no place for a cache; expected s3://bucket/folder or file:///folder")
    if match is None or url.startswith(("file://", "local://")):
        path = Path(url2pathname(match[2])) if match else Path(url)
        if not path.is_absolute():
            raise InvalidArgumentError(
                f"{url!r} is not an absolute path; expected file:///folder or s3://bucket/folder"
            )
        return Store(path, on_damage)
    return UrlStore(url, on_damage)


class UrlStore:
    """Entries as files or objects below a URL.

    Parameters
    ----------
    url
        As for `open_shared`, but a folder only for what fsspec makes of it.
    on_damage
        Told of each entry that is damaged. It is not removed: what is compiled in its place replaces it.

    Raises
    ------
    InvalidArgumentError
        If fsspec does not know the URL's protocol, or a package is missing.
    """

    def __init__(self, url: str, on_damage: DamageReport | None = None) -> None:
        self.url = _USER.sub("//", url)
        self._given = url.rstrip("/")
        self._on_damage = on_damage
        self._lock = threading.Lock()
        self._place: tuple[Any, str] | None = None
        try:
            from fsspec import get_filesystem_class

            get_filesystem_class(url.partition("://")[0].partition("::")[0])
        except ImportError as error:
            raise InvalidArgumentError(
                f"a cache at {self.url} needs a package that is not installed ({error}); for s3:// "
                "pip install 'warpsmith[s3]'"
            ) from error
        except ValueError as error:
            raise InvalidArgumentError(f"{self.url} is no place for a cache: {error}") from error

    def get(self, key: str) -> bytes | None:
        """The value under a key, or None if there is none; a damaged one is reported, and None.

        Raises
        ------
        StoreError
            If the cache cannot be asked.
        """
        try:
            system, root = self._open()
            entry = _read(system, f"{root}/{key}.entry")
        except Exception as error:
            raise StoreError(f"{self.url} cannot be read: {_reason(error)}") from error
        if entry is None:
            return None
        wrong = damage(key, entry)
        if not wrong:
            return entry[HEADER_BYTES:]
        if self._on_damage is not None:
            self._on_damage(key, wrong)
        return None

    def has(self, key: str) -> bool:
        """Whether an entry is there, whole or not.

        Raises
        ------
        StoreError
            If the cache cannot be asked.
        """
        try:
            system, root = self._open()
            return bool(system.exists(f"{root}/{key}.entry"))
        except Exception as error:
            raise StoreError(f"{self.url} cannot be read: {_reason(error)}") from error

    def put(self, key: str, data: bytes) -> None:
        """Keep a value; one that is there is replaced.

        Raises
        ------
        StoreError
            If it cannot be written.
        """
        try:
            system, root = self._open()
            if not _is_flat(system):
                system.makedirs(root, exist_ok=True)
            system.pipe_file(f"{root}/{key}.entry", header(key, data) + data)
        except Exception as error:
            raise StoreError(f"{self.url} cannot be written: {_reason(error)}") from error

    def _open(self) -> tuple[Any, str]:
        """The file system and the folder in it; not before it is needed, since some ask the network here."""
        with self._lock:
            if self._place is None:
                from fsspec.core import url_to_fs

                self._place = url_to_fs(self._given, use_listings_cache=False)
            return self._place


def _read(system: Any, path: str) -> bytes | None:
    """A file's bytes, no more than an entry may have; None if it is not there."""
    try:
        found: bytes = system.cat_file(path, start=0, end=MAX_ENTRY_BYTES + HEADER_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError:
        with suppress(Exception):
            if system.size(path) == 0:  # of an empty object S3 has no range to give
                return b""
        raise
    return found


def _is_flat(system: Any) -> bool:
    """Whether the file system is an object store, where a folder is a part of a name and need not be made."""
    protocols = (system.protocol,) if isinstance(system.protocol, str) else system.protocol
    return not {"s3", "s3a", "gs", "gcs", "abfs", "az"}.isdisjoint(protocols)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip(": ")
