# SPDX-License-Identifier: Apache-2.0
"""The audit: proof, without a GPU, that bundles hold every cubin that dispatch can reach and promises ask for, intact.

Nothing that a bundle says of itself is taken on trust: the plan is derived from the catalog anew, and every cubin is
read. The codes of the findings are stable; ``docs/bundles.md`` lists them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from warpsmith.arch import Capability, Target
from warpsmith.bundle.elf import RECORD_MAGIC, CubinInfo, read_cubin
from warpsmith.bundle.manifest import MANIFEST, CubinEntry, layout
from warpsmith.bundle.reader import Bundle
from warpsmith.bundle.signature import SIGNATURE, PublicKey
from warpsmith.catalog.plan import broken_promises, check, plan
from warpsmith.catalog.selection import Selection
from warpsmith.catalog.source import source_digest
from warpsmith.catalog.spec import Catalog, CubinId, Finding, Kernel, Param
from warpsmith.errors import BundleError, CatalogError, DigestError, ElfError, InvalidArgumentError

_REBUILD = "build the bundle again with this warpsmith"
FIXES = {
    "bundle-unreadable": "install or build the bundle again; a newer schema needs a newer warpsmith",
    "cubin-missing": "install or build the bundle again: its files are not complete",
    "digest-mismatch": "install or build the bundle again: the file was damaged or exchanged",
    "driver-understated": _REBUILD,
    "elf-mismatch": _REBUILD,
    "entry-duplicate": "keep one of the bundles, or the order of the search decides which cubin runs",
    "entry-mismatch": _REBUILD,
    "entry-missing": _REBUILD,
    "entry-unknown": f"{_REBUILD}, or use the warpsmith that it was built with",
    "entry-unplanned": f"{_REBUILD}: the cubin is dead weight",
    "file-stray": "remove the file, or build the bundle again",
    "selection-unknown": f"{_REBUILD}, or use the warpsmith that it was built with",
    "shared-memory": "use smaller tiles or fewer stages in the catalog, and build again",
    "signature-refused": "do not use the bundle; build it with --sign, or get it again from where it was signed",
    "source-mismatch": f"{_REBUILD}: the kernel's source has changed since",
    "wheel-metadata": "do not install the wheel; build or download it again",
    "target-unserved": "build a bundle for it: warpsmith build --arch",
}
"""Code of a finding → what to do."""


def audit(
    bundles: Sequence[Bundle],
    capabilities: Sequence[Capability] | None,
    catalog: Catalog,
    key: PublicKey | None = None,
    *,
    checked: bool = False,
) -> list[Finding]:
    """Hold bundles against the catalog and its promises.

    Parameters
    ----------
    bundles
        The bundles, audited together: a promise is kept if any of them keeps it.
    capabilities
        The devices that they must serve; None for all that their targets run on.
    catalog
        The catalog that dispatch uses.
    key
        The key that has to have signed each bundle; by default none has to.
    checked
        Whether the catalog itself has just been found in order, which takes seconds.

    Returns
    -------
    list of Finding
        Everything wrong, each thing once; empty if nothing is.
    """
    audited = [_Audited(bundle, catalog) for bundle in bundles]
    found = [] if checked else check(catalog)
    if key is not None:
        found += _signatures(bundles, key)
    for one in audited:
        found += one.findings
    found += _duplicates(bundles)
    if capabilities is None:
        capabilities = sorted({c for b in bundles for c in b.manifest.target.serves})
    for capability in capabilities:
        found += _promises(audited, capability, catalog)
    return list(dict.fromkeys(found))


def _signatures(bundles: Sequence[Bundle], key: PublicKey) -> Iterator[Finding]:
    for bundle in bundles:
        try:
            bundle.check_signature(key)
        except BundleError as error:
            yield _finding("signature-refused", str(bundle.path), str(error))


def unreadable(path: Path, error: BundleError) -> Finding:
    """The finding for a bundle that could not even be opened."""
    return _finding("bundle-unreadable", str(path), str(error))


class _Audited:
    """One bundle with what is wrong in it; `faults` says of a cubin why it cannot be used."""

    def __init__(self, bundle: Bundle, catalog: Catalog) -> None:
        self.bundle, self.catalog = bundle, catalog
        self.manifest = bundle.manifest
        self.faults: dict[CubinId, str] = {}
        self.findings = [*self._closure(), *self._files()]
        for entry in self.manifest.cubins:
            cubin = self.manifest.id(entry)
            for code, message in self._entry(cubin, entry):
                self.faults.setdefault(cubin, message)
                self.findings.append(_finding(code, str(cubin), f"{bundle.path}: {cubin} {message}"))

    def why_not(self, cubin: CubinId) -> str | None:
        """Why the bundle does not provide a cubin, or None if it does."""
        if self.bundle.entry(cubin) is None:
            return f"is not in {self.bundle.path}"
        return self.faults.get(cubin)

    def _closure(self) -> Iterator[Finding]:
        """Dispatch reaches nothing that is not here, and nothing is here that dispatch does not reach."""
        path, target = self.bundle.path, self.manifest.target
        try:
            planned = set(plan(self.catalog, [target], self.manifest.selection).for_target(target))
        except InvalidArgumentError as error:
            yield _finding("selection-unknown", str(path), f"{path} was built for a part of the catalog: {error}")
            return
        there = {self.manifest.id(entry) for entry in self.manifest.cubins}
        for cubin in sorted(planned - there, key=str):
            yield _finding("entry-missing", str(cubin), f"{path}: {cubin} is planned, but not in the manifest")
        for cubin in sorted(there - planned, key=str):
            if self._kernel(cubin) is not None:
                yield _finding("entry-unplanned", str(cubin), f"{path}: {cubin} is there, but nothing dispatches to it")

    def _files(self) -> Iterator[Finding]:
        path, target = self.bundle.path, self.manifest.target
        if self.manifest.min_driver < target.min_driver:
            message = (
                f"{path} claims to load on driver {self.manifest.min_driver}, but {target} needs {target.min_driver}"
            )
            yield _finding("driver-understated", str(path), message)
        listed = {MANIFEST, SIGNATURE, *map(self.manifest.file, self.manifest.cubins)}
        try:
            names = self.bundle.files()
        except BundleError as error:
            yield unreadable(path, error)
            return
        for fault in self.bundle.faults():
            yield _finding("wheel-metadata", str(path), f"{path}: {fault}")
        for name in sorted(set(names) - listed):
            yield _finding("file-stray", f"{path}/{name}", f"{path} holds {name}, which its manifest does not list")

    def _kernel(self, cubin: CubinId) -> Kernel | None:
        try:
            kernel = self.catalog.kernel(cubin.kernel)
            kernel.variant(cubin.variant)
        except CatalogError:
            return None
        return kernel

    def _entry(self, cubin: CubinId, entry: CubinEntry) -> Iterator[tuple[str, str]]:
        """(code, message) of everything wrong with one cubin."""
        kernel = self._kernel(cubin)
        if kernel is None:
            yield "entry-unknown", "is not in the catalog"
            return
        given = (entry.module, entry.entry, [(name, ctype) for name, ctype, _ in entry.params])
        expected = (kernel.module, kernel.entry, [(p.name, p.ctype) for p in kernel.params])
        if given != expected:
            yield "entry-mismatch", f"is described as {given}; the catalog has {expected}"
        if entry.source_digest != source_digest(self.catalog, cubin.kernel, cubin.variant):
            made_by = f"warpsmith {self.manifest.package_version}"
            yield "source-mismatch", f"was made by {made_by} from another source than this catalog's"
        try:
            info = read_cubin(self.bundle.cubin(entry))
        except DigestError as error:
            yield "digest-mismatch", f"is damaged: {error}"
        except ElfError as error:
            yield "elf-mismatch", f"is no cubin that can be used: {error}"
        except BundleError as error:
            yield "cubin-missing", f"cannot be read: {error}"
        else:
            differences = list(_differences(entry, kernel, self.manifest.target, self.manifest.toolchain, info))
            if differences:
                yield "elf-mismatch", "; ".join(differences)
            limit = self.manifest.target.shared_memory
            if entry.static_shared + entry.dynamic_shared > limit:
                used = entry.static_shared + entry.dynamic_shared
                yield "shared-memory", f"needs {used} bytes of shared memory a block; {cubin.target} has {limit}"


def _differences(entry: CubinEntry, kernel: Kernel, target: Target, toolchain: str, info: CubinInfo) -> Iterator[str]:
    """What a cubin says of itself that its manifest or the catalog does not."""
    names = [k.entry for k in info.kernels]
    if info.target != target:
        yield f"is made for {info.target}, not for {target}"
    if toolchain != f"nvrtc {info.tool_version}":
        yield f"was compiled by nvrtc {info.tool_version}, not by {toolchain}"
    if info.record is None or info.record[0] != RECORD_MAGIC:
        yield "exports no ws_record that this warpsmith knows"
    else:
        _, shared, threads, _, flags, *_ = info.record
        said = {"dynamic_shared": entry.dynamic_shared, "threads": entry.threads, "flags": entry.flags}
        yield from _compare(said, {"dynamic_shared": shared, "threads": threads, "flags": flags})
    if names != [kernel.entry]:
        yield f"holds the kernels {', '.join(names) or 'none'}, not {kernel.entry} alone"
        return
    own = info.kernels[0]
    expected = _extents(layout(kernel.params, own.param_base))
    if not own.params == _extents(entry.params) == expected:
        yield (
            f"takes parameters (offset, size) {own.params}, the manifest says {_extents(entry.params)}, "
            f"the catalog {expected}"
        )
    said = {"registers": entry.registers, "stack": entry.stack, "static_shared": entry.static_shared}
    yield from _compare(said, {"registers": own.registers, "stack": own.stack, "static_shared": own.static_shared})
    if own.code_bytes == 0:
        yield "has no code"


def _extents(params: Iterable[tuple[str, str, int]]) -> tuple[tuple[int, int], ...]:
    return tuple((offset, Param(name, ctype).size) for name, ctype, offset in params)


def _compare(said: dict[str, int], found: dict[str, int]) -> Iterator[str]:
    for name, value in found.items():
        if said[name] != value:
            yield f"has {name} {value}, the manifest says {said[name]}"


def _duplicates(bundles: Sequence[Bundle]) -> Iterator[Finding]:
    """Cubins that two bundles have under one name with different content; a mere copy is no finding."""
    first: dict[CubinId, tuple[str, Path]] = {}
    for bundle in bundles:
        for entry in bundle.manifest.cubins:
            cubin = bundle.manifest.id(entry)
            digest, path = first.setdefault(cubin, (entry.sha256, bundle.path))
            if digest != entry.sha256:
                message = f"{cubin} is in {path} and, with other content, in {bundle.path}"
                yield _finding("entry-duplicate", str(cubin), message)


def _promises(audited: Sequence[_Audited], capability: Capability, catalog: Catalog) -> Iterator[Finding]:
    serving = [one for one in audited if one.manifest.target.runs_on(capability)]
    if not serving:
        targets = ", ".join(str(one.manifest.target) for one in audited) or "none"
        message = f"no bundle serves compute capability {capability}; the bundles are for: {targets}"
        yield _finding("target-unserved", str(capability), message)

    def availability(cubin: CubinId) -> str | None:
        reasons = [one.why_not(cubin) for one in serving if one.manifest.target == cubin.target]
        if None in reasons:
            return None
        return "; ".join(r for r in reasons if r) or f"no bundle for {cubin.target} was given"

    asked: dict[Selection, Target] = {}
    for one in serving:
        asked.setdefault(one.manifest.selection, one.manifest.target)
    for selection, target in asked.items():
        yield from broken_promises(catalog, capability, availability, selection, target)


def _finding(code: str, subject: str, message: str) -> Finding:
    return Finding(code, subject, message, FIXES[code])
