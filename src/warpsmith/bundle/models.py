# SPDX-License-Identifier: Apache-2.0
"""The models of a manifest's selection, read as strictly as the rest.

What describes them is imported where there are any.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from warpsmith.bundle.fields import A_NAME, NAME, Fields, fail

if TYPE_CHECKING:
    from warpsmith.catalog.shapes import Model, Shapes

_MAX_MODELS = 2000
_LABEL = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,200}")


def models_of(selection: Fields) -> tuple[Model, ...]:
    """The models that a bundle was built for.

    Raises
    ------
    ManifestError
        If anything is missing, unknown or out of bounds.
    """
    models = selection.items("models", _MAX_MODELS)
    if not models:
        return ()
    from warpsmith.catalog.shapes import MAX_SHAPES, Model

    found, count = [], 0
    for index, given in enumerate(models):
        model = Fields(f"selection.models[{index}]", given, ("name", "shapes"))
        rows = model.items("shapes", MAX_SHAPES)
        count += len(rows)
        if count > MAX_SHAPES:
            fail("selection.models", rows, f"at most {MAX_SHAPES} shapes in all")
        shapes = tuple(_shapes(f"{model.where}.shapes[{i}]", row) for i, row in enumerate(rows))
        found.append(Model(model.text("name", _LABEL, "a name"), shapes))
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
