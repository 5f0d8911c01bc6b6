# SPDX-License-Identifier: Apache-2.0
"""The shared store: what goes in comes out, and nothing else does, whatever is behind the URL."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from warpsmith.bundle.store import Store
from warpsmith.compiler.shared import UrlStore, open_shared
from warpsmith.errors import InvalidArgumentError, StoreError

fsspec = pytest.importorskip("fsspec")
faults = pytest.importorskip("faulty_cache")
KEY, OTHER = "a" * 64, "b" * 64
VALUE = b"\x7fELF and so on"


@pytest.fixture
def faulty() -> Iterator[str]:
    with faults.faulty() as url:
        yield url


@pytest.fixture(params=["memory", "faulty", "file", "path", "local"])
def url(request: pytest.FixtureRequest, tmp_path: Path, faulty: str) -> str:
    folder = tmp_path / "shared cache"
    return {
        "memory": f"memory://{tmp_path.name}/x",
        "faulty": faulty,
        "file": f"file://{folder}",
        "path": str(folder),
        "local": f"local://{folder}",
    }[str(request.param)]


def test_what_is_kept_is_found_by_all(url: str) -> None:
    one, two = open_shared(url), open_shared(url)
    assert two.get(KEY) is None
    one.put(KEY, VALUE)
    one.put(OTHER, b"")
    assert (two.get(KEY), two.get(OTHER)) == (VALUE, b"")
    two.put(KEY, b"new")
    assert one.get(KEY) == b"new"


def test_a_folder_is_a_store_like_the_local_one(tmp_path: Path) -> None:
    Store(tmp_path).put(KEY, VALUE)
    assert open_shared(f"file://{tmp_path}").get(KEY) == VALUE
    assert UrlStore(f"file://{tmp_path}").get(KEY) == VALUE


def test_a_folder_whose_name_has_to_be_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    open_shared(folder.as_uri()).put(KEY, VALUE)
    assert Store(folder).get(KEY) == VALUE


@pytest.mark.parametrize("fault", ["truncates", "empties", "flips", "exchanges"])
def test_a_damaged_entry_is_reported_and_not_returned(faulty: str, fault: str) -> None:
    said: list[str] = []
    store = open_shared(faulty, lambda key, reason: said.append(f"{key} {reason}"))
    store.put(KEY, VALUE)
    store.put(OTHER, VALUE + b"!")
    faults.faults.append(getattr(faults, fault))
    assert store.get(KEY) is None
    assert len(said) == 1
    assert said[0].startswith(KEY)
    faults.faults.clear()
    store.put(KEY, VALUE)  # what is compiled in its place replaces it
    assert store.get(KEY) == VALUE


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_no_byte_can_change_unseen(faulty: str, data: st.DataObject) -> None:
    store = open_shared(faulty)
    faults.faults.clear()
    store.put(KEY, VALUE)
    place = data.draw(st.integers(0, 48 + len(VALUE) - 1))
    mask = data.draw(st.integers(1, 255))
    cut = data.draw(st.booleans())

    def change(what: str, _: str, entry: bytes) -> bytes:
        if what == "write":
            return entry
        return entry[:place] if cut else entry[:place] + bytes([entry[place] ^ mask]) + entry[place + 1 :]

    faults.faults.append(change)
    assert store.get(KEY) is None


@pytest.mark.parametrize("fault", ["down", "nonsense"])
def test_what_cannot_be_asked_is_an_error_of_the_store(faulty: str, fault: str) -> None:
    faults.faults.append(getattr(faults, fault))
    with pytest.raises(StoreError, match=r"faulty://cache cannot be read: \w+Error"):
        open_shared(faulty).get(KEY)
    with pytest.raises(StoreError, match=r"faulty://cache cannot be written: \w+Error"):
        open_shared(faulty).put(KEY, VALUE)


def test_no_more_is_read_than_an_entry_may_have(faulty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warpsmith.compiler.shared.MAX_ENTRY_BYTES", 100)
    seen: list[int] = []
    store = open_shared(faulty)
    store.put(KEY, bytes(1000))
    faults.faults.append(lambda _, __, data: seen.append(len(data)) or data)
    assert store.get(KEY) is None
    assert seen == [149]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "no place for a cache"),
        ("folder", "not an absolute path"),
        ("file://folder", "not an absolute path"),
        ("nothing://bucket", "Protocol not known: nothing"),
        ("://bucket", "no place for a cache"),
    ],
)
def test_what_is_no_url_is_refused(url: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        open_shared(url)


WITHOUT = """
import sys
sys.modules[{missing!r}] = None
from warpsmith.compiler.shared import open_shared
open_shared("s3://user:secret@bucket/cache")
"""


@pytest.mark.parametrize("missing", ["fsspec", "s3fs"])
def test_a_missing_package_is_named_with_what_to_install(missing: str) -> None:
    command = [sys.executable, "-c", WITHOUT.format(missing=missing)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stderr.splitlines()[-1]
    assert "InvalidArgumentError: a cache at s3://bucket/cache needs" in said
    assert "pip install 'warpsmith[s3]'" in said
    assert "secret" not in said
