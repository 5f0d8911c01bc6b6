# SPDX-License-Identifier: Apache-2.0
"""Why dispatch takes the kernel that it takes."""

from __future__ import annotations

import re

from warpsmith.arch import Capability
from warpsmith.catalog.resolve import Decision, DeviceFacts
from warpsmith.ops.loading import device_number
from warpsmith.ops.state import runtime
from warpsmith.runtime.device import device_facts

_CAPABILITY = re.compile(r"[0-9]+\.[0-9]")


def explain(operation: str, *, device: object = 0, sm_count: int = 48, **problem: str | int) -> Decision:
    """Decide which kernel would compute a problem, with the reason against each other one; nothing is loaded.

    Parameters
    ----------
    operation
        Its name: ``gemm``, ``quantize``, …
    device
        A CUDA device (its number, ``"cuda:1"``, a ``torch.device``), or a compute capability such as ``"12.1"``, which
        needs no GPU.
    sm_count
        The multiprocessors of a device given by its capability: the choice of tiles depends on them.
    problem
        The problem's fields and dimensions, as ``warpsmith resolve`` takes them; what is left out has its default.

    Returns
    -------
    Decision
        `choice` is the cubin, or None; `explain()` gives all of it as text.

    Raises
    ------
    InvalidArgumentError
        If the operation, a field, a value or the device does not exist.
    DriverError
        If the device is asked for its facts and cannot be.

    Examples
    --------
    >>> import warpsmith as ws
    >>> decision = ws.explain("gemm", device="12.1", format="bf16_x_nvfp4", m=16, n=4096, k=7168)
    >>> decision.problem.format, decision.device.capability.major
    ('bf16_x_nvfp4', 12)
    """
    shared = runtime()
    wanted = shared.catalog.operation(operation).problem(problem)
    if isinstance(device, str) and _CAPABILITY.fullmatch(device):
        return shared.decide(wanted, DeviceFacts(Capability.parse(device), sm_count))
    return shared.decide(wanted, device_facts(device_number(device), shared.driver))
