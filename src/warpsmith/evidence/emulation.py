# SPDX-License-Identifier: Apache-2.0
"""What an execution says of kernels that no device at hand can run: their source ran, with one instruction in software.

``python -m warpsmith.evidence.emulation`` reads the ledger, builds the cubins that it needs, and writes an ``emulated``
entry for each variant whose twin in software was executed as it is now. A kernel's row names the one that it emulates.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from warpsmith.arch import Target, default_target
from warpsmith.catalog import CATALOG
from warpsmith.catalog.source import source_digest
from warpsmith.catalog.spec import Catalog, CubinId
from warpsmith.evidence.ledger import (
    EMULATED,
    EXECUTED,
    Entry,
    Record,
    file_name,
    ledger_path,
    merge,
    read,
    read_all,
    write,
)


def emulated(catalog: Catalog, records: Sequence[Record], digests: Mapping[CubinId, str]) -> tuple[Record, ...]:
    """The records of emulated kernels that follow from those of executed ones.

    Parameters
    ----------
    catalog
        Whose kernels they are.
    records
        The ledger.
    digests
        SHA-256 of the cubins as they are made now, of both kernels.

    Returns
    -------
    tuple[Record, ...]
        One a kernel and default target. A variant has no entry where its twin was not executed, is stale, or is made
        of another source.
    """
    found: dict[tuple[str, Target], list[Entry]] = {}
    toolchains: dict[tuple[str, Target], str] = {}
    for record in records:
        twin = next((k for k in catalog.kernels if k.name == record.kernel and k.emulates), None)
        if twin is None:
            continue
        native = catalog.kernel(twin.emulates)
        for target in dict.fromkeys(default_target(c) for c in native.capabilities):
            for entry in record.entries:
                own = digests.get(CubinId(native.name, entry.variant, target))
                ran = entry.status == EXECUTED and entry.cubin == digests.get(
                    CubinId(twin.name, entry.variant, record.target)
                )
                sources = {source_digest(catalog, k.name, entry.variant) for k in (twin, native)} if own and ran else ()
                if own and len(sources) == 1:
                    found.setdefault((native.name, target), []).append(replace(entry, cubin=own, status=EMULATED))
                    toolchains[native.name, target] = record.toolchain
    return tuple(Record(kernel, target, toolchains[kernel, target], tuple(e)) for (kernel, target), e in found.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Bring the emulated entries of a ledger up to date."""
    from warpsmith.evidence.table import digests
    from warpsmith.settings import Settings

    parser = argparse.ArgumentParser(prog="python -m warpsmith.evidence.emulation", description=__doc__)
    parser.add_argument("ledger", type=Path, nargs="?", default=ledger_path())
    folder = parser.parse_args(arguments).ledger
    twins = [k for k in CATALOG.kernels if k.emulates]
    kernels = [*twins, *(CATALOG.kernel(k.emulates) for k in twins)]
    targets = sorted({default_target(c) for k in kernels for c in k.capabilities}, key=str)
    modules = tuple(dict.fromkeys(k.module for k in kernels))
    built = digests(targets, Settings.from_environment().cache_dir, modules)
    current = {CubinId(kernel, variant, target): digest for kernel, variant, target, digest in built}
    for record in emulated(CATALOG, read_all(folder), current):
        path = folder / file_name(record.kernel, record.target)
        variants = {c.variant: d for c, d in current.items() if (c.kernel, c.target) == (record.kernel, record.target)}
        written = write(folder, merge(read(path) if path.exists() else None, record, variants))
        sys.stdout.write(f"{written}: {len(record.entries)} of {len(variants)} variants emulated\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
