# SPDX-License-Identifier: Apache-2.0
"""Reading machine code: which instructions, with modifiers, how often.

Starting nvdisasm costs more than compiling a small kernel, so the code of many cubins is put one after the other and
disassembled as one raw binary. Branch targets come out differently that way; opcodes and modifiers do not.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

from warpsmith.errors import ToolchainError

Census = tuple[tuple[str, int], ...]
"""(opcode with modifiers, count), sorted; the NOPs that pad a kernel's end are not counted."""

_INSTRUCTION_BYTES = 16
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)


def disassemble(nvdisasm: str, target: str, names: Sequence[str], codes: Sequence[bytes]) -> list[Census]:
    """The instruction census of each code, in order; one nvdisasm call for all of them.

    Raises
    ------
    ToolchainError
        If nvdisasm cannot read a code; the message names the cubin.
    """
    if not any(codes):
        return [() for _ in codes]
    try:
        return _census(_run(nvdisasm, target, b"".join(codes)), codes)
    except ToolchainError:
        found = []
        for name, code in zip(names, codes, strict=True):
            try:
                found += _census(_run(nvdisasm, target, code), [code])
            except ToolchainError as error:
                raise ToolchainError(f"{name}: {error}") from error
        return found


def _run(nvdisasm: str, target: str, code: bytes) -> str:
    with _readable(code) as (path, descriptors):
        command = [nvdisasm, "--no-dataflow", "--binary", target.replace("sm_", "SM"), path]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, pass_fds=descriptors, check=False
            )
        except OSError as error:
            raise ToolchainError(f"cannot run {nvdisasm}: {error}; pip install 'warpsmith[build]'") from error
    if done.returncode:
        said = "; ".join(done.stderr.decode(errors="replace").splitlines()[:2]) or "nothing"
        raise ToolchainError(
            f"nvdisasm ended with status {done.returncode} and said: {said}; "
            "it must be at least as new as NVRTC: pip install -U 'warpsmith[build]'"
        )
    return done.stdout.decode(errors="replace")


@contextmanager
def _readable(code: bytes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The code as a file that nvdisasm can open by name; on Linux in memory, so that a kill leaves nothing behind."""
    if sys.platform == "linux":
        with os.fdopen(os.memfd_create("warpsmith-code"), "w+b") as memory:
            memory.write(code)
            memory.flush()
            yield f"/proc/self/fd/{memory.fileno()}", (memory.fileno(),)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "code.bin"
        path.write_bytes(code)
        yield str(path), ()


def _census(text: str, codes: Sequence[bytes]) -> list[Census]:
    ends = list(accumulate(map(len, codes)))
    found: list[list[str]] = [[] for _ in codes]
    for match in _LINE.finditer(text):
        index = bisect_right(ends, int(match[1], 16))
        if index < len(found):
            found[index].append(match[2])
    for code, opcodes in zip(codes, found, strict=True):
        if len(opcodes) != len(code) // _INSTRUCTION_BYTES:
            raise ToolchainError(
                f"nvdisasm listed {len(opcodes)} instructions where {len(code) // _INSTRUCTION_BYTES} were expected; "
                "its output is not in a form that this version of Warpsmith reads"
            )
        while opcodes and opcodes[-1] == "NOP":
            opcodes.pop()
    return [tuple(sorted(Counter(opcodes).items())) for opcodes in found]


def count(census: Census, pattern: str) -> int:
    """How many instructions' opcodes match a regular expression from their start on.

    Examples
    --------
    >>> count((("HMMA.16816.F32.BF16", 64), ("STG.E.128", 8)), r"HMMA.*BF16")
    64
    """
    wanted = re.compile(pattern)
    return sum(number for opcode, number in census if wanted.match(opcode))


def spills(census: Census) -> int:
    """How many instructions store to or load from local memory."""
    return count(census, r"(STL|LDL)\b")


def global_writes(census: Census) -> int:
    """How many instructions write global memory: plain stores, atomics and reductions, bulk and tensor copies out."""
    return count(census, r"(STG?|REDG?|ATOMG?|UTMASTG|UTMAREDG|UBLKCP|UBLKRED)\b")
