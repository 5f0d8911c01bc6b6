# SPDX-License-Identifier: Apache-2.0
"""The hot path: a loaded kernel and its launch, one packing of bytes and one driver call.

Each thread has, for each kernel, one block of memory that the driver reads::

    parameters, each aligned | CUlaunchConfig | void *[] to the parameters

A launch packs parameters, grid, block, shared memory and stream in one `struct.pack_into`. The memory is the thread's
own because cuda.bindings releases the GIL inside the call. The launch attributes, the configuration's last two words,
are set when the memory is made and lie behind what is packed.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from typing import Any

from warpsmith.bundle.manifest import layout
from warpsmith.catalog.spec import CubinId, Param
from warpsmith.errors import DriverError, InvalidArgumentError
from warpsmith.runtime.driver import Driver, survive_fork

Argument = int | float | bytes
Grid = tuple[int, int, int]

_CODES = {"ptr": "Q", "i64": "q", "i32": "i", "u32": "I", "f32": "f", "tensormap": "128s"}
_EXPECTED = {
    "ptr": "a device address",
    "i64": "a whole number that fits 64 bits",
    "i32": "a whole number that fits 32 bits",
    "u32": "a whole number from 0 to 4294967295",
    "f32": "a number",
    "tensormap": "the 128 bytes of a tensor map",
}
_CONFIG = "7I4xQ"  # gridDim, blockDim, sharedMemBytes, hStream; attrs and numAttrs follow
_CONFIG_BYTES = 56


def _packing(params: Sequence[Param]) -> tuple[struct.Struct, int]:
    """The packing of parameters and configuration, and the offset of the configuration."""
    code, end = "=", 0
    for param, (_, ctype, offset) in zip(params, layout(params), strict=True):
        code += f"{offset - end}x{_CODES[ctype]}"
        end = offset + param.size
    config = -(-end // 8) * 8
    return struct.Struct(f"{code}{config - end}x{_CONFIG}"), config


class PreparedKernel:
    """A kernel loaded on one device, ready to launch from any thread. `Runtime.prepare` makes them.

    Attributes
    ----------
    cubin
        Which cubin it is.
    device_index
        The device it is loaded on.
    params
        Its parameters, in order.
    threads
        Threads a block.
    shared_memory
        Bytes of dynamic shared memory a block.
    stages
        Pipeline stages, as the compiled kernel says.
    waits
        Whether the kernel waits for its predecessor itself, so that it is launched to overlap with it (PDL).
    """

    __slots__ = (
        "__weakref__",
        "_config_at",
        "_context",
        "_current",
        "_driver",
        "_function",
        "_local",
        "_pack",
        "_submit",
        "cubin",
        "device_index",
        "params",
        "shared_memory",
        "stages",
        "threads",
        "waits",
    )

    def __init__(
        self,
        driver: Driver,
        device_index: int,
        function: Any,
        cubin: CubinId,
        params: tuple[Param, ...],
        *,
        threads: int,
        shared_memory: int,
        stages: int,
        waits: bool,
    ) -> None:
        self.cubin = cubin
        self.device_index = device_index
        self.params = params
        self.threads = threads
        self.shared_memory = shared_memory
        self.stages = stages
        self.waits = waits
        packing, self._config_at = _packing(params)
        self._pack = packing.pack_into
        self._driver = driver
        self._context = driver.context(device_index)
        self._current = driver.api.cuCtxGetCurrent
        self._submit = driver.api.cuLaunchKernelEx
        self._function = function
        self._local = threading.local()
        survive_fork(self)

    @property
    def function(self) -> Any:
        """The driver's handle of the kernel, for launches by other means."""
        return self._function

    def launch(self, grid: Grid, args: tuple[Argument, ...], stream: int) -> None:
        """Put the kernel on a stream; nothing is allocated and nothing is waited for.

        Parameters
        ----------
        grid
            Blocks in x, y and z.
        args
            One value a parameter, in order: an address for ``ptr``, the 128 bytes for ``tensormap``, else a number.
        stream
            The raw handle of a stream of the kernel's device; 0 is its default stream.

        Raises
        ------
        InvalidArgumentError
            If the arguments do not fit the kernel's parameters.
        DriverError
            If the driver refuses the launch, or the process was forked after CUDA was used.
        """
        try:
            memory, config, pointers = self._local.slot
        except AttributeError:
            memory, config, pointers = self._open_slot()
        try:
            x, y, z = grid
            self._pack(memory, 0, *args, x, y, z, self.threads, 1, 1, self.shared_memory, stream)
        except (struct.error, TypeError, ValueError, OverflowError) as error:
            raise self._misfit(grid, args, stream) from error
        if self._current()[1] == self._context:
            result = self._submit(config, self._function, pointers, 0)
        else:
            result = self._submit_elsewhere(config, pointers)
        if result[0]:
            raise self._refused(result[0], grid, stream)

    def after_fork(self) -> None:
        """In a forked child: forget every thread's memory, so that the next launch finds out."""
        self._local = threading.local()

    def _open_slot(self) -> tuple[Any, Any, int]:
        """Make the calling thread's launch memory: (memory, the configuration in it, the address of the pointers)."""
        self._driver.check_process()
        api = self._driver.api
        table = self._config_at + _CONFIG_BYTES
        memory = ctypes.create_string_buffer(table + 8 * len(self.params))
        base = ctypes.addressof(memory)
        pointers = [base + offset for _, _, offset in layout(self.params)]
        struct.pack_into(f"={len(pointers)}Q", memory, table, *pointers)
        config = api.CUlaunchConfig(base + self._config_at)
        if self.waits:
            attribute = api.CUlaunchAttribute()
            attribute.id = api.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs = [attribute]
            config.numAttrs = 1
        slot = (memory, config, base + table)
        self._local.slot = slot
        return slot

    def _submit_elsewhere(self, config: Any, pointers: int) -> Any:
        """Launch from a thread whose current context is not the kernel's.

        A thread that has none is on device 0 to everyone else, so making device 0 current there changes nothing for
        them; for every other device the thread's own is put back.
        """
        driver = self._driver
        if self.device_index == 0 and not int(driver.call("cuCtxGetCurrent", tried="read the current context")):
            driver.call("cuCtxSetCurrent", self._context, tried="make device 0 current")
            return self._submit(config, self._function, pointers, 0)
        with driver.current(self.device_index):
            return self._submit(config, self._function, pointers, 0)

    def _refused(self, code: Any, grid: Grid, stream: int) -> DriverError:
        return self._driver.failure(
            code,
            f"cuLaunchKernelEx, to launch {self.cubin} on device {self.device_index} with grid {tuple(grid)}, "
            f"block {(self.threads, 1, 1)}, {self.shared_memory} bytes of dynamic shared memory, stream {stream:#x}",
        )

    def _misfit(self, grid: Grid, args: tuple[Argument, ...], stream: int) -> InvalidArgumentError:
        """Say which argument of a launch does not fit."""
        names = ", ".join(f"{p.name}: {p.ctype}" for p in self.params)
        if len(args) != len(self.params):
            return InvalidArgumentError(
                f"{self.cubin} takes {len(self.params)} arguments ({names}), but {len(args)} were given"
            )
        for param, value in zip(self.params, args, strict=True):
            if not _fits(_CODES[param.ctype], value):
                return InvalidArgumentError(
                    f"{self.cubin}: argument {param.name!r} must be {_EXPECTED[param.ctype]}, but {value!r} was given"
                )
        return InvalidArgumentError(
            f"{self.cubin}: grid must be three whole numbers below 2^32 and stream a handle, "
            f"but grid {grid!r} and stream {stream!r} were given"
        )


def _fits(code: str, value: object) -> bool:
    try:
        struct.pack(f"={code}", value)
    except (struct.error, TypeError, ValueError, OverflowError):
        return False
    return True
