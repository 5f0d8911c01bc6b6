# SPDX-License-Identifier: Apache-2.0
"""What verification needs of a device: a stream, a kernel of every tile, and buffers that show what they should not.

Buffers are poisoned and stand between guard bytes, so an unwritten output or a write beyond it is a mismatch like any
other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from warpsmith.catalog.spec import Catalog, CubinId, Problem
from warpsmith.runtime.driver import Driver
from warpsmith.runtime.kernels import Runtime
from warpsmith.runtime.launch import PreparedKernel
from warpsmith.runtime.memory import DeviceBuffer, Stream
from warpsmith.settings import Settings
from warpsmith.tuning import Rule

GUARD = 256
POISON = 0xA5
Array = np.ndarray[Any, Any]


class Bench:
    """One device with what a case needs: a stream, and a runtime for each forced tile."""

    def __init__(self, catalog: Catalog, settings: Settings, device: int, driver: Driver) -> None:
        self.catalog = catalog
        self.device = device
        self.driver = driver
        self.stream = Stream(driver, device)
        tiles = dict.fromkeys(v.tile for k in catalog.kernels for v in k.variants)
        self.runtimes = {
            tile: Runtime(settings, replace(catalog, tuning=_forcing(catalog, tile)), driver) for tile in tiles
        }

    def close(self) -> None:
        """Release the stream."""
        self.stream.close()

    def kernels(self, problem: Problem) -> dict[str, PreparedKernel]:
        """The distinct kernels that serve a problem, by tile."""
        found: dict[CubinId, PreparedKernel] = {}
        for runtime in self.runtimes.values():
            kernel = runtime.prepare(problem, self.device)
            found.setdefault(kernel.cubin, kernel)
        return {self.catalog.kernel(c.kernel).variant(c.variant).tile: kernel for c, kernel in found.items()}


def _forcing(catalog: Catalog, tile: str) -> tuple[Rule, ...]:
    """Tuning rules that pick `tile` for each problem of a kernel that has it there, and the catalog's after them."""
    rules = []
    for kernel in catalog.kernels:
        having = [v for v in kernel.variants if v.tile == tile]
        formats = [dict(v.serves).get("format") for v in having]
        if having:
            named = tuple(f for values in formats for f in values or ())
            rules.append(Rule(kernel.name, tile, fields=() if None in formats else (("format", named),)))
    return (*rules, *catalog.tuning)


class Guarded:
    """A device buffer between guard bytes, poisoned or filled, at an offset from its natural alignment."""

    def __init__(self, bench: Bench, nbytes: int, data: bytes | None = None, offset: int = 0) -> None:
        self._before = GUARD + offset
        host = np.full(self._before + nbytes + GUARD, POISON, np.uint8)
        if data is not None:
            host[self._before : self._before + nbytes] = np.frombuffer(data, np.uint8)
        self._buffer = DeviceBuffer(bench.driver, bench.device, host.size)
        self._buffer.write(host)
        self.pointer = self._buffer.pointer + self._before
        self._nbytes = nbytes

    def read(self) -> tuple[Array, bool]:
        """The bytes, and whether the guards are intact."""
        host = np.frombuffer(self._buffer.read(), np.uint8)
        inside = slice(self._before, self._before + self._nbytes)
        outside = np.concatenate([host[: inside.start], host[inside.stop :]])
        return host[inside], bool((outside == POISON).all())

    def close(self) -> None:
        """Free it."""
        self._buffer.close()
