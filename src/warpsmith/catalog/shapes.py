# SPDX-License-Identifier: Apache-2.0
"""What models need: the problems they pose, as ranges of sizes, and the variants that dispatch reaches for those.

A promise over shapes is decided exactly as dispatch decides, but over whole ranges at once: every number of
multiprocessors from 1 (a slice of a GPU) to `MAX_SMS` counts, since tiles may depend on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from warpsmith.arch import Capability
from warpsmith.catalog.spec import NO_FORMAT, Catalog, Kernel, Operation, Problem, Variant
from warpsmith.errors import InvalidArgumentError
from warpsmith.tuning import reachable

SCHEMA = 1
MAX_SMS = 256
"""More multiprocessors than any device has."""

MAX_SHAPES = 2000
MAX_DIM = 1 << 40
_MAX_BYTES = 1 << 20
_MAX_NAME = 200


class Shapes(NamedTuple):
    """Problems of one operation: some values of each field, a range of each dimension.

    Attributes
    ----------
    fields
        (name, values), sorted.
    dims
        (name, smallest, largest), sorted.
    """

    operation: str
    fields: tuple[tuple[str, tuple[str, ...]], ...]
    dims: tuple[tuple[str, int, int], ...]

    def holds(self, problem: Problem) -> bool:
        """Whether a problem is one of these."""
        fields, dims = dict(problem.fields), dict(problem.dims)
        return (
            problem.operation == self.operation
            and all(fields.get(name) in values for name, values in self.fields)
            and all(low <= dims.get(name, 1) <= high for name, low, high in self.dims)
        )

    def combinations(self, operation: Operation) -> Iterator[dict[str, str]]:
        """Every allowed assignment of the fields."""
        wanted = dict(self.fields)
        for fields in operation.combinations():
            if all(value in wanted[name] for name, value in fields.items()):
                yield fields

    def smallest(self, fields: Mapping[str, str]) -> Problem:
        """The smallest problem of one assignment of the fields."""
        return Problem.of(self.operation, fields, {name: low for name, low, _ in self.dims})

    def text(self, fields: Mapping[str, str]) -> str:
        """One assignment of the fields with the ranges, for messages."""
        parts = [f"{k}={v}" for k, v in sorted(fields.items())]
        parts += [f"{name}={low}" if low == high else f"{name}={low}..{high}" for name, low, high in self.dims]
        return f"{self.operation}({', '.join(parts)})"


class Model(NamedTuple):
    """A named set of shapes."""

    name: str
    shapes: tuple[Shapes, ...]

    def document(self) -> dict[str, Any]:
        """The model as a manifest carries it."""
        shapes = [
            {
                "operation": s.operation,
                "fields": {name: list(values) for name, values in s.fields},
                "dims": {name: [low, high] for name, low, high in s.dims},
            }
            for s in self.shapes
        ]
        return {"name": self.name, "shapes": shapes}


class Reached(NamedTuple):
    """A variant that a shape reaches on a capability; no kernel if none computes it."""

    shapes: Shapes
    fields: Mapping[str, str]
    kernel: Kernel | None = None
    variant: Variant | None = None

    def __str__(self) -> str:
        return self.shapes.text(self.fields)


def reached(
    catalog: Catalog, shapes: Shapes, capability: Capability, sm_counts: tuple[int, int] = (1, MAX_SMS)
) -> Iterator[Reached]:
    """Every variant that dispatch may choose for any of the shapes, on devices of a capability and numbers of SMs."""
    operation = catalog.operation(shapes.operation)
    ranges = {name: (low, high) for name, low, high in shapes.dims}
    for fields in shapes.combinations(operation):
        promise = catalog.promise(operation.name, fields.get("format", NO_FORMAT), capability, fields)
        if promise is not None and promise.kernel is None:
            continue
        problem = shapes.smallest(fields)
        found = False
        for kernel in catalog.kernels:
            if kernel.operation != operation.name or capability not in kernel.capabilities:
                continue
            fitting: dict[str, Variant] = {}
            whole: set[str] = set()  # tiles that serve the ranges to their ends
            for variant in kernel.variants:
                limits = (limit.bound for limit in variant.limits if limit.concerns(fields))
                covers = [bound.covers(ranges, sm_counts) for bound in limits]
                if variant.mismatch(problem) is None and all(may for may, _ in covers):
                    fitting.setdefault(variant.tile, variant)
                    whole |= {variant.tile} if all(must for _, must in covers) else set()
            tiles = reachable(
                catalog.tuning,
                kernel.name,
                list(fitting),
                capability=capability,
                fields=fields,
                ranges=ranges,
                sm_counts=sm_counts,
                estimates=catalog.estimates,
            )
            for tile in tiles:
                yield Reached(shapes, fields, kernel, fitting[tile])
            found = bool(tiles) and whole.issuperset(tiles)
            if found:
                break
        if not found:
            yield Reached(shapes, fields)


def check_model(catalog: Catalog, model: Model) -> None:
    """Hold a model against the catalog.

    Raises
    ------
    InvalidArgumentError
        If it names an operation, field, value or dimension that does not exist, lacks one, or poses no problem at all.
    """
    for shapes in model.shapes:
        where = f"model {model.name!r}: {shapes.operation}"
        operation = catalog.operation(shapes.operation)
        allowed = dict(operation.fields)
        _same_names(where, "fields", [name for name, _ in shapes.fields], list(allowed))
        _same_names(where, "dimensions", [name for name, _, _ in shapes.dims], [name for name, _ in operation.dims])
        for name, values in shapes.fields:
            for value in values:
                if value not in allowed[name]:
                    known = ", ".join(allowed[name])
                    raise InvalidArgumentError(f"{where}: {name}={value!r} is unknown; expected one of {known}")
        combinations = list(shapes.combinations(operation))
        if not combinations:
            raise InvalidArgumentError(f"{where}: no combination of its fields is a problem")
        for fields in combinations:
            format = fields.get("format", NO_FORMAT)
            for name, low, high in shapes.dims:
                need = operation.multiple(format, name)
                if high // need * need < low:
                    size = str(low) if low == high else f"{low}..{high}"
                    raise InvalidArgumentError(f"{where}: {name}={size} holds no multiple of {need}, as {format} needs")


def _same_names(where: str, what: str, given: Sequence[str], expected: Sequence[str]) -> None:
    if sorted(given) != sorted(expected):
        raise InvalidArgumentError(
            f"{where} has the {what} {', '.join(given) or 'none'}; expected {', '.join(expected) or 'none'}"
        )


def read_models(text: bytes, catalog: Catalog) -> tuple[Model, ...]:
    """Read a models file, as ``docs/bundles.md`` describes it, with all that it leaves open filled in.

    Raises
    ------
    InvalidArgumentError
        If it is none, or does not fit the catalog; the message names the place.
    """
    if len(text) > _MAX_BYTES:
        raise InvalidArgumentError(f"the models file has {len(text)} bytes, more than {_MAX_BYTES}")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"the models file is not JSON: {error}") from error
    top = _object("the models file", document, ("schema", "models"))
    if type(top["schema"]) is not int or top["schema"] != SCHEMA:
        raise InvalidArgumentError(f"the models file has schema {top['schema']!r}; this warpsmith reads {SCHEMA}")
    models: dict[str, Model] = {}
    count = 0
    for index, given in enumerate(_list("models", top["models"])):
        row = _object(f"models[{index}]", given, ("name", "operations"))
        name = row["name"]
        if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name) <= _MAX_NAME or name in models:
            raise InvalidArgumentError(f"models[{index}].name is {name!r}; expected a name, each once")
        shapes: set[Shapes] = set()
        for place, asked in enumerate(_list(f"{name}: operations", row["operations"])):
            shapes.update(_expand(f"{name}: operations[{place}]", asked, catalog, MAX_SHAPES - count))
        count += len(shapes)
        models[name] = Model(name, tuple(sorted(shapes)))
        check_model(catalog, models[name])
    if count > MAX_SHAPES:
        raise InvalidArgumentError(f"the models file has {count} shapes; {MAX_SHAPES} are allowed: give ranges")
    return tuple(models[name] for name in sorted(models))


def _expand(where: str, given: object, catalog: Catalog, room: int) -> Iterator[Shapes]:
    row = _object(where, given, ("operation",), ("fields", "dims"))
    operation = catalog.operation(str(row["operation"]))
    asked = _mapping(f"{where}.fields", row.get("fields", {}))
    unknown = sorted(set(asked) - {name for name, _ in operation.fields})
    sizes = _mapping(f"{where}.dims", row.get("dims", {}))
    unknown += sorted(set(sizes) - {name for name, _ in operation.dims})
    if unknown:
        known = ", ".join([name for name, _ in (*operation.fields, *operation.dims)])
        raise InvalidArgumentError(f"{where}: {operation.name} has no {unknown[0]!r}; it has {known}")
    fields = []
    asked = {**operation.unasked(asked), **asked}
    for name, allowed in sorted(operation.fields):
        values = asked.get(name, list(allowed))
        values = [values] if isinstance(values, str) else _list(f"{where}.fields.{name}", values)
        if not all(isinstance(v, str) for v in values):
            raise InvalidArgumentError(f"{where}.fields.{name}: expected a name or a list of names")
        fields.append((name, tuple(sorted(set(values)))))
    ranges: list[list[tuple[str, int, int]]] = []
    for name in sorted(name for name, _ in operation.dims):
        if name not in sizes:
            raise InvalidArgumentError(f"{where}: the dimension {name} of {operation.name} is missing")
        ranges.append([(name, low, high) for low, high in _ranges(f"{where}.dims.{name}", sizes[name])])
    total = 1
    for one in ranges:
        total *= len(one)
    if total > room:
        raise InvalidArgumentError(f"{where}: more than {MAX_SHAPES} shapes in all; give ranges in place of lists")
    for dims in product(*ranges):
        yield Shapes(operation.name, tuple(fields), dims)


def _ranges(where: str, given: object) -> list[tuple[int, int]]:
    """A number, a list of numbers, or {"from": …, "to": …}, as ranges."""
    if isinstance(given, dict):
        row = _object(where, given, ("from", "to"))
        low, high = _size(f"{where}.from", row["from"]), _size(f"{where}.to", row["to"])
        if low > high:
            raise InvalidArgumentError(f"{where}: from {low} to {high} is no range")
        return [(low, high)]
    values = given if isinstance(given, list) else [given]
    sizes = sorted({_size(where, value) for value in _list(where, values)})
    return [(size, size) for size in sizes]


def _size(where: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_DIM:
        raise InvalidArgumentError(f"{where} is {value!r}; expected a whole number from 1 to {MAX_DIM}")
    return value


def _mapping(where: str, given: object) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise InvalidArgumentError(f"{where}: expected an object")
    return given


def _object(where: str, given: object, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    found = _mapping(where, given)
    for name in [n for n in names if n not in found]:
        raise InvalidArgumentError(f"{where}: {name!r} is missing")
    for name in [n for n in found if n not in (*names, *optional)]:
        raise InvalidArgumentError(f"{where}: {name!r} is unknown; expected {', '.join((*names, *optional))}")
    return found


def _list(where: str, given: object) -> list[Any]:
    if not isinstance(given, list) or not given:
        raise InvalidArgumentError(f"{where}: expected a list that is not empty")
    return given
