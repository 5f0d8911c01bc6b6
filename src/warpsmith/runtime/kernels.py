# SPDX-License-Identifier: Apache-2.0
"""From a problem to a kernel that can be launched: decide, fetch, load, once for each device and cubin."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from warpsmith import tuning
from warpsmith.bundle.find import installed_bundles
from warpsmith.bundle.reader import Bundle
from warpsmith.catalog.resolve import Decision, DeviceFacts
from warpsmith.catalog.spec import Catalog, CubinId, Problem
from warpsmith.errors import BundleError, InvalidArgumentError, MissingKernelError, UnsupportedError
from warpsmith.runtime.device import device_facts
from warpsmith.runtime.driver import Driver, default_driver, survive_fork
from warpsmith.runtime.jit import Jit
from warpsmith.runtime.launch import PreparedKernel
from warpsmith.runtime.modules import load_kernel
from warpsmith.runtime.search import Chosen, Located, Place, installed_place, locate, missing, pointed_place
from warpsmith.settings import Settings

if TYPE_CHECKING:
    from warpsmith.bundle.signature import PublicKey

_MAX_PROBLEMS = 4096
_INSTALLED = partial(installed_bundles, lazily=True)


class Runtime:
    """Finds, loads and keeps kernels; one serves all threads and devices of a process.

    Nothing happens before the first question: bundles are opened when a decision first needs them, and the driver when
    a kernel is first loaded.

    Parameters
    ----------
    settings
        Where to look and what is allowed.
    catalog
        What there is to find.
    driver
        The driver; by default the one of this process.
    installed
        Lists the installed bundles.
    jit
        What compiles on demand; by default the compiler of this package, as the settings allow.

    Raises
    ------
    InvalidArgumentError
        If the settings name a key that is none, or a tuning table that does not fit the catalog.
    SignatureError
        If the settings require a signature, and the package that checks it is not installed.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        driver: Driver | None = None,
        *,
        installed: Callable[[], Sequence[Bundle | BundleError]] = _INSTALLED,
        jit: Jit | None = None,
    ) -> None:
        self._key = _required_key(settings)
        self.catalog = _tuned(catalog, settings)
        self.driver = driver or default_driver()
        self._settings = settings
        self._installed = installed
        self._jit = jit or Jit(settings, self.catalog)
        self._places: list[Place] = []
        self._prepared: dict[tuple[int, Problem], PreparedKernel] = {}
        self._kernels: dict[tuple[int, CubinId], PreparedKernel] = {}
        self._lock = threading.Lock()
        self._loading: dict[tuple[int, CubinId], threading.Lock] = {}
        survive_fork(self)

    def after_fork(self) -> None:
        """In a forked child: loaded kernels are gone, and so are the threads that held locks."""
        self._lock = threading.Lock()
        self._loading = {}
        self._prepared = {}
        self._kernels = {}

    def places(self) -> tuple[Place, ...]:
        """Where bundles are looked for and what is there, in order of preference."""
        return tuple(self._search())

    def _search(self) -> Iterator[Place]:
        """The places in turn, each looked up once and only when the ones before it do not serve.

        A bundle that cannot be used is warned of when its place is looked up, since something else may serve instead.
        """
        lookups: tuple[Callable[[], Place], ...] = (
            lambda: pointed_place(self._settings.bundle_path, self._key, lazily=True),
            lambda: installed_place(self._installed, self._key),
        )
        for number, look in enumerate(lookups):
            if len(self._places) <= number:
                with self._lock:
                    if len(self._places) <= number:
                        place = look()
                        for reason in place.damaged:
                            text = f"{place.name}: a bundle cannot be used: {reason}"
                            warnings.warn(text, RuntimeWarning, stacklevel=2)
                        self._places.append(place)
            yield self._places[number]

    def locate(self, problem: Problem, facts: DeviceFacts) -> Located:
        """Decide which cubin computes a problem on a device, and where it comes from; needs no GPU."""
        return locate(self.catalog, problem, facts, self._search(), self._jit)

    def decide(self, problem: Problem, facts: DeviceFacts) -> Decision:
        """Decide which cubin computes a problem on a device, with each reason; needs no GPU."""
        return self.locate(problem, facts).decision

    def prepare(self, problem: Problem, device_index: int) -> PreparedKernel:
        """The kernel for a problem, loaded on a device.

        Raises
        ------
        UnsupportedError
            If the promise table says that the problem is not supported on the device.
        MissingKernelError
            If no usable cubin was found; the message says what was searched, each reason, and what helps.
        DigestError
            If the bundle that should serve it is damaged.
        NotLoadedError
            If it would have to be loaded, and the driver refuses that during a graph capture.
        CompileError
            If it has to be compiled and cannot be.
        DriverError
            If the driver fails, or the process was forked after CUDA was used.
        """
        kernel = self._prepared.get((device_index, problem))
        if kernel is None:
            facts = device_facts(device_index, self.driver)
            located = self.locate(problem, facts)
            if located.decision.unsupported:
                raise UnsupportedError(f"{problem} on {facts}: {located.decision.unsupported}")
            if located.decision.choice is None:
                raise MissingKernelError(missing([located.decision], self.places()))
            kernel = self._kernel(located, device_index, facts)
            self._remember(device_index, problem, kernel)
        return kernel

    def find(self, wanted: Iterable[Problem | Chosen], device_index: int) -> dict[Problem | Chosen, Located]:
        """Decide where the kernels of several problems come from on a device; nothing is loaded.

        Raises
        ------
        MissingKernelError
            If any is missing or unsupported: one error with every reason.
        """
        facts = device_facts(device_index, self.driver)
        found: dict[Problem | Chosen, Located] = {}
        for item in dict.fromkeys(wanted):
            if isinstance(item, Chosen):
                found[item] = locate(item.narrowed(self.catalog), item.problem, facts, self._search(), self._jit)
            else:
                found[item] = self.locate(item, facts)
        refused = [located.decision for located in found.values() if located.decision.choice is None]
        if refused:
            raise MissingKernelError(missing(refused, self.places()))
        return found

    def load(self, wanted: Iterable[Problem | Chosen], device_index: int) -> tuple[PreparedKernel, ...]:
        """Load the kernels of several problems, or none: for start-up, so that no request waits and no capture fails.

        Kernels that have to be compiled are compiled together.

        Raises
        ------
        MissingKernelError
            As `find`, before anything is loaded.
        DigestError, CompileError, DriverError
            As `prepare`.
        """
        facts = device_facts(device_index, self.driver)
        found = self.find(wanted, device_index)
        cubins = {located.cubin: located for located in found.values()}
        absent = [c for c, located in cubins.items() if located.bundle is None and not self._loaded(device_index, c)]
        compiled = self._jit.compile(absent) if absent else {}
        for located in cubins.values():
            self._kernel(located, device_index, facts, compiled)
        kernels = {item: self._kernel(located, device_index, facts) for item, located in found.items()}
        for item, kernel in kernels.items():
            if isinstance(item, Problem):
                self._remember(device_index, item, kernel)
        return tuple(kernels.values())

    def _loaded(self, device_index: int, cubin: CubinId) -> bool:
        return (device_index, cubin) in self._kernels

    def _kernel(
        self, located: Located, device_index: int, facts: DeviceFacts, compiled: Mapping[CubinId, bytes] | None = None
    ) -> PreparedKernel:
        """A located cubin's kernel on a device, loaded by whichever thread comes first."""
        key = (device_index, located.cubin)
        kernel = self._kernels.get(key)
        if kernel is not None:
            return kernel
        with self._lock:
            turn = self._loading.setdefault(key, threading.Lock())
        with turn:
            kernel = self._kernels.get(key)
            if kernel is None:
                self.driver.check_process()
                data = self._fetch(located, compiled or {})
                row = self.catalog.kernel(located.cubin.kernel)
                kernel = load_kernel(
                    self.driver, device_index, facts.capability, row, located.cubin, data, located.origin
                )
                self._kernels[key] = kernel
        return kernel

    def _fetch(self, located: Located, compiled: Mapping[CubinId, bytes]) -> bytes:
        if located.bundle is not None and located.entry is not None:
            return located.bundle.cubin(located.entry)
        cubin = located.cubin
        return compiled[cubin] if cubin in compiled else self._jit.compile([cubin])[cubin]

    def _remember(self, device_index: int, problem: Problem, kernel: PreparedKernel) -> None:
        if len(self._prepared) >= _MAX_PROBLEMS:
            self._prepared = {}
        self._prepared[device_index, problem] = kernel


def _required_key(settings: Settings) -> PublicKey | None:
    """The key that bundles must be signed by; what checks signatures is not imported unless there is one."""
    if settings.require_signature is None:
        return None
    from warpsmith.bundle.signature import read_public_key

    return read_public_key(settings.require_signature)


def _tuned(catalog: Catalog, settings: Settings) -> Catalog:
    """The catalog with the user's tuning table asked first; a table may only name tiles of planned variants."""
    if settings.tuning_path is None:
        return catalog
    rules = tuning.load(settings.tuning_path)
    tiles = {kernel.name: sorted({v.tile for v in kernel.variants}) for kernel in catalog.kernels}
    for rule in rules:
        if rule.tile not in tiles.get(rule.kernel, ()):
            known = tiles.get(rule.kernel)
            raise InvalidArgumentError(
                f"{settings.tuning_path} names tile {rule.tile!r} of kernel {rule.kernel!r}, which no variant of the "
                f"catalog has; expected "
                + (f"one of {', '.join(known)}" if known else f"a kernel among {', '.join(sorted(tiles))}")
            )
    return replace(catalog, tuning=(*rules, *catalog.tuning))
