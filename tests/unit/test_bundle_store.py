# SPDX-License-Identifier: Apache-2.0
"""The compile cache: a reader sees a whole entry or none, whatever happens to writers, disks and files."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from warpsmith.bundle import files
from warpsmith.bundle.store import MAX_ENTRY_BYTES, Store
from warpsmith.errors import InvalidArgumentError, StoreError

KEY, OTHER = "ab" * 32, "cd" * 32
KILLS = int(os.environ.get("WARPSMITH_TEST_KILLS", "15"))
FIXTURE = [HealthCheck.function_scoped_fixture]


class Watched(Store):
    """A store that remembers the damage it reports."""

    def __init__(self, root: Path) -> None:
        self.damage: list[tuple[str, str]] = []
        super().__init__(root, lambda key, reason: self.damage.append((key, reason)))


@pytest.fixture
def store(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "deep" / "store")


def entries(store: Store) -> list[Path]:
    return sorted(store.root.iterdir())


@settings(max_examples=30, deadline=None, suppress_health_check=FIXTURE)
@given(st.dictionaries(st.binary(min_size=32, max_size=32).map(bytes.hex), st.lists(st.binary(), min_size=1)))
def test_what_was_put_last_is_what_one_gets(store: Watched, values: dict[str, list[bytes]]) -> None:
    for key, puts in values.items():
        for data in puts:
            store.put(key, data)
    for key, puts in values.items():
        assert store.get(key) == puts[-1]
    assert store.damage == []


def test_an_empty_store_has_nothing_and_makes_nothing(store: Watched) -> None:
    assert store.get(KEY) is None
    assert not store.root.parent.exists()
    assert store.damage == []


@pytest.mark.parametrize("key", ["", "ab", "AB" * 32, "../" * 20 + "abcd", "g" * 64, KEY + "\n"])
def test_only_digests_are_keys(store: Watched, key: str) -> None:
    with pytest.raises(InvalidArgumentError, match="64 lower-case"):
        store.get(key)
    with pytest.raises(InvalidArgumentError, match="64 lower-case"):
        store.put(key, b"x")


def test_a_value_too_large_is_refused(store: Watched) -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return MAX_ENTRY_BYTES + 1

    with pytest.raises(InvalidArgumentError, match="more than"):
        store.put(KEY, Huge())


def test_every_flip_and_every_cut_is_seen(store: Watched) -> None:
    store.put(KEY, b"cubin")
    (file,) = entries(store)
    whole = file.read_bytes()
    damaged = [whole[:n] for n in range(len(whole))]
    damaged += [whole[:i] + bytes([whole[i] ^ 1 << b]) + whole[i + 1 :] for i in range(len(whole)) for b in range(8)]
    damaged.append(whole + b"\0")
    for data in damaged:
        file.write_bytes(data)
        assert store.get(KEY) is None
        assert not file.exists()  # it is removed, so that the next build puts it anew
    assert len(store.damage) == len(damaged)
    store.put(KEY, b"cubin")
    assert store.get(KEY) == b"cubin"


def test_an_entry_under_another_key_is_seen(store: Watched) -> None:
    store.put(KEY, b"cubin")
    (file,) = entries(store)
    file.rename(file.with_name(f"{OTHER}.entry"))
    assert store.get(OTHER) is None
    assert store.damage == [(OTHER, "does not match its digest")]


@pytest.mark.parametrize("make", [Path.mkdir, lambda p: p.symlink_to(p)], ids=["folder", "loop"])
def test_what_is_no_file_is_reported(store: Watched, make: Callable[[Path], None]) -> None:
    store.put(OTHER, b"x")
    make(store.root / f"{KEY}.entry")
    assert store.get(KEY) is None
    assert len(store.damage) == 1


def failing(code: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_a_failing_disk_is_an_error_and_nothing_is_lost(
    store: Watched, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    store.put(KEY, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(files.os if call == "fsync" else Path, call, failing(code))
        with pytest.raises(StoreError, match=f"{os.strerror(code)}.*WARPSMITH_CACHE_DIR"):
            store.put(KEY, b"new")
        with pytest.raises(StoreError):
            store.put(OTHER, b"new")
    assert store.get(KEY) == b"old"
    assert store.get(OTHER) is None
    assert len(entries(store)) == 1
    assert store.damage == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_disk_that_fills_up_while_writing_is_an_error(store: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(KEY, b"old")
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: opened(Path("/dev/full") if "x" in mode else self, "wb"))
    with pytest.raises(StoreError, match="No space left"):
        store.put(KEY, b"new" * 10_000)
    monkeypatch.undo()
    assert store.get(KEY) == b"old"


def test_a_read_only_store_is_read(store: Watched) -> None:
    store.put(KEY, b"old")
    (file,) = entries(store)
    store.root.chmod(0o500)
    try:
        if os.access(store.root, os.W_OK):
            pytest.skip("rights do not bind this user")
        assert store.get(KEY) == b"old"
        with pytest.raises(StoreError, match="Permission denied"):
            store.put(OTHER, b"new")
        file.write_bytes(b"damaged")
        assert store.get(KEY) is None
        assert store.get(KEY) is None
        assert len(store.damage) == 2
    finally:
        store.root.chmod(0o700)


def test_an_entry_that_cannot_be_read_is_reported(store: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(KEY, b"old")
    monkeypatch.setattr(files.os, "open", failing(errno.EACCES))
    assert store.get(KEY) is None
    assert store.damage == [(KEY, "cannot be read (Permission denied)")]
    monkeypatch.undo()
    assert store.get(KEY) == b"old"


def test_an_entry_that_is_being_read_need_not_be_replaced(store: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to replace an open file; it holds the same value."""
    store.put(KEY, b"same")
    monkeypatch.setattr(Path, "replace", failing(errno.EACCES))
    store.put(KEY, b"same")
    with pytest.raises(StoreError):
        store.put(KEY, b"other")


def test_old_leftovers_are_removed_once(store: Watched) -> None:
    store.put(OTHER, b"x")
    old, new = store.root / ".new-0", store.root / ".new-1"
    old.write_bytes(b"part")
    new.write_bytes(b"part")
    past = time.time() - files.STALE_SECONDS - 60
    os.utime(old, (past, past))
    store.put(KEY, b"x")
    assert old.exists()  # this store has looked already
    Store(store.root).put(KEY, b"x")
    assert not old.exists()
    assert new.exists()


def value(number: int) -> bytes:
    """A value that tells whether it is whole."""
    body = number.to_bytes(4, "little") * 20_000
    return hashlib.sha256(body).digest() + body


def is_whole(data: bytes) -> bool:
    return hashlib.sha256(data[32:]).digest() == data[:32]


LOOP = """
import hashlib, sys
from pathlib import Path
from warpsmith.bundle.store import Store
store = Store(Path(sys.argv[1]))
bodies = [i.to_bytes(4, "little") * 20_000 for i in range(8)]
values = [hashlib.sha256(body).digest() + body for body in bodies]
print("ready", flush=True)
while True:
    for data in values:
        for key in sys.argv[2:]:
            store.put(key, data)
"""


@contextmanager
def writer(store: Store) -> Iterator[subprocess.Popen[str]]:
    """A process that puts two keys for ever; killed at the end at the latest."""
    command = [sys.executable, "-c", LOOP, str(store.root), KEY, OTHER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()


@pytest.mark.skipif(os.name == "nt", reason="kills by signal")
def test_killed_writers_leave_whole_entries_only(store: Watched) -> None:
    """Two processes put the same keys while this one reads them, and are killed at random points."""
    chance = random.Random(11)  # noqa: S311  no secret
    seen = 0
    for _ in range(-(-KILLS // 2)):
        with writer(store) as first, writer(store) as second:
            for child in (first, second):
                until = time.monotonic() + chance.uniform(0.0, 0.05)
                while time.monotonic() < until:
                    for key in (KEY, OTHER):
                        data = store.get(key)
                        assert data is None or is_whole(data)
                        seen += data is not None
                child.kill()
        assert store.damage == []
        store.put(KEY, value(99))
        assert store.get(KEY) == value(99)
    assert seen > 0
    names = {p.name for p in entries(store)}
    assert all(name.startswith(".new-") or name in (f"{KEY}.entry", f"{OTHER}.entry") for name in names)


def test_threads_share_a_store(store: Watched) -> None:
    def work(number: int) -> None:
        for _ in range(30):
            store.put(KEY, value(number))
            data = store.get(KEY)
            assert data is not None
            assert is_whole(data)

    threads = [Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.damage == []
    assert [p.name for p in entries(store)] == [f"{KEY}.entry"]
