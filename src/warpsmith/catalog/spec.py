# SPDX-License-Identifier: Apache-2.0
"""The shapes of the catalog's data: operations, problems, kernels, variants, promises.

What there are hundreds of, and what every call looks up by, is a named tuple: one is made and hashed several times
faster than a frozen data class, and its class takes an eighth of the time to make on import.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

from warpsmith.arch import Capability, Suffix, Target
from warpsmith.errors import CatalogError, InvalidArgumentError
from warpsmith.tuning import Limit, Rule
from warpsmith.tuning.estimate import Estimate
from warpsmith.tuning.splits import SplitRule

_PARAM_BYTES = {"ptr": 8, "i64": 8, "i32": 4, "u32": 4, "f32": 4, "tensormap": 128}
NO_FORMAT = "-"
"""The format of a problem whose operation has none."""
_NO_FIELDS: Mapping[str, str] = {}
_PAIR = "_x_"


def pair(a: str, b: str) -> str:
    """The format of a problem with two operands: ``bf16_x_nvfp4``."""
    return f"{a}{_PAIR}{b}"


def operands(format: str) -> tuple[str, ...]:
    """The formats of a problem's operands: two of a pair, else the one."""
    return tuple(format.split(_PAIR))


class Param(NamedTuple):
    """One kernel parameter: its name and its C type (`ptr`, `i64`, `i32`, `u32`, `f32`, `tensormap`)."""

    name: str
    ctype: str

    @property
    def size(self) -> int:
        """Bytes of the parameter."""
        return _PARAM_BYTES[self.ctype]

    @property
    def alignment(self) -> int:
        """Alignment of the parameter in the parameter block (a tensor map is aligned to 64)."""
        return 64 if self.ctype == "tensormap" else self.size


class Problem(NamedTuple):
    """What is to be computed, as dispatch sees it: an operation, its fields, its dimensions."""

    operation: str
    fields: tuple[tuple[str, str], ...] = ()
    dims: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, operation: str, fields: Mapping[str, str], dims: Mapping[str, int]) -> Problem:
        """Make a problem from mappings; the order of their keys does not matter."""
        return cls(operation, tuple(sorted(fields.items())), tuple(sorted(dims.items())))

    @property
    def format(self) -> str:
        """The value of the field `format`, or `NO_FORMAT`."""
        return dict(self.fields).get("format", NO_FORMAT)

    def __str__(self) -> str:
        parts = [f"{k}={v}" for k, v in (*self.fields, *self.dims)]
        return f"{self.operation}({', '.join(parts)})"


@dataclass(frozen=True)
class Operation:
    """A public operation: the fields a problem has, with every allowed value, and its dimensions.

    Attributes
    ----------
    fields
        (name, allowed values); the first value is the default of ``warpsmith resolve``.
    dims
        (name, default).
    excluded
        Combinations of field values that are no problem at all (the operation rejects them earlier).
    multiples
        (format, dimension, multiple): what a dimension must be divisible by.
    opt_in
        Fields that stand at their first value for whoever does not name them, where else every value would be meant.
    """

    name: str
    fields: tuple[tuple[str, tuple[str, ...]], ...]
    dims: tuple[tuple[str, int], ...]
    excluded: tuple[tuple[tuple[str, str], ...], ...] = ()
    multiples: tuple[tuple[str, str, int], ...] = ()
    opt_in: tuple[str, ...] = ()

    @cached_property
    def formats(self) -> tuple[str, ...]:
        """The formats the operation knows; (`NO_FORMAT`,) if it has none."""
        return dict(self.fields).get("format", (NO_FORMAT,))

    def combinations(self) -> Iterator[dict[str, str]]:
        """Every allowed assignment of the fields."""
        yield from map(dict, self._combinations)

    @cached_property
    def _combinations(self) -> tuple[dict[str, str], ...]:
        names = [name for name, _ in self.fields]
        every = [dict(zip(names, values, strict=True)) for values in product(*(allowed for _, allowed in self.fields))]
        return tuple(c for c in every if not any(all(c.get(k) == v for k, v in bad) for bad in self.excluded))

    def unasked(self, fields: Collection[str]) -> dict[str, str]:
        """The fields that only opt in, of those that are not named, with the value they stand at."""
        return {name: values[0] for name, values in self.fields if name in self.opt_in and name not in fields}

    def multiple(self, format: str, dim: str) -> int:
        """What `dim` must be divisible by for `format`."""
        return next((m for f, d, m in self.multiples if f == format and d == dim), 1)

    def problem(self, given: Mapping[str, str | int]) -> Problem:
        """Make a problem from what a user gave, filling in defaults.

        Raises
        ------
        InvalidArgumentError
            If a name or value is unknown, a combination is excluded, or a dimension does not divide.
        """
        fields, dims, allowed = {n: v[0] for n, v in self.fields}, dict(self.dims), dict(self.fields)
        for name, value in given.items():
            if name in fields:
                if value not in allowed[name]:
                    raise InvalidArgumentError(
                        f"{self.name}: {name}={value!r} is unknown; expected one of {', '.join(allowed[name])}"
                    )
                fields[name] = str(value)
            elif name in dims:
                if not str(value).isdecimal():
                    raise InvalidArgumentError(f"{self.name}: {name}={value!r} is not a whole number ≥ 0")
                dims[name] = int(value)
            else:
                known = ", ".join([*fields, *dims])
                raise InvalidArgumentError(f"{self.name} has no option {name!r}; it has {known}")
        for bad in self.excluded:
            if all(fields.get(k) == v for k, v in bad):
                text = " with ".join(f"{k}={v}" for k, v in bad)
                raise InvalidArgumentError(f"{self.name}: {text} is not a valid combination")
        for name, size in dims.items():
            need = self.multiple(fields.get("format", NO_FORMAT), name)
            if size % need:
                raise InvalidArgumentError(
                    f"{self.name}: {name}={size} must be a multiple of {need} for {fields.get('format')}"
                )
        return Problem.of(self.name, fields, dims)


class Instructions(NamedTuple):
    """SASS that must be in the cubin for targets of these capabilities which provide `feature`."""

    patterns: tuple[str, ...]
    capabilities: tuple[Capability, ...]
    feature: Suffix = ""

    def applies_to(self, target: Target) -> bool:
        """Whether the requirement holds for `target`."""
        return target.capability in self.capabilities and target.provides(self.feature)


@dataclass(frozen=True)
class Variant:
    """One instantiation of a kernel.

    Attributes
    ----------
    macros
        (name, value) definitions put before the source.
    serves
        (field, values): the problems it computes; a field that is not named does not matter.
    tile
        The name that tuning tables choose by.
    witnesses
        Problems that resolve to it: proof that it is not dead.
    instructions
        What its SASS must hold.
    limits
        Sizes that it computes, the same for all tiles of a kernel and problems of equal fields; kernels behind it in
        the catalog compute the others. Empty: all.
    activations
        Those of the product that its epilogue computes, for a problem of the operation `gemm`.
    tolerance
        Relative error that its sums may have: more than fp32's where the tensor cores add in fewer bits.
    """

    name: str
    macros: tuple[tuple[str, str], ...]
    serves: tuple[tuple[str, tuple[str, ...]], ...]
    witnesses: tuple[Problem, ...]
    tile: str = "default"
    instructions: tuple[Instructions, ...] = ()
    limits: tuple[Limit, ...] = ()
    activations: tuple[str, ...] = ()
    tolerance: float = 0.0

    def mismatch(self, problem: Problem) -> str | None:
        """Why the variant does not compute the problem, or None if it does."""
        have = dict(problem.fields)
        for name, values in self.serves:
            if have.get(name) not in values:
                return f"serves {name} {'/'.join(values)}, not {have.get(name)}"
        return None

    def outside(self, problem: Problem, sm_count: int) -> str | None:
        """Why the problem's sizes are not the variant's, or None if they are."""
        if not self.limits:
            return None
        fields, dims = dict(problem.fields), dict(problem.dims)
        bounds = (limit.bound for limit in self.limits if limit.concerns(fields))
        return next((f"is for {bound}" for bound in bounds if not bound.holds(dims, sm_count)), None)


@dataclass(frozen=True)
class Kernel:
    """A kernel: a source, the capabilities it is for, its parameters and variants.

    Attributes
    ----------
    capabilities
        Every capability it may run on, named one by one.
    feature
        The least specific target it compiles for: "" plain, "f" family, "a" architecture.
    may_spill
        Whether register spills are tolerated (never in a main loop, unless an instruction is made in software there).
    emulates
        The kernel for other devices whose source this one is, with an instruction that they have made in software.
    """

    name: str
    module: str
    operation: str
    source: str
    entry: str
    capabilities: tuple[Capability, ...]
    params: tuple[Param, ...]
    variants: tuple[Variant, ...]
    feature: Suffix = ""
    may_spill: bool = False
    emulates: str = ""

    @property
    def takes_maps(self) -> bool:
        """Whether operands come as tensor maps, not as pointers."""
        return any(p.ctype == "tensormap" for p in self.params)

    @cached_property
    def by_fields(self) -> dict[tuple[tuple[str, str], ...], Any]:
        """Fields of problems → the variants that compute them, and the others with why not; filled by `resolve`."""
        return {}

    def builds_for(self, target: Target) -> bool:
        """Whether the plan has cubins of this kernel for `target`."""
        return target.provides(self.feature) and target.capability in self.capabilities

    def variant(self, name: str) -> Variant:
        """The variant of that name.

        Raises
        ------
        CatalogError
            If there is none.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise CatalogError(f"kernel {self.name} has no variant {name!r}")


class Promise(NamedTuple):
    """(operation, format, capability) → the kernels that must serve it, or why it is unsupported.

    Attributes
    ----------
    kernel
        What serves every size, but those of `others`.
    fields
        (field, values): the problems it is about; none for all that no other promise is about.
    others
        Kernels with limits; each must serve sizes of its own.
    """

    operation: str
    format: str
    capability: Capability
    kernel: str | None
    reason: str = ""
    fields: tuple[tuple[str, tuple[str, ...]], ...] = ()
    others: tuple[str, ...] = ()

    def concerns(self, fields: Mapping[str, str]) -> bool:
        """Whether it is about problems with these fields."""
        return all(fields.get(name) in values for name, values in self.fields)

    def __str__(self) -> str:
        return f"{self.operation}/{self.format}@{self.capability}"


class CubinId(NamedTuple):
    """The name of one cubin: kernel, variant, target."""

    kernel: str
    variant: str
    target: Target

    def __str__(self) -> str:
        return f"{self.kernel}/{self.variant}@{self.target}"


class Finding(NamedTuple):
    """Something wrong: a stable code, what it is about, what to do."""

    code: str
    subject: str
    message: str
    fix: str = ""

    def as_json(self) -> dict[str, str]:
        """The finding as the command line prints it."""
        return {"code": self.code, "subject": self.subject, "message": self.message, "fix": self.fix}


@dataclass(frozen=True)
class Catalog:
    """Everything that plan, dispatch, audit and tests are derived from."""

    operations: tuple[Operation, ...]
    kernels: tuple[Kernel, ...]
    promises: tuple[Promise, ...]
    tuning: tuple[Rule, ...] = field(default=())
    estimates: tuple[Estimate, ...] = field(default=())
    splits: tuple[SplitRule, ...] = field(default=())

    def operation(self, name: str) -> Operation:
        """The operation of that name.

        Raises
        ------
        InvalidArgumentError
            If there is none.
        """
        for operation in self.operations:
            if operation.name == name:
                return operation
        known = ", ".join(o.name for o in self.operations)
        raise InvalidArgumentError(f"unknown operation {name!r}; expected one of {known}")

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name.

        Raises
        ------
        CatalogError
            If there is none.
        """
        for kernel in self.kernels:
            if kernel.name == name:
                return kernel
        raise CatalogError(f"the catalog has no kernel {name!r}")

    def split_rule(self, kernel: str, tile: str, format: str) -> SplitRule | None:
        """The first rule for splits of K of a kernel's tile for a format, if there is one."""
        return next((r for r in self.splits if r.serves(kernel, tile, format)), None)

    def estimate(self, kernel: str) -> Estimate | None:
        """What is estimated of a kernel's costs, if anything is."""
        return next((e for e in self.estimates if e.kernel == kernel), None)

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The module names, in order of appearance."""
        return tuple(dict.fromkeys(k.module for k in self.kernels))

    @cached_property
    def _promises(self) -> dict[tuple[str, str, Capability], list[Promise]]:
        found: dict[tuple[str, str, Capability], list[Promise]] = {}
        for promise in sorted(self.promises, key=lambda p: not p.fields):
            found.setdefault((promise.operation, promise.format, promise.capability), []).append(promise)
        return found

    def promised(self, operation: str, format: str, capability: Capability) -> tuple[Promise, ...]:
        """The promises for an operation and format on a capability: those about some fields, then the one for all."""
        return tuple(self._promises.get((operation, format, capability), ()))

    def promise(
        self, operation: str, format: str, capability: Capability, fields: Mapping[str, str] = _NO_FIELDS
    ) -> Promise | None:
        """The promise for a problem's operation, format and fields on a capability, or None."""
        return next((p for p in self._promises.get((operation, format, capability), ()) if p.concerns(fields)), None)
