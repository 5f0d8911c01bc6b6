# SPDX-License-Identifier: Apache-2.0
"""What of a catalog a build is asked for. Apart from `plan`, so that opening a bundle does not import planning."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from warpsmith.catalog.source import digest_parts
from warpsmith.catalog.spec import NO_FORMAT, Catalog, Problem, Promise, operands

if TYPE_CHECKING:
    from warpsmith.catalog.shapes import Model


class Selection(NamedTuple):
    """What a build is asked for: the modules, the formats and the models' shapes; empty means everything."""

    modules: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    models: tuple[Model, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether everything is asked for."""
        return not (self.modules or self.formats or self.models)

    def canonical(self) -> Selection:
        """The same selection, always written the same way."""
        models = sorted({m._replace(shapes=tuple(sorted(set(m.shapes)))) for m in self.models})
        return Selection(tuple(sorted(set(self.modules))), tuple(sorted(set(self.formats))), tuple(models))

    def document(self) -> dict[str, Any]:
        """The selection as JSON."""
        found: dict[str, Any] = {"modules": list(self.modules), "formats": list(self.formats)}
        if self.models:
            found["models"] = [model.document() for model in self.models]
        return found

    def tag(self) -> str:
        """Eight hexadecimal digits that tell selections apart, as a wheel's local version; empty if it is everything.

        They begin with a letter: a version's part of digits alone is a number, and loses its leading zeros.
        """
        if self.whole:
            return ""
        digest = digest_parts([json.dumps(self.canonical().document(), sort_keys=True)])
        found = re.search("[a-f][0-9a-f]{7}", digest)
        return found[0] if found else f"a{digest[:7]}"

    def lacks(self, catalog: Catalog, kernel: str, problem: Problem) -> str:
        """What a bundle of this selection was built without, if that is why it does not have a problem's kernel."""
        module = catalog.kernel(kernel).module
        if self.modules and module not in self.modules:
            return f"without the module {module}, for {', '.join(self.modules)} alone"
        if not self.wants_format(problem.format):
            return f"without {problem.format}, for {', '.join(self.formats)} alone"
        if self.models and not any(s.holds(problem) for m in self.models for s in m.shapes):
            return f"without {problem}, for the shapes of {', '.join(m.name for m in self.models)} alone"
        return ""

    def wants_format(self, format: str) -> bool:
        """Whether a format was asked for, or is a pair of which one operand's was."""
        return not self.formats or format == NO_FORMAT or not {format, *operands(format)}.isdisjoint(self.formats)

    def wants(self, catalog: Catalog, promise: Promise) -> bool:
        """Whether a promise belongs to what was asked for."""
        if not self.wants_format(promise.format):
            return False
        return not self.modules or promise.kernel is None or catalog.kernel(promise.kernel).module in self.modules
