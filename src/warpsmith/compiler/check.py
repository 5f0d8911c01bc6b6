# SPDX-License-Identifier: Apache-2.0
"""Everything that can be wrong with a cubin although it compiled.

A kernel whose body is compiled out still compiles, and so does one that needs more shared memory than its target has.
What a cubin says about itself, the compiler's log and the instruction census are held against the catalog.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from warpsmith.arch import Target
from warpsmith.bundle.elf import RECORD_MAGIC, UNBOUNDED_STACK, CubinInfo, KernelInfo
from warpsmith.bundle.manifest import layout
from warpsmith.catalog.spec import Kernel, Variant
from warpsmith.compiler.sass import Census, count, global_writes, spills

_SPILLED = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTER_FILE = 65536  # 32-bit registers of a multiprocessor, on every target
_REGISTER_UNIT = 8  # registers are given to a thread in eights
_MAX_THREADS = 1024
_WAITS = 1
_WAIT_OPCODE = "ACQBULK"


def problems(
    kernel: Kernel, variant: Variant, target: Target, info: CubinInfo, log: str, census: Census, nvrtc_version: str
) -> list[str]:
    """What is wrong with a compiled cubin, one sentence each; empty if it is what the catalog asks for.

    Parameters
    ----------
    kernel, variant, target
        What was to be compiled.
    info
        What the cubin says about itself.
    log
        The compiler's log, with ptxas's statistics.
    census
        Instructions of its machine code.
    nvrtc_version
        The version that it was to be compiled with, in full.
    """
    found = []
    if info.target != target:
        found.append(f"it is made for {info.target}, not for {target}")
    if info.tool_version != nvrtc_version:
        found.append(f"it was made by NVRTC {info.tool_version}, not by {nvrtc_version}")
    if [k.entry for k in info.kernels] != [kernel.entry]:
        entries = ", ".join(k.entry for k in info.kernels) or "none"
        found.append(f'its entries are {entries}; expected {kernel.entry} alone (extern "C" __global__)')
        return found
    only = info.kernels[0]
    return [
        *found,
        *_parameters(kernel, only),
        *_record(info.record, only, target, census),
        *_local_memory(kernel, only, log, census),
        *_instructions(variant, target, census),
    ]


def _parameters(kernel: Kernel, compiled: KernelInfo) -> Iterator[str]:
    sizes = [p.size for p in kernel.params]
    offsets = [offset for _, _, offset in layout(kernel.params, compiled.param_base)]
    expected = tuple(zip(offsets, sizes, strict=True))
    if compiled.params != expected:
        yield (
            f"its parameters (offset, size) are {_pairs(compiled.params)}; the catalog's "
            f"{', '.join(f'{p.name}: {p.ctype}' for p in kernel.params) or 'none'} make {_pairs(expected)}"
        )


def _pairs(params: tuple[tuple[int, int], ...]) -> str:
    return " ".join(f"({offset}, {size})" for offset, size in params) or "none"


def _record(record: tuple[int, ...] | None, compiled: KernelInfo, target: Target, census: Census) -> Iterator[str]:
    if record is None:
        yield "it exports no ws_record; put WS_RECORD (common/record.cuh) beside the kernel"
        return
    magic, dynamic, threads = record[:3]
    if magic != RECORD_MAGIC:
        yield f"its ws_record starts with {magic:#x}, expected {RECORD_MAGIC:#x}"
        return
    if compiled.static_shared + dynamic > target.shared_memory:
        yield (
            f"it needs {compiled.static_shared + dynamic} bytes of shared memory ({compiled.static_shared} static, "
            f"{dynamic} dynamic), and a block on {target} may have {target.shared_memory}"
        )
    needed = -(-compiled.registers // _REGISTER_UNIT) * _REGISTER_UNIT * threads
    if not 1 <= threads <= _MAX_THREADS:
        yield f"its ws_record says {threads} threads a block; expected 1 to {_MAX_THREADS}"
    elif needed > _REGISTER_FILE:
        yield (
            f"its {threads} threads of {compiled.registers} registers need {needed} of {_REGISTER_FILE}, so that it "
            "cannot be launched; give it __launch_bounds__"
        )
    says, does = bool(record[4] & _WAITS), bool(count(census, _WAIT_OPCODE))
    if says != does:
        yield (
            f"its ws_record says that it {'waits' if says else 'does not wait'} for its predecessor, and there is "
            f"{'no' if says else 'an'} instruction {_WAIT_OPCODE}"
        )


def _local_memory(kernel: Kernel, compiled: KernelInfo, log: str, census: Census) -> Iterator[str]:
    if kernel.may_spill:
        return
    spilled = _SPILLED.findall(log)
    stores, loads = sum(int(s) for s, _ in spilled), sum(int(n) for _, n in spilled)
    stack = "an unbounded stack" if compiled.stack == UNBOUNDED_STACK else f"{compiled.stack} bytes of stack"
    if compiled.stack or stores or loads or spills(census):
        yield (
            f"it has {stack}, {stores} bytes of spill stores and {loads} of spill loads, and {spills(census)} "
            "instructions that use local memory; the catalog allows it none (may_spill)"
        )


def _instructions(variant: Variant, target: Target, census: Census) -> Iterator[str]:
    if not global_writes(census):
        yield "it writes no global memory: its body is empty, or was compiled out"
    for required in variant.instructions:
        for pattern in required.patterns if required.applies_to(target) else ():
            if not count(census, pattern):
                yield f"it has no instruction {pattern}, which the catalog asks for on {target}"
