# SPDX-License-Identifier: Apache-2.0
"""Load kernels at start-up, so that no request waits for one and no graph capture meets one that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.plan import probe_problems, witnesses
from warpsmith.catalog.spec import Catalog, Operation, Problem
from warpsmith.errors import InvalidArgumentError
from warpsmith.ops.state import runtime


def load(ops: str | Problem | Iterable[str | Problem] | Mapping[str, Mapping[str, str]], device: object = 0) -> int:
    """Load every kernel that some operations can reach on a device, or fail at once with every reason.

    Parameters
    ----------
    ops
        Operation names (``"quantize"``, or several), a mapping from name to the fields that are fixed
        (``{"quantize": {"format": "nvfp4", "input": "bf16"}}``), or `Problem` values. The kernels of nvfp4's default
        global scale come with ``quantize`` and ``global_scale``.
    device
        A CUDA device: its number, ``"cuda:1"``, or a ``torch.device``; without a number, device 0.

    Returns
    -------
    int
        The number of distinct kernels that are now loaded.

    Raises
    ------
    InvalidArgumentError
        If an operation, field, value or combination of them does not exist, or `device` is no CUDA device.
    MissingKernelError
        If any kernel is missing: one error with every reason, and nothing is loaded.

    Examples
    --------
    >>> import warpsmith as ws
    >>> ws.load({"quantize": {"format": "nvfp4"}}, device=0)  # doctest: +SKIP
    10
    """
    shared = runtime()
    problems = list(problems_of(shared.catalog, ops))
    return len({id(kernel) for kernel in shared.load(problems, device_number(device))})


def device_number(device: object) -> int:
    """The number of a CUDA device.

    Raises
    ------
    InvalidArgumentError
        If it does not name one.
    """
    if isinstance(device, int) and not isinstance(device, bool) and device >= 0:
        return device
    found = re.fullmatch(r"cuda(?::([0-9]+))?", str(device))
    if found:
        return int(found[1] or 0)
    raise InvalidArgumentError(f"device {device!r} is not a CUDA device; expected a number, 'cuda' or 'cuda:1'")


def problems_of(
    catalog: Catalog, ops: str | Problem | Iterable[str | Problem] | Mapping[str, Mapping[str, str]]
) -> Iterator[Problem]:
    """The problems that stand for what `load` is asked for, which its errors name."""
    if isinstance(ops, (str, Problem)):
        ops = [ops]
    if not isinstance(ops, Iterable):
        raise InvalidArgumentError(
            f"ops is a {type(ops).__name__}; expected operation names, problems, or a mapping from name to fixed fields"
        )
    fields = ops if isinstance(ops, Mapping) else {}
    for item in ops:
        if isinstance(item, Problem):
            yield item
        else:
            yield from _reachable(catalog, catalog.operation(item), fields.get(item, {}))


def _reachable(catalog: Catalog, operation: Operation, fixed: Mapping[str, str]) -> Iterator[Problem]:
    """An operation's problems, and those of the operations that it calls: quantize for its default global scale."""
    problems = list(_matching(catalog, operation, fixed))
    yield from problems
    scaled = operation.name == "quantize" and any(FORMATS[p.format].has_global_scale for p in problems)
    if operation.name == "quantize" and any(FORMATS[p.format].whole == "tensor" for p in problems):
        input = fixed.get("input")
        yield from _matching(catalog, catalog.operation("matrix_amax"), {} if input is None else {"input": input})
    if scaled or operation.name == "global_scale":
        yield from default_scale(catalog, fixed.get("input"), whole=scaled)


def default_scale(catalog: Catalog, input: str | None, *, whole: bool = True) -> Iterator[Problem]:
    """The problems of nvfp4's default global scale, of inputs of one type or all; `whole` for both of its steps."""
    if whole:
        yield from _matching(catalog, catalog.operation("global_scale"), {})
    yield from _matching(catalog, catalog.operation("amax_partial"), {} if input is None else {"input": input})


def _matching(catalog: Catalog, operation: Operation, fixed: Mapping[str, str]) -> Iterator[Problem]:
    """The problems that stand for all of an operation's with some fields fixed."""
    if not isinstance(fixed, Mapping):
        raise InvalidArgumentError(
            f"{operation.name}: the fixed fields are a {type(fixed).__name__}; expected a mapping from field to value"
        )
    allowed = dict(operation.fields)
    for name, value in fixed.items():
        if name not in allowed:
            known = ", ".join(allowed) or "none"
            raise InvalidArgumentError(f"{operation.name}: {name!r} cannot be fixed; its fields are {known}")
        if value not in allowed[name]:
            known = ", ".join(allowed[name])
            raise InvalidArgumentError(f"{operation.name}: {name}={value!r} is unknown; expected one of {known}")
    wanted = {**operation.unasked(fixed), **fixed}
    found = [
        problem
        for format in operation.formats
        for problem in (*probe_problems(operation, format), *witnesses(catalog, operation, format))
        if all(dict(problem.fields).get(name) == value for name, value in wanted.items())
    ]
    if not found:
        given = " with ".join(f"{name}={value}" for name, value in fixed.items())
        raise InvalidArgumentError(f"{operation.name}: {given} is not a valid combination")
    yield from found
