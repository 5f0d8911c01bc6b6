# SPDX-License-Identifier: Apache-2.0
"""The process that compiles: NVRTC through ctypes, jobs on stdin, replies on stdout.

Run as ``python -m warpsmith.compiler.worker NVRTC_LIBRARY NVDISASM``. It imports little, so that it starts in
milliseconds, and nothing of what the caller has loaded, so that no other libnvrtc can be taken by mistake.

A message is a frame: magic, length of a JSON header, length of a binary blob, then the two. The first frame that a
worker writes says which NVRTC it loaded, or why it cannot work.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import struct
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, BinaryIO

from warpsmith.errors import ToolchainError

Header = dict[str, Any]
_PREFIX = struct.Struct("<4sII")
_MAGIC = b"WSJ1"
_LIMIT = 1 << 30
MINIMUM_NVRTC = (13, 0)


def write_frame(stream: BinaryIO, header: Header, blob: bytes = b"") -> None:
    """Write one message and flush it."""
    text = json.dumps(header).encode()
    stream.write(_PREFIX.pack(_MAGIC, len(text), len(blob)) + text)
    stream.write(blob)
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[Header, bytes] | None:
    """Read one message; None if the stream ends, at whichever byte, before the message is complete.

    Raises
    ------
    ValueError
        If what arrives is not a message.
    """
    prefix = stream.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        return None
    magic, header_length, blob_length = _PREFIX.unpack(prefix)
    if magic != _MAGIC or max(header_length, blob_length) > _LIMIT:
        raise ValueError(f"not a message of a compile worker: it starts with {prefix!r}")
    text, blob = stream.read(header_length), stream.read(blob_length)
    if len(text) < header_length or len(blob) < blob_length:
        return None
    header: Header = json.loads(text)
    return header, blob


def _load_builtins(path: str) -> None:
    """Load the builtins library beside NVRTC first: NVRTC opens it by name, and not every one looks beside itself."""
    if sys.platform != "win32":
        for library in sorted(Path(path).parent.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(library))


class Nvrtc:
    """The compiler library of one path, refused if it is older than CUDA 13.

    Raises
    ------
    ToolchainError
        If the library does not load or is too old.
    """

    def __init__(self, path: str) -> None:
        if sys.platform == "win32":
            os.add_dll_directory(os.path.split(path)[0])  # where its builtins library lies
        try:
            _load_builtins(path)
            self._library = ctypes.CDLL(path)
        except OSError as error:
            raise ToolchainError(f"cannot load NVRTC from {path}: {error}; pip install 'warpsmith[build]'") from error
        pointer, text, texts = ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p)
        self._library.nvrtcGetErrorString.restype = text
        self._library.nvrtcCreateProgram.argtypes = [pointer, text, text, ctypes.c_int, texts, texts]
        self._library.nvrtcCompileProgram.argtypes = [pointer, ctypes.c_int, texts]
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)
        check_version(self.version, path)

    def compile(self, program: str, name: str, headers: list[list[str]], options: list[str]) -> tuple[str, str, bytes]:
        """Compile to a cubin: (error name, or "" for success; the compiler's log; the cubin)."""
        handle = ctypes.c_void_p()
        names, texts = _strings([h[0] for h in headers]), _strings([h[1] for h in headers])
        status = self._library.nvrtcCreateProgram(
            ctypes.byref(handle), program.encode(), name.encode(), len(headers), texts, names
        )
        if status:
            return self._error(status), "", b""
        try:
            status = self._library.nvrtcCompileProgram(handle, len(options), _strings(options))
            log = self._fetch("ProgramLog", handle).rstrip(b"\0").decode(errors="replace")
            return self._error(status), log, b"" if status else self._fetch("CUBIN", handle)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(handle))

    def _error(self, status: int) -> str:
        return str(self._library.nvrtcGetErrorString(status).decode()) if status else ""

    def _fetch(self, what: str, handle: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        status = getattr(self._library, f"nvrtcGet{what}Size")(handle, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        status = status or getattr(self._library, f"nvrtcGet{what}")(handle, buffer)
        if status:
            raise RuntimeError(f"nvrtcGet{what} failed: {self._error(status)}")
        return buffer.raw


def check_version(version: tuple[int, int], path: str) -> None:
    """Refuse an NVRTC older than 13.0.

    Raises
    ------
    ToolchainError
        With the reason, and what to install.
    """
    if version < MINIMUM_NVRTC:
        given = ".".join(map(str, version))
        raise ToolchainError(
            f"{path} is NVRTC {given}; Warpsmith needs 13.0 or newer: {version[0]} does not know sm_88 and sm_110, and "
            "bundles, checks and evidence are made for CUDA 13's machine code; pip install -U 'warpsmith[build]'"
        )


def _strings(texts: list[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))


def _answer(nvrtc: Nvrtc, nvdisasm: str, header: Header, blob: bytes) -> tuple[Header, bytes]:
    if header["kind"] == "compile":
        error, log, cubin = nvrtc.compile(header["program"], header["name"], header["headers"], header["options"])
        return {"error": error, "log": log}, cubin
    from warpsmith.compiler.sass import disassemble

    codes, start = [], 0
    for length in header["lengths"]:
        codes.append(blob[start : start + length])
        start += length
    return {"error": "", "census": disassemble(nvdisasm, header["target"], header["names"], codes)}, b""


def _read_jobs(jobs: BinaryIO, inbox: queue.SimpleQueue[tuple[Header, bytes]]) -> None:
    """Feed jobs to the main thread; end the process as soon as the caller is gone, even in the midst of a compile."""
    while True:
        frame = read_frame(jobs)
        if frame is None:
            os._exit(0)
        inbox.put(frame)


def main(nvrtc_path: str, nvdisasm: str) -> None:
    """Work until stdin ends."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up among the replies
    try:
        nvrtc = Nvrtc(nvrtc_path)
    except ToolchainError as error:
        write_frame(replies, {"error": str(error)})
        return
    write_frame(replies, {"error": "", "nvrtc": nvrtc.version})
    inbox: queue.SimpleQueue[tuple[Header, bytes]] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(sys.stdin.buffer, inbox), daemon=True).start()
    while True:
        header, blob = inbox.get()
        try:
            reply = _answer(nvrtc, nvdisasm, header, blob)
        except ToolchainError as error:
            reply = {"error": "toolchain", "log": str(error)}, b""
        except Exception:
            reply = {"error": "internal", "log": traceback.format_exc()}, b""
        write_frame(replies, *reply)


if __name__ == "__main__":
    main(*sys.argv[1:3])
