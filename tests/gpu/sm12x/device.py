# SPDX-License-Identifier: Apache-2.0
"""What runs the kernels: one arena of device memory, launches, tensor maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from warpsmith.arch import Capability, Target
from warpsmith.catalog.spec import CubinId, Kernel, Variant
from warpsmith.runtime.driver import default_driver
from warpsmith.runtime.launch import Argument
from warpsmith.runtime.memory import DeviceBuffer, synchronize
from warpsmith.runtime.modules import load_kernel
from warpsmith.runtime.tensor_map import MapSpec, encode

from .kernels import GEMM, cubin, for_racecheck

Array = npt.NDArray[Any]
Region = tuple[int, int]
"""Address of the first byte, and of the one after the last."""


class Program(Protocol):
    """A kernel that is ready to launch."""

    @property
    def tile(self) -> tuple[int, int, int]:
        """The last words of its record: tile along M, N and K."""

    def launch(self, blocks: int, arguments: tuple[Argument, ...], readable: tuple[Region, ...] = ()) -> None:
        """Launch it; an emulator checks that bulk copies read `readable` alone."""


class Device(Protocol):
    """One arena of memory, and kernels that work in it."""

    base: int
    size: int

    def write(self, offset: int, data: Array) -> None:
        """Copy to the arena."""

    def read(self, offset: int, nbytes: int) -> Array:
        """Wait for all launches, then copy from the arena: uint8."""

    def tensor_map(self, pointer: int, dims: tuple[int, int, int], box_bytes: int, box_rows: int) -> bytes:
        """The 128 bytes for a uint8 array of dims (bytes of a row, rows, batches), swizzled as wide as the box."""

    def load(self, kernel: Kernel, variant: Variant) -> Program:
        """Make a variant ready to launch."""


class GpuProgram:
    """A kernel loaded on a GPU."""

    def __init__(self, device: Gpu, kernel: Kernel, variant: Variant) -> None:
        data = cubin(kernel, variant, device.target, device.folder)
        name = CubinId(kernel.name, variant.name, device.target)
        origin = "the tests"
        self.prepared = load_kernel(device.driver, 0, device.capability, kernel, name, data, origin)
        macros = dict(variant.macros)
        tm, tn, tk = (int(macros.get(f"WS_TILE_{axis}", "0")) for axis in "MNK")
        self.tile = (tm, tn, tk)

    def launch(
        self,
        blocks: int,
        arguments: tuple[Argument, ...],
        readable: tuple[Region, ...] = (),  # noqa: ARG002 - for emulators
        stream: int = 0,
    ) -> None:
        """Launch on a stream."""
        self.prepared.launch((blocks, 1, 1), arguments, stream)


class Gpu:
    """Device 0, with cubins for `target` from `folder` or compiled; those of the GEMM made for racecheck if asked."""

    def __init__(self, target: Target, folder: Path | None, size: int = 1 << 30, racecheck: bool = False) -> None:
        self.driver = default_driver()
        self.target, self.folder, self.size, self.racecheck = target, folder, size, racecheck
        self.capability = gpu_capability()
        self._arena = DeviceBuffer(self.driver, 0, size)
        self.base = self._arena.pointer

    def write(self, offset: int, data: Array) -> None:
        view = memoryview(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        with self.driver.current(0):
            self.driver.call("cuMemcpyHtoD", self.base + offset, view, view.nbytes, tried="write to the arena")

    def read(self, offset: int, nbytes: int) -> Array:
        synchronize(self.driver, 0)
        data = np.empty(nbytes, np.uint8)
        with self.driver.current(0):
            self.driver.call("cuMemcpyDtoH", data.data, self.base + offset, nbytes, tried="read the arena")
        return data

    def tensor_map(self, pointer: int, dims: tuple[int, int, int], box_bytes: int, box_rows: int) -> bytes:
        row, rows, batches = dims
        return encode(self.driver, 0, pointer, MapSpec(row, rows, batches, row, row * rows, box_bytes, box_rows))

    def load(self, kernel: Kernel, variant: Variant) -> GpuProgram:
        return GpuProgram(self, kernel, for_racecheck(variant) if self.racecheck and kernel is GEMM else variant)


def gpu_capability() -> Capability:
    """The compute capability of device 0."""
    driver = default_driver()
    device, names = driver.device(0), driver.api.CUdevice_attribute
    major, minor = (
        int(
            driver.call(
                "cuDeviceGetAttribute",
                getattr(names, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}"),
                device,
                tried="read the compute capability",
            )
        )
        for part in ("MAJOR", "MINOR")
    )
    return Capability(major, minor)
