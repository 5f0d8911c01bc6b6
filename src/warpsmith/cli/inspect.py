# SPDX-License-Identifier: Apache-2.0
"""``warpsmith inspect``: what is in a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from warpsmith.bundle.manifest import CubinEntry
from warpsmith.bundle.reader import Bundle
from warpsmith.catalog.spec import CubinId
from warpsmith.cli.bundles import BundleArgument, open_all
from warpsmith.cli.options import JsonOption
from warpsmith.cli.report import Report, command, cubin_document, pairs, table, target_document
from warpsmith.errors import InvalidArgumentError

_SPILLS = ("STL", "LDL")
_KERNEL = typer.Argument(metavar="KERNEL", help="A kernel, or kernel/variant.", show_default="all")


def inspect(bundle: BundleArgument, kernel: Annotated[str, _KERNEL] = "", json: JsonOption = False) -> None:
    """Registers, shared memory, spills, instructions and evidence of each cubin."""
    with command(json) as report:
        opened, report.findings = open_all(bundle)
        known = {e.kernel for b in opened for e in b.manifest.cubins}
        shown = 0
        for one in opened:
            entries = [e for e in one.manifest.cubins if kernel in ("", e.kernel, f"{e.kernel}/{e.variant}")]
            shown += len(entries)
            proven = _evidence(one)
            describe(report, one, entries, proven)
            report.text += [_summary(one), _figures(one, entries, proven)]
            if kernel:
                report.text += [_census(one, entry) for entry in entries]
        if opened and not shown:
            raise InvalidArgumentError(f"{bundle} has no kernel {kernel!r}; it has {', '.join(sorted(known))}")


def describe(
    report: Report,
    bundle: Bundle,
    entries: Sequence[CubinEntry] | None = None,
    proven: Mapping[CubinId, str] | None = None,
) -> None:
    """Put a bundle's cubins into a report's ``targets``, with their evidence if that is given."""
    cubins = []
    for entry in bundle.manifest.cubins if entries is None else entries:
        status = {} if proven is None else {"evidence": proven[bundle.manifest.id(entry)]}
        cubins.append((entry.module, {**entry_document(bundle, entry), **status}))
    document = target_document(bundle.manifest.target, cubins)
    report.targets.append({**document, **bundle_document(bundle)})


def bundle_document(bundle: Bundle) -> dict[str, Any]:
    """What the manifest says of a bundle as a whole."""
    manifest = bundle.manifest
    return {
        "target": str(manifest.target),
        "bundle": str(bundle.path),
        "package_version": manifest.package_version,
        "toolchain": manifest.toolchain,
        "min_driver": manifest.min_driver,
        "bytes": sum({e.sha256: e.size for e in manifest.cubins}.values()),
        "stored_bytes": sum({e.sha256: bundle.stored(e) for e in manifest.cubins}.values()),
    }


def entry_document(bundle: Bundle, entry: CubinEntry) -> dict[str, Any]:
    """A cubin of a bundle as JSON."""
    return {
        **cubin_document(bundle.manifest.id(entry)),
        "file": bundle.manifest.file(entry),
        "sha256": entry.sha256,
        "bytes": entry.size,
        "stored_bytes": bundle.stored(entry),
        "registers": entry.registers,
        "stack": entry.stack,
        "shared_memory": entry.static_shared + entry.dynamic_shared,
        "threads": entry.threads,
        "spills": spills(entry),
        "instructions": dict(entry.instructions),
    }


def spills(entry: CubinEntry) -> int:
    """Instructions that move registers to and from local memory."""
    return sum(n for opcode, n in entry.instructions if opcode.split(".")[0] in _SPILLS)


def _summary(bundle: Bundle) -> str:
    about = bundle_document(bundle)
    chosen = bundle.manifest.selection
    return pairs(
        {
            "bundle": bundle.path,
            "target": f"{bundle.manifest.target}, runs on {', '.join(map(str, bundle.manifest.target.serves))}",
            "made by": f"warpsmith {bundle.manifest.package_version}, {bundle.manifest.toolchain}",
            "needs driver": f"CUDA {about['min_driver'] // 1000}.{about['min_driver'] % 1000 // 10} or newer",
            "holds": f"{len(bundle.manifest.cubins)} cubins, {about['bytes']} bytes, stored in {about['stored_bytes']}",
            "modules": ", ".join(chosen.modules) or "all",
            "formats": ", ".join(chosen.formats) or "all",
            "models": ", ".join(m.name for m in chosen.models) or "all",
        }
    )


def _figures(bundle: Bundle, entries: Sequence[CubinEntry], proven: Mapping[CubinId, str]) -> Any:
    rows = [
        (
            f"{e.kernel}/{e.variant}",
            e.registers,
            e.static_shared + e.dynamic_shared,
            e.stack,
            spills(e),
            e.threads,
            e.size,
            bundle.stored(e),
            sum(n for _, n in e.instructions),
            ", ".join(f"{n} {opcode}" for opcode, n in _most(e)[:3]),
            proven[bundle.manifest.id(e)],
        )
        for e in entries
    ]
    numbers = ("#registers", "#shared", "#stack", "#spills", "#threads", "#bytes", "#stored", "#instructions")
    return table("cubin", *numbers, "mostly", "evidence", rows=rows)


def _evidence(bundle: Bundle) -> dict[CubinId, str]:
    """What the ledger says of each cubin: the status it has there, stale if that is another cubin's, else compiled."""
    from warpsmith.evidence.ledger import COMPILED, STALE, ledger_path, read_all

    known = {(r.kernel, e.variant, r.target): e for r in read_all(ledger_path()) for e in r.entries}
    found = {}
    for entry in bundle.manifest.cubins:
        claim = known.get((entry.kernel, entry.variant, bundle.manifest.target))
        status = COMPILED if claim is None else claim.status if claim.cubin == entry.sha256 else STALE
        found[bundle.manifest.id(entry)] = status
    return found


def _census(bundle: Bundle, entry: CubinEntry) -> Any:
    return table("#count", "instruction", rows=[(n, o) for o, n in _most(entry)], title=str(bundle.manifest.id(entry)))


def _most(entry: CubinEntry) -> list[tuple[str, int]]:
    return sorted(entry.instructions, key=lambda pair: (-pair[1], pair[0]))
