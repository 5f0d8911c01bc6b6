# SPDX-License-Identifier: Apache-2.0
"""Device memory, streams and events without torch: what ``warpsmith verify`` runs kernels with."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from warpsmith.errors import InvalidArgumentError
from warpsmith.runtime.driver import Driver

if TYPE_CHECKING:
    from typing_extensions import Self


class _Resource:
    """A driver handle that is released once: by `close`, or at the end of a ``with`` block."""

    def __init__(self, driver: Driver, device: int, release: Callable[[], object]) -> None:
        self._driver = driver
        self._device = device
        self._release: Callable[[], object] | None = release

    def close(self) -> None:
        """Release it; a second time does nothing."""
        release, self._release = self._release, None
        if release is not None:
            with self._driver.current(self._device):
                release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DeviceBuffer(_Resource):
    """A block of device memory.

    Copies and fills wait until they are done, and do not wait for work on other streams: synchronize first.

    Parameters
    ----------
    driver
        The driver.
    device
        The device's number.
    nbytes
        Size in bytes; 0 gives an empty buffer whose pointer is 0.

    Examples
    --------
    >>> with DeviceBuffer(driver, 0, 16) as buffer:  # doctest: +SKIP
    ...     buffer.write(bytes(range(16)))
    ...     back = buffer.read()
    """

    def __init__(self, driver: Driver, device: int, nbytes: int) -> None:
        if nbytes < 0:
            raise InvalidArgumentError(f"a device buffer of {nbytes} bytes was asked for; expected 0 or more")
        self.nbytes = nbytes
        self.pointer = 0
        if nbytes:
            with driver.current(device):
                what = f"allocate {nbytes} bytes on device {device}"
                self.pointer = int(driver.call("cuMemAlloc", nbytes, tried=what))
        super().__init__(driver, device, self._free)

    def _free(self) -> None:
        if self.pointer:
            self._driver.call("cuMemFree", self.pointer, tried=f"free {self.nbytes} bytes on device {self._device}")
        self.pointer = 0

    def write(self, data: Any) -> None:
        """Copy from the host: bytes, or anything contiguous with the buffer protocol, of this buffer's size."""
        self._copy("cuMemcpyHtoD", data, writes_device=True)

    def read_into(self, data: Any) -> None:
        """Copy to the host, into something writable and contiguous of this buffer's size."""
        self._copy("cuMemcpyDtoH", data, writes_device=False)

    def read(self) -> bytes:
        """The buffer's contents."""
        host = bytearray(self.nbytes)
        self.read_into(host)
        return bytes(host)

    def fill(self, byte: int) -> None:
        """Set every byte."""
        if self.nbytes:
            with self._driver.current(self._device):
                where = f"fill {self.nbytes} bytes on device {self._device}"
                self._driver.call("cuMemsetD8", self.pointer, byte, self.nbytes, tried=where)
                self._driver.call("cuStreamSynchronize", 0, tried=where)

    def _copy(self, function: str, data: Any, *, writes_device: bool) -> None:
        view = memoryview(data)
        if view.nbytes != self.nbytes:
            raise InvalidArgumentError(f"{view.nbytes} host bytes do not fit a device buffer of {self.nbytes} bytes")
        if not view.c_contiguous or (view.readonly and not writes_device):
            need = "contiguous" if writes_device else "writable and contiguous"
            raise InvalidArgumentError(f"the host memory of a copy must be {need}; make a copy first")
        if not self.nbytes:
            return
        flat = view.cast("B")
        tried = f"copy {self.nbytes} bytes {'to' if writes_device else 'from'} device {self._device}"
        arguments = (self.pointer, flat) if writes_device else (flat, self.pointer)
        with self._driver.current(self._device):
            self._driver.call(function, *arguments, self.nbytes, tried=tried)
            if writes_device:  # from pageable memory it returns once the bytes are staged, which other streams overtake
                self._driver.call("cuStreamSynchronize", 0, tried=tried)


class Stream(_Resource):
    """A stream that does not wait for the default stream; ``handle`` is what `PreparedKernel.launch` takes."""

    def __init__(self, driver: Driver, device: int) -> None:
        flags = int(driver.api.CUstream_flags.CU_STREAM_NON_BLOCKING)
        with driver.current(device):
            stream = driver.call("cuStreamCreate", flags, tried=f"create a stream on device {device}")
        self.handle = int(stream)
        super().__init__(driver, device, lambda: driver.call("cuStreamDestroy", stream, tried="destroy a stream"))

    def synchronize(self) -> None:
        """Wait for all of the stream's work; an error of a kernel that ran on it is raised here."""
        with self._driver.current(self._device):
            self._driver.call("cuStreamSynchronize", self.handle, tried="wait for a stream")


class Event(_Resource):
    """A point in a stream's work, with its time."""

    def __init__(self, driver: Driver, device: int) -> None:
        flags = int(driver.api.CUevent_flags.CU_EVENT_DEFAULT)
        with driver.current(device):
            event = driver.call("cuEventCreate", flags, tried=f"create an event on device {device}")
        self.handle = int(event)
        super().__init__(driver, device, lambda: driver.call("cuEventDestroy", event, tried="destroy an event"))

    def record(self, stream: Stream) -> None:
        """Mark the point that the stream has come to."""
        with self._driver.current(self._device):
            self._driver.call("cuEventRecord", self.handle, stream.handle, tried="record an event")

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds of device time from another event to this one; waits until both have happened."""
        with self._driver.current(self._device):
            self._driver.call("cuEventSynchronize", self.handle, tried="wait for an event")
            what = "read the time between two events"
            return float(self._driver.call("cuEventElapsedTime", since.handle, self.handle, tried=what))


def synchronize(driver: Driver, device: int) -> None:
    """Wait for all work on a device; an error of any kernel before is raised here."""
    with driver.current(device):
        driver.call("cuCtxSynchronize", tried=f"wait for device {device}")
