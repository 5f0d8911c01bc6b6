# SPDX-License-Identifier: Apache-2.0
"""What a cubin says about itself: target, compiler, kernels, parameters, registers, stack, shared memory, record.

A cubin is an ELF64 file with sections of NVIDIA's own, which are not documented in full. What is read here was held
against ``cuobjdump -elf`` for every target, with NVRTC 13.0 and 13.5; a file that contradicts itself is refused. Any
bytes may be given: the only exception that comes out is `ElfError`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from warpsmith.arch import Capability, Suffix, Target
from warpsmith.errors import ElfError, TargetError

MAX_CUBIN_BYTES = 64 << 20
"""The largest cubin that is read."""

RECORD_MAGIC = 0x57530001
"""First word of ``ws_record``, the launch facts that every kernel exports."""

UNBOUNDED_STACK = 0xFFFFFFFF
"""The stack size of a kernel whose stack ptxas cannot bound (recursion)."""

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_CUDA_MACHINE, _CUDA_OSABI, _CUDA_ABI = 190, 65, 8
_PROGBITS, _NOBITS = 1, 8
_FUNCTION, _ENTRY_FLAG = 2, 0x10
_MAX_SECTIONS, _MAX_SYMBOLS, _MAX_NAME = 4096, 16384, 1024
_MAX_ATTRIBUTE_BYTES = 1 << 20

# Attributes of .nv.info sections and of .nv.compat.
_FRAME_SIZE, _MIN_STACK_SIZE, _REGCOUNT = 0x11, 0x12, 0x2F
_KPARAM_INFO, _CBANK_PARAM_SIZE, _PARAM_CBANK = 0x17, 0x19, 0x0A
_ACCELERATOR_TARGET = 0x09

# From 9.0 on the system keeps 1 KB of each block's shared memory, and ptxas counts it into the kernel's section
# (`ptxas -v` does not, nor does the limit of 227 or 99 KB).
_RESERVED_SHARED = 1024

_OBJECT_VERSION = re.compile(r"\bV(\d+\.\d+\.\d+)")
_ARCH_OPTION = re.compile(r"(?:^|\s)-arch[ =](\S+)")
_SM = re.compile(r"sm_(\d{1,2})(\d)([af]?)")
_SUFFIXES: dict[str, Suffix] = {"": "", "a": "a", "f": "f"}


class KernelInfo(NamedTuple):
    """One kernel of a cubin.

    Attributes
    ----------
    params
        (offset, size) of each parameter, in order; offsets count from the start of the parameter block.
    param_bytes
        Bytes of the parameter block.
    stack
        Bytes of stack a thread; `UNBOUNDED_STACK` where ptxas cannot bound it.
    static_shared
        Bytes of static shared memory a block, without what the system reserves.
    code
        The machine code.
    param_base
        Address of the parameter block in constant bank 0: parameters are aligned to that, not to the block.
    """

    entry: str
    params: tuple[tuple[int, int], ...]
    param_bytes: int
    registers: int
    stack: int
    static_shared: int
    code_bytes: int
    code: bytes
    param_base: int = 0


class CubinInfo(NamedTuple):
    """What a cubin says about itself; `record` is None if it exports no ``ws_record``."""

    target: Target
    tool_version: str
    kernels: tuple[KernelInfo, ...]
    record: tuple[int, ...] | None


def read_cubin(data: bytes) -> CubinInfo:
    """Read a cubin.

    Parameters
    ----------
    data
        The whole file, as NVRTC makes it.

    Raises
    ------
    ElfError
        If it is not a well-formed cubin of CUDA 13 for one known target; the message says what is wrong.
    """
    elf = _Elf(data)
    version, options = _tool(elf)
    target = _target(elf, options)
    usage = _usage(elf)
    kernels: dict[str, KernelInfo] = {}
    budget = len(data)
    for index, symbol in enumerate(elf.symbols):
        if symbol.kind != _FUNCTION or not symbol.other & _ENTRY_FLAG:
            continue
        if symbol.name in kernels:
            raise ElfError(f"two kernels are named {symbol.name!r}")
        kernels[symbol.name] = kernel = _kernel(elf, usage.get(index, {}), target, symbol)
        budget -= kernel.code_bytes
        if budget < 0:
            raise ElfError("its kernels claim more machine code than the file holds")
    return CubinInfo(target, version, tuple(kernels[name] for name in sorted(kernels)), _record(elf))


class _Section(NamedTuple):
    name: str
    type: int
    offset: int
    size: int


class _Symbol(NamedTuple):
    name: str
    kind: int
    other: int
    section: int
    value: int
    size: int


class _Elf:
    """Sections and symbols of a file; no offset is used before it is checked."""

    def __init__(self, data: bytes) -> None:
        if len(data) > MAX_CUBIN_BYTES:
            raise ElfError(f"{len(data)} bytes, more than the {MAX_CUBIN_BYTES} that a cubin may have")
        self.data = data
        if data[:4] != b"\x7fELF":
            raise ElfError(f"not an ELF file: it starts with {data[:4].hex() or 'nothing'}, not 7f454c46")
        header = _ELF_HEADER.unpack(self.range(0, _ELF_HEADER.size, "the ELF header"))
        ident, machine = header[0], header[2]
        if ident[4:6] != b"\x02\x01" or machine != _CUDA_MACHINE:
            raise ElfError("not a cubin: expected a little-endian ELF64 file for CUDA (machine 190)")
        if (ident[7], ident[8]) != (_CUDA_OSABI, _CUDA_ABI):
            raise ElfError(
                f"a cubin of OS/ABI {ident[7]} version {ident[8]}, where CUDA 13 makes {_CUDA_OSABI} version "
                f"{_CUDA_ABI}; build it again with NVRTC 13.0 or newer"
            )
        self.flags: int = header[7]
        self.range(header[5], header[9] * header[10], "the program header table")
        self._read_sections(table=header[6], entry_bytes=header[11], count=header[12], names=header[13])

    def range(self, offset: int, size: int, what: str) -> bytes:
        """Bytes of the file, or an error that names `what`."""
        if offset + size > len(self.data):
            raise ElfError(f"{what} ends at byte {offset + size}, but the file has {len(self.data)}")
        return self.data[offset : offset + size]

    def contents(self, section: _Section) -> bytes:
        """The bytes of a section that has some."""
        return b"" if section.type == _NOBITS else self.range(section.offset, section.size, f"section {section.name}")

    def find(self, name: str) -> _Section | None:
        """The section of that name, or None."""
        found = self._by_name.get(name, [])
        if len(found) > 1:
            raise ElfError(f"there are {len(found)} sections {name}")
        return found[0] if found else None

    @cached_property
    def symbols(self) -> tuple[_Symbol, ...]:
        """The symbol table."""
        table, strings = self.find(".symtab"), self.find(".strtab")
        if table is None or strings is None:
            raise ElfError("it has no symbol table")
        if table.size > _MAX_SYMBOLS * _SYMBOL.size or table.size % _SYMBOL.size:
            raise ElfError(f"its symbol table has {table.size} bytes: not whole symbols, or too many of them")
        text, found = self.contents(strings), []
        for name, info, other, section, value, size in _SYMBOL.iter_unpack(self.contents(table)):
            found.append(_Symbol(_string(text, name, "a symbol's name"), info & 15, other, section, value, size))
        return tuple(found)

    def _read_sections(self, table: int, entry_bytes: int, count: int, names: int) -> None:
        if entry_bytes != _SECTION.size or not 0 < count <= _MAX_SECTIONS or names >= count:
            raise ElfError(f"its section table is malformed ({count} entries of {entry_bytes} bytes, names in {names})")
        raw = self.range(table, count * _SECTION.size, "the section table")
        rows = list(_SECTION.iter_unpack(raw))
        text = self.range(rows[names][4], rows[names][5], "the section names")
        self.sections = tuple(_Section(_string(text, r[0], "a section's name"), r[1], r[4], r[5]) for r in rows)
        self._by_name: dict[str, list[_Section]] = {}
        for section in self.sections:
            self._by_name.setdefault(section.name, []).append(section)


def _string(text: bytes, offset: int, what: str) -> str:
    end = text.find(b"\0", offset, offset + _MAX_NAME + 1) if offset < len(text) else -1
    if end < 0:
        raise ElfError(f"{what} at {offset} does not end within {_MAX_NAME} bytes")
    try:
        return text[offset:end].decode("ascii")
    except UnicodeDecodeError as error:
        raise ElfError(f"{what} at {offset} is not ASCII") from error


def _tool(elf: _Elf) -> tuple[str, str]:
    """Version and command line of ptxas, from the note it leaves."""
    section = elf.find(".note.nv.tkinfo")
    if section is None:
        raise ElfError("it has no note .note.nv.tkinfo that says what made it; build it with NVRTC 13.0 or newer")
    note = elf.contents(section)
    try:
        name_bytes, size, _ = struct.unpack_from("<3I", note)
        start = 12 + (name_bytes + 3) // 4 * 4
        fields = struct.unpack_from("<6I", note, start)  # version, then offsets of five strings
    except struct.error as error:
        raise ElfError(f"its note .note.nv.tkinfo is cut short ({len(note)} bytes)") from error
    strings = note[start + 24 : start + size]
    tool, version, options = (_string(strings, fields[i], "a string of .note.nv.tkinfo") for i in (2, 3, 5))
    match = _OBJECT_VERSION.search(version)
    if tool != "ptxas" or match is None:
        raise ElfError(f"it was made by {tool!r} {version!r}; expected ptxas with a version such as V13.5.37")
    return match[1], options


def _target(elf: _Elf, options: str) -> Target:
    """The target: the number is in the ELF flags too; whether it is `a` or `f` only ptxas's own options say in full."""
    names = _ARCH_OPTION.findall(options)
    match = _SM.fullmatch(names[0]) if len(names) == 1 else None
    if match is None:
        raise ElfError(f"ptxas's options {options!r} do not name one target (-arch sm_121a)")
    try:
        target = Target(Capability(int(match[1]), int(match[2])), _SUFFIXES[match[3]])
    except TargetError as error:
        raise ElfError(f"it is made for {names[0]}: {error}") from error
    number = elf.flags >> 8 & 0xFFFF
    if number != target.capability.major * 10 + target.capability.minor:
        raise ElfError(f"its ELF flags {elf.flags:#x} say sm_{number}, but ptxas was asked for {target}")
    compat = elf.find(".nv.compat")
    if compat is not None:
        for attribute, value in _attributes(elf, compat):
            if attribute == _ACCELERATOR_TARGET and (value[:1] == b"\1") != (target.suffix == "a"):
                raise ElfError(f"ptxas was asked for {target}, but .nv.compat says otherwise")
    return target


def _attributes(elf: _Elf, section: _Section) -> Iterator[tuple[int, bytes]]:
    """(attribute, value) of each record: four bytes with a short value or, for format 4, the length of what follows."""
    if section.size > _MAX_ATTRIBUTE_BYTES:
        raise ElfError(f"section {section.name} has {section.size} bytes, more than {_MAX_ATTRIBUTE_BYTES}")
    data, position = elf.contents(section), 0
    while position < len(data):
        record = data[position : position + 4]
        position += 4
        value = record[2:]
        if len(record) == 4 and record[0] == 4:
            size = int.from_bytes(value, "little")
            value = data[position : position + size]
            position += size
        if position > len(data) or not 1 <= record[0] <= 4:
            raise ElfError(f"section {section.name} is malformed near byte {position}")
        yield record[1], value


def _words(value: bytes, shape: str, section: str) -> tuple[int, ...]:
    if len(value) != struct.calcsize(shape):
        raise ElfError(f"an attribute of {section} has {len(value)} bytes, expected {struct.calcsize(shape)}")
    return struct.unpack(shape, value)


def _usage(elf: _Elf) -> dict[int, dict[int, int]]:
    """Symbol index → attribute (registers, frame, stack) → value."""
    section = elf.find(".nv.info")
    if section is None:
        raise ElfError("it has no section .nv.info")
    found: dict[int, dict[int, int]] = {}
    for attribute, value in _attributes(elf, section):
        if attribute in (_REGCOUNT, _FRAME_SIZE, _MIN_STACK_SIZE):
            symbol, amount = _words(value, "<2I", section.name)
            found.setdefault(symbol, {})[attribute] = amount
    return found


def _kernel(elf: _Elf, usage: dict[int, int], target: Target, symbol: _Symbol) -> KernelInfo:
    name = symbol.name
    text, info = elf.find(f".text.{name}"), elf.find(f".nv.info.{name}")
    if text is None or info is None or _REGCOUNT not in usage or _FRAME_SIZE not in usage:
        raise ElfError(f"kernel {name!r} lacks its code, its .nv.info or its register count")
    if text.type != _PROGBITS or symbol.section >= len(elf.sections) or elf.sections[symbol.section] is not text:
        raise ElfError(f"kernel {name!r} does not lie in section {text.name}")
    params, base, size = _parameters(elf, info)
    shared = elf.find(f".nv.shared.{name}")
    reserved = _RESERVED_SHARED if shared is not None and target.capability.major >= 9 else 0
    static = (shared.size if shared is not None else 0) - reserved
    if static < 0:
        raise ElfError(f"section .nv.shared.{name} is smaller than the {reserved} bytes that the system reserves")
    code = elf.contents(text)
    stack = max(usage[_FRAME_SIZE], usage.get(_MIN_STACK_SIZE, 0))
    return KernelInfo(name, params, size, usage[_REGCOUNT], stack, static, len(code), code, base)


def _parameters(elf: _Elf, info: _Section) -> tuple[tuple[tuple[int, int], ...], int, int]:
    """((offset, size), …), address of the parameter block, its bytes."""
    found: dict[int, tuple[int, int]] = {}
    base = block = size = 0
    for attribute, value in _attributes(elf, info):
        if attribute == _KPARAM_INFO:
            _, ordinal, offset, packed = _words(value, "<IHHI", info.name)
            if ordinal in found:
                raise ElfError(f"{info.name} describes parameter {ordinal} twice")
            found[ordinal] = (offset, packed >> 18)
        elif attribute == _PARAM_CBANK:
            _, base, block = _words(value, "<IHH", info.name)
        elif attribute == _CBANK_PARAM_SIZE:
            (size,) = _words(value, "<H", info.name)
    params = tuple(found[i] for i in sorted(found))
    end = 0
    for offset, length in params:
        if offset < end:
            raise ElfError(f"{info.name}: the parameter at offset {offset} overlaps the one before it")
        end = offset + length
    if sorted(found) != list(range(len(found))) or block != size or end != size:
        raise ElfError(
            f"{info.name}: {len(found)} parameters that end at byte {end} do not make up the block of {size} bytes"
        )
    return params, base, size


def _record(elf: _Elf) -> tuple[int, ...] | None:
    found = [s for s in elf.symbols if s.name == "ws_record" and s.section]
    if not found:
        return None
    symbol, section = found[0], elf.find(".nv.constant3")
    inside = section is not None and symbol.section < len(elf.sections) and elf.sections[symbol.section] is section
    if len(found) > 1 or not inside or section is None or symbol.size != 32:
        raise ElfError("ws_record is not one array of eight words in constant memory (.nv.constant3)")
    words = elf.contents(section)[symbol.value : symbol.value + 32]
    if len(words) != 32:
        raise ElfError("ws_record reaches past the end of .nv.constant3")
    return struct.unpack("<8I", words)
