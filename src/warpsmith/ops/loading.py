# SPDX-License-Identifier: Apache-2.0
"""Load kernels at start-up, so that no request waits for one and no graph capture meets one that is not there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from warpsmith.catalog.plan import probe_problems
from warpsmith.catalog.spec import Catalog, Operation, Problem
from warpsmith.errors import InvalidArgumentError
from warpsmith.ops.state import runtime


def load(ops: str | Problem | Iterable[str | Problem] | Mapping[str, Mapping[str, str]], device: object = 0) -> int:
    """Load every kernel that some operations can reach on a device, or fail at once with every reason.

    Parameters
    ----------
    ops
        Operation names (``"quantize"``, or several), a mapping from name to the fields that are fixed
        (``{"quantize": {"format": "nvfp4", "input": "bf16"}}``), or `Problem` values.
    device
        A CUDA device: its number, ``"cuda:1"``, or a ``torch.device``.

    Returns
    -------
    int
        The number of distinct kernels that are now loaded.

    Raises
    ------
    InvalidArgumentError
        If an operation or field does not exist.
    MissingKernelError
        If any kernel is missing: one error with every reason, and nothing is loaded.

    Examples
    --------
    >>> import warpsmith as ws
    >>> ws.load({"quantize": {"format": "nvfp4"}}, device=0)  # doctest: +SKIP
    6
    """
    shared = runtime()
    problems = list(_problems(shared.catalog, ops))
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
    kind, _, number = str(device).partition(":")
    if kind == "cuda" and (number.isdigit() or not number):
        return int(number or 0)
    raise InvalidArgumentError(f"device {device!r} is not a CUDA device; expected a number, 'cuda' or 'cuda:1'")


def _problems(
    catalog: Catalog, ops: str | Problem | Iterable[str | Problem] | Mapping[str, Mapping[str, str]]
) -> Iterator[Problem]:
    if isinstance(ops, Mapping):
        for name, fixed in ops.items():
            yield from _matching(catalog.operation(name), fixed)
        return
    for item in [ops] if isinstance(ops, (str, Problem)) else ops:
        if isinstance(item, Problem):
            yield item
        else:
            yield from _matching(catalog.operation(item), {})


def _matching(operation: Operation, fixed: Mapping[str, str]) -> Iterator[Problem]:
    operation.problem(fixed)  # names what does not exist
    unknown = sorted(set(fixed) - {name for name, _ in operation.fields})
    if unknown:
        fields = ", ".join(name for name, _ in operation.fields) or "none"
        raise InvalidArgumentError(f"{operation.name}: {', '.join(unknown)} cannot be fixed; its fields are {fields}")
    for format in operation.formats:
        for problem in probe_problems(operation, format):
            if all(dict(problem.fields).get(name) == value for name, value in fixed.items()):
                yield problem
