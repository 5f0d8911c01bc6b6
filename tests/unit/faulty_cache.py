# SPDX-License-Identifier: Apache-2.0
"""An fsspec file system in memory that fails as told: slow, stuck, refusing, cutting short, flipping bits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

Fault = Callable[[str, str, bytes], bytes]
"""Called with (``read`` or ``write``, path, bytes): returns what arrives in their place, or raises."""

released = threading.Event()
faults: list[Fault] = []
calls: list[tuple[str, str]] = []
contents: dict[str, bytes] = {}


class FaultyFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """``faulty://…``: in memory, with `faults` in between."""

    protocol = "faulty"
    cachable = False
    store = contents
    pseudo_dirs = [""]  # noqa: RUF012 - as in the class below

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        calls.append(("read", path))
        return through("read", path, super().cat_file(path, start, end, **options) if self.exists(path) else b"", self)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        calls.append(("write", path))
        super().pipe_file(path, through("write", path, value, self), mode, **options)


def through(what: str, path: str, data: bytes, system: FaultyFileSystem) -> bytes:
    for fault in faults:
        data = fault(what, path, data)
    if what == "read" and not system.exists(path):
        raise FileNotFoundError(path)
    return data


def slow(seconds: float) -> Fault:
    def fault(_: str, __: str, data: bytes) -> bytes:
        time.sleep(seconds)
        return data

    return fault


def stuck(_: str, __: str, data: bytes) -> bytes:
    """Never answers, until the test is over."""
    released.wait()
    return data


def stuck_writes(what: str, _: str, data: bytes) -> bytes:
    if what == "write":
        released.wait()
    return data


def down(*_: object) -> bytes:
    raise ConnectionRefusedError(111, "Connection refused")


def read_only(what: str, _: str, data: bytes) -> bytes:
    if what == "write":
        raise PermissionError(13, "Access Denied")
    return data


def full(what: str, _: str, data: bytes) -> bytes:
    if what == "write":
        raise OSError(28, "No space left on device")
    return data


def truncates(what: str, _: str, data: bytes) -> bytes:
    return data[: len(data) // 2] if what == "read" else data


def empties(what: str, _: str, data: bytes) -> bytes:
    return b"" if what == "read" else data


def flips(what: str, _: str, data: bytes) -> bytes:
    if what == "write" or not data:
        return data
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def exchanges(what: str, path: str, data: bytes) -> bytes:
    """Another entry's bytes."""
    others = [value for name, value in contents.items() if name != path]
    return others[0].getvalue() if what == "read" and others else data  # type: ignore[attr-defined]


def nonsense(*_: object) -> bytes:
    raise RuntimeError("an error of no known type")


@contextmanager
def faulty() -> Iterator[str]:
    """The URL of an empty cache; what is stuck at the end is let go."""
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    faults.clear(), calls.clear(), contents.clear(), released.clear()
    FaultyFileSystem.pseudo_dirs[:] = [""]
    try:
        yield "faulty://cache"
    finally:
        released.set()
        faults.clear()
