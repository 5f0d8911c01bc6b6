# SPDX-License-Identifier: Apache-2.0
"""Keys follow from content, and from all of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpsmith.arch import parse
from warpsmith.catalog.source import SourceUnit, source_unit
from warpsmith.catalog.spec import Kernel, Param, Variant
from warpsmith.compiler.key import compile_key

VARIANT = Variant("a", (("TILE", "64"),), (), ())
KERNEL = Kernel("k", "m", "o", "k/k.cuh", "ws_k", (), (Param("out", "ptr"),), (VARIANT,))
SOURCES = {"k/k.cuh": '#include "k/h.cuh"\nint a;\n', "k/h.cuh": "int b;\n"}


def key(
    kernel: Kernel = KERNEL,
    variant: Variant = VARIANT,
    sources: dict[str, str] | None = None,
    version: str = "13.5.37",
    target: str = "sm_121a",
) -> str:
    return compile_key(version, parse(target), source_unit(kernel, variant, sources or SOURCES))


def test_the_same_inputs_give_the_same_key() -> None:
    assert key() == key(sources=dict(reversed(SOURCES.items())))


def test_the_key_is_the_same_in_every_process_and_release() -> None:
    unit = SourceUnit("int a;\n", (), ("-std=c++17",), "0" * 64)
    pinned = "a6d32503be87f34ccd9a500dc604c79bfe72f3a5a54ac6a89510f623b21416fe"
    assert compile_key("13.5.37", parse("sm_90a"), unit) == pinned


@pytest.mark.parametrize(
    "other",
    [
        key(version="13.5.38"),
        key(target="sm_121"),
        key(target="sm_120f"),
        key(variant=replace(VARIANT, macros=(("TILE", "128"),))),
        key(kernel=replace(KERNEL, entry="ws_other")),
        key(kernel=replace(KERNEL, params=(Param("out", "i64"),))),
        key(sources=SOURCES | {"k/h.cuh": "int c;\n"}),
        key(sources={"k/k.cuh": SOURCES["k/k.cuh"].replace("h.cuh", "i.cuh"), "k/i.cuh": SOURCES["k/h.cuh"]}),
    ],
    ids=["nvrtc", "suffix", "target", "macro", "entry", "parameters", "header", "include name"],
)
def test_every_input_changes_the_key(other: str) -> None:
    assert other != key()


def test_options_change_the_key() -> None:
    unit = source_unit(KERNEL, VARIANT, SOURCES)
    assert compile_key("13.5.37", parse("sm_90a"), unit._replace(options=(*unit.options, "-lineinfo"))) != (
        compile_key("13.5.37", parse("sm_90a"), unit)
    )


def test_sources_that_are_not_included_do_not_change_the_key() -> None:
    assert key(sources=SOURCES | {"k/other.cuh": "int d;\n"}) == key()


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_no_two_lists_of_options_share_a_key(one: list[str], other: list[str]) -> None:
    first, second = (compile_key("13", parse("sm_80"), SourceUnit("", (), tuple(o), "")) for o in (one, other))
    assert (first == second) == (one == other)
