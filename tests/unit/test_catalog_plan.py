# SPDX-License-Identifier: Apache-2.0
"""The plan: every promise kept, nothing dead, nothing missing; and each gap made on purpose is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from warpsmith.arch import CAPABILITIES, Capability, Target, all_targets, candidates, default_target, parse, parse_list
from warpsmith.catalog import CATALOG
from warpsmith.catalog.plan import Plan, Selection, broken_promises, check, plan, probe_problems
from warpsmith.catalog.resolve import DeviceFacts, resolve
from warpsmith.catalog.spec import Catalog, CubinId, Finding, Kernel, Problem
from warpsmith.errors import InvalidArgumentError
from warpsmith.tuning import Bound, Rule

SHIPPED = tuple(
    Capability(major, minor)
    for major, minor in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1))
)
SPARK = Capability(12, 1)
both = pytest.mark.parametrize(
    "catalog", [pytest.param(synthetic.CATALOG, id="synthetic"), pytest.param(CATALOG, id="shipped")]
)
every_capability = pytest.mark.parametrize("capability", SHIPPED, ids=str)


def planned(found: Plan) -> Callable[[CubinId], str | None]:
    cubins = set(found.cubins)
    return lambda cubin: None if cubin in cubins else "is not in the plan"


def texts(findings: object) -> str:
    assert isinstance(findings, (list, tuple))
    return "\n".join(f"{f.code} {f.subject} {f.message}" for f in findings)


@both
def test_the_catalog_has_nothing_wrong(catalog: Catalog) -> None:
    assert texts(check(catalog)) == ""


@every_capability
@both
def test_every_promise_is_kept(catalog: Catalog, capability: Capability) -> None:
    assert texts(broken_promises(catalog, capability)) == ""
    found = plan(catalog, [default_target(capability)])
    assert texts(found.missing) == ""
    assert found.cubins


@every_capability
def test_the_shipped_catalog_promises_every_format(capability: Capability) -> None:
    for operation in CATALOG.operations:
        for format in operation.formats:
            promise = CATALOG.promise(operation.name, format, capability)
            assert promise is not None
            assert promise.kernel is not None or promise.reason


@every_capability
@both
def test_a_witness_resolves_to_its_variant(catalog: Catalog, capability: Capability) -> None:
    reached = set()
    for kernel in catalog.kernels:
        if capability not in kernel.capabilities:
            continue
        for variant in kernel.variants:
            for witness in variant.witnesses:
                choice = resolve(catalog, witness, DeviceFacts(capability)).choice
                if choice is not None and (choice.kernel, choice.variant) == (kernel.name, variant.name):
                    reached.add((kernel.name, variant.name))
    target = default_target(capability)
    expected = {(c.kernel, c.variant) for c in plan(catalog, [target]).cubins}
    assert reached
    assert reached <= expected


@both
def test_no_variant_is_dead(catalog: Catalog) -> None:
    reached = set()
    for kernel in catalog.kernels:
        for variant in kernel.variants:
            for witness in variant.witnesses:
                for capability in kernel.capabilities:
                    choice = resolve(catalog, witness, DeviceFacts(capability)).choice
                    if choice is not None:
                        reached.add((choice.kernel, choice.variant))
    assert reached == {(k.name, v.name) for k in catalog.kernels for v in k.variants}


@st.composite
def problems(draw: st.DrawFn, catalog: Catalog) -> Problem:
    """Any problem of any operation of the catalog."""
    operation = draw(st.sampled_from(catalog.operations))
    fields = draw(st.sampled_from(list(operation.combinations())))
    dims = {}
    for name, _ in operation.dims:
        multiple = operation.multiple(fields.get("format", "-"), name)
        dims[name] = multiple * draw(st.integers(0, 2**33) | st.integers(0, 300))
    return Problem.of(operation.name, fields, dims)


@cache
def complete_plan(catalog: Catalog) -> frozenset[CubinId]:
    return frozenset(plan(catalog, all_targets()).cubins)


@every_capability
@both
def test_no_problem_resolves_outside_the_plan(catalog: Catalog, capability: Capability) -> None:
    complete = complete_plan(catalog)
    plans = {t: plan(catalog, [t]) for t in candidates(capability)}

    @settings(max_examples=60, deadline=None)
    @given(problems(catalog), st.sampled_from(list(plans)), st.integers(1, 256))
    def holds(problem: Problem, target: Target, sm_count: int) -> None:
        device = DeviceFacts(capability, sm_count)
        free = resolve(catalog, problem, device)
        assert free.choice in complete or free.unsupported, free.explain()
        found = plans[target]
        if free.choice is not None and not found.missing:
            bound = resolve(catalog, problem, device, planned(found))
            assert bound.choice in found.for_target(target), bound.explain()
            assert (bound.choice.kernel, bound.choice.variant) == (free.choice.kernel, free.choice.variant)

    holds()


@both
def test_one_family_bundle_serves_both_spark_and_desktop(catalog: Catalog) -> None:
    family = plan(catalog, parse_list("12x"))
    assert texts(family.missing) == ""
    assert {c.target for c in family.cubins} == {parse("sm_120f")}
    assert plan(catalog, parse_list("12x 12.0")) == family


def test_a_family_plan_has_what_only_one_of_its_devices_reaches() -> None:
    kernel = synthetic.CATALOG.kernels[0]
    # Its witness resolves to it on 12.1 alone, the second device that sm_120f runs on.
    own = synthetic.variant("f4", "bf16", "spark", synthetic.problem(1, format="f4", input="bf16"))
    rule = Rule(kernel.name, "spark", (SPARK,), (("format", ("f4",)), ("input", ("bf16",))))
    catalog = with_kernel(
        dataclasses.replace(synthetic.CATALOG, tuning=(rule, *synthetic.CATALOG.tuning)),
        dataclasses.replace(kernel, variants=(*kernel.variants, own)),
    )
    names = {arch: {c.variant for c in plan(catalog, parse_list(arch)).cubins} for arch in ("12x", "12.1", "12.0a")}
    assert own.name in names["12x"]
    assert own.name in names["12.1"]
    assert own.name not in names["12.0a"]


@both
def test_a_plan_is_the_sum_of_its_targets_without_repetition(catalog: Catalog) -> None:
    targets = parse_list("8.0 9.0 12.0 12.1")
    whole = plan(catalog, [*targets, *targets])
    assert whole.targets == targets
    assert whole.cubins == tuple(c for t in targets for c in plan(catalog, [t]).cubins)
    assert len(set(whole.cubins)) == len(whole.cubins)
    assert [c for t in targets for c in whole.for_target(t)] == list(whole.cubins)


@both
def test_a_format_narrows_the_plan_and_keeps_its_promises(catalog: Catalog) -> None:
    target = parse("12.1")
    whole = set(plan(catalog, [target]).cubins)
    formats = sorted({f for o in catalog.operations for f in o.formats if f != "-"})
    parts = []
    for format in formats:
        part = plan(catalog, [target], Selection(formats=(format,)))
        assert texts(part.missing) == ""
        assert set(part.cubins) < whole
        parts.append(set(part.cubins))
    assert set().union(*parts) == whole
    assert plan(catalog, [target], Selection(modules=catalog.modules)).cubins == plan(catalog, [target]).cubins


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(modules=("gem",)), "unknown module 'gem'; expected one of scaling"),
        (Selection(formats=("f2",)), "unknown format 'f2'; expected one of f4, f8"),
    ],
)
def test_an_unknown_selection_is_refused(selection: Selection, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        plan(synthetic.CATALOG, [parse("12.1")], selection)


def test_probes_cover_every_combination_at_valid_sizes() -> None:
    found = list(probe_problems(synthetic.SCALE, "f8"))
    assert {p.format for p in found} == {"f8"}
    assert {dict(p.fields)["input"] for p in found} == {"bf16", "fp32"}
    for probe in found:
        synthetic.SCALE.problem({**dict(probe.fields), **dict(probe.dims)})


# Broken on purpose: what made a Spark package ship with one module of four must be named, each time.


def with_kernel(catalog: Catalog, changed: Kernel) -> Catalog:
    kernels = tuple(changed if k.name == changed.name else k for k in catalog.kernels)
    return dataclasses.replace(catalog, kernels=kernels)


def spark_kernels(catalog: Catalog) -> list[Kernel]:
    return [k for k in catalog.kernels if SPARK in k.capabilities]


@both
def test_a_capability_dropped_from_one_row_is_named(catalog: Catalog) -> None:
    for kernel in spark_kernels(catalog):
        rest = tuple(c for c in kernel.capabilities if c != SPARK)
        broken = with_kernel(catalog, dataclasses.replace(kernel, capabilities=rest))
        promised = {str(p) for p in catalog.promises if p.kernel == kernel.name and p.capability == SPARK}
        assert promised
        assert {f.subject for f in check(broken) if f.code == "promise-broken"} == promised
        for arch in ("12.1", "12x"):
            missing = plan(broken, parse_list(arch)).missing
            assert {f.subject for f in missing} == promised
            assert all(kernel.name in f.message for f in missing)
        assert plan(broken, parse_list("12.0a")).missing == ()


@both
def test_a_variant_that_nothing_reaches_is_named(catalog: Catalog) -> None:
    kernel = catalog.kernels[0]
    twin = dataclasses.replace(kernel.variants[0], name="never_reached")
    broken = with_kernel(catalog, dataclasses.replace(kernel, variants=(*kernel.variants, twin)))
    found = check(broken)
    assert {(f.code, f.subject) for f in found} == {("variant-dead", f"{kernel.name}/never_reached")}
    assert "resolves to" in found[0].message
    assert not any(c.variant == "never_reached" for c in plan(broken, all_targets()).cubins)


@both
def test_rules_that_leave_a_size_open_are_named(catalog: Catalog) -> None:
    kernel = catalog.tuning[-1].kernel
    bounded = catalog.tuning[-1]._replace(bounds=(Bound(("m",), minimum=2),))
    found = check(dataclasses.replace(catalog, tuning=(*catalog.tuning[:-1], bounded)))
    assert ("tuning-open", kernel) in {(f.code, f.subject) for f in found}


def test_a_variant_without_a_witness_is_dead() -> None:
    kernel = synthetic.CATALOG.kernels[0]
    mute = dataclasses.replace(kernel.variants[0], name="mute", tile="mute", witnesses=())
    found = check(with_kernel(synthetic.CATALOG, dataclasses.replace(kernel, variants=(*kernel.variants, mute))))
    assert [(f.code, f.subject) for f in found] == [("variant-dead", "scale_native/mute")]
    assert "has no witness" in found[0].message


@both
@pytest.mark.parametrize("first", [True, False])
def test_a_tuning_rule_that_names_an_unplanned_variant_is_named(catalog: Catalog, first: bool) -> None:
    kernel = catalog.kernels[0].name
    rule = Rule(kernel, "ghost", capabilities=(SPARK,))
    tuning = (rule, *catalog.tuning) if first else (*catalog.tuning, rule)
    found = check(dataclasses.replace(catalog, tuning=tuning))
    assert [(f.code, f.subject) for f in found] == [("tuning-unplanned", f"{kernel}/ghost")]


@both
def test_a_tuning_rule_for_a_kernel_that_does_not_exist_is_named(catalog: Catalog) -> None:
    found = check(dataclasses.replace(catalog, tuning=(*catalog.tuning, Rule("gone", "default"))))
    assert [f.subject for f in found] == ["gone/default"]


def test_a_tuning_rule_that_picks_a_tile_where_no_variant_has_it_is_named() -> None:
    kernel = synthetic.CATALOG.kernels[0]
    lone = synthetic.variant("f4", "bf16", "odd", synthetic.problem(300))
    # Between the sizes that promises are probed at, so that only the table itself can show it.
    between = (Bound(("m",), minimum=300, maximum=301),)
    for fields, seen in (
        ((("input", ("bf16",)),), ["scale_native/odd"]),
        ((("format", ("f4",)), ("input", ("bf16",))), []),
    ):
        tuning = (Rule(kernel.name, "odd", fields=fields, bounds=between), *synthetic.CATALOG.tuning)
        broken = with_kernel(
            dataclasses.replace(synthetic.CATALOG, tuning=tuning),
            dataclasses.replace(kernel, variants=(*kernel.variants, lone)),
        )
        assert [f.subject for f in check(broken)] == seen


def test_a_plan_with_a_tuning_rule_that_hides_a_tile_names_the_promise() -> None:
    rules = (Rule("scale_native", "ghost", capabilities=(SPARK,)), *synthetic.CATALOG.tuning)
    missing = plan(dataclasses.replace(synthetic.CATALOG, tuning=rules), [parse("12.1")]).missing
    assert {f.subject for f in missing} == {"scale/f4@12.1", "scale/f8@12.1"}
    assert all("ghost" in f.message for f in missing)


@both
def test_a_variant_removed_is_named(catalog: Catalog) -> None:
    planned = {(cubin.kernel, cubin.variant) for cubin in plan(catalog, [parse("12.1")]).cubins}
    for kernel in spark_kernels(catalog):
        for gone in (v for v in kernel.variants if (kernel.name, v.name) in planned):
            rest = tuple(v for v in kernel.variants if v is not gone)
            broken = with_kernel(catalog, dataclasses.replace(kernel, variants=rest))
            assert kernel.name in texts(check(broken, [SPARK])), f"{kernel.name}/{gone.name} can vanish unnoticed"
            missing = plan(broken, [parse("12.1")]).missing
            assert {f.subject for f in missing} == {f"{w.operation}/{w.format}@12.1" for w in gone.witnesses}


@both
def test_a_kernel_removed_is_named_for_each_capability(catalog: Catalog) -> None:
    gone = spark_kernels(catalog)[0]
    broken = dataclasses.replace(catalog, kernels=tuple(k for k in catalog.kernels if k is not gone))
    promised = {str(p) for p in catalog.promises if p.kernel == gone.name and p.capability in SHIPPED}
    tuned = any(r.kernel == gone.name for r in catalog.tuning)
    code = "tuning-unplanned" if tuned else "promise-broken"
    subjects = {f.subject for f in check(broken) if f.code == code}
    assert subjects >= (
        promised if not tuned else {f"{r.kernel}/{r.tile}" for r in catalog.tuning if r.kernel == gone.name}
    )


@both
def test_a_promise_removed_is_named(catalog: Catalog) -> None:
    gone = next(p for p in catalog.promises if p.capability == SPARK)
    broken = dataclasses.replace(catalog, promises=tuple(p for p in catalog.promises if p is not gone))
    found = [f for f in check(broken) if f.code == "promise-absent"]
    assert [f.subject for f in found] == [str(gone)]


def test_a_slower_kernel_that_takes_over_is_named() -> None:
    native, portable = synthetic.CATALOG.kernels
    narrowed = dataclasses.replace(native, capabilities=tuple(c for c in native.capabilities if c != SPARK))
    widened = dataclasses.replace(portable, capabilities=CAPABILITIES)
    found = broken_promises(dataclasses.replace(synthetic.CATALOG, kernels=(narrowed, widened)), SPARK)
    assert [f.subject for f in found] == ["scale/f4@12.1", "scale/f8@12.1"]
    assert all("served by scale_portable instead" in f.message for f in found)


def test_a_name_that_is_taken_twice_is_named() -> None:
    kernel = synthetic.CATALOG.kernels[0]
    doubled = dataclasses.replace(kernel, variants=(*kernel.variants, kernel.variants[0]))
    found = check(with_kernel(synthetic.CATALOG, doubled))
    assert ("name-twice", f"scale_native/{kernel.variants[0].name}") in {(f.code, f.subject) for f in found}


def test_findings_of_a_plan_do_not_repeat() -> None:
    broken = dataclasses.replace(synthetic.CATALOG, kernels=synthetic.CATALOG.kernels[:1])
    missing = plan(broken, parse_list("8.0 8.6")).missing
    assert len(set(missing)) == len(missing)
    assert all(isinstance(f, Finding) and f.fix for f in missing)
    assert all(a != b for a, b in pairwise(missing))
