# SPDX-License-Identifier: Apache-2.0
"""Kernels with limits: they serve the sizes within them, and a promise that names them is held against that."""

from __future__ import annotations

import dataclasses

import pytest
from synthetic import CATALOG, NATIVE, PARAMS, problem, variants

from warpsmith.arch import Capability, default_target
from warpsmith.catalog.plan import Selection, broken_promises, plan
from warpsmith.catalog.resolve import DeviceFacts, resolve
from warpsmith.catalog.shapes import Model, Shapes
from warpsmith.catalog.spec import Kernel, Promise
from warpsmith.tuning import Bound, Limit, Rule

SPARK = Capability(12, 1)


def few(limit: Bound) -> Kernel:
    variant = dataclasses.replace(variants()[0], limits=(Limit(limit),))
    return Kernel("scale_few", "scaling", "scale", "scale.cuh", "ws_scale_few", NATIVE, PARAMS, (variant,), "f")


FEW = few(Bound(("m",), maximum=16))


def promised(promise: Promise) -> Promise:
    limited = promise.format == "f4" and promise.capability in NATIVE
    return promise._replace(others=("scale_few",)) if limited else promise


LIMITED = dataclasses.replace(
    CATALOG,
    kernels=(FEW, *CATALOG.kernels),
    promises=tuple(map(promised, CATALOG.promises)),
    tuning=(*CATALOG.tuning, Rule("scale_few", "small")),
)


@pytest.mark.parametrize(("m", "kernel"), [(1, "scale_few"), (16, "scale_few"), (17, "scale_native")])
def test_a_kernel_serves_the_sizes_within_its_limits(m: int, kernel: str) -> None:
    decision = resolve(LIMITED, problem(m, format="f4", input="bf16"), DeviceFacts(SPARK))
    assert decision.choice is not None
    assert decision.choice.kernel == kernel
    if kernel != "scale_few":
        assert "is for m <= 16" in decision.explain()


def test_both_kernels_of_a_promise_are_asked_for() -> None:
    assert broken_promises(LIMITED, SPARK) == []
    unpromised = dataclasses.replace(LIMITED, promises=CATALOG.promises)
    assert any("served by scale_few instead" in f.message for f in broken_promises(unpromised, SPARK))
    closed = few(Bound(("m",), minimum=1 << 40))
    idle = dataclasses.replace(LIMITED, kernels=(closed, *CATALOG.kernels))
    assert any("scale_few serves none of its sizes" in f.message for f in broken_promises(idle, SPARK))


@pytest.mark.parametrize(
    ("rows", "kernels"),
    [((1, 16), {"scale_few"}), ((8, 100), {"scale_few", "scale_native"}), ((17, 100), {"scale_native"})],
)
def test_a_range_reaches_every_kernel_that_serves_a_part_of_it(rows: tuple[int, int], kernels: set[str]) -> None:
    fields = (("format", ("f4",)), ("input", ("bf16",)), ("layout", ("linear",)))
    shapes = Shapes("scale", fields, (("k", 1024, 1024), ("m", *rows)))
    found = plan(LIMITED, [default_target(SPARK)], Selection(models=(Model("some", (shapes,)),)))
    assert {c.kernel for c in found.cubins} == kernels
    assert found.missing == ()


def test_a_limit_of_some_fields_leaves_other_problems_alone() -> None:
    bound = Bound(("m",), maximum=16)
    fields = dict(problem().fields)
    name, value = next(iter(fields.items()))
    for limit, outside in ((Limit(bound, ((name, (value,)),)), True), (Limit(bound, ((name, ("another",)),)), False)):
        variant = dataclasses.replace(variants()[0], limits=(limit,))
        assert (variant.outside(problem(m=17), 132) is not None) == outside
        assert variant.outside(problem(m=16), 132) is None
