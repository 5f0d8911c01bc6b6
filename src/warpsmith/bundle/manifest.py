# SPDX-License-Identifier: Apache-2.0
"""The manifest of a bundle: what it holds, for which target, made from which sources.

The parser is strict: a manifest with anything unexpected in it is damaged, and says where. No path ever comes from a
manifest; a cubin's file is named after its digest.

A manifest lists the parameter lists and opcodes of all cubins once, and each cubin says which of them are its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from warpsmith.arch import Target, parse
from warpsmith.bundle.elf import MAX_CUBIN_BYTES
from warpsmith.bundle.fields import A_NAME, DAMAGED, NAME, Fields, decode, fail
from warpsmith.bundle.models import models_of
from warpsmith.catalog.selection import Selection
from warpsmith.catalog.spec import CubinId, Param
from warpsmith.errors import ManifestError, TargetError

SCHEMA = 4
"""The schema that is written. 3, whose cubins lie there as they are, is read too; bundles of 1 and 2 have no cubin that
this package's sources make."""

DEFLATE, RAW = "deflate", "raw"
"""How a bundle's files hold its cubins: packed, as `warpsmith.bundle.packing` does it, or as they are (schema 3)."""

MANIFEST = "manifest.json"
"""Name of the manifest's file in a bundle."""

MAX_MANIFEST_BYTES = 16 << 20
MAX_CUBINS = 100_000
_MAX_PARAMS = 256

_RAW_SCHEMA = 3
_DEFLATE = re.compile(DEFLATE)
_TEXT = re.compile(r"[!-~](?:[ -~]{0,198}[!-~])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WORD = 0xFFFFFFFF
_MAX_COUNT = 1 << 31
_PARAM_BYTES = 32764  # the most that CUDA takes
_A_DIGEST = "64 lower-case hexadecimal digits"
_MAX_OPCODES = 10_000
_A_CENSUS = "a list of opcodes' positions in manifest.opcodes, ascending, each with its count"


@dataclass(frozen=True, kw_only=True)
class CubinEntry:
    """What the manifest says of one cubin.

    Attributes
    ----------
    sha256, size
        Digest and bytes of the cubin itself, however its file holds it.
    source_digest
        What the cubin was made from, as `warpsmith.catalog.source.source_digest` computes it.
    stack, static_shared, dynamic_shared
        Bytes of stack a thread, of shared memory a block.
    flags
        Bit 0: the kernel waits for its predecessor (griddepcontrol).
    params
        (name, C type, offset in the parameter block) in order.
    instructions
        (opcode, count): the census of its machine code; kept sorted.
    """

    kernel: str
    variant: str
    module: str
    entry: str
    sha256: str
    size: int
    source_digest: str
    registers: int
    stack: int
    static_shared: int
    dynamic_shared: int
    threads: int
    flags: int
    params: tuple[tuple[str, str, int], ...]
    instructions: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "instructions", tuple(sorted(self.instructions)))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A bundle's manifest; its cubins are kept sorted by kernel and variant.

    Attributes
    ----------
    package_version
        The version of Warpsmith that wrote it.
    min_driver
        `cuDriverGetVersion` of the oldest driver that loads the cubins.
    toolchain
        The compiler, such as ``nvrtc 13.5.37``.
    selection
        The modules, formats and models' shapes that the build was asked for; empty means all.
    catalog_digest
        Digest of the catalog it was planned from. For information: cubins are matched one by one.
    encoding
        How the files hold the cubins: `DEFLATE` or `RAW`.
    """

    target: Target
    package_version: str
    min_driver: int
    toolchain: str
    selection: Selection
    catalog_digest: str
    cubins: tuple[CubinEntry, ...]
    encoding: str = DEFLATE

    def __post_init__(self) -> None:
        object.__setattr__(self, "cubins", tuple(sorted(self.cubins, key=lambda c: (c.kernel, c.variant))))

    def id(self, entry: CubinEntry) -> CubinId:
        """The name of one of its cubins."""
        return CubinId(entry.kernel, entry.variant, self.target)

    def file(self, entry: CubinEntry) -> str:
        """The name of a cubin's file in the bundle."""
        return f"cubins/{entry.sha256}.cubin{'' if self.encoding == RAW else '.z'}"

    def to_json(self) -> str:
        """The manifest as text: sorted, the same for the same manifest everywhere."""
        tables = Tables(
            tuple(sorted({c.params for c in self.cubins})),
            tuple(sorted({opcode for c in self.cubins for opcode, _ in c.instructions})),
        )
        lists = {params: index for index, params in enumerate(tables.params)}
        opcodes = {opcode: index for index, opcode in enumerate(tables.opcodes)}
        fields = {
            "catalog_digest": _text(self.catalog_digest),
            "cubins": _rows(_cubin_document(c, lists, opcodes) for c in self.cubins),
            **({} if self.encoding == RAW else {"encoding": _text(self.encoding)}),
            "min_driver": _text(self.min_driver),
            "opcodes": _text(tables.opcodes),
            "package_version": _text(self.package_version),
            "params": _rows([{"name": n, "ctype": c, "offset": o} for n, c, o in params] for params in tables.params),
            "schema": _text(_RAW_SCHEMA if self.encoding == RAW else SCHEMA),
            "selection": _text({"models": [], **self.selection.document()}),
            "target": _text(str(self.target)),
            "toolchain": _text(self.toolchain),
        }
        return "{\n" + ",\n".join(f' "{name}": {text}' for name, text in fields.items()) + "\n}\n"


class Tables(NamedTuple):
    """What a manifest's cubins have in common.

    Attributes
    ----------
    params
        Lists of (name, C type, offset).
    opcodes
        Names of instructions, sorted.
    """

    params: tuple[tuple[tuple[str, str, int], ...], ...]
    opcodes: tuple[str, ...]


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _rows(values: Iterable[object]) -> str:
    """A list of one line for each value, where `outline` cuts it."""
    rows = ",".join(f"\n  {_text(value)}" for value in values)
    return f"[{rows}\n ]" if rows else "[]"


def layout(params: Sequence[Param], base: int = 0) -> tuple[tuple[str, str, int], ...]:
    """(name, C type, offset) of each parameter, where ptxas puts it.

    Parameters
    ----------
    params
        The kernel's parameters, in order.
    base
        Address of the parameter block in constant bank 0 (`KernelInfo.param_base`). A parameter is aligned to its
        address there, so that a tensor map's offset differs from one architecture to another.
    """
    found, cursor = [], base
    for param in params:
        cursor = -(-cursor // param.alignment) * param.alignment
        found.append((param.name, param.ctype, cursor - base))
        cursor += param.size
    return tuple(found)


def parse_manifest(text: bytes) -> Manifest:
    """Read a manifest.

    Raises
    ------
    ManifestError
        If it is damaged, of another schema, or too large; the message names the field, what was given and what was
        expected.
    """
    return parse_head(text)[0]


def parse_head(text: bytes) -> tuple[Manifest, Tables]:
    """As `parse_manifest`; with what the entries that are left out of the text refer to.

    Raises
    ------
    ManifestError
        As `parse_manifest`.
    """
    if len(text) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"{len(text)} bytes, more than the {MAX_MANIFEST_BYTES} that a manifest may have")
    try:
        return _manifest(decode(text))
    except RecursionError as error:
        raise ManifestError(f"nested too deeply; {DAMAGED}") from error


def parse_entry(text: bytes, where: str, tables: Tables) -> CubinEntry:
    """Read one of a manifest's cubins by itself; `where` is its place in the manifest, for messages.

    Raises
    ------
    ManifestError
        As `parse_manifest`.
    """
    try:
        return _cubin(where, decode(text), tables)
    except RecursionError as error:
        raise ManifestError(f"{where}: nested too deeply; {DAMAGED}") from error


def _manifest(document: object) -> tuple[Manifest, Tables]:
    schema = document.get("schema") if isinstance(document, dict) else SCHEMA
    _check_schema(schema)
    top = Fields("manifest", document, _TOP if schema == SCHEMA else _RAW_TOP)
    tables = _tables(top)
    cubins = [_cubin(f"cubins[{i}]", c, tables) for i, c in enumerate(top.items("cubins", MAX_CUBINS))]
    seen: set[tuple[str, str]] = set()
    for index, cubin in enumerate(cubins):
        if (cubin.kernel, cubin.variant) in seen:
            fail(f"cubins[{index}]", f"{cubin.kernel}/{cubin.variant}", "each kernel and variant once")
        seen.add((cubin.kernel, cubin.variant))
    selection = Fields("selection", top.values["selection"], ("formats", "models", "modules"))
    manifest = Manifest(
        target=_target(top.text("target", NAME, "a target such as sm_121a")),
        package_version=top.text("package_version", NAME, "a version"),
        min_driver=top.integer("min_driver", 0, 1_000_000),
        toolchain=top.text("toolchain", _TEXT, "a compiler's name and version"),
        selection=Selection(selection.names("modules"), selection.names("formats"), models_of(selection)),
        catalog_digest=top.text("catalog_digest", _DIGEST, _A_DIGEST),
        cubins=tuple(cubins),
        encoding=top.text("encoding", _DEFLATE, DEFLATE) if schema == SCHEMA else RAW,
    )
    return manifest, tables


def _check_schema(schema: object) -> None:
    if type(schema) is not int or schema < 1:
        fail("schema", schema, f"the whole number {SCHEMA}")
    if schema not in (SCHEMA, _RAW_SCHEMA):
        who, fix = ("a newer", "upgrade warpsmith") if schema > SCHEMA else ("an older", "build the bundle again")
        raise ManifestError(f"schema: given {schema}, expected {SCHEMA}: {who} warpsmith wrote the bundle; {fix}")


def _tables(top: Fields) -> Tables:
    opcodes = top.items("opcodes", _MAX_OPCODES)
    if not all(isinstance(o, str) and _TEXT.fullmatch(o) for o in opcodes) or sorted(set(opcodes)) != opcodes:
        fail("opcodes", opcodes, "a list of different opcodes, sorted")
    lists = top.items("params", MAX_CUBINS)
    return Tables(tuple(_params(f"params[{i}]", given) for i, given in enumerate(lists)), tuple(opcodes))


_RAW_TOP = (
    *("catalog_digest", "cubins", "min_driver", "opcodes", "package_version"),
    *("params", "schema", "selection", "target", "toolchain"),
)
_TOP = ("encoding", *_RAW_TOP)
_CUBIN = tuple(sorted(CubinEntry.__dataclass_fields__))


def _cubin(where: str, value: object, tables: Tables) -> CubinEntry:
    row = Fields(where, value, _CUBIN)
    return CubinEntry(
        kernel=row.text("kernel", NAME, A_NAME),
        variant=row.text("variant", NAME, A_NAME),
        module=row.text("module", NAME, A_NAME),
        entry=row.text("entry", NAME, A_NAME),
        sha256=row.text("sha256", _DIGEST, _A_DIGEST),
        size=row.integer("size", 1, MAX_CUBIN_BYTES),
        source_digest=row.text("source_digest", _DIGEST, _A_DIGEST),
        registers=row.integer("registers", 0, 1024),
        stack=row.integer("stack", 0, _WORD),
        static_shared=row.integer("static_shared", 0, _WORD),
        dynamic_shared=row.integer("dynamic_shared", 0, _WORD),
        threads=row.integer("threads", 1, 1024),
        flags=row.integer("flags", 0, _WORD),
        params=_own_params(row, tables.params),
        instructions=_instructions(row, tables.opcodes),
    )


def _own_params(row: Fields, lists: Sequence[tuple[tuple[str, str, int], ...]]) -> tuple[tuple[str, str, int], ...]:
    index = row.values["params"]
    if type(index) is not int or not 0 <= index < len(lists):
        fail(f"{row.where}.params", index, f"the position of one of the {len(lists)} lists of manifest.params")
    return lists[index]


def _params(where: str, given: object) -> tuple[tuple[str, str, int], ...]:
    if not isinstance(given, list) or len(given) > _MAX_PARAMS:
        fail(where, given, f"a list of at most {_MAX_PARAMS} items")
    found: list[tuple[str, str, int]] = []
    end = 0
    for index, value in enumerate(given):
        row = Fields(f"{where}[{index}]", value, ("ctype", "name", "offset"))
        name, ctype = row.text("name", NAME, A_NAME), row.text("ctype", NAME, A_NAME)
        offset = row.integer("offset", end, _PARAM_BYTES)
        try:
            end = offset + Param(name, ctype).size
        except KeyError:
            fail(f"{row.where}.ctype", ctype, "a parameter type that this warpsmith knows")
        found.append((name, ctype, offset))
    return tuple(found)


def _instructions(row: Fields, opcodes: Sequence[str]) -> tuple[tuple[str, int], ...]:
    given = row.items("instructions", 2 * _MAX_OPCODES)
    indices, counts = given[::2], given[1::2]
    if not given:
        return ()
    if set(map(type, given)) - {int} or len(indices) != len(counts) or sorted(set(indices)) != indices:
        fail(f"{row.where}.instructions", given, _A_CENSUS)
    if indices[0] < 0 or indices[-1] >= len(opcodes) or min(counts) < 1 or max(counts) > _MAX_COUNT:
        fail(f"{row.where}.instructions", given, f"{_A_CENSUS}; there are {len(opcodes)} opcodes")
    return tuple(zip(map(opcodes.__getitem__, indices), counts, strict=True))


def _cubin_document(
    cubin: CubinEntry, lists: dict[tuple[tuple[str, str, int], ...], int], opcodes: dict[str, int]
) -> dict[str, object]:
    document: dict[str, object] = {name: getattr(cubin, name) for name in _CUBIN}
    document["params"] = lists[cubin.params]
    document["instructions"] = [n for opcode, count in cubin.instructions for n in (opcodes[opcode], count)]
    return document


def _target(text: str) -> Target:
    try:
        target = parse(text)
    except TargetError as error:
        raise ManifestError(f"target: {error}") from error
    if str(target) != text:
        fail("target", text, f"a target spelled out, such as {target}")
    return target
