# SPDX-License-Identifier: Apache-2.0
"""Make ready what given problems need, before a CUDA graph is captured or the first request comes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.resolve import DeviceFacts
from warpsmith.catalog.shapes import Model, Shapes, reached, read_models
from warpsmith.catalog.spec import NO_FORMAT, Catalog, Problem
from warpsmith.errors import InvalidArgumentError, MissingKernelError
from warpsmith.ops.loading import default_scale, device_number, problems_of
from warpsmith.ops.state import runtime
from warpsmith.runtime.device import device_facts
from warpsmith.runtime.search import Chosen

_LAUNCHERS = {"gemm": "warpsmith.ops.cuda_gemm"}  # all others: warpsmith.ops.cuda


def warmup(
    work: str | os.PathLike[str] | Problem | Iterable[str | Problem] | Mapping[str, Mapping[str, str]],
    device: object = 0,
) -> int:
    """Load every kernel that given problems need, and decide on them, or fail at once with every reason.

    A CUDA graph that is captured afterwards meets nothing that has to be found, compiled or loaded. Scratch needs no
    warming: a captured call takes it from the graph's own memory.

    Parameters
    ----------
    work
        A models file, as ``warpsmith build --models`` reads it (`docs/bundles.md`): a path, or a text that ends in
        ``.json``. The kernels are those that dispatch picks for any of its sizes on the device. Else `Problem` values,
        operation names, or a mapping from name to fixed fields, as for `load`. The kernels of nvfp4's default global
        scale come with ``quantize``.
    device
        A CUDA device (its number, ``"cuda:1"``, a ``torch.device``), or a list of them.

    Returns
    -------
    int
        The number of kernels that are now loaded for it, on all of the devices together.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be read or does not fit the catalog, something named does not exist, or `device` is no CUDA
        device.
    MissingKernelError
        If any kernel is missing on any of the devices: one error with every reason, and nothing is loaded.

    Examples
    --------
    >>> import warpsmith as ws
    >>> ws.warmup("examples/models.json", device=[0, 1])  # doctest: +SKIP
    16
    """
    shared = runtime()
    numbers = dict.fromkeys(device_number(d) for d in (device if isinstance(device, (list, tuple)) else [device]))
    models = _models(shared.catalog, work)
    # The path or text of a models file is no list of problems.
    problems = [] if models is not None else list(problems_of(shared.catalog, work))  # type: ignore[arg-type]
    wanted: dict[int, list[Problem | Chosen]] = {}
    reasons = []
    for number in numbers:
        facts = device_facts(number, shared.driver)
        wanted[number] = [*_with_scale(shared.catalog, problems), *_reached(shared.catalog, models or (), facts)]
        try:
            shared.find(wanted[number], number)
        except MissingKernelError as error:
            reasons.append(str(error))
    if reasons:
        raise MissingKernelError("\n\n".join(reasons))
    _import(item.problem if isinstance(item, Chosen) else item for items in wanted.values() for item in items)
    return sum(len({id(kernel) for kernel in shared.load(items, number)}) for number, items in wanted.items())


def _models(catalog: Catalog, work: object) -> Sequence[Model] | None:
    """The models of a file, if `work` names one."""
    if not (isinstance(work, os.PathLike) or (isinstance(work, str) and work.endswith(".json"))):
        return None
    try:
        text = Path(work).read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the models file {os.fspath(work)}: {error.strerror}") from error
    return read_models(text, catalog)


def _with_scale(catalog: Catalog, problems: Iterable[Problem]) -> Iterator[Problem]:
    """Problems, and those of the default global scale that they may need."""
    for problem in problems:
        yield problem
        format = FORMATS.get(problem.format)
        if problem.operation == "quantize" and format is not None and format.has_global_scale:
            yield from default_scale(catalog, dict(problem.fields).get("input"))


def _reached(catalog: Catalog, models: Iterable[Model], facts: DeviceFacts) -> Iterator[Problem | Chosen]:
    """What dispatch may pick for any size of models' shapes on a device; what it cannot serve as a problem."""
    for shapes in dict.fromkeys(shapes for model in models for shapes in model.shapes):
        yield from _unsupported(catalog, shapes, facts)
        for found in reached(catalog, shapes, facts.capability, (facts.sm_count, facts.sm_count)):
            problem = shapes.smallest(found.fields)
            if found.kernel is None or found.variant is None:
                yield problem
                continue
            yield Chosen(problem, found.kernel.name, found.variant.name)
            yield from list(_with_scale(catalog, [problem]))[1:]


def _unsupported(catalog: Catalog, shapes: Shapes, facts: DeviceFacts) -> Iterator[Problem]:
    for fields in shapes.combinations(catalog.operation(shapes.operation)):
        promise = catalog.promise(shapes.operation, fields.get("format", NO_FORMAT), facts.capability)
        if promise is not None and promise.kernel is None:
            yield shapes.smallest(fields)


def _import(problems: Iterable[Problem]) -> None:
    """Import what launches, where torch is used at all: else the first call would."""
    if "torch" in sys.modules:
        for operation in {problem.operation for problem in problems}:
            import_module(_LAUNCHERS.get(operation, "warpsmith.ops.cuda"))
