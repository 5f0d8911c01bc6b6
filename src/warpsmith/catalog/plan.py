# SPDX-License-Identifier: Apache-2.0
"""The build plan, and the proof that catalog, promises and tuning tables agree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from warpsmith.arch import CAPABILITIES, Capability, Target, candidates
from warpsmith.catalog.resolve import Availability, DeviceFacts, available_everywhere, resolve
from warpsmith.catalog.selection import Selection
from warpsmith.catalog.shapes import Reached, check_model, reached
from warpsmith.catalog.spec import (
    NO_FORMAT,
    Catalog,
    CubinId,
    Finding,
    Kernel,
    Operation,
    Problem,
    Promise,
    Variant,
    operands,
)
from warpsmith.errors import InvalidArgumentError
from warpsmith.tuning import Rule
from warpsmith.tuning.estimate import Estimate

_SM_COUNTS = (1, 48, 132)
_PROBE_SIZES = (1, 16, 64, 128, 4096, 65536)


@dataclass(frozen=True)
class Plan:
    """The cubins to build for some targets, and the promises that they leave open."""

    targets: tuple[Target, ...]
    cubins: tuple[CubinId, ...]
    missing: tuple[Finding, ...]

    def for_target(self, target: Target) -> tuple[CubinId, ...]:
        """The plan's cubins for one target."""
        return tuple(c for c in self.cubins if c.target == target)


def plan(catalog: Catalog, targets: Sequence[Target], selection: Selection | None = None) -> Plan:
    """Derive the cubins that dispatch can reach on the targets' devices, and the promises that they do not keep.

    Raises
    ------
    InvalidArgumentError
        If the selection names a module, format or shape that does not exist.
    """
    chosen = selection or Selection()
    _check_selection(catalog, chosen)
    unique = tuple(dict.fromkeys(targets))
    cubins = tuple(c for target in unique for c in _reachable(catalog, target, chosen))
    planned = set(cubins)

    def availability(cubin: CubinId) -> str | None:
        return None if cubin in planned else "is not in the plan"

    missing: list[Finding] = []
    for target in unique:
        for capability in target.serves:
            missing += broken_promises(catalog, capability, availability, chosen, target)
    return Plan(unique, cubins, tuple(dict.fromkeys(missing)))


def _check_selection(catalog: Catalog, selection: Selection) -> None:
    listed = {f for o in catalog.operations for f in o.formats if f != NO_FORMAT}
    formats = sorted(listed | {part for f in listed for part in operands(f)})
    for given, known, what in (
        (selection.modules, list(catalog.modules), "module"),
        (selection.formats, formats, "format"),
    ):
        for name in given:
            if name not in known:
                raise InvalidArgumentError(f"unknown {what} {name!r}; expected one of {', '.join(known)}")
    for model in selection.models:
        check_model(catalog, model)


def _reachable(catalog: Catalog, target: Target, selection: Selection) -> Iterator[CubinId]:
    asked = {
        (r.kernel.name, r.variant.name)
        for capability in (target.serves if selection.models else ())
        for r in _asked(catalog, selection, capability)
        if r.kernel is not None and r.variant is not None
    }
    for kernel in catalog.kernels:
        if not kernel.builds_for(target) or (selection.modules and kernel.module not in selection.modules):
            continue
        for variant in kernel.variants:
            if selection.models:
                if (kernel.name, variant.name) in asked:
                    yield CubinId(kernel.name, variant.name, target)
            elif any(
                selection.wants_format(w.format) and _reaches(catalog, kernel, variant, w, capability)
                for w in variant.witnesses
                for capability in target.serves
            ):
                yield CubinId(kernel.name, variant.name, target)


def _asked(catalog: Catalog, selection: Selection, capability: Capability) -> Iterator[Reached]:
    """What the selection's models reach on a capability, within its formats."""
    for shapes in dict.fromkeys(s for m in selection.models for s in m.shapes):
        for found in reached(catalog, shapes, capability):
            if selection.wants_format(found.fields.get("format", NO_FORMAT)):
                yield found


def _reaches(catalog: Catalog, kernel: Kernel, variant: Variant, witness: Problem, on: Capability) -> bool:
    choice = resolve(catalog, witness, DeviceFacts(on)).choice
    return choice is not None and (choice.kernel, choice.variant) == (kernel.name, variant.name)


def probe_problems(operation: Operation, format: str) -> Iterator[Problem]:
    """Problems that stand for all of an operation's: every field combination of a format, at small and large sizes."""
    for fields in operation.combinations():
        if fields.get("format", NO_FORMAT) != format:
            continue
        for size in _PROBE_SIZES:
            dims = {
                name: max(size // operation.multiple(format, name), 1) * operation.multiple(format, name)
                for name, _ in operation.dims
            }
            yield Problem.of(operation.name, fields, dims)


def witnesses(catalog: Catalog, operation: Operation, format: str) -> Iterator[Problem]:
    """The witnesses of an operation's variants with a format; they reach the tiles that the probes' sizes miss."""
    for kernel in catalog.kernels:
        if kernel.operation == operation.name:
            yield from (w for variant in kernel.variants for w in variant.witnesses if w.format == format)


def broken_promises(
    catalog: Catalog,
    capability: Capability,
    availability: Availability = available_everywhere,
    selection: Selection | None = None,
    target: Target | None = None,
) -> list[Finding]:
    """The promises for a capability that dispatch does not keep with what is available, one finding each."""
    chosen = selection or Selection()
    found = []
    asked = list(_asked(catalog, chosen, capability))
    for operation in catalog.operations:
        for format in operation.formats:
            if catalog.promise(operation.name, format, capability) is None:
                found.append(_unpromised(operation.name, format, capability))
            for promise in catalog.promised(operation.name, format, capability):
                if promise.kernel is None or not chosen.wants(catalog, promise):
                    continue
                if chosen.models:
                    reason = _why_unreached(catalog, promise, asked, availability)
                else:
                    reason = _why_broken(catalog, promise, operation, availability)
                if reason:
                    where = f" (target {target})" if target else ""
                    message = f"{promise} promises {promise.kernel}{where}: {reason}"
                    found.append(Finding("promise-broken", str(promise), message, _FIX))
    return found


_FIX = "restore the catalog row, tuning rule or cubin that the message names, or change the promise with its reason"


def _unpromised(operation: str, format: str, capability: Capability) -> Finding:
    subject = f"{operation}/{format}@{capability}"
    return Finding(
        "promise-absent",
        subject,
        f"no promise says what serves {subject}",
        "add it to catalog/promises.py, or say why not",
    )


def _why_broken(catalog: Catalog, promise: Promise, operation: Operation, availability: Availability) -> str:
    serving: set[str] = set()
    for problem in (*probe_problems(operation, promise.format), *witnesses(catalog, operation, promise.format)):
        if not _is_about(catalog, promise, dict(problem.fields)):
            continue
        for sm_count in _SM_COUNTS:
            decision = resolve(catalog, problem, DeviceFacts(promise.capability, sm_count), availability)
            if decision.choice is None:
                reasons = [f"{r.subject} {r.reason}" for r in decision.rejections if "serves" not in r.reason]
                return (
                    f"{problem} finds nothing ({'; '.join(reasons) or decision.unsupported or 'no kernel computes it'})"
                )
            if decision.choice.kernel not in (promise.kernel, *promise.others):
                return f"{problem} is served by {decision.choice.kernel} instead"
            serving.add(decision.choice.kernel)
    idle = [name for name in promise.others if name not in serving]
    return f"{', '.join(idle)} serves none of its sizes" if idle else ""


def _is_about(catalog: Catalog, promise: Promise, fields: Mapping[str, str]) -> bool:
    """Whether problems of the promise's operation and format with these fields are its own, and no other promise's."""
    return catalog.promise(promise.operation, promise.format, promise.capability, fields) is promise


def _why_unreached(catalog: Catalog, promise: Promise, asked: Sequence[Reached], availability: Availability) -> str:
    """As `_why_broken`, over exactly the shapes that were asked for."""
    for found in asked:
        if (found.shapes.operation, found.fields.get("format", "-")) != (promise.operation, promise.format):
            continue
        if not _is_about(catalog, promise, found.fields):
            continue
        if found.kernel is None or found.variant is None:
            return f"{found} finds nothing (no kernel computes it)"
        if found.kernel.name not in (promise.kernel, *promise.others):
            return f"{found} is served by {found.kernel.name} instead"
        cubins = [
            CubinId(found.kernel.name, found.variant.name, target)
            for target in candidates(promise.capability)
            if found.kernel.builds_for(target)
        ]
        reasons = [availability(cubin) for cubin in cubins]
        if None not in reasons:
            told = "; ".join(f"{cubin} {reason}" for cubin, reason in zip(cubins, reasons, strict=True))
            return f"{found} finds nothing ({told or 'no target has it'})"
    return ""


def check(catalog: Catalog, capabilities: Iterable[Capability] = CAPABILITIES) -> list[Finding]:
    """Everything wrong with the catalog itself: dead variants, tuning rules without a variant, broken promises."""
    found = [*_names(catalog), *_tuning(catalog)]
    if any(f.code == "tuning-unplanned" for f in found):
        return found  # dispatch would raise on such a table, so nothing after it means anything
    found += _dead(catalog)
    for capability in capabilities:
        found += broken_promises(catalog, capability)
    return found


def _names(catalog: Catalog) -> Iterator[Finding]:
    seen: set[str] = set()
    for kernel in catalog.kernels:
        for name in [kernel.name, *(f"{kernel.name}/{v.name}" for v in kernel.variants)]:
            if name in seen:
                yield Finding("name-twice", name, f"{name} is in the catalog twice", "rename one of the two")
            seen.add(name)


def _tuning(catalog: Catalog) -> Iterator[Finding]:
    kernels = {k.name: k for k in catalog.kernels}
    for rule in catalog.tuning:
        subject = f"{rule.kernel}/{rule.tile}"
        kernel = kernels.get(rule.kernel)
        if kernel is None or all(v.tile != rule.tile for v in kernel.variants):
            what = "which no variant of the catalog has"
        elif unserved := _unserved(catalog, kernel, rule):
            what = f"which serves no {unserved}, although the rule picks it there"
        else:
            continue
        yield Finding(
            "tuning-unplanned",
            subject,
            f"a tuning table names {subject}, {what}",
            "name a tile of a planned variant, or add the variant",
        )
    for kernel in catalog.kernels:
        rules = [r for r in catalog.tuning if r.kernel == kernel.name]
        estimated = catalog.estimate(kernel.name)
        if estimated is not None:
            yield from _estimated(kernel, estimated)
        elif len({v.tile for v in kernel.variants}) > 1 and not any(map(_takes_all, rules)):
            yield Finding(
                "tuning-open",
                kernel.name,
                f"{kernel.name} has several tiles, and no tuning rule of it takes every problem",
                "end its rules with one that has no bounds, fields or capabilities",
            )


def _estimated(kernel: Kernel, estimate: Estimate) -> Iterator[Finding]:
    """An estimate has to know the tiles that a kernel has of each of its formats, and no others."""
    have = {(format, v.tile) for v in kernel.variants for format in dict(v.serves).get("format", (NO_FORMAT,))}
    for format, tile in sorted(have ^ {(f.format, s.tile) for f in estimate.formats for s in f.tiles}):
        what = "no estimate knows it" if (format, tile) in have else "no variant of the catalog has it"
        subject = f"{kernel.name}/{tile}"
        yield Finding(
            "tuning-unplanned", subject, f"{subject} of {format}: {what}", "estimate the tiles that there are"
        )


def _takes_all(rule: Rule) -> bool:
    bounded = any(b.minimum > 0 or b.maximum is not None for b in rule.bounds)
    return not (bounded or rule.fields or rule.capabilities)


def _unserved(catalog: Catalog, kernel: Kernel, rule: Rule) -> Problem | None:
    """A problem that the kernel computes and the rule takes, but not with a variant of the rule's tile."""
    operation = catalog.operation(kernel.operation)
    for fields in operation.combinations():
        if all(fields.get(name) in values for name, values in rule.fields):
            problem = Problem.of(operation.name, fields, dict(operation.dims))
            tiles = {v.tile for v in kernel.variants if v.mismatch(problem) is None}
            if tiles and rule.tile not in tiles:
                return problem
    return None


def _dead(catalog: Catalog) -> Iterator[Finding]:
    for kernel in catalog.kernels:
        for variant in kernel.variants:
            for witness in variant.witnesses or (None,):
                if witness is None or not any(
                    _reaches(catalog, kernel, variant, witness, c) for c in kernel.capabilities
                ):
                    subject = f"{kernel.name}/{variant.name}"
                    why = (
                        "has no witness" if witness is None else f"is not what {witness} resolves to on any capability"
                    )
                    yield Finding(
                        "variant-dead",
                        subject,
                        f"{subject} {why}",
                        "remove the variant, or give it a problem that needs it",
                    )
