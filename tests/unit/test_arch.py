# SPDX-License-Identifier: Apache-2.0
"""Targets: every spelling in use, and the exact rules of what runs where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpsmith.arch import (
    CAPABILITIES,
    CUDA13_DRIVER,
    Capability,
    Target,
    all_targets,
    candidates,
    default_target,
    parse,
    parse_list,
)
from warpsmith.errors import InvalidArgumentError, TargetError

# target: (first NVRTC, capabilities it runs on, shared memory a block may use in KB)
TARGETS = {
    "sm_80": ((11, 0), "8.0 8.6 8.9", 99),
    "sm_86": ((11, 1), "8.6 8.9", 99),
    "sm_87": ((11, 4), "8.7", 163),
    "sm_88": ((13, 0), "8.8", 99),
    "sm_89": ((11, 8), "8.9", 99),
    "sm_90": ((11, 8), "9.0", 227),
    "sm_90a": ((12, 0), "9.0", 227),
    "sm_100": ((12, 8), "10.0 10.3", 227),
    "sm_100a": ((12, 8), "10.0", 227),
    "sm_100f": ((12, 9), "10.0 10.3", 227),
    "sm_103": ((12, 9), "10.3", 227),
    "sm_103a": ((12, 9), "10.3", 227),
    "sm_103f": ((12, 9), "10.3", 227),
    "sm_110": ((13, 0), "11.0", 227),
    "sm_110a": ((13, 0), "11.0", 227),
    "sm_110f": ((13, 0), "11.0", 227),
    "sm_120": ((12, 8), "12.0 12.1", 99),
    "sm_120a": ((12, 8), "12.0", 99),
    "sm_120f": ((12, 9), "12.0 12.1", 99),
    "sm_121": ((12, 9), "12.1", 99),
    "sm_121a": ((12, 9), "12.1", 99),
    "sm_121f": ((12, 9), "12.1", 99),
}

SPELLINGS = {
    "8.0": "sm_80",
    "80": "sm_80",
    "sm_80": "sm_80",
    "sm80": "sm_80",
    "compute_80": "sm_80",
    "8.6": "sm_86",
    "8.7": "sm_87",
    "8.8": "sm_88",
    "8.9": "sm_89",
    "8x": "sm_80",
    "9.0": "sm_90a",
    "90": "sm_90a",
    "9.0a": "sm_90a",
    "90a": "sm_90a",
    "sm_90a": "sm_90a",
    "sm_90": "sm_90",
    "compute_90a": "sm_90a",
    "9x": "sm_90a",
    "10.0": "sm_100f",
    "10.0a": "sm_100a",
    "10x": "sm_100f",
    "100a": "sm_100a",
    "10.3": "sm_103a",
    "103f": "sm_103f",
    "11.0": "sm_110f",
    "11x": "sm_110f",
    "12.0": "sm_120f",
    "120": "sm_120f",
    "12.0a": "sm_120a",
    "12.0f": "sm_120f",
    "120f": "sm_120f",
    "sm_120": "sm_120",
    "12.1": "sm_121a",
    "121": "sm_121a",
    "12.1a": "sm_121a",
    "12.1f": "sm_121f",
    "sm_121a": "sm_121a",
    "SM_121A": "sm_121a",
    " 12.1 ": "sm_121a",
    "compute_121f": "sm_121f",
    "12x": "sm_120f",
    "12.x": "sm_120f",
    "12X": "sm_120f",
    "sm_12x": "sm_120f",
}

INVALID = (
    *("", " ", "abc", "12.", ".1", "12", "1", "x", "12.1b", "12.1.0", "12.10", "-12.1", "sm", "sm_", "sm-120"),
    *("sm_120af", "12 .1", "7.5", "13.0", "sm_75", "130", "7x", "13x", "12.2", "8.1", "sm_80a", "80a", "8.6f"),
    *("sm_90f", "9.0f", "8.9a", "٨.٠", "native", "all", "12.1+PTX"),
)


def test_table_names_every_target() -> None:
    assert {str(t) for t in all_targets()} == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_target_rules(name: str) -> None:
    nvrtc, serves, shared = TARGETS[name]
    target = parse(name)
    assert str(target) == name
    assert target.min_nvrtc == nvrtc
    assert " ".join(map(str, target.serves)) == serves
    assert target.shared_memory == shared * 1024
    assert target.min_driver == CUDA13_DRIVER == 13000


@pytest.mark.parametrize("target", all_targets(), ids=str)
def test_parse_is_the_inverse_of_format(target: Target) -> None:
    bare = str(target).removeprefix("sm_")
    dotted = f"{target.capability}{target.suffix}"
    assert parse(str(target)) == target
    assert parse(f"compute_{bare}") == target
    assert parse(f"sm{bare}") == target
    if target.suffix:
        assert parse(bare) == parse(dotted) == target


@pytest.mark.parametrize(("text", "name"), SPELLINGS.items())
def test_spelling(text: str, name: str) -> None:
    assert str(parse(text)) == name


@pytest.mark.parametrize("text", INVALID)
def test_refused_spelling_is_quoted(text: str) -> None:
    with pytest.raises(TargetError) as caught:
        parse(text)
    assert isinstance(caught.value, InvalidArgumentError)
    assert repr(text) in str(caught.value) or "does not exist" in str(caught.value)


@pytest.mark.parametrize("text", ["12.1+PTX", "9.0a+ptx", "sm_120+PTX"])
def test_ptx_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(TargetError, match="PTX is compiled on the user's machine") as caught:
        parse(text)
    assert repr(text.lower().split("+")[0]) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("sm_80a", "use sm_80"), ("sm_90f", "use sm_90a"), ("7.5", "known are 8.0"), ("13x", "8x, 9x, 10x, 11x, 12x")],
)
def test_refusal_says_what_to_write(text: str, expected: str) -> None:
    with pytest.raises(TargetError, match=expected):
        parse(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("12.0 12.1", ["sm_120f", "sm_121a"]),
        ("12.0,12.1", ["sm_120f", "sm_121a"]),
        ("12.0;12.1", ["sm_120f", "sm_121a"]),
        (" 9.0a ;, 12.1a\n80\t", ["sm_90a", "sm_121a", "sm_80"]),
        ("12x 12.0", ["sm_120f"]),
        ("12.1 12.1a 121a sm_121a", ["sm_121a"]),
    ],
)
def test_list(text: str, names: list[str]) -> None:
    assert [str(t) for t in parse_list(text)] == names


@pytest.mark.parametrize("text", ["", "  ", ",;", "12.1 abc", "12.1+PTX", "12.1 7.5"])
def test_refused_list(text: str) -> None:
    with pytest.raises(TargetError):
        parse_list(text)


@pytest.mark.parametrize(
    ("device", "names"),
    [
        ("8.0", "sm_80"),
        ("8.6", "sm_86 sm_80"),
        ("8.7", "sm_87"),
        ("8.8", "sm_88"),
        ("8.9", "sm_89 sm_86 sm_80"),
        ("9.0", "sm_90a sm_90"),
        ("10.0", "sm_100a sm_100f sm_100"),
        ("10.3", "sm_103a sm_103f sm_100f sm_103 sm_100"),
        ("11.0", "sm_110a sm_110f sm_110"),
        ("12.0", "sm_120a sm_120f sm_120"),
        ("12.1", "sm_121a sm_121f sm_120f sm_121 sm_120"),
    ],
)
def test_candidates_go_from_specific_to_plain_and_from_new_to_old(device: str, names: str) -> None:
    assert " ".join(map(str, candidates(Capability.parse(device)))) == names


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_a_plain_capability_becomes_a_target_that_serves_it(capability: Capability) -> None:
    assert default_target(capability).runs_on(capability)
    assert Capability.parse(str(capability)) == capability


@pytest.mark.parametrize("text", ["", "12", "12.", "12.1a", "sm_120", "7.5", "13.0", "abc", "12.10"])
def test_capability_refuses_what_is_none(text: str) -> None:
    with pytest.raises(TargetError, match=r"expected one of 8\.0"):
        Capability.parse(text)


@pytest.mark.parametrize(
    ("name", "provided"),
    [("sm_120", ("",)), ("sm_120f", ("", "f")), ("sm_121a", ("", "f", "a")), ("sm_90a", ("", "a")), ("sm_80", ("",))],
)
def test_features(name: str, provided: tuple[str, ...]) -> None:
    target = parse(name)
    assert [f for f in ("", "f", "a") if target.provides(f)] == list(provided)  # type: ignore[arg-type]


@given(st.sampled_from(all_targets()), st.sampled_from(CAPABILITIES))
def test_only_the_same_major_and_no_older_minor_runs(target: Target, device: Capability) -> None:
    if target.runs_on(device):
        assert target.capability.major == device.major
        assert target.capability.minor <= device.minor
        assert target in candidates(device)
    else:
        assert target not in candidates(device)


@given(st.text(alphabet="0123456789.smcopute_afx +PTX,", max_size=12))
def test_any_text_is_a_target_or_a_target_error(text: str) -> None:
    try:
        found = parse(text)
    except TargetError:
        return
    assert found in all_targets()
