# SPDX-License-Identifier: Apache-2.0
"""Tile choice: tables of rules, estimates, one chooser.

A rule says which tile of a kernel serves which sizes on which capabilities. Rules are data; `choose` walks them in
order and takes the first that fits. Where none does, an estimate of what each tile costs decides. The catalog checks
that every tile named here belongs to a planned variant.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from warpsmith.arch import Capability
from warpsmith.errors import CatalogError, InvalidArgumentError
from warpsmith.tuning.estimate import Estimate

SCHEMA = 1


class Bound(NamedTuple):
    """A range on a product of dimensions: ``minimum <= m*k <= maximum``.

    ``per_sm`` divides the product by the device's number of multiprocessors first, so that one rule fits GPUs of
    every size.
    """

    dims: tuple[str, ...]
    minimum: int = 0
    maximum: int | None = None
    per_sm: bool = False

    def __str__(self) -> str:
        low = f"{self.minimum} <= " if self.minimum else ""
        high = "" if self.maximum is None else f" <= {self.maximum}"
        return f"{low}{'*'.join(self.dims)}{' / multiprocessors' if self.per_sm else ''}{high}"

    def holds(self, dims: Mapping[str, int], sm_count: int) -> bool:
        """Whether the problem's dimensions lie in the range; a dimension it does not have counts as 1."""
        product = 1
        for name in self.dims:
            product *= dims.get(name, 1)
        if self.per_sm:
            product //= max(sm_count, 1)
        return self.minimum <= product and (self.maximum is None or product <= self.maximum)

    def covers(self, ranges: Mapping[str, tuple[int, int]], sm_counts: tuple[int, int]) -> tuple[bool, bool]:
        """Whether it may hold somewhere in the ranges, and whether it holds everywhere in them."""
        low = high = 1
        for name in self.dims:
            smallest, largest = ranges.get(name, (1, 1))
            low, high = low * smallest, high * largest
        if self.per_sm:
            low, high = low // max(sm_counts[1], 1), high // max(sm_counts[0], 1)
        most = high if self.maximum is None else self.maximum
        return self.minimum <= high and low <= most, self.minimum <= low and high <= most


class Limit(NamedTuple):
    """A bound on the sizes of problems with some fields; without fields, of all."""

    bound: Bound
    fields: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def concerns(self, fields: Mapping[str, str]) -> bool:
        """Whether problems with these fields are bound."""
        return all(fields.get(name) in values for name, values in self.fields)


class Rule(NamedTuple):
    """Use `tile` of `kernel` on `capabilities` (empty: all) when every bound and field fits."""

    kernel: str
    tile: str
    capabilities: tuple[Capability, ...] = ()
    fields: tuple[tuple[str, tuple[str, ...]], ...] = ()
    bounds: tuple[Bound, ...] = ()

    def fits(self, capability: Capability, fields: Mapping[str, str], dims: Mapping[str, int], sm_count: int) -> bool:
        """Whether the rule applies to the problem on the device."""
        return self.concerns(capability, fields) and all(b.holds(dims, sm_count) for b in self.bounds)

    def concerns(self, capability: Capability, fields: Mapping[str, str]) -> bool:
        """Whether the rule applies to some size of a problem on the device."""
        return (not self.capabilities or capability in self.capabilities) and all(
            fields.get(name) in values for name, values in self.fields
        )


def choose(
    rules: Sequence[Rule],
    kernel: str,
    tiles: Sequence[str],
    *,
    capability: Capability,
    sm_count: int,
    fields: Mapping[str, str],
    dims: Mapping[str, int],
    estimates: Sequence[Estimate] = (),
) -> str:
    """Pick the tile for a problem: that of the first rule that fits, else the cheapest by estimate, else the only one.

    Raises
    ------
    CatalogError
        If no rule fits and there are several tiles, or a rule or an estimate names a tile that the kernel has not for
        this problem.
    """
    for rule in rules:
        if rule.kernel == kernel and rule.fits(capability, fields, dims, sm_count):
            if rule.tile not in tiles:
                raise CatalogError(
                    f"the tuning table picks tile {rule.tile!r} of {kernel} for {dict(fields)} {dict(dims)}, "
                    f"but the tiles that serve it are {', '.join(tiles)}"
                )
            return rule.tile
    for estimate in estimates:
        if estimate.kernel == kernel:
            lost = estimate.unserved(fields, tiles)
            if lost:
                raise CatalogError(
                    f"tiles {', '.join(lost)} of {kernel} are estimated for {dict(fields)}, but those that serve it "
                    f"are {', '.join(tiles)}"
                )
            cheapest = estimate.best(fields, tiles, dims, sm_count)
            if cheapest is not None:
                return cheapest[0]
    if len(tiles) == 1:
        return tiles[0]
    raise CatalogError(
        f"no tuning rule for {kernel} fits {dict(fields)} {dict(dims)} on {capability}, "
        f"and there are several tiles: {', '.join(tiles)}"
    )


def reachable(
    rules: Sequence[Rule],
    kernel: str,
    tiles: Sequence[str],
    *,
    capability: Capability,
    fields: Mapping[str, str],
    ranges: Mapping[str, tuple[int, int]],
    sm_counts: tuple[int, int],
    estimates: Sequence[Estimate] = (),
) -> tuple[str, ...]:
    """Every tile that `choose` may pick for sizes in the ranges; empty where none of the kernel's serves.

    No tile that may be picked is missing. One that is never picked may be named where a rule has several bounds that
    each hold somewhere, but nowhere together, and where an estimate decides about a range of sizes.
    """
    found: dict[str, None] = {}
    for rule in rules:
        if rule.kernel != kernel or not rule.concerns(capability, fields):
            continue
        covers = [b.covers(ranges, sm_counts) for b in rule.bounds]
        if rule.tile in tiles and all(may for may, _ in covers):
            found[rule.tile] = None
        if all(must for _, must in covers):
            return tuple(found)
    if len(tiles) == 1:
        found[tiles[0]] = None
    for estimate in estimates if len(tiles) > 1 else ():
        format = estimate.of(fields.get("format", "")) if estimate.kernel == kernel else None
        if format is None:
            continue
        if any(low != high for low, high in ranges.values()):
            return tuple(dict.fromkeys([*found, *(s.tile for s in format.tiles if s.tile in tiles)]))
        dims = {name: low for name, (low, _) in ranges.items()}
        for sm_count in range(sm_counts[0], sm_counts[1] + 1):
            cheapest = estimate.best(fields, tiles, dims, sm_count)
            if cheapest is not None:
                found[cheapest[0]] = None
        return tuple(found)
    return tuple(found)


def load(path: Path) -> tuple[Rule, ...]:
    """Read rules from a JSON file as ``warpsmith bench --tune`` writes it.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be read or is not a tuning table; the message names the entry.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"cannot read the tuning table {path}: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InvalidArgumentError(
            f"{path} is not a tuning table of schema {SCHEMA}; write one with `warpsmith bench --tune`"
        )
    try:
        return tuple(_rule(entry) for entry in document["rules"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidArgumentError(f"{path}: a rule is malformed ({type(error).__name__}: {error})") from error


def dump(rules: Sequence[Rule]) -> str:
    """Write rules as the JSON text that `load` reads."""
    entries = [
        {
            "kernel": r.kernel,
            "tile": r.tile,
            "capabilities": [str(c) for c in r.capabilities],
            "fields": {name: list(values) for name, values in r.fields},
            "bounds": [
                {"dims": list(b.dims), "minimum": b.minimum, "maximum": b.maximum, "per_sm": b.per_sm} for b in r.bounds
            ],
        }
        for r in rules
    ]
    return json.dumps({"schema": SCHEMA, "rules": entries}, indent=2) + "\n"


def _rule(entry: Mapping[str, object]) -> Rule:
    fields, bounds = entry.get("fields", {}), entry.get("bounds", [])
    if not isinstance(fields, dict) or not isinstance(bounds, list):
        raise TypeError("fields must be an object and bounds a list")
    capabilities = entry.get("capabilities", [])
    if not isinstance(capabilities, list):
        raise TypeError("capabilities must be a list")
    return Rule(
        kernel=str(entry["kernel"]),
        tile=str(entry["tile"]),
        capabilities=tuple(Capability.parse(str(c)) for c in capabilities),
        fields=tuple((str(name), tuple(map(str, values))) for name, values in fields.items()),
        bounds=tuple(
            Bound(
                tuple(map(str, b["dims"])),
                int(b["minimum"]),
                None if b["maximum"] is None else int(b["maximum"]),
                bool(b.get("per_sm", False)),
            )
            for b in bounds
        ),
    )
