# SPDX-License-Identifier: Apache-2.0
"""Jobs for compile workers and what comes of them: values that cross process and machine borders."""

from __future__ import annotations

from dataclasses import dataclass

from warpsmith.arch import Target
from warpsmith.catalog.source import PROGRAM_NAME, SourceUnit
from warpsmith.catalog.spec import CubinId
from warpsmith.compiler.sass import Census
from warpsmith.compiler.worker import Header
from warpsmith.errors import CompileError, ToolchainError


@dataclass(frozen=True)
class Compiled:
    """What NVRTC made of a source: the cubin and the compiler's full log."""

    cubin: bytes
    log: str


@dataclass(frozen=True)
class CompileJob:
    """One cubin to compile.

    Attributes
    ----------
    cubin
        ``kernel/variant@target``, for messages.
    program, headers, options
        As in `SourceUnit`; the target's option is added.
    target
        Such as ``sm_120f``.
    tool
        What must run it, such as ``nvrtc 13.5.37``; empty for any version.
    """

    cubin: str
    program: str
    headers: tuple[tuple[str, str], ...]
    options: tuple[str, ...]
    target: str
    tool: str = ""

    @classmethod
    def of(cls, cubin: CubinId, unit: SourceUnit, tool: str) -> CompileJob:
        """The job that makes `cubin` from its source."""
        return cls(str(cubin), unit.program, unit.headers, unit.options, str(cubin.target), tool)

    @property
    def all_options(self) -> list[str]:
        """What NVRTC is given."""
        return [*self.options, f"--gpu-architecture={self.target}"]

    def request(self) -> tuple[Header, bytes]:
        """The job as a worker reads it."""
        header = {
            "kind": "compile",
            "name": PROGRAM_NAME,
            "program": self.program,
            "headers": self.headers,
            "options": self.all_options,
        }
        return header, b""

    def result(self, header: Header, blob: bytes) -> Compiled:
        """What the worker's reply says.

        Raises
        ------
        CompileError
            If NVRTC refused the source; with the options and the compiler's full log.
        """
        if header["error"]:
            raise CompileError(
                f"{self.cubin}: {_reason(header)}\noptions: {' '.join(self.all_options)}\n"
                f"program:\n{self.program}\nlog:\n{header['log']}"
            )
        return Compiled(blob, header["log"])


@dataclass(frozen=True)
class InspectJob:
    """The machine code of some cubins of one target, to be disassembled in one go; `tool` as for `CompileJob`."""

    target: Target
    names: tuple[str, ...]
    codes: tuple[bytes, ...]
    tool: str = ""

    @property
    def cubin(self) -> str:
        """What the job is about, for messages."""
        return f"disassembly of {', '.join(self.names)}"

    def request(self) -> tuple[Header, bytes]:
        """The job as a worker reads it."""
        header = {
            "kind": "inspect",
            "target": str(self.target),
            "names": self.names,
            "lengths": [len(code) for code in self.codes],
        }
        return header, b"".join(self.codes)

    def result(self, header: Header, _: bytes) -> tuple[Census, ...]:
        """The instruction census of each code, in order.

        Raises
        ------
        ToolchainError
            If nvdisasm is missing or could not read a code.
        """
        if header["error"]:
            raise ToolchainError(header["log"])
        return tuple(tuple((str(o), int(n)) for o, n in census) for census in header["census"])


def _reason(header: Header) -> str:
    if header["error"] == "internal":
        return "the compile worker failed"
    return f"NVRTC refused the source ({header['error']})"
