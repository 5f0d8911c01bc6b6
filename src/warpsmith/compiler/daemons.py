# SPDX-License-Identifier: Apache-2.0
"""Threads for calls that may never return: nobody has to wait for them, the interpreter's exit included."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads:
    """Up to `limit` daemon threads; `ThreadPoolExecutor`'s are joined at exit, which a hanging call would hold up."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit, self._name, self._started = limit, name, 0
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call a function in one of the threads."""
        future: Future[T] = Future()

        def step() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        self._work.put(step)
        if self._started < self._limit:
            self._started += 1
            threading.Thread(target=_serve, args=(self._work,), name=self._name, daemon=True).start()
        return future

    def stop(self) -> None:
        """Let the threads end after what was submitted before; nothing is waited for."""
        for _ in range(self._started):
            self._work.put(None)


def _serve(work: SimpleQueue[Callable[[], None] | None]) -> None:
    while (step := work.get()) is not None:
        step()
