# SPDX-License-Identifier: Apache-2.0
"""The GEMM compiled for the host (tests/emulation), in place of a GPU."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

import numpy as np

from warpsmith.bundle.manifest import layout
from warpsmith.catalog.spec import Kernel, Variant
from warpsmith.runtime.launch import Argument

from .device import Array, Region

_CODES = {"ptr": "Q", "i64": "q", "u32": "I", "f32": "f", "tensormap": "128s"}


class EmulatedProgram:
    """A variant in a shared library."""

    def __init__(self, path: Path, kernel: Kernel, seed: int) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.emu_run.restype = ctypes.c_char_p
        self._library.emu_record.restype = ctypes.POINTER(ctypes.c_uint32)
        m, n, k = self._library.emu_record()[5:8]
        self.tile = (m, n, k)
        self._params = layout(kernel.params)
        self._rng = np.random.default_rng(seed)

    def launch(self, blocks: int, arguments: tuple[Argument, ...], readable: tuple[Region, ...] = ()) -> None:
        """Run all blocks, in a random order."""
        memory = ctypes.create_string_buffer(1024)
        for (_, ctype, offset), value in zip(self._params, arguments, strict=True):
            struct.pack_into(f"={_CODES[ctype]}", memory, offset, value)
        pointers = (ctypes.c_void_p * len(arguments))(*[ctypes.addressof(memory) + at for _, _, at in self._params])
        regions = np.array(readable, np.uint64)
        message = self._library.emu_run(
            blocks,
            pointers,
            ctypes.c_void_p(regions.ctypes.data),
            len(readable),
            int(self._rng.integers(1 << 30)),
        )
        if message:
            raise RuntimeError(message.decode())


class Emulator:
    """Libraries ``VARIANT.so`` of a folder, and an arena in host memory."""

    def __init__(self, folder: Path, size: int = 1 << 27) -> None:
        self._folder, self.size = folder, size
        self._memory = np.empty(size + 1024, np.uint8)
        self._start = -self._memory.ctypes.data % 1024
        self.base = self._memory.ctypes.data + self._start

    def write(self, offset: int, data: Array) -> None:
        start = self._start + offset
        self._memory[start : start + data.nbytes] = np.ascontiguousarray(data).reshape(-1).view(np.uint8)

    def read(self, offset: int, nbytes: int) -> Array:
        return self._memory[self._start + offset : self._start + offset + nbytes].copy()

    def tensor_map(self, pointer: int, dims: tuple[int, int, int], box_bytes: int, box_rows: int) -> bytes:
        row, rows, batches = dims
        if pointer % 16 or row % 16:
            raise RuntimeError(f"a tensor map of rows of {row} bytes at {pointer:#x} is not aligned to 16 bytes")
        return struct.pack("=8Q", pointer, row, rows, batches, row, row * rows, box_bytes, box_rows).ljust(128, b"\0")

    def load(self, kernel: Kernel, variant: Variant) -> EmulatedProgram:
        return EmulatedProgram(self._folder / f"{variant.name}.so", kernel, 0)
