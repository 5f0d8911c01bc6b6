# SPDX-License-Identifier: Apache-2.0
"""The evidence ledger: what each cubin was executed on, and with what result.

One small JSON file a kernel and target, below ``evidence/ledger``. An entry is keyed by the SHA-256 of the cubin that
the pinned toolchain makes, so a changed kernel turns its entry stale by itself, and a changed comment does not. The
ledger is attestation, not proof: `warpsmith verify` repeats it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from warpsmith.arch import Target, parse
from warpsmith.errors import EvidenceError, TargetError

SCHEMA = 1
EXECUTED, EMULATED, COMPILED, STALE = "executed", "emulated", "compiled", "stale"
_STATUS = (EXECUTED, EMULATED, COMPILED)


@dataclass(frozen=True)
class Entry:
    """What is known of one cubin.

    Attributes
    ----------
    variant
        The variant of the file's kernel.
    cubin
        SHA-256 of the cubin, in hex.
    status
        ``executed`` (this cubin ran), ``emulated`` (the same source ran with its MMA replaced by a software one) or
        ``compiled``.
    device, driver
        Where it ran; empty for ``compiled``.
    date
        ISO date of the run.
    commit
        The source revision, abbreviated.
    cases
        Number of cases compared.
    worst
        Largest error over all cases, in the measure of ``docs/numerics.md`` (0 means bit-identical).
    """

    variant: str
    cubin: str
    status: str
    device: str = ""
    driver: str = ""
    date: str = ""
    commit: str = ""
    cases: int = 0
    worst: float = 0.0


@dataclass(frozen=True)
class Record:
    """One file of the ledger: a kernel on a target."""

    kernel: str
    target: Target
    toolchain: str
    entries: tuple[Entry, ...]


def ledger_path() -> Path:
    """The folder of the package's own ledger."""
    return Path(__file__).parent / "ledger"


def file_name(kernel: str, target: Target) -> str:
    """The name of a ledger file."""
    return f"{kernel}.{target}.json"


def write(folder: Path, record: Record) -> Path:
    """Write one ledger file; entries are sorted, so that a diff shows what changed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(record.kernel, record.target)
    entries = [asdict(e) for e in sorted(record.entries, key=lambda e: e.variant)]
    document = {
        "schema": SCHEMA,
        "kernel": record.kernel,
        "target": str(record.target),
        "toolchain": record.toolchain,
        "entries": entries,
    }
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def read(path: Path) -> Record:
    """Read one ledger file.

    Raises
    ------
    EvidenceError
        If the file is not a ledger file; the message names the file and what is wrong.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise EvidenceError(f"{path}: schema {document['schema']!r}; this version reads {SCHEMA}")
        entries = tuple(Entry(**entry) for entry in document["entries"])
        record = Record(document["kernel"], parse(document["target"]), document["toolchain"], entries)
    except (OSError, ValueError, KeyError, TypeError, TargetError) as error:
        raise EvidenceError(f"{path} is not a ledger file: {type(error).__name__}: {error}") from error
    for entry in entries:
        _check(path, entry)
    return record


def _check(path: Path, entry: Entry) -> None:
    if entry.status not in _STATUS:
        raise EvidenceError(
            f"{path}: {entry.variant} has status {entry.status!r}; expected one of {', '.join(_STATUS)}"
        )
    ran = entry.status in (EXECUTED, EMULATED)
    if ran and not (entry.device and entry.driver and entry.date and entry.cases > 0):
        raise EvidenceError(f"{path}: {entry.variant} claims {entry.status} without device, driver, date and cases")
    if len(entry.cubin) != 64 or set(entry.cubin) - set("0123456789abcdef"):
        raise EvidenceError(f"{path}: {entry.variant} has cubin {entry.cubin!r}; expected 64 hexadecimal digits")


def read_all(folder: Path) -> tuple[Record, ...]:
    """Every record of a ledger folder, in order of file name; none if the folder does not exist."""
    return tuple(read(path) for path in sorted(folder.glob("*.json")))


def merge(old: Record | None, new: Record, current: Mapping[str, str]) -> Record:
    """Put new entries over old ones; an entry of a variant that no longer exists is dropped.

    Parameters
    ----------
    old, new
        The record on file, if any, and the one just made.
    current
        Variant → SHA-256 of its cubin now.
    """
    entries = {e.variant: e for e in (old.entries if old else ()) if e.variant in current}
    for entry in new.entries:
        before = entries.get(entry.variant)
        kept = before is not None and before.cubin == entry.cubin and before.status != COMPILED
        if entry.status != COMPILED or not kept:
            entries[entry.variant] = entry
    return Record(new.kernel, new.target, new.toolchain, tuple(entries.values()))


@dataclass(frozen=True)
class Standing:
    """How a kernel stands on a target: variants a status, and where they ran."""

    kernel: str
    target: Target
    counts: tuple[tuple[str, int], ...]
    devices: tuple[str, ...]
    cases: int


def standing(records: Sequence[Record], cubins: Iterable[tuple[str, str, Target, str]]) -> tuple[Standing, ...]:
    """Hold the ledger against the cubins that exist now.

    Parameters
    ----------
    records
        The ledger.
    cubins
        (kernel, variant, target, SHA-256) of every planned cubin, as the pinned toolchain makes it.

    Returns
    -------
    tuple[Standing, ...]
        One a kernel and target; a variant whose cubin differs from its entry counts as ``stale``, one without an entry
        as ``compiled`` (it was just built).
    """
    known = {(r.kernel, e.variant, r.target): e for r in records for e in r.entries}
    counts: dict[tuple[str, Target], dict[str, int]] = {}
    devices: dict[tuple[str, Target], dict[str, None]] = {}
    cases: dict[tuple[str, Target], int] = {}
    for kernel, variant, target, digest in cubins:
        entry = known.get((kernel, variant, target))
        status = COMPILED if entry is None else entry.status if entry.cubin == digest else STALE
        if entry is not None and entry.status == COMPILED:
            status = COMPILED
        key = (kernel, target)
        tally = counts.setdefault(key, {})
        tally[status] = tally.get(status, 0) + 1
        if entry is not None and status in (EXECUTED, EMULATED):
            devices.setdefault(key, {})[entry.device] = None
            cases[key] = cases.get(key, 0) + entry.cases
    return tuple(
        Standing(k, t, tuple(sorted(tally.items())), tuple(devices.get((k, t), {})), cases.get((k, t), 0))
        for (k, t), tally in counts.items()
    )
