# SPDX-License-Identifier: Apache-2.0
"""From what a verification found to files of the ledger."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from warpsmith.arch import Target
from warpsmith.bundle.reader import open_bundles
from warpsmith.catalog.resolve import DeviceFacts
from warpsmith.evidence.ledger import EXECUTED, Entry, Record, file_name, merge, read, write
from warpsmith.evidence.verify import Outcome
from warpsmith.runtime.driver import version_text


def records(
    folder: Path, bundle_path: Path, outcomes: Sequence[Outcome], facts: DeviceFacts, commit: str
) -> list[Path]:
    """Write the ledger files of cubins that ran without a mismatch, over what the folder holds of them.

    Returns
    -------
    list[Path]
        The files, one a kernel and target.
    """
    digests: dict[tuple[str, Target], dict[str, str]] = {}
    toolchains: dict[Target, str] = {}
    for bundle in open_bundles(bundle_path):
        target = bundle.manifest.target
        toolchains[target] = bundle.manifest.toolchain
        for held in bundle.manifest.cubins:
            digests.setdefault((held.kernel, target), {})[held.variant] = held.sha256
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    found: dict[tuple[str, Target], list[Entry]] = {}
    for outcome in outcomes:
        cubin = outcome.cubin
        digest = digests.get((cubin.kernel, cubin.target), {}).get(cubin.variant)
        if digest is not None and not outcome.mismatches:
            entry = Entry(
                cubin.variant, digest, EXECUTED, facts.name, version_text(facts.driver), today, commit, outcome.cases,
                outcome.worst,
            )  # fmt: skip
            found.setdefault((cubin.kernel, cubin.target), []).append(entry)
    written = []
    for (kernel, target), entries in sorted(found.items(), key=lambda item: (item[0][0], str(item[0][1]))):
        path = folder / file_name(kernel, target)
        old = read(path) if path.exists() else None
        new = Record(kernel, target, toolchains[target], tuple(entries))
        written.append(write(folder, merge(old, new, digests[kernel, target])))
    return written
