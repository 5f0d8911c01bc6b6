# SPDX-License-Identifier: Apache-2.0
"""Loading a cubin on a device: checked against the catalog first, since the driver checks nothing."""

from __future__ import annotations

from typing import Any

from warpsmith.arch import Capability
from warpsmith.bundle.elf import RECORD_MAGIC, read_cubin
from warpsmith.bundle.manifest import layout
from warpsmith.catalog.spec import CubinId, Kernel
from warpsmith.errors import ElfError, NotLoadedError
from warpsmith.runtime.driver import Driver
from warpsmith.runtime.launch import PreparedKernel

_WAITS = 1


def load_kernel(
    driver: Driver, device_index: int, capability: Capability, kernel: Kernel, cubin: CubinId, data: bytes, origin: str
) -> PreparedKernel:
    """Load a cubin's kernel into a device's primary context; it stays loaded until the process ends.

    Works while streams are capturing graphs, in this thread or in others, as far as the driver allows.

    Parameters
    ----------
    origin
        Where the bytes are from, for messages.

    Raises
    ------
    ElfError
        If the cubin is not what the catalog says: another target, entry or parameters, or no record.
    NotLoadedError
        If the driver refuses because a graph is being captured.
    DriverError
        If the driver refuses for any other reason.
    """
    threads, shared, stages, flags = _checked_record(kernel, cubin, data, capability, origin)
    api = driver.api
    with driver.current(device_index), driver.capture_tolerant():
        module = _call(driver, cubin, device_index, "cuModuleLoadData", data)
        function = _call(driver, cubin, device_index, "cuModuleGetFunction", module, kernel.entry.encode())
        if shared:
            largest = api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _call(driver, cubin, device_index, "cuFuncSetAttribute", function, largest, shared)
        # Modules load lazily by default: without this the first launch would, perhaps inside a capture.
        _call(driver, cubin, device_index, "cuFuncLoad", function)
    return PreparedKernel(
        driver,
        device_index,
        function,
        cubin,
        kernel.params,
        threads=threads,
        shared_memory=shared,
        stages=stages,
        waits=bool(flags & _WAITS),
    )


def _call(driver: Driver, cubin: CubinId, device_index: int, name: str, *args: Any) -> Any:
    error, value = driver.attempt(name, *args)
    if error is None:
        return value
    failure = driver.failure(error, f"{name}, to load {cubin} on device {device_index}")
    if "STREAM_CAPTURE" in getattr(error, "name", ""):
        raise NotLoadedError(
            f"{cubin} cannot be loaded while a CUDA graph is being captured ({failure}); load what a graph needs "
            f"before its capture, at start-up: ws.load(...), or call the operation once"
        )
    raise failure


def _checked_record(
    kernel: Kernel, cubin: CubinId, data: bytes, capability: Capability, origin: str
) -> tuple[int, int, int, int]:
    """Threads, dynamic shared memory, stages and flags, from a cubin that is what the catalog says."""
    try:
        info = read_cubin(data)
    except ElfError as error:
        raise ElfError(f"{cubin} from {origin}: {error}") from error

    def refuse(what: str, given: object, expected: object) -> ElfError:
        return ElfError(
            f"{cubin} from {origin} is not loaded: its {what} is {given}, but {expected} was expected; "
            "the cubin is not what its name says: build it again with this version of Warpsmith"
        )

    if info.target != cubin.target or not info.target.runs_on(capability):
        raise refuse("target", info.target, f"{cubin.target}, running on {capability}")
    if len(info.kernels) != 1 or info.kernels[0].entry != kernel.entry:
        raise refuse("list of kernels", [k.entry for k in info.kernels], [kernel.entry])
    found = info.kernels[0]
    offsets = [offset for _, _, offset in layout(kernel.params, found.param_base)]
    expected = tuple(zip(offsets, (p.size for p in kernel.params), strict=True))
    if found.params != expected:
        raise refuse("parameter list (offset, size)", found.params, expected)
    if info.record is None or info.record[0] != RECORD_MAGIC:
        raise refuse("record", info.record, f"eight words that start with {RECORD_MAGIC:#x}")
    return info.record[2], info.record[1], info.record[3], info.record[4]
