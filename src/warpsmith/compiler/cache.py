# SPDX-License-Identifier: Apache-2.0
"""The compile cache as builds see it: artifacts under content keys, in a store whose failure fails no build."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from warpsmith.compiler.sass import Census
from warpsmith.errors import StoreError

SCHEMA = 1
_HEADER_BYTES = 1 << 24


class ByteStore(Protocol):
    """Where artifacts are kept: `warpsmith.bundle.store.Store`, or anything that is used like it."""

    def get(self, key: str) -> bytes | None:
        """The value under a key, or None if there is none that is whole."""

    def put(self, key: str, data: bytes) -> None:
        """Keep a value in place of what is there; raises `StoreError` or `OSError` if it cannot."""


class SharedStore(ByteStore, Protocol):
    """A store that others fill too."""

    def has(self, key: str) -> bool:
        """Whether an entry is there, whole or not; raises `StoreError` or `OSError` if that cannot be told."""


@runtime_checkable
class AheadStore(ByteStore, Protocol):
    """A store that is far away, and reads side by side what it is told will be asked for."""

    def expect(self, keys: Sequence[str]) -> None:
        """These will be asked for, in this order."""


@dataclass(frozen=True)
class Artifact:
    """A compiled cubin and what is needed to check it again without compiling or disassembling it.

    Attributes
    ----------
    log
        The compiler's full log.
    census
        The instructions of its machine code.
    disassembler
        What read them, such as ``nvdisasm 13.5.37``.
    """

    cubin: bytes
    log: str
    census: Census
    disassembler: str

    def to_bytes(self, key: str) -> bytes:
        """The artifact as the store keeps it: one line of JSON, then the cubin."""
        header = {
            "schema": SCHEMA,
            "key": key,
            "sha256": hashlib.sha256(self.cubin).hexdigest(),
            "log": self.log,
            "census": self.census,
            "disassembler": self.disassembler,
        }
        return json.dumps(header, sort_keys=True).encode() + b"\n" + self.cubin

    @classmethod
    def from_bytes(cls, key: str, data: bytes) -> Artifact:
        """Read what `to_bytes` wrote.

        Raises
        ------
        StoreError
            If it is anything else, or was filed under another key.
        """
        try:
            line = data[: data.index(b"\n", 0, _HEADER_BYTES)]
            header, cubin = json.loads(line), data[len(line) + 1 :]
            if (header["schema"], header["key"]) != (SCHEMA, key):
                raise StoreError(f"it was written for schema {header['schema']} and key {header['key']}")
            if hashlib.sha256(cubin).hexdigest() != header["sha256"]:
                raise StoreError("the cubin does not match the digest beside it")
            census = tuple((str(opcode), int(number)) for opcode, number in header["census"])
            return cls(cubin, str(header["log"]), census, str(header["disassembler"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(f"it is not a compile result ({type(error).__name__}: {error})") from error


class Cache:
    """Artifacts in a store; without a store, or once it has failed, nothing is kept and everything works."""

    def __init__(self, store: ByteStore | None) -> None:
        self._readable = self._writable = store

    def expect(self, keys: Sequence[str]) -> None:
        """Tell a store that reads ahead what will be asked for."""
        if isinstance(self._readable, AheadStore):
            self._readable.expect(keys)

    def get(self, key: str, disassembler: str) -> Artifact | None:
        """The artifact under a key, or None if there is none that can be used."""
        if self._readable is None:
            return None
        try:
            data = self._readable.get(key)
        except (StoreError, OSError) as error:
            self._readable = self._writable = None
            _warn(f"the compile cache cannot be read, so everything is compiled: {error}")
            return None
        if data is None:
            return None
        try:
            found = Artifact.from_bytes(key, data)
        except StoreError as error:
            self.reject(key, str(error))
            return None
        return found if found.disassembler == disassembler else None

    def put(self, key: str, artifact: Artifact) -> None:
        """Keep an artifact, if the store takes it."""
        if self._writable is None:
            return
        try:
            self._writable.put(key, artifact.to_bytes(key))
        except (StoreError, OSError) as error:
            self._writable = None
            _warn(f"the compile cache cannot be written, so what is compiled now is not kept: {error}")

    def reject(self, key: str, reason: str) -> None:
        """Say that an entry is not used, and why; the `put` that follows its compilation replaces it."""
        _warn(f"the compile cache's entry {key} is not used and compiled again: {reason}")


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)
