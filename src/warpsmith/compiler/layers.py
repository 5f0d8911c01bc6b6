# SPDX-License-Identifier: Apache-2.0
"""The local store in front of one that is shared: what is far away may be slow, read-only or gone, and no build fails.

The shared store is used from threads that nobody has to wait for. The first answer that does not come in time, or that
is an error, ends its use for the build, with one warning.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from types import TracebackType
from typing import Any

from warpsmith.bundle.store import Store
from warpsmith.compiler.cache import SharedStore
from warpsmith.compiler.daemons import DaemonThreads
from warpsmith.errors import StoreError

TIMEOUT = 10.0
"""Seconds that one answer may take."""

PATIENCE = 30.0
"""Seconds that a build waits for the shared cache before it looks at whether waiting is worth while."""

WORTH = 0.25
"""Seconds that an entry may take then, on average: about as long as compiling it takes one core."""

_THREADS = 16


class Patient:
    """A store that may hang, behind one that does not: every wait is bounded.

    Parameters
    ----------
    store
        The store. It is used from several threads at once.
    timeout, patience, worth
        See `TIMEOUT`, `PATIENCE` and `WORTH`.
    """

    def __init__(
        self, store: SharedStore, *, timeout: float = TIMEOUT, patience: float = PATIENCE, worth: float = WORTH
    ) -> None:
        self._store, self._timeout, self._patience, self._worth = store, timeout, patience, worth
        self._waited, self._answers = 0.0, 0
        self._ahead: dict[str, Future[bytes | None]] = {}
        self._writing: set[Future[None]] = set()
        self._threads = DaemonThreads(_THREADS, "warpsmith-cache")

    def expect(self, keys: Sequence[str]) -> None:
        """Read these side by side, while the first are already asked for."""
        for key in keys:
            self._ahead[key] = self._threads.submit(self._store.get, key)

    def get(self, key: str) -> bytes | None:
        """The value under a key, or None.

        Raises
        ------
        StoreError
            If the store cannot be read, does not answer in time, or takes longer than compiling would.
        """
        future = self._ahead.pop(key, None) or self._threads.submit(self._store.get, key)
        start = time.monotonic()
        done, _ = wait([future], self._timeout)
        self._waited += time.monotonic() - start
        self._answers += 1
        if not done:
            raise StoreError(f"no answer within {self._timeout:g} s")
        found = future.result()
        if self._waited > self._patience and self._waited > self._worth * self._answers:
            raise StoreError(
                f"{self._waited:.0f} s went by waiting for {self._answers} entries, more than compiling them takes"
            )
        return found

    def put(self, key: str, data: bytes) -> None:
        """Write in the background.

        Raises
        ------
        StoreError
            If an earlier write failed.
        """
        self._write(self._store.put, key, data)

    def offer(self, key: str, read: Callable[[str], bytes | None]) -> None:
        """In the background, write what `read` has under a key, unless an entry is there.

        Raises
        ------
        StoreError
            If an earlier write failed.
        """
        self._write(self._share, key, read)

    def _share(self, key: str, read: Callable[[str], bytes | None]) -> None:
        data = None if self._store.has(key) else read(key)  # not read before its turn: there may be thousands
        if data is not None:
            self._store.put(key, data)

    def _write(self, do: Callable[..., None], *arguments: Any) -> None:
        self._check(f for f in self._writing if f.done())
        self._writing = {f for f in self._writing if not f.done()}
        self._writing.add(self._threads.submit(do, *arguments))

    def flush(self) -> None:
        """Wait for the writes, as long as they go on, and no longer than `patience`.

        Raises
        ------
        StoreError
            If a write failed, or is not done in time.
        """
        end = time.monotonic() + self._patience
        while self._writing:
            left = min(self._timeout, end - time.monotonic())
            done, self._writing = wait(self._writing, max(left, 0), FIRST_COMPLETED)
            if not done:
                raise StoreError(f"{len(self._writing)} entries could not be written in time")
            self._check(done)

    def drop(self) -> None:
        """End its use: forget what was not begun, and leave what hangs to itself."""
        for read in self._ahead.values():
            read.cancel()
        for write in self._writing:
            write.cancel()
        self._ahead, self._writing = {}, set()
        self._threads.stop()

    def _check(self, done: Iterable[Future[None]]) -> None:
        for future in done:
            future.result()


class Layers:
    """The local store first, then the shared one, and both are written: a `ByteStore` that never raises.

    Parameters
    ----------
    local
        What this machine compiled itself. What is found there is shared too, unless it is.
    shared
        What others compiled too.
    copies
        Where entries of the shared store are kept on this machine. Not in `local`: once there, nobody could tell any
        more that they came from elsewhere.
    read_shared
        False for a release: neither the shared store nor its copies are read; what is compiled, or was on this machine,
        is still shared.

    Notes
    -----
    Use it in a ``with`` block: leaving it waits, for a bounded time, until what was compiled is shared.
    """

    def __init__(self, local: Store, shared: Patient, copies: Store, *, read_shared: bool = True) -> None:
        self._local, self._shared, self._copies = local, shared, copies
        self._found: dict[str, tuple[bytes, bool]] = {}  # with whether it was compiled on this machine
        self._reading = read_shared
        self._failed: set[str] = set()

    def expect(self, keys: Sequence[str]) -> None:
        """Look for entries here, and have the rest read from the shared store side by side."""
        if not self._reading:
            return
        for key in keys:
            near = self._nearby(key)
            if near is not None:
                self._found[key] = near
        self._shared.expect([key for key in keys if key not in self._found])

    def get(self, key: str) -> bytes | None:
        """The value under a key from the nearest place that has it whole, or None."""
        near = self._found.pop(key, None) or self._nearby(key)
        if near is not None:
            data, own = near
            if own:
                self._write("shared", self._shared.offer, key, self._local.get)
            return data
        if not self._reading:
            return None
        try:
            found = self._shared.get(key)
        except (StoreError, OSError) as error:
            self._reading = False
            self._failed.add("shared")
            self._shared.drop()
            _warn(f"the shared compile cache is not used for the rest of this build: {error}")
            return None
        if found is not None:
            self._write("copies", self._copies.put, key, found)
        return found

    def put(self, key: str, data: bytes) -> None:
        """Keep a value in both places, as far as they take it."""
        self._write("local", self._local.put, key, data)
        self._write("shared", self._shared.put, key, data)

    def __enter__(self) -> Layers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Share what is still on its way; not when interrupted."""
        if kind is None or issubclass(kind, Exception):
            self._write("shared", self._shared.flush)
        self._shared.drop()

    def _nearby(self, key: str) -> tuple[bytes, bool] | None:
        """The value in the local store or among the copies, and whether it is the local store's."""
        data = self._local.get(key)
        if data is not None:
            return data, True
        data = self._copies.get(key) if self._reading else None
        return None if data is None else (data, False)

    def _write(self, name: str, do: Callable[..., None], *arguments: Any) -> None:
        if name in self._failed:
            return
        try:
            do(*arguments)
        except (StoreError, OSError) as error:
            self._failed.add(name)
            which = {"local": "compile cache", "shared": "shared compile cache"}.get(name, "copy of the shared cache")
            _warn(f"the {which} cannot be written, so what is compiled now is not kept there: {error}")


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)
