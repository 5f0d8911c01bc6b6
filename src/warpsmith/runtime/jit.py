# SPDX-License-Identifier: Apache-2.0
"""Compiling on demand: the last place that kernels come from, through the user's compile cache."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from warpsmith.arch import Target, default_target
from warpsmith.catalog.resolve import DeviceFacts
from warpsmith.catalog.spec import Catalog, CubinId
from warpsmith.errors import ToolchainError
from warpsmith.settings import Settings

if TYPE_CHECKING:
    from warpsmith.compiler.cache import Cache

_log = logging.getLogger(__name__)


class Jit:
    """The compiler as the runtime sees it. Nothing of it is imported before it is asked.

    The compile cache belongs to it: its keys carry NVRTC's full version, so that it is of no use without a toolchain,
    and forbidding to compile leaves exactly the bundles.
    """

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        self._catalog = catalog
        self._cache: Cache | None = None

    def refusal(self) -> str | None:
        """Why nothing can be compiled here, or None if it can."""
        if not self._settings.jit:
            return self._settings.jit_refusal
        from warpsmith.compiler.toolchain import find_toolchain

        try:
            find_toolchain()
        except ToolchainError as error:
            return f"compiling is not possible: {error}"
        return None

    def target(self, kernel: str, facts: DeviceFacts) -> Target | None:
        """The target that a kernel is compiled for: the one that a plain ``warpsmith build`` makes for the device.

        So what runs is what bundles hold and evidence is about. A kernel that is not built for it has None.
        """
        target = default_target(facts.capability)
        return target if self._catalog.kernel(kernel).builds_for(target) else None

    def compile(self, cubins: Sequence[CubinId]) -> Mapping[CubinId, bytes]:
        """Take cubins from the compile cache or compile them, in worker processes that end with the call.

        Raises
        ------
        CompileError
            If one cannot be compiled, or is not what the catalog asks for.
        """
        from warpsmith.compiler.compilation import compile_cubins
        from warpsmith.compiler.toolchain import find_toolchain

        started = time.monotonic()
        if self._cache is None:
            self._cache = _open_cache(self._settings.cache_dir)
        outcome = compile_cubins(self._catalog, cubins, toolchain=find_toolchain(), cache=self._cache)
        _log.info(
            "%d of %d kernels compiled in %.1f s, the others were cached; `warpsmith build` makes them beforehand",
            outcome.compiled,
            len(cubins),
            time.monotonic() - started,
        )
        return {cubin: data for cubin, (_, data) in outcome.cubins.items()}


def _open_cache(folder: Path) -> Cache:
    """The compile cache; it is kept, so that a folder that cannot be written is warned of once."""
    from warpsmith.bundle.store import Store
    from warpsmith.compiler.cache import Cache

    def damaged(key: str, reason: str) -> None:
        warnings.warn(
            f"{folder}: the entry {key} is damaged and compiled again: {reason}", RuntimeWarning, stacklevel=2
        )

    return Cache(Store(folder, on_damage=damaged))
