# SPDX-License-Identifier: Apache-2.0
"""Sources: what the compiler is given, and the digest that bundles are matched on."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import CATALOG

from warpsmith.catalog import CATALOG as SHIPPED
from warpsmith.catalog import source
from warpsmith.catalog.source import closure, digest_parts, kernel_sources, render, source_unit
from warpsmith.catalog.spec import Param
from warpsmith.errors import CatalogError

KERNEL = CATALOG.kernels[0]
VARIANT = KERNEL.variants[0]
SOURCES = {
    "scale.cuh": '#include "common/ptx.cuh"\n  #  include <common/types.cuh>\n// #include "nowhere.cuh"\n',
    "common/ptx.cuh": '#pragma once\n#include "common/types.cuh"\n',
    "common/types.cuh": "#pragma once\n",
    "unused.cuh": "",
}


@given(st.lists(st.binary(max_size=6), max_size=4), st.lists(st.binary(max_size=6), max_size=4))
def test_different_lists_of_parts_have_different_digests(one: list[bytes], other: list[bytes]) -> None:
    assert (digest_parts(one) == digest_parts(other)) == (one == other)


def test_closure_is_what_is_reached_and_nothing_else() -> None:
    assert [name for name, _ in closure("scale.cuh", SOURCES)] == ["common/ptx.cuh", "common/types.cuh", "scale.cuh"]


def test_closure_ends_on_a_cycle() -> None:
    found = closure("a", {"a": '#include "b"', "b": '#include "a"'})
    assert [name for name, _ in found] == ["a", "b"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.cuh", "cuda_fp16.h", "Common/ptx.cuh"])
def test_an_include_from_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(CatalogError, match=re.escape(f"scale.cuh includes '{name}', which is not one of")):
        closure("scale.cuh", {**SOURCES, "scale.cuh": f"#include <{name}>\n"})


def test_a_source_that_is_not_there_is_refused() -> None:
    with pytest.raises(CatalogError, match=r"the catalog includes 'gone\.cuh'"):
        closure("gone.cuh", SOURCES)


def test_the_program_is_the_macros_and_one_include() -> None:
    assert render(KERNEL, VARIANT) == '#define WS_INPUT bf16\n#define WS_TILE small\n#include "scale.cuh"\n'


def test_the_digest_depends_on_all_that_the_cubin_is_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(**changes: object) -> str:
        return source_unit(dataclasses.replace(KERNEL, **changes), VARIANT, SOURCES).digest

    macros = dataclasses.replace(VARIANT, macros=(*VARIANT.macros, ("WS_EXTRA", "1")))
    edited = {**SOURCES, "common/types.cuh": "#pragma once\n\n"}
    moved = {**SOURCES, "scale.cuh": SOURCES["scale.cuh"].replace("common/", "other/")}
    moved |= {name.replace("common/", "other/"): t.replace("common/", "other/") for name, t in SOURCES.items()}
    digests = [
        digest(),
        digest(params=(*KERNEL.params, Param("extra", "i32"))),
        digest(params=(KERNEL.params[0]._replace(name="renamed"), *KERNEL.params[1:])),
        digest(params=(KERNEL.params[0]._replace(ctype="i64"), *KERNEL.params[1:])),
        digest(entry="ws_other"),
        source_unit(KERNEL, macros, SOURCES).digest,
        source_unit(KERNEL, VARIANT, edited).digest,
        source_unit(KERNEL, VARIANT, moved).digest,
    ]
    monkeypatch.setattr(source, "OPTIONS", (*source.OPTIONS, "-lineinfo"))
    digests.append(digest())
    assert len(set(digests)) == len(digests)


def test_the_digest_does_not_depend_on_what_the_cubin_is_not_made_from() -> None:
    plain = source_unit(KERNEL, VARIANT, SOURCES).digest
    reordered = dict(reversed([*SOURCES.items(), ("another.cuh", "int x;")]))
    renamed = dataclasses.replace(KERNEL, name="renamed", capabilities=KERNEL.capabilities[:1])
    assert source_unit(KERNEL, VARIANT, reordered).digest == plain
    assert source_unit(renamed, dataclasses.replace(VARIANT, witnesses=()), SOURCES).digest == plain


def test_the_package_carries_its_sources_and_they_are_closed() -> None:
    sources = kernel_sources()
    assert sources
    for name in sources:
        closure(name, sources)


@pytest.mark.parametrize("name", ["../arch.py", "common/../common/ptx.cuh", "/etc/passwd", "common", "gone/x.cuh", ""])
def test_nothing_but_a_source_is_read(name: str) -> None:
    assert name not in kernel_sources()


def test_deciding_reads_only_the_sources_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = source._Sources()
    monkeypatch.setattr(source, "kernel_sources", lambda: fresh)
    row = SHIPPED.kernel("quantize")
    unit = source_unit(row, row.variants[0])
    assert sorted(fresh._texts) == [name for name, _ in unit.headers]
    assert len(fresh._texts) < len(fresh)


@pytest.mark.parametrize("word", ["__FILE__", "__DATE__", "__TIME__", "__TIMESTAMP__"])
def test_no_source_puts_its_place_or_time_into_the_cubin(word: str) -> None:
    assert [name for name, text in kernel_sources().items() if word in text] == []


def test_instructions_made_in_software_are_compiled_fast_from_the_same_source() -> None:
    emulated = [kernel for kernel in SHIPPED.kernels if kernel.emulates]
    assert emulated
    for kernel in emulated:
        native = SHIPPED.kernel(kernel.emulates)
        one, other = (source_unit(k, k.variants[0]) for k in (native, kernel))
        assert one.digest == other.digest
        assert other.options == (*one.options, *source.SOFTWARE_OPTIONS)
