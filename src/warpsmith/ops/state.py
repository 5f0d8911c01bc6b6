# SPDX-License-Identifier: Apache-2.0
"""The runtime that the public operations share: made on first use, from the environment as it is then."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from warpsmith.catalog import CATALOG
from warpsmith.runtime.kernels import Runtime
from warpsmith.settings import Settings
from warpsmith.tuning import Rule

_lock = threading.Lock()
_runtime: Runtime | None = None


def runtime() -> Runtime:
    """The process's runtime."""
    global _runtime
    if _runtime is None:
        with _lock:
            if _runtime is None:
                _runtime = Runtime(Settings.from_environment(), CATALOG)
    return _runtime


@contextmanager
def tuned(rules: Sequence[Rule]) -> Iterator[None]:
    """Have the operations choose tiles by some rules first within a block, and by no user's; for benchmarks.

    Plans that operations have made keep the kernels that they were made with.
    """
    global _runtime
    before = runtime()
    settings = replace(Settings.from_environment(), tuning_path=None)
    _runtime = Runtime(settings, replace(CATALOG, tuning=(*rules, *CATALOG.tuning)), before.driver)
    try:
        yield
    finally:
        _runtime = before
