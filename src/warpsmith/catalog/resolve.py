# SPDX-License-Identifier: Apache-2.0
"""Dispatch as a pure function: (problem, device facts, what is available) → a choice, or every reason against."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from warpsmith.arch import Capability, candidates
from warpsmith.catalog.spec import Catalog, CubinId, Kernel, Problem, Variant
from warpsmith.errors import CatalogError
from warpsmith.tuning import choose

Availability = Callable[[CubinId], "str | None"]
"""Says why a cubin cannot be used, or None if it can."""

_MAX_FIELDS = 1024  # of a kernel's problems that are remembered: several times as many as an operation has


class DeviceFacts(NamedTuple):
    """What dispatch needs to know of a device; injected, so that every device can be tested without one.

    Attributes
    ----------
    capability
        Compute capability.
    sm_count
        Number of multiprocessors.
    driver
        `cuDriverGetVersion` (13000 for CUDA 13.0), 0 if unknown.
    name
        The device's name, for messages.
    """

    capability: Capability
    sm_count: int = 48
    driver: int = 0
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name or 'device'} (compute capability {self.capability})"


class Rejection(NamedTuple):
    """Something that was considered, and why it was not taken."""

    subject: str
    reason: str


class Decision(NamedTuple):
    """The outcome of `resolve`."""

    problem: Problem
    device: DeviceFacts
    choice: CubinId | None
    rejections: tuple[Rejection, ...]
    unsupported: str = ""

    def explain(self) -> str:
        """The decision as text, one line a reason."""
        head = f"{self.problem} on {self.device}: "
        head += f"runs {self.choice}" if self.choice else self.unsupported or "no usable cubin"
        return "\n".join([head, *(f"  - {r.subject}: {r.reason}" for r in self.rejections)])


def available_everywhere(_: CubinId) -> str | None:
    """Availability for planning: every planned cubin is there."""
    return None


def resolve(
    catalog: Catalog, problem: Problem, device: DeviceFacts, availability: Availability = available_everywhere
) -> Decision:
    """Decide which cubin computes `problem` on `device`.

    Kernels are tried in catalog order. The first kernel and variant that compute the problem on this capability are the
    choice (a variant with limits computes the sizes within them); availability then only picks among targets. A cubin
    that is missing is an error, never a reason to fall back to a slower kernel.
    """
    rejections: list[Rejection] = []
    promise = catalog.promise(problem.operation, problem.format, device.capability, dict(problem.fields))
    if promise is not None and promise.kernel is None:
        return Decision(problem, device, None, (), f"unsupported: {promise.reason}")
    for kernel in catalog.kernels:
        if kernel.operation != problem.operation:
            continue
        variant = select_variant(catalog, kernel, problem, device, rejections)
        if variant is None:
            continue
        for target in candidates(device.capability):
            cubin = CubinId(kernel.name, variant.name, target)
            if not kernel.builds_for(target):
                continue
            reason = availability(cubin)
            if reason is None:
                return Decision(problem, device, cubin, tuple(rejections))
            rejections.append(Rejection(str(cubin), reason))
        return Decision(problem, device, None, tuple(rejections))
    return Decision(problem, device, None, tuple(rejections))


def select_variant(
    catalog: Catalog, kernel: Kernel, problem: Problem, device: DeviceFacts, rejections: list[Rejection]
) -> Variant | None:
    """The variant of `kernel` that computes the problem on the device, or None with reasons appended."""
    if device.capability not in kernel.capabilities:
        have = ", ".join(map(str, kernel.capabilities))
        rejections.append(Rejection(kernel.name, f"is for {have}, not {device.capability}"))
        return None
    computing, others = _by_fields(kernel, problem)
    rejections += others
    fitting: dict[str, Variant] = {}
    for variant in computing:
        reason = variant.outside(problem, device.sm_count)
        if reason is None:
            fitting.setdefault(variant.tile, variant)
        else:
            rejections.append(Rejection(f"{kernel.name}/{variant.name}", reason))
    if not fitting:
        return None
    try:
        tile = choose(
            catalog.tuning,
            kernel.name,
            list(fitting),
            capability=device.capability,
            sm_count=device.sm_count,
            fields=dict(problem.fields),
            dims=dict(problem.dims),
            estimates=catalog.estimates,
        )
    except CatalogError as error:
        rejections.append(Rejection(kernel.name, str(error)))
        return None
    for other, variant in fitting.items():
        if other != tile:
            rejections.append(Rejection(f"{kernel.name}/{variant.name}", f"the tuning table picks tile {tile}"))
    return fitting[tile]


def _by_fields(kernel: Kernel, problem: Problem) -> tuple[list[Variant], list[Rejection]]:
    """The variants that compute problems with these fields, and why the others do not; found once for a kernel."""
    found: tuple[list[Variant], list[Rejection]] | None = kernel.by_fields.get(problem.fields)
    if found is None:
        found = [], []
        for variant in kernel.variants:
            reason = variant.mismatch(problem)
            if reason is None:
                found[0].append(variant)
            else:
                found[1].append(Rejection(f"{kernel.name}/{variant.name}", reason))
        if len(kernel.by_fields) >= _MAX_FIELDS:
            kernel.by_fields.clear()
        kernel.by_fields[problem.fields] = found
    return found
