# SPDX-License-Identifier: Apache-2.0
"""Models files: what they may say, and that what is planned for them is what dispatch can reach with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import CATALOG as SMALL

from warpsmith.arch import CAPABILITIES, Capability, parse
from warpsmith.catalog import CATALOG
from warpsmith.catalog.plan import Selection, broken_promises, plan
from warpsmith.catalog.resolve import DeviceFacts, resolve
from warpsmith.catalog.shapes import MAX_SMS, Model, Shapes, reached, read_models
from warpsmith.catalog.spec import Catalog, CubinId, Problem
from warpsmith.errors import InvalidArgumentError

EXAMPLE = Path(__file__).parents[2] / "examples" / "models.json"


def models(*operations: dict[str, Any], catalog: Catalog = SMALL) -> Selection:
    document = {"schema": 1, "models": [{"name": "one", "operations": list(operations)}]}
    return Selection(models=read_models(json.dumps(document).encode(), catalog))


def names(catalog: Catalog, arch: str, selection: Selection) -> set[str]:
    found = plan(catalog, [parse(arch)], selection)
    assert found.missing == ()
    return {f"{c.kernel}/{c.variant}" for c in found.cubins}


def test_only_what_the_shapes_reach_is_planned() -> None:
    everything = names(CATALOG, "12.1", Selection())
    asked = {"operation": "quantize", "fields": {"format": "nvfp4", "input": "bf16"}, "dims": {"m": 1, "k": 7168}}
    assert names(CATALOG, "12.1", models(asked, catalog=CATALOG)) == {"quantize/nvfp4_bf16_p1"}
    asked["dims"] = {"m": [1, 65536], "k": 7168}
    tiles = {"quantize/nvfp4_bf16_p1", "quantize/nvfp4_bf16_p4"}
    assert names(CATALOG, "12.1", models(asked, catalog=CATALOG)) == tiles
    asked["dims"] = {"m": {"from": 1, "to": 65536}, "k": 7168}
    assert names(CATALOG, "12.1", models(asked, catalog=CATALOG)) == tiles
    del asked["fields"]["format"]
    rows = {n for n in everything if n.startswith("quantize") and "bf16" in n}
    assert names(CATALOG, "12.1", models(asked, catalog=CATALOG)) == rows


def test_formats_and_models_narrow_each_other() -> None:
    selection = models({"operation": "scale", "dims": {"m": 1, "k": 32}})
    assert names(SMALL, "12.1", selection._replace(formats=("f8",))) == {
        "scale_native/f8_bf16_small",
        "scale_native/f8_fp32_small",
    }
    assert names(SMALL, "12.1", selection._replace(modules=("scaling",))) == names(SMALL, "12.1", selection)


dims = st.sampled_from([32, 64, 1024, 4096, 32768, 1 << 20])


@given(
    st.sampled_from(["f4", "f8"]),
    st.lists(dims, min_size=1, max_size=2),
    st.lists(dims, min_size=1, max_size=2),
    st.sampled_from([c for c in CAPABILITIES if c != Capability(8, 7)]),
)
def test_the_plan_is_what_dispatch_picks_on_some_device(
    format: str, ms: list[int], ks: list[int], capability: Capability
) -> None:
    selection = models(
        {"operation": "scale", "fields": {"format": format, "input": "bf16"}, "dims": {"m": ms, "k": ks}}
    )
    (model,) = selection.models
    planned = {
        (r.kernel.name, r.variant.name)
        for s in model.shapes
        for r in reached(SMALL, s, capability)
        if r.kernel and r.variant
    }
    picked = set()
    for m in ms:
        for k in ks:
            problem = Problem.of("scale", {"format": format, "input": "bf16", "layout": "linear"}, {"m": m, "k": k})
            for sms in range(1, MAX_SMS + 1):
                choice = resolve(SMALL, problem, DeviceFacts(capability, sms)).choice
                assert choice is not None
                picked.add((choice.kernel, choice.variant))
    assert planned == picked


@given(st.integers(1, 1 << 20), st.integers(0, 1 << 20), st.integers(1, 1 << 15), st.integers(1, MAX_SMS))
def test_a_range_reaches_what_any_size_in_it_reaches(low: int, more: int, k: int, sms: int) -> None:
    k *= 32
    ranges = {"operation": "scale", "dims": {"m": {"from": low, "to": low + more}, "k": k}}
    planned = plan(SMALL, [parse("12.1")], models(ranges)).cubins
    for m in (low, low + more // 2, low + more):
        problem = Problem.of("scale", {"format": "f8", "input": "fp32", "layout": "linear"}, {"m": m, "k": k})
        assert resolve(SMALL, problem, DeviceFacts(Capability(12, 1), sms)).choice in planned


@pytest.mark.parametrize("gone", ["f8_bf16_small", "f8_bf16_large"])
def test_closure_is_over_exactly_what_was_asked(gone: str) -> None:
    asked = {"operation": "scale", "fields": {"format": "f8", "input": "bf16"}, "dims": {"m": 1, "k": 32}}

    def availability(cubin: CubinId) -> str | None:
        return "is gone" if cubin.variant == gone else None

    found = broken_promises(SMALL, Capability(12, 1), availability, models(asked))
    if gone == "f8_bf16_large":
        assert found == []
    else:
        assert [f.subject for f in found] == ["scale/f8@12.1"]
        assert "format=f8, input=bf16, layout=linear, k=32, m=1) finds nothing" in found[0].message
        assert "is gone" in found[0].message


def test_a_shape_that_another_kernel_serves_breaks_the_promise() -> None:
    promises = tuple(p._replace(kernel="scale_portable") if p.kernel else p for p in SMALL.promises)
    selection = models({"operation": "scale", "dims": {"m": 1, "k": 32}})
    (first, *_) = broken_promises(replace(SMALL, promises=promises), Capability(12, 1), selection=selection)
    assert "is served by scale_native instead" in first.message


def test_what_a_selection_lacks_is_said() -> None:
    problem = Problem.of("scale", {"format": "f8", "input": "bf16", "layout": "linear"}, {"m": 2, "k": 32})
    shapes = models({"operation": "scale", "dims": {"m": 1, "k": 32}})

    def lacks(selection: Selection) -> str:
        return selection.lacks(SMALL, "scale_native", problem)

    assert lacks(Selection()) == ""
    assert lacks(Selection(("gemm",))) == "without the module scaling, for gemm alone"
    assert lacks(Selection(formats=("f4",))) == "without f8, for f4 alone"
    assert lacks(shapes) == f"without {problem}, for the shapes of one alone"
    assert lacks(models({"operation": "scale", "dims": {"m": [1, 2], "k": 32}})) == ""


def document(**changes: Any) -> dict[str, Any]:
    asked = {"operation": "scale", "fields": {"format": "f8"}, "dims": {"m": 1, "k": 32}, **changes}
    return {"schema": 1, "models": [{"name": "one", "operations": [asked]}]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "expected an object"),
        ({"schema": 1}, "'models' is missing"),
        ({"schema": 2, "models": []}, "has schema 2; this warpsmith reads 1"),
        ({"schema": True, "models": []}, "has schema True"),
        ({"schema": 1, "models": []}, "models: expected a list that is not empty"),
        ({"schema": 1, "models": [{"name": "", "operations": []}]}, "models[0].name is ''"),
        ({"schema": 1, "models": [{"name": "a", "operations": []}]}, "a: operations: expected a list that is not"),
        ({"schema": 1, "models": document()["models"] * 2}, "each once"),
        (document(operation="gemm"), "unknown operation 'gemm'; expected one of scale"),
        (document(more=1), "'more' is unknown; expected operation, fields, dims"),
        (document(fields={"form": "f8"}), "scale has no 'form'; it has format, input, layout, m, k"),
        (document(fields={"format": "f2"}), "format='f2' is unknown; expected one of f4, f8"),
        (document(fields={"format": [1]}), "expected a name or a list of names"),
        (document(fields={"format": "f8", "layout": "tiled"}), "no combination of its fields is a problem"),
        (document(dims={"m": 1}), "the dimension k of scale is missing"),
        (document(dims={"m": 1, "k": 32, "n": 1}), "scale has no 'n'"),
        (document(dims={"m": 1, "k": 33}), "k=33 holds no multiple of 32, as f8 needs"),
        (document(dims={"m": 1, "k": {"from": 33, "to": 63}}), "k=33..63 holds no multiple of 32"),
        (document(dims={"m": 0, "k": 32}), "dims.m is 0; expected a whole number from 1"),
        (document(dims={"m": True, "k": 32}), "dims.m is True"),
        (document(dims={"m": {"from": 2, "to": 1}, "k": 32}), "from 2 to 1 is no range"),
        (document(dims={"m": [], "k": 32}), "expected a list that is not empty"),
        (document(dims={"m": list(range(1, 2002)), "k": 32}), "more than 2000 shapes in all"),
    ],
)
def test_a_models_file_that_does_not_fit_is_refused(given: object, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_models(json.dumps(given).encode(), SMALL)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"\xff", b"[" * 100_000, b" " * (1 << 20) + b"{}"])
def test_what_is_no_models_file_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="the models file"):
        read_models(text, SMALL)


def test_a_selection_is_checked_against_the_catalog_too() -> None:
    bad = Selection(models=(Model("one", (Shapes("scale", (("format", ("f8",)),), (("k", 32, 32), ("m", 1, 1))),)),))
    with pytest.raises(InvalidArgumentError, match="has the fields format; expected format, input, layout"):
        plan(SMALL, [parse("12.1")], bad)


def test_the_example_is_one() -> None:
    selection = Selection(models=read_models(EXAMPLE.read_bytes(), CATALOG))
    part, everything = (names(CATALOG, "12.1", s) for s in (selection, Selection()))
    assert part < everything
