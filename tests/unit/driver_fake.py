# SPDX-License-Identifier: Apache-2.0
"""A CUDA driver without a GPU: the functions of cuda.bindings.driver that the runtime calls, strict about contexts."""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from warpsmith.bundle.elf import read_cubin

_SLOW = 0.001  # seconds; long enough for a race to be lost


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_INITIALIZED = 3
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_IMAGE = 200
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900


class CUstreamCaptureMode(IntEnum):
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
    CU_STREAM_CAPTURE_MODE_RELAXED = 2


class CUdevice_attribute(IntEnum):  # noqa: N801  # the driver's own name
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUfunction_attribute(IntEnum):  # noqa: N801
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


class CUlaunchAttributeID(IntEnum):
    CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6


class CUstream_flags(IntEnum):  # noqa: N801
    CU_STREAM_NON_BLOCKING = 1


class CUevent_flags(IntEnum):  # noqa: N801
    CU_EVENT_DEFAULT = 0


class _Handle(int):
    """A driver handle; handles are equal where their values are."""


class _RawConfig(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared")),
        ("stream", ctypes.c_uint64),
        ("attributes", ctypes.c_uint64),
        ("attribute_count", ctypes.c_uint),
    )


class CUlaunchConfig:
    """The structure at an address, as the bindings give it."""

    def __init__(self, address: int) -> None:
        self.raw = _RawConfig.from_address(address)
        self.attrs: list[Any] = []

    @property
    def numAttrs(self) -> int:
        return int(self.raw.attribute_count)

    @numAttrs.setter
    def numAttrs(self, count: int) -> None:
        self.raw.attribute_count = count


class _AttributeValue:
    programmaticStreamSerializationAllowed = 0  # noqa: N815  # the driver's own name


class CUlaunchAttribute:
    def __init__(self) -> None:
        self.id: Any = None
        self.value = _AttributeValue()


@dataclass(frozen=True)
class Launch:
    """What the driver saw of one launch."""

    kernel: str
    device: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    stream: int
    args: tuple[bytes, ...]
    overlaps: bool
    thread: int


@dataclass
class _Function:
    entry: str
    context: int
    sizes: tuple[int, ...]
    shared: int = 0
    loaded: bool = False


@dataclass(frozen=True)
class FakeDevice:
    """A device: its compute capability, SM count and name."""

    capability: tuple[int, int] = (12, 1)
    sm_count: int = 48
    name: str = "NVIDIA GB10"


@dataclass
class FakeApi:
    """Stands for the module cuda.bindings.driver.

    Attributes
    ----------
    fail
        Function name → the error that it returns.
    capturing
        Whether some stream captures in global mode: unsafe calls need the relaxed mode.
    on_launch
        Called within a launch before its memory is read, where the real call has released the GIL.
    """

    devices: tuple[FakeDevice, ...] = (FakeDevice(),)
    driver: int = 13000
    fail: dict[str, CUresult] = field(default_factory=dict)
    capturing: bool = False
    refuse_relaxed: bool = False
    on_launch: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self.CUresult = CUresult
        self.CUstreamCaptureMode = CUstreamCaptureMode
        self.CUdevice_attribute = CUdevice_attribute
        self.CUfunction_attribute = CUfunction_attribute
        self.CUlaunchAttributeID = CUlaunchAttributeID
        self.CUlaunchAttribute = CUlaunchAttribute
        self.CUlaunchConfig = CUlaunchConfig
        self.CUstream_flags = CUstream_flags
        self.CUevent_flags = CUevent_flags
        self.calls: list[tuple[Any, ...]] = []
        self.launches: list[Launch] = []
        self.memory: dict[int, bytearray] = {}
        self.live: set[int] = set()
        self._objects: dict[int, Any] = {}
        self._names = itertools.count(0x1000, 0x1000)
        self._local = threading.local()
        self._lock = threading.Lock()

    def called(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of each call of a function."""
        return [call[1:] for call in self.calls if call[0] == name]

    def _note(self, name: str, *args: Any) -> CUresult:
        self.calls.append((name, *args))
        return self.fail.get(name, CUresult.CUDA_SUCCESS)

    def _stack(self) -> list[int]:
        if not hasattr(self._local, "stack"):
            self._local.stack, self._local.mode = [], CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
        stack: list[int] = self._local.stack
        return stack

    def _here(self) -> int:
        return self._stack()[-1] if self._stack() else 0

    def _new(self, item: Any) -> _Handle:
        with self._lock:
            handle = _Handle(next(self._names))
        self._objects[handle] = item
        self.live.add(handle)
        return handle

    def _unsafe(self) -> CUresult:
        if not self._here():
            return CUresult.CUDA_ERROR_INVALID_CONTEXT
        relaxed = self._local.mode == CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED and not self.refuse_relaxed
        blocked = self.capturing and not relaxed
        return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED if blocked else CUresult.CUDA_SUCCESS

    def cuGetErrorName(self, error: CUresult) -> tuple[CUresult, bytes]:
        return CUresult.CUDA_SUCCESS, CUresult(error).name.encode()

    def cuGetErrorString(self, error: CUresult) -> tuple[CUresult, bytes]:
        return CUresult.CUDA_SUCCESS, CUresult(error).name.lower().replace("_", " ").encode()

    def cuInit(self, Flags: int) -> tuple[CUresult]:
        return (self._note("cuInit", Flags),)

    def cuDriverGetVersion(self) -> tuple[CUresult, int]:
        return self._note("cuDriverGetVersion"), self.driver

    def cuDeviceGetCount(self) -> tuple[CUresult, int]:
        return self._note("cuDeviceGetCount"), len(self.devices)

    def cuDeviceGet(self, ordinal: int) -> tuple[CUresult, int]:
        return self._note("cuDeviceGet", ordinal), ordinal

    def cuDeviceGetName(self, length: int, dev: int) -> tuple[CUresult, bytes]:
        return self._note("cuDeviceGetName", dev), self.devices[dev].name.encode().ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attrib: CUdevice_attribute, dev: int) -> tuple[CUresult, int]:
        device = self.devices[dev]
        values = {16: device.sm_count, 75: device.capability[0], 76: device.capability[1]}
        return self._note("cuDeviceGetAttribute", attrib, dev), values[attrib]

    def cuDevicePrimaryCtxRetain(self, dev: int) -> tuple[CUresult, _Handle]:
        time.sleep(_SLOW)
        return self._note("cuDevicePrimaryCtxRetain", dev), _Handle(dev + 1)

    def cuCtxGetCurrent(self) -> tuple[CUresult, _Handle]:
        return CUresult.CUDA_SUCCESS, _Handle(self._here())

    def cuCtxSetCurrent(self, ctx: int) -> tuple[CUresult]:
        self._stack()[-1:] = [ctx]
        return (self._note("cuCtxSetCurrent", ctx),)

    def cuCtxPushCurrent(self, ctx: int) -> tuple[CUresult]:
        self._stack().append(ctx)
        return (self._note("cuCtxPushCurrent", ctx),)

    def cuCtxPopCurrent(self) -> tuple[CUresult, _Handle]:
        return self._note("cuCtxPopCurrent"), _Handle(self._stack().pop())

    def cuCtxSynchronize(self) -> tuple[CUresult]:
        return (self._note("cuCtxSynchronize", self._here()),)

    def cuThreadExchangeStreamCaptureMode(self, mode: CUstreamCaptureMode) -> tuple[CUresult, CUstreamCaptureMode]:
        self._stack()
        before, self._local.mode = self._local.mode, mode
        return self._note("cuThreadExchangeStreamCaptureMode", mode), before

    def mode(self) -> CUstreamCaptureMode:
        """The capture mode of the calling thread."""
        self._stack()
        found: CUstreamCaptureMode = self._local.mode
        return found

    def cuModuleLoadData(self, image: bytes) -> tuple[CUresult, Any]:
        error = self._note("cuModuleLoadData", self._here()) or self._unsafe()
        time.sleep(_SLOW)
        return (error, None) if error else (error, self._new((self._here(), image)))

    def cuModuleGetFunction(self, hmod: int, name: bytes) -> tuple[CUresult, Any]:
        context, image = self._objects[hmod]
        kernel = read_cubin(image).kernels[0]
        if error := self._note("cuModuleGetFunction", name):
            return error, None
        if kernel.entry.encode() != name:
            return CUresult.CUDA_ERROR_NOT_FOUND, None
        return CUresult.CUDA_SUCCESS, self._new(_Function(kernel.entry, context, tuple(s for _, s in kernel.params)))

    def cuFuncSetAttribute(self, hfunc: int, attrib: CUfunction_attribute, value: int) -> tuple[CUresult]:
        self._objects[hfunc].shared = value
        return (self._note("cuFuncSetAttribute", attrib, value),)

    def cuFuncLoad(self, function: int) -> tuple[CUresult]:
        self._objects[function].loaded = True
        return (self._note("cuFuncLoad") or self._unsafe(),)

    def cuLaunchKernelEx(self, config: CUlaunchConfig, f: int, kernelParams: int, extra: int) -> tuple[CUresult]:
        if self.on_launch is not None:
            self.on_launch()
        error = self.fail.get("cuLaunchKernelEx", CUresult.CUDA_SUCCESS)
        function, raw = self._objects[f], config.raw
        if error or self._here() != function.context or not function.loaded or extra:
            return (error or CUresult.CUDA_ERROR_INVALID_CONTEXT,)
        pointers = (ctypes.c_uint64 * len(function.sizes)).from_address(kernelParams)
        args = tuple(ctypes.string_at(p, size) for p, size in zip(pointers, function.sizes, strict=True))
        grid, block = (raw.gx, raw.gy, raw.gz), (raw.bx, raw.by, raw.bz)
        if not all(grid) or raw.shared > function.shared:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        overlaps = [a.value.programmaticStreamSerializationAllowed for a in config.attrs[: config.numAttrs]] == [1]
        self.launches.append(
            Launch(
                function.entry,
                function.context - 1,
                grid,
                block,
                raw.shared,
                raw.stream,
                args,
                overlaps,
                threading.get_ident(),
            )
        )
        return (CUresult.CUDA_SUCCESS,)

    def cuMemAlloc(self, bytesize: int) -> tuple[CUresult, Any]:
        error = self._note("cuMemAlloc", bytesize) or self._unsafe()
        if error:
            return error, None
        handle = self._new(self._here())
        self.memory[handle] = bytearray(b"\xcd" * bytesize)
        return error, handle

    def cuMemFree(self, dptr: int) -> tuple[CUresult]:
        self.live.remove(dptr)
        return (self._note("cuMemFree", dptr),)

    def cuMemcpyHtoD(self, dstDevice: int, srcHost: Any, ByteCount: int) -> tuple[CUresult]:
        self.memory[dstDevice][:ByteCount] = memoryview(srcHost)[:ByteCount]
        return (self._note("cuMemcpyHtoD", self._here()),)

    def cuMemcpyDtoH(self, dstHost: Any, srcDevice: int, ByteCount: int) -> tuple[CUresult]:
        memoryview(dstHost)[:ByteCount] = self.memory[srcDevice][:ByteCount]
        return (self._note("cuMemcpyDtoH", self._here()),)

    def cuMemsetD8(self, dstDevice: int, uc: int, N: int) -> tuple[CUresult]:
        self.memory[dstDevice][:N] = bytes([uc]) * N
        return (self._note("cuMemsetD8", self._here()),)

    def cuStreamCreate(self, Flags: int) -> tuple[CUresult, _Handle]:
        return self._note("cuStreamCreate", Flags), self._new(self._here())

    def cuStreamSynchronize(self, hStream: int) -> tuple[CUresult]:
        return (self._note("cuStreamSynchronize", hStream),)

    def cuStreamDestroy(self, hStream: int) -> tuple[CUresult]:
        self.live.remove(hStream)
        return (self._note("cuStreamDestroy", hStream),)

    def cuEventCreate(self, Flags: int) -> tuple[CUresult, _Handle]:
        return self._note("cuEventCreate", Flags), self._new(self._here())

    def cuEventRecord(self, hEvent: int, hStream: int) -> tuple[CUresult]:
        return (self._note("cuEventRecord", hEvent, hStream),)

    def cuEventSynchronize(self, hEvent: int) -> tuple[CUresult]:
        return (self._note("cuEventSynchronize", hEvent),)

    def cuEventElapsedTime(self, hStart: int, hEnd: int) -> tuple[CUresult, float]:
        return self._note("cuEventElapsedTime", hStart, hEnd), float(hEnd - hStart) / 0x1000

    def cuEventDestroy(self, hEvent: int) -> tuple[CUresult]:
        self.live.remove(hEvent)
        return (self._note("cuEventDestroy", hEvent),)
