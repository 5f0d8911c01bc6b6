# SPDX-License-Identifier: Apache-2.0
"""The CUDA driver, reached through cuda.bindings: imported on first use, every result checked, fork noticed."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

from warpsmith.errors import DriverError, InvalidArgumentError

_HINTS = {
    "CUDA_ERROR_NO_DEVICE": "no NVIDIA GPU is visible to this process; look at nvidia-smi and CUDA_VISIBLE_DEVICES",
    "CUDA_ERROR_NOT_INITIALIZED": (
        "CUDA does not work in a process forked after CUDA was used; "
        "start workers with multiprocessing.get_context('spawn')"
    ),
    "CUDA_ERROR_OUT_OF_MEMORY": "free GPU memory, or use a smaller problem",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "the cubin is for another architecture than this device",
    "CUDA_ERROR_INVALID_IMAGE": "the cubin is damaged, or newer than this driver understands",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "kernel module and libcuda are of different versions; reboot after an update",
    "CUDA_ERROR_ILLEGAL_ADDRESS": (
        "a kernel launched earlier read or wrote outside its memory, not necessarily this one; "
        "the context is lost: restart the process"
    ),
    "CUDA_ERROR_LAUNCH_FAILED": "a kernel launched earlier failed; the context is lost: restart the process",
}

_FORKED = (
    "CUDA cannot be used in this process: it was forked from one that had already used CUDA, and no driver handle "
    "survives that. Start workers with multiprocessing.get_context('spawn'), or fork before the first use of a GPU"
)


class _Forkable(Protocol):
    def after_fork(self) -> None:
        """Drop what does not survive a fork; called in the child."""


_forkable: weakref.WeakSet[Any] = weakref.WeakSet()


def survive_fork(item: _Forkable) -> None:
    """Have ``item.after_fork()`` called in every child that this process forks, as long as the item lives."""
    _forkable.add(item)


def _after_fork() -> None:
    for item in list(_forkable):
        item.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)


class Driver:
    """The driver API of one process.

    Parameters
    ----------
    api
        The module ``cuda.bindings.driver``, or something with its functions; imported on first use if left out.
    """

    def __init__(self, api: Any = None) -> None:
        self._api = api
        self._lock = threading.RLock()
        self._initialised = False
        self._forked = False
        self._contexts: dict[int, Any] = {}
        survive_fork(self)

    @property
    def api(self) -> Any:
        """The bindings.

        Raises
        ------
        DriverError
            If cuda.bindings is not installed.
        """
        if self._api is None:
            try:
                import cuda.bindings.driver as bindings
            except ImportError as error:
                raise DriverError(
                    f"running kernels needs the CUDA driver and the package cuda-bindings, which cannot be imported "
                    f"({error}); on Linux or Windows: pip install 'cuda-bindings>=12.9.4,<14'"
                ) from error
            self._api = bindings
        return self._api

    def after_fork(self) -> None:
        """In a forked child: nothing of CUDA survives, if CUDA was used."""
        self._lock = threading.RLock()
        self._contexts = {}
        self._forked = self._forked or self._initialised

    def check_process(self) -> None:
        """Refuse to go on in a forked child.

        Raises
        ------
        DriverError
            If CUDA was used before the fork.
        """
        if self._forked:
            raise DriverError(_FORKED)

    def attempt(self, name: str, *args: Any) -> tuple[Any, Any]:
        """Call a driver function: (the error or None, its value).

        The value is None for a function that returns nothing, and a tuple for one that returns several values.

        Raises
        ------
        DriverError
            If there is no driver to call, or the process was forked.
        """
        self.check_process()
        function = getattr(self.api, name)
        try:
            result = function(*args)
        except (RuntimeError, OSError) as error:
            raise DriverError(
                f"{name}: the CUDA driver library cannot be used ({error}); "
                "install the NVIDIA driver, or run where a GPU is"
            ) from error
        code, values = result[0], result[1:]
        return (code or None), (values if len(values) > 1 else values[0] if values else None)

    def call(self, name: str, *args: Any, tried: str) -> Any:
        """Call a driver function and return its value.

        Parameters
        ----------
        tried
            What the call is for, to complete the message: ``"allocate 16 bytes on device 0"``.

        Raises
        ------
        DriverError
            If the call fails: what was tried, and the driver's name and text for the error.
        """
        error, value = self.attempt(name, *args)
        if error is not None:
            raise self.failure(error, f"{name}, to {tried}")
        return value

    def failure(self, code: Any, tried: str) -> DriverError:
        """The exception for a driver error."""
        name, text = self._describe(code)
        hint = _HINTS.get(name)
        return DriverError(f"{tried}: {name} ({text})" + (f"; {hint}" if hint else ""))

    def _describe(self, code: Any) -> tuple[str, str]:
        found = []
        for function in (self.api.cuGetErrorName, self.api.cuGetErrorString):
            status, text = function(code)
            found.append("unknown error" if status else bytes(text).decode(errors="replace"))
        return (found[0] if found[0] != "unknown error" else f"CUDA error {int(code)}"), found[1]

    def initialise(self) -> None:
        """Initialise the driver, once a process."""
        self.check_process()
        if not self._initialised:
            with self._lock:
                self.call("cuInit", 0, tried="initialise the CUDA driver")
                self._initialised = True

    def version(self) -> int:
        """`cuDriverGetVersion`: 13000 for CUDA 13.0."""
        return int(self.call("cuDriverGetVersion", tried="read the driver's version"))

    def device_count(self) -> int:
        """How many devices this process sees."""
        self.initialise()
        return int(self.call("cuDeviceGetCount", tried="count the devices"))

    def device(self, index: int) -> Any:
        """The driver's handle of a device.

        Raises
        ------
        InvalidArgumentError
            If there is no device of that index.
        """
        count = self.device_count()
        if not 0 <= index < count:
            raise InvalidArgumentError(
                f"there is no CUDA device {index}; this process sees {count} "
                f"device{'' if count == 1 else 's'}, numbered from 0 (CUDA_VISIBLE_DEVICES limits them)"
            )
        return self.call("cuDeviceGet", index, tried=f"open device {index}")

    def context(self, index: int) -> Any:
        """The primary context of a device, which torch uses too; retained until the process ends."""
        self.check_process()
        found = self._contexts.get(index)
        if found is None:
            with self._lock:
                found = self._contexts.get(index)
                if found is None:
                    found = self.call(
                        "cuDevicePrimaryCtxRetain", self.device(index), tried=f"retain the context of device {index}"
                    )
                    self._contexts[index] = found
        return found

    @contextmanager
    def current(self, index: int) -> Iterator[None]:
        """Run a block with a device's primary context current; the thread's own is put back afterwards."""
        context = self.context(index)
        if self.call("cuCtxGetCurrent", tried="read the current context") == context:
            yield
            return
        self.call("cuCtxPushCurrent", context, tried=f"make device {index} current")
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent", tried="put the previous context back")

    @contextmanager
    def capture_tolerant(self) -> Iterator[None]:
        """Run a block that does unsafe calls while some stream is capturing a graph.

        A capture in the default (global) mode forbids allocating calls to every thread; the relaxed mode lifts that for
        this thread alone, and leaves the capture valid.
        """
        relaxed = self.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        name = "cuThreadExchangeStreamCaptureMode"
        before = self.call(name, relaxed, tried="allow loading during a capture")
        try:
            yield
        finally:
            self.call(name, before, tried="restore the capture mode")


@lru_cache(maxsize=1)
def default_driver() -> Driver:
    """The driver of this process, through cuda.bindings."""
    return Driver()


def version_text(version: int) -> str:
    """``13000`` → ``CUDA 13.0``."""
    return f"CUDA {version // 1000}.{version % 1000 // 10}"
