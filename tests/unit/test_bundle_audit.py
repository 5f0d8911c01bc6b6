# SPDX-License-Identifier: Apache-2.0
"""The audit: a sound bundle has no findings; every kind of damage is named, by cubin, with what to do."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_samples import entry_of, fake_for, parts, sample_bundle, sources
from synthetic import CATALOG

from warpsmith.arch import Capability, Target, all_targets, parse
from warpsmith.bundle import audit as audit_module
from warpsmith.bundle.audit import audit, unreadable
from warpsmith.bundle.manifest import MANIFEST, CubinEntry, Manifest
from warpsmith.bundle.packing import pack
from warpsmith.bundle.reader import Bundle, open_bundle
from warpsmith.bundle.writer import write_bundle, write_wheel
from warpsmith.catalog.plan import Selection
from warpsmith.catalog.spec import Catalog, CubinId, Finding, Param
from warpsmith.errors import BundleError

TARGET, FAMILY = parse("12.1"), parse("12.0")
SMALL = Selection(formats=("f8",))
CUBIN = CubinId("scale_native", "f8_bf16_small", TARGET)
NAME = str(CUBIN)
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "bundles.md"


@pytest.fixture(autouse=True)
def _sources(monkeypatch: pytest.MonkeyPatch) -> None:
    sources(monkeypatch)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return sample_bundle(tmp_path / "b", TARGET, SMALL)


def codes(findings: list[Finding], subject: str | None = None) -> list[str]:
    assert all(f.message and f.fix for f in findings)
    return sorted({f.code for f in findings if subject is None or f.subject == subject})


def look(bundle: Bundle, catalog: Catalog = CATALOG) -> list[Finding]:
    return audit([open_bundle(bundle.path)], None, catalog)


def cubin_path(bundle: Bundle, cubin: CubinId = CUBIN) -> Path:
    entry = bundle.entry(cubin)
    assert entry is not None
    return bundle.path / bundle.manifest.file(entry)


def edit(bundle: Bundle, change: Callable[[Manifest], Manifest]) -> None:
    """Change the manifest alone, as a hand would."""
    (bundle.path / MANIFEST).write_text(change(bundle.manifest).to_json())


def with_entry(manifest: Manifest, entry: CubinEntry, cubin: CubinId = CUBIN) -> Manifest:
    kept = [c for c in manifest.cubins if manifest.id(c) != cubin]
    return replace(manifest, cubins=(*kept, entry))


def exchange(bundle: Bundle, data: bytes, cubin: CubinId = CUBIN) -> None:
    """Put another cubin in one's place, with the manifest's digest and size made to fit."""
    entry = bundle.entry(cubin)
    assert entry is not None
    digest = hashlib.sha256(data).hexdigest()
    cubin_path(bundle, cubin).unlink()
    (bundle.path / "cubins" / f"{digest}.cubin.z").write_bytes(pack(data))
    edit(bundle, lambda m: with_entry(m, replace(entry, sha256=digest, size=len(data)), cubin))


BUILT = [t for t in all_targets() if any(k.builds_for(t) for k in CATALOG.kernels)]


@pytest.mark.parametrize("target", BUILT, ids=str)
def test_a_sound_bundle_of_each_target_has_no_findings(tmp_path: Path, target: Target) -> None:
    assert audit([sample_bundle(tmp_path / "b", target)], None, CATALOG) == []


@pytest.mark.parametrize("arch", ["8.0", "9.0", "12.1"])
def test_a_wheel_is_audited_as_a_directory_is(tmp_path: Path, arch: str) -> None:
    wheel = write_wheel(tmp_path, *parts(parse(arch)))
    assert audit([open_bundle(wheel)], [parse(arch).capability], CATALOG) == []


def test_a_family_bundle_serves_its_family_and_nothing_else(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("12x"))
    assert audit([bundle], None, CATALOG) == []
    assert audit([bundle], [Capability(12, 0), Capability(12, 1)], CATALOG) == []
    (finding,) = audit([bundle], [Capability(9, 0)], CATALOG)
    assert (finding.code, finding.subject) == ("target-unserved", "9.0")
    assert "sm_120f" in finding.message
    (finding,) = audit([], [Capability(9, 0)], CATALOG)
    assert finding.code == "target-unserved"


def test_a_deleted_cubin_is_named(bundle: Bundle) -> None:
    cubin_path(bundle).unlink()
    found = look(bundle)
    assert codes(found, NAME) == ["cubin-missing"]
    assert codes(found) == ["cubin-missing", "promise-broken"]
    assert all(NAME in f.message for f in found)


@pytest.mark.parametrize("place", [0, 20, -1])
def test_a_flipped_byte_is_named(bundle: Bundle, place: int) -> None:
    data = bytearray(cubin_path(bundle).read_bytes())
    data[place] ^= 1
    cubin_path(bundle).write_bytes(data)
    assert codes(look(bundle), NAME) == ["digest-mismatch"]
    assert codes(look(bundle)) == ["digest-mismatch", "promise-broken"]


def test_a_renamed_entry_is_named_by_both_names(bundle: Bundle) -> None:
    entry = bundle.entry(CUBIN)
    assert entry is not None
    edit(bundle, lambda m: with_entry(m, replace(entry, variant="renamed")))
    found = look(bundle)
    assert codes(found, NAME) == ["entry-missing"]
    assert codes(found, "scale_native/renamed@sm_121a") == ["entry-unknown"]
    assert codes(found) == ["entry-missing", "entry-unknown", "promise-broken"]
    edit(bundle, lambda m: with_entry(m, replace(entry, kernel="scale_new")))
    assert codes(look(bundle), "scale_new/f8_bf16_small@sm_121a") == ["entry-unknown"]


def test_two_entries_that_swap_their_names_are_both_named(bundle: Bundle) -> None:
    other = CUBIN._replace(variant="f8_fp32_small")
    first, second = bundle.entry(CUBIN), bundle.entry(other)
    assert first is not None
    assert second is not None
    names = {first.variant: second.variant, second.variant: first.variant}

    def swap(manifest: Manifest) -> Manifest:
        return replace(
            manifest, cubins=tuple(replace(c, variant=names.get(c.variant, c.variant)) for c in manifest.cubins)
        )

    edit(bundle, swap)
    found = look(bundle)
    assert codes(found, NAME) == codes(found, str(other)) == ["source-mismatch"]


def family_cubin() -> bytes:
    return fake_for(CATALOG, CUBIN._replace(target=FAMILY)).file()


def test_a_cubin_of_another_target_in_its_file_is_named(bundle: Bundle) -> None:
    cubin_path(bundle).write_bytes(family_cubin())
    assert codes(look(bundle), NAME) == ["digest-mismatch"]


def test_a_cubin_of_another_target_with_its_digest_is_named(bundle: Bundle) -> None:
    exchange(bundle, family_cubin())
    found = look(bundle)
    assert codes(found, NAME) == ["elf-mismatch"]
    assert "is made for sm_120f, not for sm_121a" in next(f.message for f in found if f.subject == NAME)
    assert codes(found) == ["elf-mismatch", "promise-broken"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"registers": 41}, "has registers 41, the manifest says 40"),
        ({"stack": 8}, "has stack 8, the manifest says 0"),
        ({"static_shared": 16}, "has static_shared 16"),
        ({"record": None}, "exports no ws_record"),
        ({"record": (1, 4096, 256, 3, 1, 0, 0, 0)}, "exports no ws_record"),
        ({"record": (0x57530001, 8192, 256, 3, 1, 0, 0, 0)}, "has dynamic_shared 8192"),
        ({"record": (0x57530001, 4096, 128, 3, 1, 0, 0, 0)}, "has threads 128"),
        ({"record": (0x57530001, 4096, 256, 3, 0, 0, 0, 0)}, "has flags 0"),
        ({"version": "13.0.88"}, "compiled by nvrtc 13.0.88, not by nvrtc 13.5.37"),
        ({"entry": "ws_other"}, "holds the kernels ws_other, not ws_scale_native alone"),
        ({"twins": ("ws_twin",)}, "not ws_scale_native alone"),
        ({"params": (Param("out", "ptr"),)}, r"takes parameters \(offset, size\) \(\(0, 8\),\)"),
        ({"code": b""}, "has no code"),
        ({"flags": 0}, "ELF flags"),
    ],
)
def test_a_cubin_that_is_not_what_its_entry_says_is_named(
    bundle: Bundle, changes: dict[str, object], message: str
) -> None:
    exchange(bundle, replace(fake_for(CATALOG, CUBIN), **changes).file())  # type: ignore[arg-type]  # any field
    (finding,) = [f for f in look(bundle) if f.subject == NAME]
    assert finding.code == "elf-mismatch"
    assert re.search(message, finding.message)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"source_digest": "0" * 64}, "source-mismatch"),
        ({"module": "other"}, "entry-mismatch"),
        ({"entry": "ws_other"}, "entry-mismatch"),
        ({"params": (("out", "ptr", 0), ("x", "ptr", 8), ("n", "i64", 16), ("columns", "i32", 24))}, "entry-mismatch"),
        ({"params": (("out", "ptr", 0), ("x", "ptr", 8), ("rows", "i64", 16), ("columns", "i32", 28))}, "elf-mismatch"),
        ({"registers": 39}, "elf-mismatch"),
        ({"size": 1}, "digest-mismatch"),
    ],
)
def test_an_entry_that_was_edited_is_named(bundle: Bundle, changes: dict[str, object], code: str) -> None:
    entry = bundle.entry(CUBIN)
    assert entry is not None
    edit(bundle, lambda m: with_entry(m, replace(entry, **changes)))  # type: ignore[arg-type]  # any field
    assert codes(look(bundle), NAME) == [code]
    assert "promise-broken" in codes(look(bundle))


def test_a_changed_source_names_every_cubin(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sources(monkeypatch, "// scale, mended\n")
    found = look(bundle)
    assert codes(found) == ["promise-broken", "source-mismatch"]
    assert {f.subject for f in found if f.code == "source-mismatch"} == {
        str(bundle.manifest.id(c)) for c in bundle.manifest.cubins
    }


def test_too_much_shared_memory_is_named(tmp_path: Path) -> None:
    manifest, cubins = parts(TARGET, SMALL)
    fake = replace(fake_for(CATALOG, CUBIN), record=(0x57530001, 100_000, 256, 3, 1, 0, 0, 0), static_shared=2000)
    entry, data = entry_of(CATALOG, CUBIN, fake)
    old = next(c for c in manifest.cubins if manifest.id(c) == CUBIN)
    del cubins[old.sha256]
    write_bundle(tmp_path / "b", with_entry(manifest, entry), {**cubins, entry.sha256: data})
    found = audit([open_bundle(tmp_path / "b")], None, CATALOG)
    assert codes(found, NAME) == ["shared-memory"]
    assert "needs 102000 bytes" in found[0].message


def test_stray_files_are_named(bundle: Bundle) -> None:
    (bundle.path / "cubins" / "notes.txt").write_text("x")
    (bundle.path / "__init__.py").write_text("x")
    found = look(bundle)
    assert codes(found) == ["file-stray"]
    assert [f.subject for f in found] == [f"{bundle.path}/__init__.py", f"{bundle.path}/cubins/notes.txt"]


def test_an_entry_that_nothing_dispatches_to_is_named(bundle: Bundle) -> None:
    edit(bundle, lambda m: replace(m, selection=Selection(formats=("f4",))))
    found = look(bundle)
    assert codes(found, NAME) == ["entry-unplanned"]
    assert codes(found, "scale_native/f4_bf16_small@sm_121a") == ["entry-missing"]
    edit(bundle, lambda m: replace(m, selection=Selection(modules=("attention",))))
    assert codes(look(bundle)) == ["selection-unknown"]


def test_a_driver_understated_is_named(bundle: Bundle) -> None:
    edit(bundle, lambda m: replace(m, min_driver=12090))
    assert codes(look(bundle)) == ["driver-understated"]


def test_the_same_cubin_with_other_content_in_two_bundles_is_named(tmp_path: Path) -> None:
    first = sample_bundle(tmp_path / "a", TARGET, SMALL)
    copy = sample_bundle(tmp_path / "copy", TARGET, SMALL)
    assert audit([first, copy], None, CATALOG) == []
    manifest, cubins = parts(TARGET, SMALL)
    entry, data = entry_of(CATALOG, CUBIN, replace(fake_for(CATALOG, CUBIN), registers=99))
    old = next(c for c in manifest.cubins if manifest.id(c) == CUBIN)
    del cubins[old.sha256]
    write_bundle(tmp_path / "b", with_entry(manifest, entry), {**cubins, entry.sha256: data})
    (finding,) = audit([first, open_bundle(tmp_path / "b")], None, CATALOG)
    assert (finding.code, finding.subject) == ("entry-duplicate", NAME)
    assert str(tmp_path / "a") in finding.message
    assert str(tmp_path / "b") in finding.message


def test_bundles_keep_promises_together(tmp_path: Path) -> None:
    """The one of 12.1 is damaged; that of the family, beside it, serves 12.1 as well."""
    own = sample_bundle(tmp_path / "own", TARGET, SMALL)
    family = sample_bundle(tmp_path / "family", FAMILY, SMALL)
    cubin_path(own).unlink()
    assert codes(audit([own, family], None, CATALOG)) == ["cubin-missing"]
    assert codes(audit([own], None, CATALOG)) == ["cubin-missing", "promise-broken"]


def test_a_gap_in_the_catalog_is_found_in_a_bundle_that_shares_it(tmp_path: Path) -> None:
    """12.1 dropped from a row: plan, bundle and dispatch agree on the gap; the promises do not."""
    native = CATALOG.kernels[0]
    dropped = replace(native, capabilities=tuple(c for c in native.capabilities if c != Capability(12, 1)))
    broken = replace(CATALOG, kernels=(dropped, *CATALOG.kernels[1:]))
    manifest, cubins = parts(TARGET, None, broken)
    bundle = open_bundle(write_bundle(tmp_path / "b", manifest, cubins))
    found = audit([bundle], None, broken)
    assert codes(found) == ["promise-broken"]
    assert {f.subject for f in found} == {"scale/f4@12.1", "scale/f8@12.1"}


def test_the_catalog_itself_is_checked(bundle: Bundle) -> None:
    idle = replace(CATALOG.kernels[0].variants[0], name="idle", witnesses=())
    kernels = (replace(CATALOG.kernels[0], variants=(*CATALOG.kernels[0].variants, idle)), *CATALOG.kernels[1:])
    assert codes(look(bundle, replace(CATALOG, kernels=kernels)), "scale_native/idle") == ["variant-dead"]


def test_a_bundle_that_cannot_be_opened_is_a_finding() -> None:
    finding = unreadable(Path("b"), BundleError("b has no manifest.json"))
    assert (finding.code, finding.subject, finding.message) == ("bundle-unreadable", "b", "b has no manifest.json")
    assert finding.fix


def test_every_code_is_documented() -> None:
    text = DOCUMENTATION.read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE))
    assert set(audit_module.FIXES) <= documented
    assert {"promise-broken", "promise-absent", "variant-dead", "tuning-unplanned", "name-twice"} <= documented


def test_a_catalog_that_was_found_in_order_is_not_checked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sample_bundle(tmp_path / "whole", TARGET)
    wrong = Finding("name-twice", "a kernel", "it is there twice", "rename one")
    monkeypatch.setattr(audit_module, "check", lambda _: [wrong])
    assert audit([whole], None, CATALOG) == [wrong]
    assert audit([whole], None, CATALOG, checked=True) == []
