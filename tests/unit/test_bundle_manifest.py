# SPDX-License-Identifier: Apache-2.0
"""Manifests: what is written reads back, and anything unexpected is refused with its place."""

from __future__ import annotations

import ctypes
import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from bundle_samples import parts, sources
from hypothesis import given, settings
from hypothesis import strategies as st

from warpsmith.arch import Target, all_targets, parse
from warpsmith.bundle.manifest import DEFLATE, MAX_MANIFEST_BYTES, RAW, CubinEntry, Manifest, layout, parse_manifest
from warpsmith.catalog.plan import Selection
from warpsmith.catalog.shapes import Model, Shapes
from warpsmith.catalog.spec import CubinId, Param
from warpsmith.errors import ManifestError

NAMES = st.from_regex(r"[0-9A-Za-z_.,+=:-]{1,20}", fullmatch=True)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
CTYPES = ("ptr", "i64", "i32", "u32", "f32", "tensormap")
PARAMS = st.lists(st.builds(Param, NAMES, st.sampled_from(CTYPES)), max_size=8)
WORDS = st.integers(0, 2**32 - 1)
ENTRIES = st.builds(
    CubinEntry,
    kernel=NAMES,
    variant=NAMES,
    module=NAMES,
    entry=NAMES,
    sha256=DIGESTS,
    size=st.integers(1, 64 << 20),
    source_digest=DIGESTS,
    registers=st.integers(0, 255),
    stack=WORDS,
    static_shared=WORDS,
    dynamic_shared=WORDS,
    threads=st.integers(1, 1024),
    flags=WORDS,
    params=st.builds(layout, PARAMS, st.sampled_from([0, 0x160, 0x210, 0x380])),
    instructions=st.dictionaries(NAMES, st.integers(1, 2**31), max_size=5).map(lambda d: tuple(d.items())),
)
SHAPES = st.builds(
    Shapes,
    operation=NAMES,
    fields=st.dictionaries(NAMES, st.lists(NAMES, unique=True, max_size=3).map(tuple), max_size=3).map(
        lambda d: tuple(sorted(d.items()))
    ),
    dims=st.dictionaries(NAMES, st.integers(1, 1 << 40), max_size=3).map(
        lambda d: tuple(sorted((name, size, 1 << 40) for name, size in d.items()))
    ),
)
LABELS = st.text(st.characters(min_codepoint=32, blacklist_categories=("Cc", "Cs")), min_size=1, max_size=20)
MODELS = st.builds(Model, name=LABELS, shapes=st.lists(SHAPES, max_size=3).map(tuple))
NAME_LISTS = st.lists(NAMES, unique=True, max_size=3).map(tuple)
MANIFESTS = st.builds(
    Manifest,
    target=st.sampled_from(all_targets()),
    package_version=NAMES,
    min_driver=st.integers(0, 10**6),
    toolchain=st.from_regex(r"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True),
    selection=st.builds(Selection, NAME_LISTS, NAME_LISTS, st.lists(MODELS, max_size=2).map(tuple)),
    catalog_digest=DIGESTS,
    encoding=st.sampled_from([DEFLATE, RAW]),
    cubins=st.lists(ENTRIES, max_size=4, unique_by=lambda e: (e.kernel, e.variant)).map(tuple),
)


@settings(deadline=None)
@given(MANIFESTS)
def test_what_is_written_reads_back(manifest: Manifest) -> None:
    text = manifest.to_json()
    assert parse_manifest(text.encode()) == manifest
    assert parse_manifest(text.encode()).to_json() == text
    assert text.endswith("}\n")


def test_the_text_does_not_depend_on_the_order_given(monkeypatch: pytest.MonkeyPatch) -> None:
    sources(monkeypatch)
    manifest, _ = parts(parse("12.1"))
    shuffled = replace(
        manifest,
        cubins=tuple(replace(c, instructions=c.instructions[::-1]) for c in reversed(manifest.cubins)),
    )
    assert shuffled.to_json() == manifest.to_json()
    first = manifest.cubins[0]
    assert manifest.id(first) == CubinId(first.kernel, first.variant, parse("12.1"))


@pytest.fixture
def document(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    sources(monkeypatch)
    found: dict[str, Any] = json.loads(parts(parse("12.1"))[0].to_json())
    return found


def refused(document: object, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        parse_manifest(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema", True, "schema: given True, expected the whole number 4"),
        ("schema", 0, "schema: given 0"),
        ("schema", "1", "schema: given '1'"),
        ("schema", 1, "an older warpsmith wrote the bundle; build the bundle again"),
        ("schema", 3, "the field 'encoding' is unknown"),
        ("encoding", "raw", "encoding: given 'raw', expected deflate"),
        ("encoding", None, "encoding: given None"),
        ("opcodes", {}, "opcodes: given an object of 0, expected a list"),
        ("opcodes", ["B", "A"], "different opcodes, sorted"),
        ("opcodes", ["A", "A"], "different opcodes, sorted"),
        ("opcodes", [""], "different opcodes, sorted"),
        ("opcodes", ["A", 1], "different opcodes, sorted"),
        ("params", {}, "params: given an object of 0, expected a list"),
        ("params", [7], r"params\[0\]: given 7, expected a list of at most 256"),
        ("params", [257 * [0]], "at most 256"),
        ("params", [[{"name": "x", "ctype": "ptr"}]], r"params\[0\]\[0\]: the field 'offset' is missing"),
        ("params", [[{"name": "x", "ctype": "half", "offset": 0}]], "parameter type"),
        (
            "params",
            [2 * [{"name": "x", "ctype": "ptr", "offset": 0}]],
            r"params\[0\]\[1\].offset: given 0, expected .* from 8",
        ),
        ("params", [], r"cubins\[0\].params: given \d, expected the position of one of the 0 lists"),
        ("target", "12.1", "a target spelled out, such as sm_121a"),
        ("target", "sm_130", "unknown compute capability"),
        ("target", "sm_80a", "does not exist"),
        ("target", ["sm_80"], "given a list of 1"),
        ("package_version", "", "a version"),
        ("package_version", "0/../1", "a version"),
        ("min_driver", 13000.0, "13000.0"),
        ("min_driver", -1, "from 0 to"),
        ("min_driver", True, "given True"),
        ("min_driver", 10**30, "min_driver: given 1000000000"),
        ("min_driver", 10**80, "is none that a manifest has"),
        ("toolchain", "nvrtc\n13", "a compiler's name"),
        ("catalog_digest", "AB" * 32, "64 lower-case"),
        ("selection", [], "selection: given a list of 0, expected an object"),
        ("selection", {"modules": []}, "'formats' is missing"),
        ("selection", {"modules": ["a", "a"], "formats": [], "models": []}, "different names"),
        ("selection", {"modules": [1], "formats": [], "models": []}, "different names"),
        ("selection", {"modules": [], "formats": []}, "'models' is missing"),
        ("cubins", {}, "given an object of 0, expected a list"),
        ("cubins", [7], r"cubins\[0\]: given 7, expected an object"),
        ("signature", "x", "'signature' is unknown"),
    ],
)
def test_a_field_that_does_not_fit_is_named(document: dict[str, Any], field: str, value: object, message: str) -> None:
    refused({**document, field: value}, message)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kernel", "a/b", r"cubins\[1\].kernel: given 'a/b'"),
        ("variant", "x" * 201, "variant: given 'xxx"),
        ("entry", None, "entry: given None"),
        ("sha256", "../../etc/passwd", "64 lower-case"),
        ("sha256", "0" * 63 + "\u0661", "64 lower-case"),
        ("source_digest", "0" * 65, "64 lower-case"),
        ("size", 0, "from 1 to"),
        ("size", 64 * 2**20 + 1, "from 1 to"),
        ("threads", 1025, "from 1 to 1024"),
        ("stack", 2**32, "from 0 to 4294967295"),
        ("instructions", {}, "expected a list of at most 20000"),
        ("instructions", [0], "ascending, each with its count"),
        ("instructions", [0, 0], "there are [1-9] opcodes"),
        ("instructions", [0, 2**31 + 1], "there are [1-9] opcodes"),
        ("instructions", [-1, 1], "there are [1-9] opcodes"),
        ("instructions", [9, 1], "there are [1-9] opcodes"),
        ("instructions", [0, 1, 0, 1], "ascending, each with its count"),
        ("instructions", [0, 1.0], "ascending, each with its count"),
        ("params", 99, "params: given 99, expected the position of one of"),
        ("params", -1, "params: given -1"),
        ("params", True, "params: given True"),
        ("params", [], "params: given a list of 0"),
    ],
)
def test_a_cubins_field_that_does_not_fit_is_named(
    document: dict[str, Any], field: str, value: object, message: str
) -> None:
    document["cubins"][1][field] = value
    refused(document, message)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({}, "expected a list"),
        ([7], r"selection.models\[0\]: given 7, expected an object"),
        ([{"name": "a\nb", "shapes": []}], "expected a name"),
        ([{"name": "a"}], "'shapes' is missing"),
        ([{"name": "a", "shapes": [{"operation": "x", "fields": {}}]}], r"shapes\[0\]: the field 'dims' is missing"),
        ([{"name": "a", "shapes": [{"operation": "x", "fields": {}, "dims": {"m": [2, 1]}}]}], r"dims.m: given a list"),
        (
            [{"name": "a", "shapes": [{"operation": "x", "fields": {}, "dims": {"m": [1]}}]}],
            r"smallest and the largest",
        ),
        ([{"name": "a", "shapes": [{"operation": "x", "fields": {"f": "g"}, "dims": {}}]}], r"fields.f: given 'g'"),
        ([{"name": "a", "shapes": [{"operation": "x", "fields": {"/": []}, "dims": {}}]}], "at most 32 names"),
        ([{"name": "a", "shapes": 1001 * [{"operation": "x", "fields": {}, "dims": {}}]}] * 2, "2000 shapes in all"),
    ],
)
def test_models_that_do_not_fit_are_named(document: dict[str, Any], models: object, message: str) -> None:
    document["selection"]["models"] = models
    refused(document, message)


def test_missing_and_doubled_things_are_refused(document: dict[str, Any]) -> None:
    del document["cubins"][0]["threads"]
    refused(document, r"cubins\[0\]: the field 'threads' is missing")
    document["cubins"] = 2 * [document["cubins"][1]]
    refused(document, r"cubins\[1\]: given 'scale_native/f4_bf16_small', expected each kernel and variant once")
    text = json.dumps({**document, "cubins": []})
    with pytest.raises(ManifestError, match="'target' is there twice"):
        parse_manifest(text.replace('"target"', '"target": "sm_80", "target"').encode())


def test_a_newer_schema_says_to_upgrade_whatever_else_it_holds() -> None:
    with pytest.raises(ManifestError, match="upgrade warpsmith"):
        parse_manifest(b'{"schema": 5, "new": 1.5e3, "cubins": null}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"[]", "expected an object"),
        (b"null", "expected an object"),
        (b'{"schema": 1', "not JSON"),
        (b'\xef\xbb\xbf{"schema": 1}', "not JSON"),
        ('{"schema": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"schema": NaN}', "none that a manifest has"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply|expected an object"),
        (b'{"schema": 4, "selection": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply|is missing"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "more than"),
    ],
)
def test_what_is_no_manifest_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        parse_manifest(text)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_changed_manifest_raises_nothing_else(data: st.DataObject) -> None:
    text = bytearray(data.draw(MANIFESTS).to_json().encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + 1] = data.draw(st.sampled_from([b"", b'"', b"}", b"9", b"\xff", b"[", b"e9", b"-"]))
    with suppress(ManifestError):
        parse_manifest(bytes(text))


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_else(text: bytes) -> None:
    with suppress(ManifestError):
        parse_manifest(text)


@given(PARAMS, st.sampled_from([0, 0x160, 0x210, 0x380]))
def test_parameters_are_aligned_in_order_and_without_gaps_to_spare(params: list[Param], base: int) -> None:
    end = 0
    for param, (name, ctype, offset) in zip(params, layout(params, base), strict=True):
        assert (name, ctype) == (param.name, param.ctype)
        assert (base + offset) % param.alignment == 0
        assert 0 <= offset - end < param.alignment
        end = offset + param.size


@given(st.lists(st.sampled_from(["ptr", "i64", "i32", "u32", "f32"]), min_size=1, max_size=10))
def test_without_tensor_maps_the_layout_is_a_c_structure(kinds: list[str]) -> None:
    types = {"ptr": ctypes.c_void_p, "i64": ctypes.c_int64, "i32": ctypes.c_int32, "u32": ctypes.c_uint32}
    fields = [(f"p{i}", types.get(kind, ctypes.c_float)) for i, kind in enumerate(kinds)]
    structure = type("Params", (ctypes.Structure,), {"_fields_": fields})
    expected = [getattr(structure, name).offset for name, _ in fields]
    for base in (0, 0x160, 0x210, 0x380):
        found = layout([Param(f"p{i}", kind) for i, kind in enumerate(kinds)], base)
        assert [offset for _, _, offset in found] == expected


def test_the_target_is_a_target(document: dict[str, Any]) -> None:
    assert parse_manifest(json.dumps(document).encode()).target == Target(parse("12.1").capability, "a")
