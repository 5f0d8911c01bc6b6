# SPDX-License-Identifier: Apache-2.0
"""Files read within bounds, and written so that a crash leaves the old or the new, never a part."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from warpsmith.errors import BundleError

STALE_SECONDS = 3600.0
"""A temporary file or folder this old belongs to a writer that was killed."""


def read_file(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises
    ------
    OSError
        If it cannot be opened or read.
    BundleError
        If it is no regular file (a pipe would block for ever) or larger.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    handle = os.open(path, flags)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path} is not a regular file")
        with os.fdopen(handle, "rb", closefd=False) as file:
            data = file.read(min(limit, status.st_size) + 1)  # what is asked for is allocated
    finally:
        os.close(handle)
    if len(data) > limit:
        raise BundleError(f"{path} has {status.st_size} bytes, more than the {limit} expected")
    return data


def write_file(path: Path, parts: Iterable[bytes]) -> None:
    """Create a file with its content on the disk before this returns."""
    with path.open("xb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Put a folder's own entries on the disk (Windows has no such call and needs none)."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def temporary_name(prefix: str) -> str:
    """A file name that no other writer has, on whatever machine."""
    return f"{prefix}{os.urandom(8).hex()}"


def is_stale(path: Path) -> bool:
    """Whether a temporary was left behind: last written over an hour ago, by whatever clock the file system has."""
    try:
        return time.time() - path.lstat().st_mtime > STALE_SECONDS
    except OSError:
        return False
