# SPDX-License-Identifier: Apache-2.0
"""Artifacts survive the store or are refused, and a store that fails is done without."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpsmith.bundle.store import Store
from warpsmith.compiler.cache import Artifact, Cache
from warpsmith.errors import StoreError

KEY, OTHER = "a" * 64, "b" * 64
ARTIFACT = Artifact(b"\x7fELF\n\n\0", "ptxas info\n", (("EXIT", 1), ("STG.E", 2)), "13.5.37")
censuses = st.lists(st.tuples(st.text(max_size=8), st.integers(1, 99)), max_size=4).map(tuple)


class Failing:
    """A store that fails as told, and notes what it was asked for."""

    def __init__(self, read: Exception | None = None, write: Exception | None = None) -> None:
        self.read, self.write, self.asked, self.kept = read, write, list[str](), dict[str, bytes]()

    def get(self, key: str) -> bytes | None:
        self.asked.append(key)
        if self.read:
            raise self.read
        return self.kept.get(key)

    def put(self, key: str, data: bytes) -> None:
        self.asked.append(key)
        if self.write:
            raise self.write
        self.kept[key] = data


def warnings_of(*steps: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in steps:
            step()
    return [str(warning.message) for warning in caught]


@given(st.binary(), st.text(st.characters(exclude_categories=["Cs"])), censuses)
def test_an_artifact_reads_back_as_it_was_written(cubin: bytes, log: str, census: tuple[tuple[str, int], ...]) -> None:
    artifact = Artifact(cubin, log, census, "13.5.37")
    assert Artifact.from_bytes(KEY, artifact.to_bytes(KEY)) == artifact


@given(st.data())
def test_damaged_artifacts_are_refused_or_the_same(data: st.DataObject) -> None:
    raw = bytearray(ARTIFACT.to_bytes(KEY))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))
    try:
        found = Artifact.from_bytes(KEY, bytes(raw))
    except StoreError:
        return
    assert found.cubin == ARTIFACT.cubin


@given(st.binary(max_size=64))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(StoreError):
        Artifact.from_bytes(KEY, data)


def test_an_artifact_filed_under_another_key_is_not_used(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(OTHER, ARTIFACT.to_bytes(KEY))
    with pytest.warns(RuntimeWarning, match=f"entry {OTHER} is not used.*key {KEY}"):
        assert Cache(store).get(OTHER, "13.5.37") is None


def test_a_census_of_another_disassembler_is_not_used(tmp_path: Path) -> None:
    cache = Cache(Store(tmp_path))
    cache.put(KEY, ARTIFACT)
    assert cache.get(KEY, "13.5.37") == ARTIFACT
    assert cache.get(KEY, "13.6.0") is None


def test_without_a_store_nothing_is_kept() -> None:
    cache = Cache(None)
    cache.put(KEY, ARTIFACT)
    assert cache.get(KEY, "13.5.37") is None


@pytest.mark.parametrize("error", [StoreError("the folder is read-only"), OSError(28, "No space left on device")])
def test_a_store_that_cannot_be_written_costs_one_warning(error: Exception) -> None:
    store = Failing(write=error)
    cache = Cache(store)
    said = warnings_of(*[lambda: cache.put(KEY, ARTIFACT)] * 3)
    assert len(said) == 1
    assert "cannot be written" in said[0]
    assert str(error) in said[0]
    cache.get(OTHER, "13.5.37")
    assert store.asked == [KEY, OTHER]  # it is written once, and still read


def test_a_store_that_cannot_be_read_costs_one_warning() -> None:
    store = Failing(read=StoreError("connection refused"))
    cache = Cache(store)
    said = warnings_of(
        lambda: cache.get(KEY, "13.5.37"), lambda: cache.get(OTHER, "13.5.37"), lambda: cache.put(KEY, ARTIFACT)
    )
    assert len(said) == 1
    assert "connection refused" in said[0]
    assert store.asked == [KEY]


def test_a_folder_that_is_a_file_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    cache = Cache(Store(tmp_path / "cache"))
    assert len(warnings_of(lambda: cache.put(KEY, ARTIFACT), lambda: cache.put(OTHER, ARTIFACT))) == 1


def test_a_healthy_store_warns_of_nothing(tmp_path: Path) -> None:
    cache = Cache(Store(tmp_path))
    assert warnings_of(lambda: cache.get(KEY, "13.5.37"), lambda: cache.put(KEY, ARTIFACT)) == []
    assert cache.get(KEY, "13.5.37") == ARTIFACT
