# SPDX-License-Identifier: Apache-2.0
"""Where kernels are looked for, in order: the bundle path, installed bundles, compiling. Decides; loads nothing.

Each place is asked for every target that runs on the device before the next place is: a bundle that a user points to
is used although a more specific cubin could be compiled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from warpsmith._version import __version__
from warpsmith.arch import CUDA13_DRIVER
from warpsmith.bundle.manifest import CubinEntry
from warpsmith.bundle.reader import Bundle, open_bundles
from warpsmith.catalog.resolve import Availability, Decision, DeviceFacts, Rejection, resolve
from warpsmith.catalog.source import source_digest
from warpsmith.catalog.spec import Catalog, CubinId, Problem
from warpsmith.errors import BundleError, ManifestError, MissingKernelError
from warpsmith.runtime.driver import version_text
from warpsmith.runtime.jit import Jit

if TYPE_CHECKING:
    from warpsmith.bundle.signature import PublicKey

BUNDLE_PATH, INSTALLED = "WARPSMITH_BUNDLE_PATH", "installed bundles"


class Place(NamedTuple):
    """A place that bundles are looked for in.

    Attributes
    ----------
    name
        What it is called in messages.
    bundles
        What was found there, in order.
    damaged
        Why something there cannot be used, one text each.
    """

    name: str
    bundles: tuple[Bundle, ...] = ()
    damaged: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{b.path} ({b.head.target}, {len(b)} cubins)" for b in self.bundles]
        parts += [f"not usable: {reason}" for reason in self.damaged]
        return f"{self.name}: {'; '.join(parts) or 'none'}"


class Located(NamedTuple):
    """A decision, and where its cubin is to come from: a bundle's entry, or neither if it is to be compiled."""

    decision: Decision
    bundle: Bundle | None = None
    entry: CubinEntry | None = None

    @property
    def cubin(self) -> CubinId:
        """The chosen cubin.

        Raises
        ------
        MissingKernelError
            If there is none.
        """
        if self.decision.choice is None:
            raise MissingKernelError(self.decision.explain())
        return self.decision.choice

    @property
    def origin(self) -> str:
        """The place as text: the bundle's path, or ``JIT``."""
        return str(self.bundle.path) if self.bundle else "JIT"


class Chosen(NamedTuple):
    """A variant to find, and a problem like those that it is the choice for; the problem's own may be another."""

    problem: Problem
    kernel: str
    variant: str

    def narrowed(self, catalog: Catalog) -> Catalog:
        """The catalog as if it had that variant alone."""
        kernel = catalog.kernel(self.kernel)
        only = replace(kernel, variants=(kernel.variant(self.variant),))
        return replace(catalog, kernels=(only,), tuning=())


def pointed_place(bundle_path: Sequence[Path], key: PublicKey | None = None, *, lazily: bool = False) -> Place:
    """The bundles that the settings point at; what cannot be opened, or is not signed by `key`, is kept as a reason."""
    bundles: list[Bundle] = []
    damaged: list[str] = []
    for path in bundle_path:
        try:
            bundles += open_bundles(path, lazily=lazily)
        except BundleError as error:
            damaged.append(_naming(path, error))
    return Place(BUNDLE_PATH, _signed(bundles, key, damaged), tuple(damaged))


def installed_place(installed: Callable[[], Sequence[Bundle | BundleError]], key: PublicKey | None = None) -> Place:
    """The installed bundles; what cannot be opened, or is not signed by `key`, is kept as a reason."""
    found = installed()
    refused = [str(b) for b in found if isinstance(b, BundleError)]
    trusted = _signed([b for b in found if isinstance(b, Bundle)], key, refused)
    return Place(INSTALLED, trusted, tuple(refused))


def find_places(
    bundle_path: Sequence[Path],
    installed: Callable[[], Sequence[Bundle | BundleError]],
    key: PublicKey | None = None,
) -> tuple[Place, Place]:
    """Open all bundles there are, in order of preference."""
    return pointed_place(bundle_path, key), installed_place(installed, key)


def _signed(bundles: Sequence[Bundle], key: PublicKey | None, refused: list[str]) -> tuple[Bundle, ...]:
    """The bundles that `key` signed, all if there is none; appends to `refused` why the others are not used."""
    if key is None:
        return tuple(bundles)
    trusted = []
    for bundle in bundles:
        try:
            bundle.check_signature(key)
        except BundleError as error:
            refused.append(str(error))
        else:
            trusted.append(bundle)
    return tuple(trusted)


def _naming(path: Path, error: BundleError) -> str:
    return str(error) if str(path) in str(error) else f"{path}: {error}"


def locate(catalog: Catalog, problem: Problem, facts: DeviceFacts, places: Iterable[Place], jit: Jit) -> Located:
    """Decide which cubin computes a problem on a device, and where it comes from.

    The decision carries the rejections of every place that was searched before the one that had it.
    """
    rejections: dict[Rejection, None] = {}
    for place in places:
        if not place.bundles:
            continue
        used: dict[CubinId, tuple[Bundle, CubinEntry]] = {}
        decision = resolve(catalog, problem, facts, _in_bundles(catalog, problem, facts, place, used))
        rejections.update(dict.fromkeys(decision.rejections))
        if decision.choice is not None:
            bundle, entry = used[decision.choice]
            return Located(decision._replace(rejections=tuple(rejections)), bundle, entry)
    decision = resolve(catalog, problem, facts, _by_compiling(facts, jit))
    rejections.update(dict.fromkeys(r for r in decision.rejections if r.reason != _NOT_COMPILED))
    return Located(decision._replace(rejections=tuple(rejections)))


def _in_bundles(
    catalog: Catalog,
    problem: Problem,
    facts: DeviceFacts,
    place: Place,
    used: dict[CubinId, tuple[Bundle, CubinEntry]],
) -> Availability:
    """Availability in one place; notes in `used` where a cubin was found."""

    def availability(cubin: CubinId) -> str | None:
        reasons = []
        for bundle in place.bundles:
            if bundle.head.target != cubin.target:
                continue
            try:
                entry = bundle.entry(cubin)
            except ManifestError as error:
                warnings.warn(f"{place.name}: a bundle cannot be used: {error}", RuntimeWarning, stacklevel=2)
                reasons.append(str(error))
                continue
            reason = _why_not(catalog, problem, facts, bundle, entry, cubin)
            if entry is not None and not reason:
                used[cubin] = bundle, entry
                return None
            reasons.append(reason)
        return "; ".join(reasons) or f"{place.name}: no bundle for {cubin.target}"

    return availability


def _why_not(
    catalog: Catalog, problem: Problem, facts: DeviceFacts, bundle: Bundle, entry: CubinEntry | None, cubin: CubinId
) -> str:
    """Why a bundle of the right target does not serve, or an empty text."""
    manifest = bundle.head
    if entry is None:
        lacks = manifest.selection.lacks(catalog, cubin.kernel, problem)
        return f"{bundle.path} was built {lacks}" if lacks else f"{bundle.path} does not have it"
    wanted = source_digest(catalog, cubin.kernel, cubin.variant)
    if entry.source_digest != wanted:
        return (
            f"{bundle.path} has it from another source (warpsmith {manifest.package_version}, source digest "
            f"{entry.source_digest[:12]}; this is {__version__} with {wanted[:12]}): build or install the bundle again"
        )
    if 0 < facts.driver < manifest.min_driver:
        return f"{bundle.path} {_driver_too_old(facts, manifest.min_driver)}"
    return ""


def _driver_too_old(facts: DeviceFacts, needed: int) -> str:
    release = " (R580)" if needed == CUDA13_DRIVER else ""
    return f"needs a driver for {version_text(needed)}{release} or newer; this one is for {version_text(facts.driver)}"


_NOT_COMPILED = "is for another target than the one compiled for on this device"


def _by_compiling(facts: DeviceFacts, jit: Jit) -> Availability:
    refusal = cache(jit.refusal)

    def availability(cubin: CubinId) -> str | None:
        if cubin.target != jit.target(cubin.kernel, facts):
            return _NOT_COMPILED
        if 0 < facts.driver < cubin.target.min_driver:
            return f"compiled here, it {_driver_too_old(facts, cubin.target.min_driver)}"
        return refusal()

    return availability


def missing(decisions: Sequence[Decision], places: Sequence[Place]) -> str:
    """The text of a `MissingKernelError`: problems and device, what was searched, each reason, what to do."""
    facts = decisions[0].device
    searched = [f"  {i}. {place}" for i, place in enumerate((*places, "JIT, with the compile cache"), 1)]
    grouped: dict[tuple[str, ...], list[Problem]] = {}
    for decision in decisions:
        grouped.setdefault(_reasons(decision), []).append(decision.problem)
    lines: list[str] = []
    for reasons, problems in grouped.items():
        more = f" and {len(problems) - 1} more like it" if len(problems) > 1 else ""
        lines += [f"  {problems[0]}{more}", *(f"    - {text}" for text in reasons)]
    arch = facts.capability
    fixes = [
        f"a bundle: `warpsmith build --arch {arch} --out DIR` on any machine, then WARPSMITH_BUNDLE_PATH=DIR here "
        f"(with --wheel: `pip install DIR/*.whl`)",
        "or compiling on demand: `pip install 'warpsmith[build]'`, with WARPSMITH_JIT not set to forbid",
    ]
    if 0 < facts.driver < CUDA13_DRIVER:
        fixes = [f"a driver of R580 or newer, for {version_text(CUDA13_DRIVER)}"]
    what = "kernel" if len(decisions) == 1 else f"kernels for {len(decisions)} problems"
    return "\n".join(
        [
            f"no usable {what} on {facts}",
            *lines,
            "searched, in this order:",
            *searched,
            "what helps:",
            *(f"  - {fix}" for fix in fixes),
        ]
    )


def _reasons(decision: Decision) -> tuple[str, ...]:
    """The reasons that matter: those against cubins of the variant that computes the problem; all, if none does."""
    if decision.unsupported:
        return (decision.unsupported,)
    cubins = tuple(f"{r.subject}: {r.reason}" for r in decision.rejections if "@" in r.subject)
    if cubins:
        return cubins
    return (
        "no kernel of the catalog computes it on this device",
        *(f"{r.subject} {r.reason}" for r in decision.rejections),
    )
