# SPDX-License-Identifier: Apache-2.0
"""Dispatch as a pure function: the choice, or every reason against."""

from __future__ import annotations

import dataclasses

import pytest
from synthetic import CATALOG, SCALE, problem

from warpsmith.arch import CAPABILITIES, Capability, parse
from warpsmith.catalog.resolve import DeviceFacts, resolve
from warpsmith.catalog.spec import Catalog, CubinId, Instructions, Param, Problem
from warpsmith.errors import CatalogError, InvalidArgumentError

SPARK = DeviceFacts(Capability(12, 1), sm_count=48)


def only(*targets: str):  # noqa: ANN201
    """Availability of a few targets' cubins."""
    return lambda cubin: None if str(cubin.target) in targets else f"has no cubin for {cubin.target}"


@pytest.mark.parametrize(
    ("device", "cubin"),
    [
        ("8.0", "scale_portable/f4_bf16_small@sm_80"),
        ("8.9", "scale_portable/f4_bf16_small@sm_89"),
        ("9.0", "scale_portable/f4_bf16_small@sm_90a"),
        ("10.3", "scale_native/f4_bf16_small@sm_103a"),
        ("12.0", "scale_native/f4_bf16_small@sm_120a"),
        ("12.1", "scale_native/f4_bf16_small@sm_121a"),
    ],
)
def test_the_most_specific_target_is_preferred(device: str, cubin: str) -> None:
    decision = resolve(CATALOG, problem(1), DeviceFacts(Capability.parse(device)))
    assert str(decision.choice) == cubin
    assert "runs " + cubin in decision.explain()


@pytest.mark.parametrize(
    ("have", "target"),
    [("sm_121f sm_120f", "sm_121f"), ("sm_120f", "sm_120f"), ("sm_120a sm_120f", "sm_120f")],
)
def test_a_less_specific_target_serves_when_it_is_what_is_there(have: str, target: str) -> None:
    decision = resolve(CATALOG, problem(1), SPARK, only(*have.split()))
    assert decision.choice == CubinId("scale_native", "f4_bf16_small", parse(target))
    assert "scale_native/f4_bf16_small@sm_121a" in [r.subject for r in decision.rejections]


def test_a_plain_target_never_serves_a_kernel_that_needs_the_family() -> None:
    assert resolve(CATALOG, problem(1), SPARK, only("sm_121", "sm_120")).choice is None


def test_a_missing_cubin_names_each_target_and_reason() -> None:
    decision = resolve(CATALOG, problem(1), SPARK, only("sm_120a"))
    assert decision.choice is None
    reasons = {r.subject: r.reason for r in decision.rejections}
    for target in ("sm_121a", "sm_121f", "sm_120f"):
        assert reasons[f"scale_native/f4_bf16_small@{target}"] == f"has no cubin for {target}"
    assert "no usable cubin" in decision.explain()
    assert "sm_120f: has no cubin for sm_120f" in decision.explain()


def test_a_missing_cubin_is_never_a_reason_to_take_another_kernel() -> None:
    native, portable = CATALOG.kernels
    everywhere = dataclasses.replace(portable, capabilities=CAPABILITIES)
    catalog = dataclasses.replace(CATALOG, kernels=(native, everywhere))
    decision = resolve(catalog, problem(1), SPARK, only("sm_120"))
    assert decision.choice is None
    assert all("scale_portable" not in r.subject for r in decision.rejections)


def test_a_kernel_for_other_devices_says_so() -> None:
    decision = resolve(CATALOG, problem(1), DeviceFacts(Capability(8, 0)))
    reasons = {r.subject: r.reason for r in decision.rejections}
    assert reasons["scale_native"] == "is for 10.0, 10.3, 11.0, 12.0, 12.1, not 8.0"


def test_a_variant_that_does_not_fit_says_what_it_serves() -> None:
    reasons = {r.subject: r.reason for r in resolve(CATALOG, problem(1), SPARK).rejections}
    assert reasons["scale_native/f8_bf16_small"] == "serves format f8, not f4"
    assert reasons["scale_native/f4_fp32_small"] == "serves input fp32, not bf16"
    assert reasons["scale_native/f4_bf16_large"] == "the tuning table picks tile small"


@pytest.mark.parametrize(("sm_count", "tile"), [(1, "large"), (16, "large"), (17, "small"), (132, "small")])
def test_the_tile_follows_the_size_for_each_multiprocessor(sm_count: int, tile: str) -> None:
    decision = resolve(CATALOG, problem(1024), DeviceFacts(Capability(12, 0), sm_count))
    assert decision.choice is not None
    assert decision.choice.variant == f"f4_bf16_{tile}"


def test_a_table_that_picks_a_tile_which_is_not_there_finds_nothing_and_says_why() -> None:
    rules = (CATALOG.tuning[0]._replace(tile="huge", bounds=()),)
    decision = resolve(dataclasses.replace(CATALOG, tuning=rules), problem(1), SPARK)
    assert decision.choice is None
    assert "the tuning table picks tile 'huge'" in decision.explain()


def test_an_unsupported_promise_is_an_answer_with_its_reason() -> None:
    decision = resolve(CATALOG, problem(1), DeviceFacts(Capability(8, 7), name="Orin"))
    assert decision.choice is None
    assert decision.unsupported == "unsupported: no such device at hand"
    assert "Orin (compute capability 8.7): unsupported" in decision.explain()


def test_an_operation_without_kernels_finds_nothing() -> None:
    empty = Catalog(CATALOG.operations, (), ())
    decision = resolve(empty, problem(1), SPARK)
    assert (decision.choice, decision.rejections) == (None, ())


def test_a_problem_takes_defaults_and_does_not_depend_on_order() -> None:
    assert SCALE.problem({}) == problem()
    assert SCALE.problem({"m": "7", "input": "fp32"}) == SCALE.problem({"input": "fp32", "m": 7})
    given = {"b": "1", "a": "2"}
    assert Problem.of("o", given, {}) == Problem.of("o", dict(reversed(given.items())), {})
    assert str(problem(7)) == "scale(format=f4, input=bf16, layout=linear, k=1024, m=7)"
    assert Problem("o").format == "-"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "f2"}, "format='f2' is unknown; expected one of f4, f8"),
        ({"form": "f4"}, "scale has no option 'form'; it has format, input, layout, m, k"),
        ({"m": "-1"}, "m='-1' is not a whole number"),
        ({"m": "1.5"}, "m='1.5' is not a whole number"),
        ({"m": "²"}, "m='²' is not a whole number"),
        ({"k": 8}, "k=8 must be a multiple of 16 for f4"),
        ({"k": 16, "format": "f8"}, "k=16 must be a multiple of 32 for f8"),
        ({"format": "f8", "layout": "tiled"}, "format=f8 with layout=tiled is not a valid combination"),
    ],
)
def test_a_problem_that_is_none_is_refused(given: dict[str, str | int], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match="scale") as caught:
        SCALE.problem(given)
    assert message in str(caught.value)


def test_combinations_leave_out_what_is_excluded() -> None:
    found = list(SCALE.combinations())
    assert len(found) == 6
    assert {"format": "f8", "input": "bf16", "layout": "tiled"} not in found
    assert SCALE.formats == ("f4", "f8")


def test_unknown_names_are_refused_with_what_is_known() -> None:
    with pytest.raises(InvalidArgumentError, match="unknown operation 'gemm'; expected one of scale"):
        CATALOG.operation("gemm")
    with pytest.raises(CatalogError, match="no kernel 'nope'"):
        CATALOG.kernel("nope")
    with pytest.raises(CatalogError, match="scale_native has no variant 'nope'"):
        CATALOG.kernel("scale_native").variant("nope")
    assert CATALOG.promise("scale", "f4", Capability(8, 0)) is not None
    assert CATALOG.promise("scale", "f2", Capability(8, 0)) is None


@pytest.mark.parametrize(
    ("ctype", "size", "alignment"),
    [("ptr", 8, 8), ("i64", 8, 8), ("i32", 4, 4), ("u32", 4, 4), ("f32", 4, 4), ("tensormap", 128, 64)],
)
def test_parameter_sizes(ctype: str, size: int, alignment: int) -> None:
    param = Param("x", ctype)
    assert (param.size, param.alignment) == (size, alignment)


def test_required_instructions_hold_where_the_feature_is() -> None:
    needed = Instructions(("OMMA.SF",), (Capability(12, 0), Capability(12, 1)), "f")
    applies = [t for t in ("sm_120", "sm_120f", "sm_120a", "sm_121a", "sm_100f") if needed.applies_to(parse(t))]
    assert applies == ["sm_120f", "sm_120a", "sm_121a"]
