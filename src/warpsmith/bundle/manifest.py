# SPDX-License-Identifier: Apache-2.0
"""The manifest of a bundle: what it holds, for which target, made from which sources.

The parser is strict: a manifest with anything unexpected in it is damaged, and says where. No path ever comes from a
manifest; a cubin's file is named after its digest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from warpsmith.arch import Target, parse
from warpsmith.bundle.elf import MAX_CUBIN_BYTES
from warpsmith.bundle.fields import A_NAME, DAMAGED, NAME, Fields, decode, fail
from warpsmith.catalog.selection import Selection
from warpsmith.catalog.spec import CubinId, Param
from warpsmith.errors import ManifestError, TargetError

if TYPE_CHECKING:
    from warpsmith.catalog.shapes import Model, Shapes

SCHEMA = 2
"""The newest schema. 1 is written unless the selection has models, so that older readers can read all the rest."""

MANIFEST = "manifest.json"
"""Name of the manifest's file in a bundle."""

MAX_MANIFEST_BYTES = 16 << 20
MAX_CUBINS = 100_000

_TEXT = re.compile(r"[!-~](?:[ -~]{0,198}[!-~])?")
_LABEL = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,200}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WORD = 0xFFFFFFFF
_MAX_COUNT = 1 << 31
_PARAM_BYTES = 32764  # the most that CUDA takes
_A_DIGEST = "64 lower-case hexadecimal digits"
_A_CENSUS = "an object of at most 10000 opcodes with their counts"


@dataclass(frozen=True, kw_only=True)
class CubinEntry:
    """What the manifest says of one cubin.

    Attributes
    ----------
    sha256, size
        Digest and bytes of the cubin's file, ``cubins/<sha256>.cubin``.
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
    """

    target: Target
    package_version: str
    min_driver: int
    toolchain: str
    selection: Selection
    catalog_digest: str
    cubins: tuple[CubinEntry, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "cubins", tuple(sorted(self.cubins, key=lambda c: (c.kernel, c.variant))))

    @property
    def schema(self) -> int:
        """The oldest schema that can say it."""
        return SCHEMA if self.selection.models else 1

    def id(self, entry: CubinEntry) -> CubinId:
        """The name of one of its cubins."""
        return CubinId(entry.kernel, entry.variant, self.target)

    def to_json(self) -> str:
        """The manifest as text: sorted, the same for the same manifest everywhere."""
        document = {
            "schema": self.schema,
            "target": str(self.target),
            "package_version": self.package_version,
            "min_driver": self.min_driver,
            "toolchain": self.toolchain,
            "selection": self.selection.document(),
            "catalog_digest": self.catalog_digest,
            "cubins": [_cubin_document(c) for c in self.cubins],
        }
        return json.dumps(document, indent=1, sort_keys=True) + "\n"


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
    if len(text) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"{len(text)} bytes, more than the {MAX_MANIFEST_BYTES} that a manifest may have")
    try:
        return _manifest(decode(text))
    except RecursionError as error:
        raise ManifestError(f"nested too deeply; {DAMAGED}") from error


def parse_entry(text: bytes, where: str) -> CubinEntry:
    """Read one of a manifest's cubins by itself; `where` is its place in the manifest, for messages.

    Raises
    ------
    ManifestError
        As `parse_manifest`.
    """
    try:
        return _cubin(where, decode(text), _Known())
    except RecursionError as error:
        raise ManifestError(f"{where}: nested too deeply; {DAMAGED}") from error


def _manifest(document: object) -> Manifest:
    schema = document.get("schema") if isinstance(document, dict) else SCHEMA
    if type(schema) is int and schema > SCHEMA:
        raise ManifestError(
            f"schema: given {schema}, expected {SCHEMA} or older: the bundle was written by a newer warpsmith; "
            "upgrade warpsmith"
        )
    if type(schema) is not int or schema < 1:
        fail("schema", schema, f"a whole number from 1 to {SCHEMA}")
    top = Fields("manifest", document, _TOP)
    known = _Known()
    cubins = [_cubin(f"cubins[{i}]", c, known) for i, c in enumerate(top.items("cubins", MAX_CUBINS))]
    seen: set[tuple[str, str]] = set()
    for index, cubin in enumerate(cubins):
        if (cubin.kernel, cubin.variant) in seen:
            fail(f"cubins[{index}]", f"{cubin.kernel}/{cubin.variant}", "each kernel and variant once")
        seen.add((cubin.kernel, cubin.variant))
    names = ("formats", "modules") if schema == 1 else ("formats", "models", "modules")
    selection = Fields("selection", top.values["selection"], names)
    return Manifest(
        target=_target(top.text("target", NAME, "a target such as sm_121a")),
        package_version=top.text("package_version", NAME, "a version"),
        min_driver=top.integer("min_driver", 0, 1_000_000),
        toolchain=top.text("toolchain", _TEXT, "a compiler's name and version"),
        selection=Selection(selection.names("modules"), selection.names("formats"), _models(selection)),
        catalog_digest=top.text("catalog_digest", _DIGEST, _A_DIGEST),
        cubins=tuple(cubins),
    )


_TOP = ("catalog_digest", "cubins", "min_driver", "package_version", "schema", "selection", "target", "toolchain")
_CUBIN = tuple(sorted(CubinEntry.__dataclass_fields__))


def _models(selection: Fields) -> tuple[Model, ...]:
    if "models" not in selection.values:
        return ()
    from warpsmith.catalog.shapes import MAX_SHAPES, Model

    found, count = [], 0
    for index, given in enumerate(selection.items("models", MAX_SHAPES)):
        model = Fields(f"selection.models[{index}]", given, ("name", "shapes"))
        rows = model.items("shapes", MAX_SHAPES)
        count += len(rows)
        if count > MAX_SHAPES:
            fail("selection.models", rows, f"at most {MAX_SHAPES} shapes in all")
        shapes = tuple(_shapes(f"{model.where}.shapes[{i}]", row) for i, row in enumerate(rows))
        found.append(Model(model.text("name", _LABEL, "a name"), shapes))
    if not found:
        fail("selection.models", found, "at least one model")
    return tuple(found)


def _shapes(where: str, given: object) -> Shapes:
    from warpsmith.catalog.shapes import MAX_DIM, Shapes

    row = Fields(where, given, ("dims", "fields", "operation"))
    fields, dims = (_named(f"{where}.{part}", row.values[part]) for part in ("fields", "dims"))
    ranges = []
    for name in dims.values:
        bounds = dims.items(name, 2)
        if len(bounds) != 2 or not all(type(b) is int for b in bounds) or not 1 <= bounds[0] <= bounds[1] <= MAX_DIM:
            fail(f"{dims.where}.{name}", bounds, "the smallest and the largest size")
        ranges.append((name, bounds[0], bounds[1]))
    return Shapes(
        row.text("operation", NAME, A_NAME),
        tuple((name, fields.names(name)) for name in sorted(fields.values)),
        tuple(sorted(ranges)),
    )


def _named(where: str, given: object) -> Fields:
    """An object with whatever names there are, at most 32."""
    if not isinstance(given, dict) or len(given) > 32 or not all(NAME.fullmatch(name) for name in given):
        fail(where, given, "an object with at most 32 names")
    return Fields(where, given, tuple(given))


class _Known:
    """What was found in order once: cubins share parameter lists and opcodes, and hundreds of them are read."""

    def __init__(self) -> None:
        self.params: dict[str, tuple[tuple[str, str, int], ...]] = {}
        self.opcodes: set[str] = set()


def _cubin(where: str, value: object, known: _Known) -> CubinEntry:
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
        params=_params(row, known),
        instructions=_instructions(row, known),
    )


def _params(fields: Fields, known: _Known) -> tuple[tuple[str, str, int], ...]:
    given = fields.items("params", 256)
    text = repr(given)  # tells 1 from 1.0 and true, which are equal
    read = known.params.get(text)
    if read is None:
        read = known.params[text] = _read_params(fields, given)
    return read


def _read_params(fields: Fields, given: Sequence[object]) -> tuple[tuple[str, str, int], ...]:
    found: list[tuple[str, str, int]] = []
    end = 0
    for index, value in enumerate(given):
        where = f"{fields.where}.params[{index}]"
        row = Fields(where, value, ("ctype", "name", "offset"))
        name, ctype = row.text("name", NAME, A_NAME), row.text("ctype", NAME, A_NAME)
        offset = row.integer("offset", end, _PARAM_BYTES)
        try:
            end = offset + Param(name, ctype).size
        except KeyError:
            fail(f"{where}.ctype", ctype, "a parameter type that this warpsmith knows")
        found.append((name, ctype, offset))
    return tuple(found)


def _instructions(fields: Fields, known: _Known) -> tuple[tuple[str, int], ...]:
    where, given = f"{fields.where}.instructions", fields.values["instructions"]
    if not isinstance(given, dict) or len(given) > 10_000:
        fail(where, given, _A_CENSUS)
    if not known.opcodes.issuperset(given):
        if not all(_TEXT.fullmatch(opcode) for opcode in given):
            fail(where, given, _A_CENSUS)
        known.opcodes.update(given)
    counts = given.values()
    if set(map(type, counts)) - {int} or (given and not 1 <= min(counts) <= max(counts) <= _MAX_COUNT):
        row = Fields(where, given, tuple(given))
        for opcode in given:
            row.integer(opcode, 1, _MAX_COUNT)
    return tuple(given.items())


def _cubin_document(cubin: CubinEntry) -> dict[str, object]:
    document: dict[str, object] = {name: getattr(cubin, name) for name in _CUBIN}
    document["params"] = [{"name": n, "ctype": c, "offset": o} for n, c, o in cubin.params]
    document["instructions"] = dict(cubin.instructions)
    return document


def _target(text: str) -> Target:
    try:
        target = parse(text)
    except TargetError as error:
        raise ManifestError(f"target: {error}") from error
    if str(target) != text:
        fail("target", text, f"a target spelled out, such as {target}")
    return target
