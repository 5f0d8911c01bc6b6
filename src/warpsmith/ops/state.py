# SPDX-License-Identifier: Apache-2.0
"""The runtime that the public operations share: made on first use, from the environment as it is then."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from warpsmith.catalog import CATALOG
from warpsmith.runtime.kernels import Runtime
from warpsmith.settings import Settings

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
def replaced(other: Runtime) -> Iterator[None]:
    """Have the operations use another runtime within a block; for benchmarks, of one thread.

    Plans that operations have made keep the kernels that they were made with.
    """
    global _runtime
    before = runtime()
    _runtime = other
    try:
        yield
    finally:
        _runtime = before
