# SPDX-License-Identifier: Apache-2.0
"""Tile choice: bounds, rules in order, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpsmith.arch import CAPABILITIES, Capability
from warpsmith.errors import CatalogError, InvalidArgumentError
from warpsmith.tuning import SCHEMA, Bound, Rule, choose, dump, load

SPARK = Capability(12, 1)


@pytest.mark.parametrize(
    ("bound", "holds"),
    [
        (Bound(("m",)), True),
        (Bound(("m",), minimum=8), True),
        (Bound(("m",), minimum=9), False),
        (Bound(("m",), maximum=8), True),
        (Bound(("m",), maximum=7), False),
        (Bound(("m", "k"), minimum=800, maximum=800), True),
        (Bound(("m", "absent"), minimum=8, maximum=8), True),
        (Bound(("m", "k"), minimum=200, maximum=200, per_sm=True), True),
        (Bound(("k",), minimum=26, per_sm=True), False),
    ],
)
def test_bound(bound: Bound, holds: bool) -> None:
    assert bound.holds({"m": 8, "k": 100}, sm_count=4) is holds


def test_per_sm_survives_an_unknown_number_of_multiprocessors() -> None:
    assert Bound(("m",), minimum=8, per_sm=True).holds({"m": 8}, sm_count=0)


def pick(rules: tuple[Rule, ...], tiles: tuple[str, ...] = ("small", "large"), m: int = 64, **fields: str) -> str:
    return choose(rules, "k", tiles, capability=SPARK, sm_count=48, fields=fields, dims={"m": m})


def test_the_first_rule_that_fits_wins() -> None:
    rules = (
        Rule("other", "nowhere"),
        Rule("k", "nowhere", capabilities=(Capability(9, 0),)),
        Rule("k", "nowhere", fields=(("input", ("fp16", "fp32")),)),
        Rule("k", "large", bounds=(Bound(("m",), minimum=128),)),
        Rule("k", "small", capabilities=(SPARK,), fields=(("input", ("bf16",)),)),
        Rule("k", "large"),
    )
    assert pick(rules, input="bf16") == "small"
    assert pick(rules, m=128, input="bf16") == "large"
    assert pick(rules, input="fp8") == "large"


def test_the_only_tile_needs_no_rule() -> None:
    assert pick((), ("default",)) == "default"


def test_several_tiles_without_a_rule_are_an_error() -> None:
    with pytest.raises(CatalogError, match=r"no tuning rule for k fits .* on 12\.1, .* small, large"):
        pick(())


def test_a_rule_that_names_another_tile_is_an_error() -> None:
    with pytest.raises(CatalogError, match=r"picks tile 'huge' of k .* the tiles that serve it are small, large"):
        pick((Rule("k", "huge"),))


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
BOUNDS = st.builds(
    Bound,
    st.lists(NAMES, max_size=3).map(tuple),
    st.integers(0, 2**40),
    st.none() | st.integers(0, 2**40),
    st.booleans(),
)
RULES = st.builds(
    Rule,
    NAMES,
    NAMES,
    st.lists(st.sampled_from(CAPABILITIES), max_size=3).map(tuple),
    st.dictionaries(NAMES, st.lists(NAMES, max_size=3).map(tuple), max_size=3).map(lambda d: tuple(d.items())),
    st.lists(BOUNDS, max_size=3).map(tuple),
)


@given(rules=st.lists(RULES, max_size=4))
def test_load_is_the_inverse_of_dump(tmp_path_factory: pytest.TempPathFactory, rules: list[Rule]) -> None:
    path = tmp_path_factory.mktemp("tuning") / "table.json"
    path.write_text(dump(rules), encoding="utf-8")
    assert load(path) == tuple(rules)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the tuning table"),
        ("{", "cannot read the tuning table"),
        ("[]", f"is not a tuning table of schema {SCHEMA}"),
        ('{"schema": 99, "rules": []}', "is not a tuning table of schema"),
        (json.dumps({"schema": SCHEMA}), "a rule is malformed"),
        (json.dumps({"schema": SCHEMA, "rules": [{"tile": "t"}]}), "a rule is malformed"),
        (json.dumps({"schema": SCHEMA, "rules": ["x"]}), "a rule is malformed"),
        (json.dumps({"schema": SCHEMA, "rules": [{"kernel": "k", "tile": "t", "fields": []}]}), "fields must be"),
        (json.dumps({"schema": SCHEMA, "rules": [{"kernel": "k", "tile": "t", "capabilities": ["7.5"]}]}), "7.5"),
        (json.dumps({"schema": SCHEMA, "rules": [{"kernel": "k", "tile": "t", "bounds": [{}]}]}), "malformed"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "table.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
