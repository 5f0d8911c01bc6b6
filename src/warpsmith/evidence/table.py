# SPDX-License-Identifier: Apache-2.0
"""The README's hardware table, generated from the ledger and the cubins that the pinned toolchain makes now.

``python -m warpsmith.evidence.table README.md`` rewrites the part between the markers; ``--check`` only compares.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from warpsmith.arch import Capability, Target, default_target
from warpsmith.bundle.reader import open_bundles
from warpsmith.bundle.store import Store
from warpsmith.catalog import CATALOG
from warpsmith.catalog.plan import plan
from warpsmith.catalog.selection import Selection
from warpsmith.errors import EvidenceError
from warpsmith.evidence.ledger import (
    COMPILED,
    EMULATED,
    EXECUTED,
    STALE,
    Record,
    Standing,
    ledger_path,
    read_all,
    standing,
)

BEGIN, END = "<!-- hardware table: begin -->", "<!-- hardware table: end -->"
SHOWN = tuple(Capability(*c) for c in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1)))


def digests(
    targets: Sequence[Target], cache: Path, modules: tuple[str, ...] = ()
) -> list[tuple[str, str, Target, str]]:
    """(kernel, variant, target, SHA-256) of every planned cubin of some targets, built or taken from the cache."""
    from warpsmith.compiler.build import build

    if not targets:
        return []
    with tempfile.TemporaryDirectory(prefix="warpsmith-table-") as scratch:
        build(CATALOG, targets, Path(scratch), store=Store(cache), selection=Selection(modules=modules))
        return [
            (entry.kernel, entry.variant, bundle.manifest.target, entry.sha256)
            for bundle in open_bundles(Path(scratch))
            for entry in bundle.manifest.cubins
        ]


def render(records: Sequence[Record], cubins: Sequence[tuple[str, str, Target, str]]) -> str:
    """The table as Markdown: a row a kernel, a column a capability, in it what the default target's cubins stand at."""
    held = {(s.kernel, s.target): s for s in standing(records, cubins)}
    lines = [
        "| kernel | " + " | ".join(map(str, SHOWN)) + " |",
        "| --- |" + " --- |" * len(SHOWN),
    ]
    planned = {c: {cubin.kernel for cubin in plan(CATALOG, [default_target(c)]).cubins} for c in SHOWN}
    for kernel in CATALOG.kernels:
        cells = [_cell(held.get((kernel.name, default_target(c))), kernel.name in planned[c]) for c in SHOWN]
        lines.append(f"| `{kernel.name}` | " + " | ".join(cells) + " |")
    notes = sorted({_note(r) for r in records if r.entries})
    return "\n".join([*lines, "", *notes])


def _cell(found: Standing | None, planned: bool) -> str:
    if found is None:
        return "compiled" if planned else "–"
    counts = dict(found.counts)
    if set(counts) == {EXECUTED}:
        return f"**executed**, {found.cases} cases"
    if set(counts) == {EMULATED}:
        return f"emulated, {found.cases} cases"
    if counts.get(STALE):
        return f"stale ({counts[STALE]} of {sum(counts.values())})"
    return ", ".join(f"{status} {n}" for status, n in counts.items()) if set(counts) != {COMPILED} else "compiled"


def _note(record: Record) -> str:
    ran = [e for e in record.entries if e.status != COMPILED]
    how = {EMULATED: "emulated on "}
    places = sorted({f"{how.get(e.status, '')}{e.device}, driver {e.driver}, {e.date}" for e in ran})
    return f"{record.target}: {'; '.join(places)}; cubins by {record.toolchain}."


def replaced(text: str, table: str) -> str:
    """The text with the part between the markers replaced.

    Raises
    ------
    EvidenceError
        If the text has not both markers, in order.
    """
    start, stop = text.find(BEGIN), text.find(END)
    if start < 0 or stop < start:
        raise EvidenceError(f"the text has no {BEGIN} … {END}; put the two markers where the table belongs")
    return f"{text[: start + len(BEGIN)]}\n{table}\n{text[stop:]}"


def current(cache: Path) -> str:
    """The table as it should be now.

    Raises
    ------
    EvidenceError
        If a ledger file is damaged, or made by another toolchain than the one installed.
    """
    from warpsmith.compiler.toolchain import find_toolchain

    records = read_all(ledger_path())
    installed = f"nvrtc {find_toolchain().nvrtc_version}"
    for record in records:
        if record.toolchain != installed:
            raise EvidenceError(
                f"the ledger of {record.kernel} on {record.target} is for {record.toolchain}, but {installed} is "
                "installed; install the pinned one: pip install --no-deps -r scripts/toolchain.txt"
            )
    return render(records, digests(sorted({r.target for r in records}, key=str), cache))


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check the table of a file."""
    from warpsmith.settings import Settings

    parser = argparse.ArgumentParser(prog="python -m warpsmith.evidence.table", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    text = given.file.read_text(encoding="utf-8")
    wanted = replaced(text, current(Settings.from_environment().cache_dir))
    if wanted == text:
        return 0
    if given.check:
        sys.stderr.write(
            f"{given.file} is not what the ledger carries; run python -m warpsmith.evidence.table README.md\n"
        )
        return 1
    given.file.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
