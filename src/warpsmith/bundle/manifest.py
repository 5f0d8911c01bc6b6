# SPDX-License-Identifier: Apache-2.0
"""The manifest of a bundle: what it holds, for which target, made from which sources.

The parser is strict: a manifest with anything unexpected in it is damaged, and says where. No path ever comes from a
manifest; a cubin's file is named after its digest.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from warpsmith.arch import Target, parse
from warpsmith.bundle.elf import MAX_CUBIN_BYTES
from warpsmith.catalog.plan import Selection
from warpsmith.catalog.shapes import MAX_DIM, MAX_SHAPES, Model, Shapes
from warpsmith.catalog.spec import CubinId, Param
from warpsmith.errors import ManifestError, TargetError

SCHEMA = 2
"""The newest schema. 1 is written unless the selection has models, so that older readers can read all the rest."""

MANIFEST = "manifest.json"
"""Name of the manifest's file in a bundle."""

MAX_MANIFEST_BYTES = 16 << 20
MAX_CUBINS = 100_000

_NAME = re.compile(r"[0-9A-Za-z_.,+=:-]{1,200}")
_TEXT = re.compile(r"[!-~](?:[ -~]{0,198}[!-~])?")
_LABEL = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,200}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ZEROS, _DIGITS = b"0" * 65, bytes.maketrans(b"123456789", b"0" * 9)
_WORD = 0xFFFFFFFF
_MAX_COUNT = 1 << 31
_PARAM_BYTES = 32764  # the most that CUDA takes
_DAMAGED = "the manifest is damaged or was edited: build the bundle again"
_A_DIGEST = "64 lower-case hexadecimal digits"
_A_CENSUS = "an object of at most 10000 opcodes with their counts"
_A_NAME = "a name of letters, digits and _.,+=:-"


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
        return _manifest(_decode(text))
    except RecursionError as error:
        raise ManifestError(f"nested too deeply; {_DAMAGED}") from error


def _manifest(document: object) -> Manifest:
    schema = document.get("schema") if isinstance(document, dict) else SCHEMA
    if type(schema) is int and schema > SCHEMA:
        raise ManifestError(
            f"schema: given {schema}, expected {SCHEMA} or older: the bundle was written by a newer warpsmith; "
            "upgrade warpsmith"
        )
    if type(schema) is not int or schema < 1:
        _fail("schema", schema, f"a whole number from 1 to {SCHEMA}")
    top = _Fields("manifest", document, _TOP)
    known = _Known()
    cubins = [_cubin(f"cubins[{i}]", c, known) for i, c in enumerate(top.items("cubins", MAX_CUBINS))]
    seen: set[tuple[str, str]] = set()
    for index, cubin in enumerate(cubins):
        if (cubin.kernel, cubin.variant) in seen:
            _fail(f"cubins[{index}]", f"{cubin.kernel}/{cubin.variant}", "each kernel and variant once")
        seen.add((cubin.kernel, cubin.variant))
    names = ("formats", "modules") if schema == 1 else ("formats", "models", "modules")
    selection = _Fields("selection", top.values["selection"], names)
    return Manifest(
        target=_target(top.text("target", _NAME, "a target such as sm_121a")),
        package_version=top.text("package_version", _NAME, "a version"),
        min_driver=top.integer("min_driver", 0, 1_000_000),
        toolchain=top.text("toolchain", _TEXT, "a compiler's name and version"),
        selection=Selection(selection.names("modules"), selection.names("formats"), _models(selection)),
        catalog_digest=top.text("catalog_digest", _DIGEST, _A_DIGEST),
        cubins=tuple(cubins),
    )


_TOP = ("catalog_digest", "cubins", "min_driver", "package_version", "schema", "selection", "target", "toolchain")
_CUBIN = tuple(sorted(CubinEntry.__dataclass_fields__))


def _models(selection: _Fields) -> tuple[Model, ...]:
    if "models" not in selection.values:
        return ()
    found, count = [], 0
    for index, given in enumerate(selection.items("models", MAX_SHAPES)):
        model = _Fields(f"selection.models[{index}]", given, ("name", "shapes"))
        rows = model.items("shapes", MAX_SHAPES)
        count += len(rows)
        if count > MAX_SHAPES:
            _fail("selection.models", rows, f"at most {MAX_SHAPES} shapes in all")
        shapes = tuple(_shapes(f"{model.where}.shapes[{i}]", row) for i, row in enumerate(rows))
        found.append(Model(model.text("name", _LABEL, "a name"), shapes))
    if not found:
        _fail("selection.models", found, "at least one model")
    return tuple(found)


def _shapes(where: str, given: object) -> Shapes:
    row = _Fields(where, given, ("dims", "fields", "operation"))
    fields, dims = (_named(f"{where}.{part}", row.values[part]) for part in ("fields", "dims"))
    ranges = []
    for name in dims.values:
        bounds = dims.items(name, 2)
        if len(bounds) != 2 or not all(type(b) is int for b in bounds) or not 1 <= bounds[0] <= bounds[1] <= MAX_DIM:
            _fail(f"{dims.where}.{name}", bounds, "the smallest and the largest size")
        ranges.append((name, bounds[0], bounds[1]))
    return Shapes(
        row.text("operation", _NAME, _A_NAME),
        tuple((name, fields.names(name)) for name in sorted(fields.values)),
        tuple(sorted(ranges)),
    )


def _named(where: str, given: object) -> _Fields:
    """An object with whatever names there are, at most 32."""
    if not isinstance(given, dict) or len(given) > 32 or not all(_NAME.fullmatch(name) for name in given):
        _fail(where, given, "an object with at most 32 names")
    return _Fields(where, given, tuple(given))


class _Known:
    """What was found in order once: cubins share parameter lists and opcodes, and hundreds of them are read."""

    def __init__(self) -> None:
        self.params: dict[str, tuple[tuple[str, str, int], ...]] = {}
        self.opcodes: set[str] = set()


def _cubin(where: str, value: object, known: _Known) -> CubinEntry:
    row = _Fields(where, value, _CUBIN)
    return CubinEntry(
        kernel=row.text("kernel", _NAME, _A_NAME),
        variant=row.text("variant", _NAME, _A_NAME),
        module=row.text("module", _NAME, _A_NAME),
        entry=row.text("entry", _NAME, _A_NAME),
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


def _params(fields: _Fields, known: _Known) -> tuple[tuple[str, str, int], ...]:
    given = fields.items("params", 256)
    text = repr(given)  # tells 1 from 1.0 and true, which are equal
    read = known.params.get(text)
    if read is None:
        read = known.params[text] = _read_params(fields, given)
    return read


def _read_params(fields: _Fields, given: Sequence[object]) -> tuple[tuple[str, str, int], ...]:
    found: list[tuple[str, str, int]] = []
    end = 0
    for index, value in enumerate(given):
        where = f"{fields.where}.params[{index}]"
        row = _Fields(where, value, ("ctype", "name", "offset"))
        name, ctype = row.text("name", _NAME, _A_NAME), row.text("ctype", _NAME, _A_NAME)
        offset = row.integer("offset", end, _PARAM_BYTES)
        try:
            end = offset + Param(name, ctype).size
        except KeyError:
            _fail(f"{where}.ctype", ctype, "a parameter type that this warpsmith knows")
        found.append((name, ctype, offset))
    return tuple(found)


def _instructions(fields: _Fields, known: _Known) -> tuple[tuple[str, int], ...]:
    where, given = f"{fields.where}.instructions", fields.values["instructions"]
    if not isinstance(given, dict) or len(given) > 10_000:
        _fail(where, given, _A_CENSUS)
    if not known.opcodes.issuperset(given):
        if not all(_TEXT.fullmatch(opcode) for opcode in given):
            _fail(where, given, _A_CENSUS)
        known.opcodes.update(given)
    counts = given.values()
    if set(map(type, counts)) - {int} or (given and not 1 <= min(counts) <= max(counts) <= _MAX_COUNT):
        row = _Fields(where, given, tuple(given))
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
        _fail("target", text, f"a target spelled out, such as {target}")
    return target


class _Fields:
    """The fields of one JSON object, read with their types and bounds."""

    def __init__(self, where: str, given: object, names: Sequence[str]) -> None:
        if not isinstance(given, dict):
            _fail(where, given, "an object")
        self.where, self.values = where, given
        if len(given) == len(names) and all(map(given.__contains__, names)):
            return
        for keys, problem in ((set(names) - set(given), "is missing"), (set(given) - set(names), "is unknown")):
            if keys:
                raise ManifestError(f"{where}: the field {_show(min(keys))} {problem}; {_DAMAGED}")

    def text(self, name: str, pattern: re.Pattern[str], expected: str) -> str:
        """A string that matches a pattern."""
        value = self.values[name]
        if not isinstance(value, str) or not pattern.fullmatch(value):
            _fail(f"{self.where}.{name}", value, expected)
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        """A whole number within bounds (JSON's true and 1.0 are none)."""
        value = self.values[name]
        if type(value) is not int or not low <= value <= high:
            _fail(f"{self.where}.{name}", value, f"a whole number from {low} to {high}")
        return value

    def items(self, name: str, limit: int) -> list[Any]:
        """A list of at most `limit` items."""
        value = self.values[name]
        if not isinstance(value, list) or len(value) > limit:
            _fail(f"{self.where}.{name}", value, f"a list of at most {limit} items")
        return value

    def names(self, name: str) -> tuple[str, ...]:
        """A list of names, each once."""
        found = self.items(name, 1000)
        if not all(isinstance(n, str) and _NAME.fullmatch(n) for n in found) or len(set(found)) != len(found):
            _fail(f"{self.where}.{name}", found, f"a list of different names ({_A_NAME})")
        return tuple(found)


def _decode(text: bytes) -> object:
    try:
        # No digest has 65 digits in a row: only where something has, each number is looked at before it is made.
        read = _integer if _ZEROS in text.translate(_DIGITS) else None
        return json.loads(text.decode("utf-8"), object_pairs_hook=_object, parse_int=read, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise ManifestError(f"not UTF-8 at byte {error.start}; {_DAMAGED}") from error
    except json.JSONDecodeError as error:
        raise ManifestError(f"not JSON: {error}; {_DAMAGED}") from error


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ManifestError(f"the field {_show(twice)} is there twice; {_DAMAGED}")
    return found


def _integer(digits: str) -> int:
    if len(digits) > 20:
        _no_number(digits)
    return int(digits)


def _no_number(text: str) -> NoReturn:
    raise ManifestError(f"the number {_show(text)} is none that a manifest has; {_DAMAGED}")


def _show(value: object) -> str:
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fail(where: str, given: object, expected: str) -> NoReturn:
    raise ManifestError(f"{where}: given {_show(given)}, expected {expected}; {_DAMAGED}")
