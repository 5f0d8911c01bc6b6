# SPDX-License-Identifier: Apache-2.0
"""Building bundles for a fleet, and single cubins for just-in-time use: one path for both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from warpsmith._version import __version__
from warpsmith.arch import CAPABILITIES, Target
from warpsmith.bundle.audit import audit
from warpsmith.bundle.index import write_index
from warpsmith.bundle.manifest import CubinEntry, Manifest
from warpsmith.bundle.reader import open_bundle
from warpsmith.bundle.signature import SigningKey
from warpsmith.bundle.writer import write_bundle, write_wheel
from warpsmith.catalog.plan import Plan, broken_promises, check, plan
from warpsmith.catalog.selection import Selection
from warpsmith.catalog.spec import Catalog, CubinId, Finding
from warpsmith.compiler.cache import ByteStore, Cache
from warpsmith.compiler.compilation import Outcome, Progress, compile_cubins
from warpsmith.compiler.key import catalog_digest
from warpsmith.compiler.toolchain import Toolchain, find_toolchain
from warpsmith.errors import BundleError, CatalogError, InvalidArgumentError


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes
    ----------
    bundles
        The directories or wheels it wrote, one a target.
    compiled, cached
        How many cubins were compiled, and how many the compile cache had.
    seconds
        Wall time.
    findings
        What the audit of the bundles found; empty if they are whole.
    """

    bundles: tuple[Path, ...]
    compiled: int
    cached: int
    seconds: float
    findings: tuple[Finding, ...]


def build(
    catalog: Catalog,
    targets: Sequence[Target],
    out: Path,
    *,
    selection: Selection | None = None,
    jobs: int | None = None,
    store: ByteStore | None = None,
    executor: Executor | None = None,
    wheel: bool = False,
    signing: SigningKey | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Compile the plan of a catalog and write one bundle a target.

    Parameters
    ----------
    catalog
        What there is to build.
    targets
        What to build it for; a target that is named twice is built once.
    out
        The directory that gets ``<target>/``, or the wheels. An older bundle of the same target is replaced whole.
    selection
        Modules, formats and models' shapes to build for; by default all.
    jobs
        Worker processes at most; by default what cores and memory bear.
    store
        The compile cache. If it fails, the build goes on without it, with one warning.
    executor
        Runs the jobs in place of local workers, on a cluster for example.
    wheel
        Write installable wheels in place of directories, and an index of all wheels there.
    signing
        The key that signs each bundle; by default none does.
    progress
        Called with (cubins done, cubins in all, the last one).

    Raises
    ------
    CatalogError
        If the catalog contradicts itself, or the plan leaves a promise open; with every finding.
    InvalidArgumentError
        If the selection names what does not exist, or leaves nothing to build for a target.
    CompileError
        If a cubin cannot be compiled, or is not what the catalog asks for.
    ToolchainError
        If NVRTC or nvdisasm is missing or too old.
    BundleError
        If `out` cannot be written; nothing there is left half-written.

    Notes
    -----
    Two builds of the same sources with the same toolchain write the same bytes.
    """
    start = time.monotonic()
    chosen = (selection or Selection()).canonical()
    wanted = _planned(catalog, targets, chosen)
    _make_folder(out)
    toolchain = find_toolchain()
    outcome = compile_cubins(
        catalog,
        wanted.cubins,
        toolchain=toolchain,
        cache=Cache(store),
        executor=executor,
        jobs=jobs,
        progress=progress,
    )
    digest = catalog_digest(catalog)
    written = []
    for target in wanted.targets:
        manifest = _manifest(target, wanted, outcome, toolchain, chosen, digest)
        written.append(_write(out, manifest, outcome, wheel, signing))
    if wheel:
        write_index(out)
    bundles, key = [open_bundle(path) for path in written], signing.public if signing else None
    findings = audit(bundles, None, catalog, key, checked=True)
    elapsed = time.monotonic() - start
    return BuildReport(tuple(written), outcome.compiled, outcome.cached, elapsed, tuple(findings))


def compile_one(
    catalog: Catalog, cubin: CubinId, store: ByteStore | None, toolchain: Toolchain | None = None
) -> tuple[CubinEntry, bytes]:
    """One cubin and its row of a manifest, from the cache or compiled now, checked as in a build.

    The worker process that compiles it is started for it and ends with it, so that a serving process keeps no other.

    Raises
    ------
    CompileError
        If it cannot be compiled, or is not what the catalog asks for.
    ToolchainError
        If NVRTC or nvdisasm is missing or too old.
    """
    outcome = compile_cubins(catalog, [cubin], toolchain=toolchain or find_toolchain(), cache=Cache(store), jobs=1)
    return outcome.cubins[cubin]


def _planned(catalog: Catalog, targets: Sequence[Target], selection: Selection) -> Plan:
    if not targets:
        raise InvalidArgumentError("no target was given; name at least one, such as 12.1")
    wanted = plan(catalog, targets, selection)
    findings = [*check(catalog, ()), *wanted.missing]
    if not findings:  # promises for devices that are not built for count too: the same catalog dispatches on them
        findings += (f for c in CAPABILITIES for f in broken_promises(catalog, c, selection=selection))
    if findings:
        lines = "\n".join(f"  [{f.code}] {f.message}" for f in findings)
        raise CatalogError(f"nothing is built, because the catalog is not in order:\n{lines}")
    for target in wanted.targets:
        if not wanted.for_target(target):
            raise InvalidArgumentError(
                f"there is nothing to build for {target}: no kernel of the selection runs there; leave it out, or "
                "select more modules or formats"
            )
    return wanted


def _manifest(
    target: Target, wanted: Plan, outcome: Outcome, toolchain: Toolchain, selection: Selection, digest: str
) -> Manifest:
    return Manifest(
        target=target,
        package_version=__version__,
        min_driver=target.min_driver,
        toolchain=toolchain.compiler,
        selection=selection,
        catalog_digest=digest,
        cubins=tuple(outcome.cubins[cubin][0] for cubin in wanted.for_target(target)),
    )


def _write(out: Path, manifest: Manifest, outcome: Outcome, wheel: bool, signing: SigningKey | None) -> Path:
    cubins = {entry.sha256: data for entry, data in outcome.cubins.values()}
    own = {entry.sha256: cubins[entry.sha256] for entry in manifest.cubins}
    if wheel:
        return write_wheel(out, manifest, own, signing)
    return write_bundle(out / str(manifest.target), manifest, own, signing)


def _make_folder(out: Path) -> None:
    """Before anything is compiled: a folder that cannot be made should not cost a build."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"cannot make {out} for the bundles: {error.strerror}; choose another --out") from error
