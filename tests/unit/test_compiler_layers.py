# SPDX-License-Identifier: Apache-2.0
"""A shared cache that is slow, stuck, read-only, damaged or gone: bounded waits, one warning, and the build goes on."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from warpsmith.bundle.store import Store
from warpsmith.compiler.cache import AheadStore, Artifact, Cache
from warpsmith.compiler.layers import Layers, Patient
from warpsmith.compiler.shared import open_shared
from warpsmith.errors import StoreError

pytest.importorskip("fsspec")
faults = pytest.importorskip("faulty_cache")
KEYS = [f"{number:064x}" for number in range(40)]
VALUES = {key: b"value " + key.encode() for key in KEYS}


@pytest.fixture
def url() -> Iterator[str]:
    with faults.faulty() as given:
        yield given


def stores(folder: Path, url: str, timeout: float = 0.3, patience: float = 1.0, *, release: bool = False) -> Layers:
    shared = Patient(open_shared(url), timeout=timeout, patience=patience, worth=0.01)
    return Layers(Store(folder), shared, Store(folder / "shared"), read_shared=not release)


def fill(url: str) -> None:
    store = open_shared(url)
    for key, value in VALUES.items():
        store.put(key, value)


def said(run: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught]


def read_all(layers: Layers, found: dict[str, bytes | None]) -> None:
    layers.expect(KEYS)
    found.update((key, layers.get(key)) for key in KEYS)


def write_all(layers: Layers) -> None:
    with layers:
        for key, value in VALUES.items():
            layers.put(key, value)


def test_what_one_machine_makes_another_finds(tmp_path: Path, url: str) -> None:
    found: dict[str, bytes | None] = {}
    assert said(lambda: write_all(stores(tmp_path / "one", url))) == []
    assert said(lambda: read_all(stores(tmp_path / "two", url), found)) == []
    assert found == VALUES


def test_the_nearest_place_is_asked_first(tmp_path: Path, url: str) -> None:
    fill(url)
    Store(tmp_path).put(KEYS[0], b"mine")
    layers = stores(tmp_path, url)
    faults.calls.clear()
    layers.expect(KEYS[:2])
    assert (layers.get(KEYS[0]), layers.get(KEYS[1])) == (b"mine", VALUES[KEYS[1]])
    assert stores(tmp_path, url).get(KEYS[1]) == VALUES[KEYS[1]]
    assert [path[-10:] for _, path in faults.calls] == [f"{KEYS[1][-4:]}.entry"]


def test_copies_of_shared_entries_are_kept_apart_and_a_release_reads_neither(tmp_path: Path, url: str) -> None:
    fill(url)
    assert stores(tmp_path, url).get(KEYS[0]) == VALUES[KEYS[0]]
    assert Store(tmp_path).get(KEYS[0]) is None
    assert Store(tmp_path / "shared").get(KEYS[0]) == VALUES[KEYS[0]]
    faults.calls.clear()
    with stores(tmp_path, url, release=True) as layers:
        layers.expect(KEYS)
        assert [layers.get(key) for key in KEYS] == [None] * len(KEYS)
        assert faults.calls == []
        layers.put(KEYS[0], b"compiled here")
        assert layers.get(KEYS[0]) == b"compiled here"
    assert open_shared(url).get(KEYS[0]) == b"compiled here"


def test_what_is_found_here_is_shared_unless_it_is(tmp_path: Path, url: str) -> None:
    for key in KEYS[:3]:
        Store(tmp_path).put(key, VALUES[key])
    Store(tmp_path / "shared").put(KEYS[3], VALUES[KEYS[3]])
    open_shared(url).put(KEYS[0], b"of another")
    faults.calls.clear()
    with stores(tmp_path, url) as layers:
        layers.expect(KEYS[:4])
        assert [layers.get(key) for key in KEYS[:4]] == [VALUES[key] for key in KEYS[:4]]
    assert sorted(path[-10:] for _, path in faults.calls) == [f"{key[-4:]}.entry" for key in KEYS[1:3]]
    assert {what for what, _ in faults.calls} == {"write"}
    shared = open_shared(url)
    assert [shared.get(key) for key in KEYS[:4]] == [b"of another", VALUES[KEYS[1]], VALUES[KEYS[2]], None]


def test_a_release_shares_what_this_machine_compiled_before(tmp_path: Path, url: str) -> None:
    Store(tmp_path).put(KEYS[0], VALUES[KEYS[0]])
    with stores(tmp_path, url, release=True) as layers:
        assert layers.get(KEYS[0]) == VALUES[KEYS[0]]
    assert [what for what, _ in faults.calls] == ["write"]
    assert open_shared(url).get(KEYS[0]) == VALUES[KEYS[0]]


@pytest.mark.parametrize("fault", ["down", "stuck", "nonsense", "read_only", "full", "stuck_writes"])
def test_sharing_what_is_found_here_costs_at_most_one_warning_and_one_wait(
    tmp_path: Path, url: str, fault: str
) -> None:
    for key, value in VALUES.items():
        Store(tmp_path).put(key, value)
    faults.faults.append(getattr(faults, fault))
    found: dict[str, bytes | None] = {}

    def build() -> None:
        with stores(tmp_path, url) as layers:
            read_all(layers, found)

    start = time.monotonic()
    told = said(build)
    assert time.monotonic() - start < 2
    assert found == VALUES
    assert len(told) == 1
    assert "the shared compile cache cannot be written" in told[0]


def test_reading_goes_on_side_by_side(tmp_path: Path, url: str) -> None:
    fill(url)
    faults.faults.append(faults.slow(0.05))
    found: dict[str, bytes | None] = {}
    start = time.monotonic()
    assert said(lambda: read_all(stores(tmp_path, url), found)) == []
    assert time.monotonic() - start < 0.05 * len(KEYS) / 2
    assert found == VALUES


@pytest.mark.parametrize("fault", ["down", "stuck", "nonsense"])
def test_a_cache_that_does_not_answer_costs_one_warning_and_one_wait(tmp_path: Path, url: str, fault: str) -> None:
    fill(url)
    faults.faults.append(getattr(faults, fault))
    layers, found = stores(tmp_path, url), dict[str, bytes | None]()
    start = time.monotonic()
    told = said(lambda: (read_all(layers, found), write_all(layers)))
    assert time.monotonic() - start < 2
    assert len(told) == 1
    assert "not used for the rest of this build" in told[0]
    assert set(found.values()) == {None}
    assert Store(tmp_path).get(KEYS[3]) == VALUES[KEYS[3]]


def test_a_cache_slower_than_compiling_is_given_up(tmp_path: Path, url: str) -> None:
    fill(url)
    faults.faults.append(faults.slow(0.2))
    layers = stores(tmp_path, url, patience=0.3)
    told = said(lambda: [layers.get(key) for key in KEYS])
    assert len(told) == 1
    assert "more than compiling them takes" in told[0]


@pytest.mark.parametrize("fault", ["read_only", "full"])
def test_a_cache_that_cannot_be_written_is_still_read(tmp_path: Path, url: str, fault: str) -> None:
    fill(url)
    faults.faults.append(getattr(faults, fault))
    layers, found = stores(tmp_path, url), dict[str, bytes | None]()
    told = said(lambda: write_all(layers))
    assert len(told) == 1
    assert "the shared compile cache cannot be written" in told[0]
    read_all(stores(tmp_path / "other", url), found)
    assert found == VALUES


def test_writes_that_hang_are_left_to_themselves(tmp_path: Path, url: str) -> None:
    faults.faults.append(faults.stuck_writes)
    start = time.monotonic()
    told = said(lambda: write_all(stores(tmp_path, url)))
    assert time.monotonic() - start < 2
    assert len(told) == 1
    assert "could not be written in time" in told[0]


def test_an_interrupted_build_does_not_wait_for_the_cache(tmp_path: Path, url: str) -> None:
    faults.faults.append(faults.stuck_writes)
    start = time.monotonic()
    layers = stores(tmp_path, url, timeout=30, patience=60)
    layers.put(KEYS[0], b"")
    layers.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert time.monotonic() - start < 2


def test_a_hanging_cache_does_not_hold_up_the_interpreters_exit(tmp_path: Path) -> None:
    code = (
        "import time, warnings\nfrom pathlib import Path\nfrom warpsmith.bundle.store import Store\n"
        "from warpsmith.compiler.layers import Layers, Patient\n"
        "class Stuck:\n"
        "    def get(self, key): time.sleep(60)\n"
        "    put = get\n"
        "warnings.simplefilter('ignore')\n"
        f"store = Store(Path({str(tmp_path)!r}))\n"
        "layers = Layers(store, Patient(Stuck(), timeout=.1), store)\n"
        "print(layers.get('a' * 64))"
    )
    start = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "None\n"
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("fault", ["truncates", "flips", "exchanges", "empties"])
def test_damage_costs_a_compile_and_is_mended(tmp_path: Path, url: str, fault: str) -> None:
    fill(url)
    reported: list[str] = []
    shared = Patient(open_shared(url, lambda key, _: reported.append(key)))
    layers = Layers(Store(tmp_path), shared, Store(tmp_path / "shared"))
    faults.faults.append(getattr(faults, fault))
    found: dict[str, bytes | None] = {}
    assert said(lambda: read_all(layers, found)) == []
    lost = {key for key, value in found.items() if value is None}
    assert lost == set(reported) >= set(KEYS[1:])  # exchanged entries: the first is itself
    faults.faults.clear()
    write_all(layers)
    read_all(stores(tmp_path / "other", url), found)
    assert found == VALUES


def test_a_local_cache_that_cannot_be_written_leaves_the_shared_one(tmp_path: Path, url: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    told = said(lambda: write_all(stores(tmp_path / "file", url)))
    assert len(told) == 1
    assert "the compile cache cannot be written" in told[0]
    assert open_shared(url).get(KEYS[5]) == VALUES[KEYS[5]]


def test_the_builds_cache_reads_ahead(tmp_path: Path, url: str) -> None:
    artifact = Artifact(b"\x7fELF", "", (), "13.5.37")
    open_shared(url).put(KEYS[0], artifact.to_bytes(KEYS[0]))
    layers = stores(tmp_path, url)
    assert isinstance(layers, AheadStore)
    assert not isinstance(Store(tmp_path), AheadStore)
    cache = Cache(layers)
    cache.expect(KEYS[:2])
    while len(faults.calls) < 3:
        time.sleep(0.001)
    assert cache.get(KEYS[0], "13.5.37") == artifact
    Cache(Store(tmp_path)).expect(KEYS)


def test_a_patient_store_raises_what_went_wrong(url: str) -> None:
    patient = Patient(open_shared(url), timeout=0.2)
    faults.faults.append(faults.down)
    with pytest.raises(StoreError, match="Connection refused"):
        patient.get(KEYS[0])
    patient.put(KEYS[0], b"")
    with pytest.raises(StoreError, match="Connection refused"):
        patient.flush()
