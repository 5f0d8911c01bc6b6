# SPDX-License-Identifier: Apache-2.0
"""Reading bundles: what is refused, what is checked when, and that nothing is written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from bundle_samples import parts, sample_bundle, sources
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from warpsmith.arch import parse
from warpsmith.bundle import reader, wheel
from warpsmith.bundle.manifest import MANIFEST
from warpsmith.bundle.reader import Bundle, open_bundle, open_bundles
from warpsmith.bundle.writer import write_bundle, write_wheel
from warpsmith.catalog.plan import Selection
from warpsmith.catalog.spec import CubinId
from warpsmith.errors import BundleError, DigestError, ManifestError

TARGET = parse("12.1")
PACKAGE = "warpsmith_bundle_sm_121a"
SMALL = Selection(formats=("f8",))
needs_links = pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")


@pytest.fixture(autouse=True)
def _sources(monkeypatch: pytest.MonkeyPatch) -> None:
    sources(monkeypatch)


@pytest.fixture(params=["directory", "wheel"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    manifest, cubins = parts(TARGET, SMALL)
    if request.param == "wheel":
        return open_bundle(write_wheel(tmp_path, manifest, cubins))
    return open_bundle(write_bundle(tmp_path / "b", manifest, cubins))


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(root.rglob("*"))}


def test_a_bundle_gives_its_cubins_and_writes_nothing(bundle: Bundle, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    for entry in bundle.manifest.cubins:
        cubin = CubinId(entry.kernel, entry.variant, TARGET)
        assert bundle.entry(cubin) == entry
        assert hashlib.sha256(bundle.cubin(entry)).hexdigest() == entry.sha256
    assert bundle.entry(CubinId("scale_native", "f8_bf16_small", parse("sm_120f"))) is None
    assert bundle.entry(CubinId("scale_native", "none", TARGET)) is None
    assert bundle.files() == tuple(sorted([MANIFEST, *(bundle.manifest.file(c) for c in bundle.manifest.cubins)]))
    assert snapshot(tmp_path) == before


def test_opening_reads_the_manifest_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = sample_bundle(tmp_path / "b", TARGET, SMALL).path
    read, names = reader.read_file, []

    def watched(path: Path, limit: int) -> bytes:
        names.append(path.name)
        return read(path, limit)

    monkeypatch.setattr(reader, "read_file", watched)
    opened = open_bundle(place)
    assert names == [MANIFEST]
    opened.cubin(opened.manifest.cubins[0])
    assert names == [MANIFEST, f"{opened.manifest.cubins[0].sha256}.cubin.z"]


def test_threads_share_a_bundle(bundle: Bundle) -> None:
    entries = list(bundle.manifest.cubins) * 20
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(bundle.cubin, entries))
    assert [hashlib.sha256(data).hexdigest() for data in found] == [entry.sha256 for entry in entries]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_shares_no_file_position(bundle: Bundle) -> None:
    bundle.cubin(bundle.manifest.cubins[0])
    child = os.fork()
    if child == 0:
        for _ in range(100):
            for entry in bundle.manifest.cubins:
                bundle.cubin(entry)
        os._exit(0)
    for _ in range(100):
        for entry in bundle.manifest.cubins:
            bundle.cubin(entry)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    "damage",
    [lambda d: d[:-1], lambda d: d + b"\0", lambda d: bytes([d[0] ^ 1]) + d[1:]],
    ids=["cut", "longer", "flip"],
)
def test_a_damaged_cubin_is_refused_every_time(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    bundle = sample_bundle(tmp_path / "b", TARGET, SMALL)
    entry = bundle.manifest.cubins[0]
    file = bundle.path / "cubins" / f"{entry.sha256}.cubin.z"
    cubin, whole = bundle.cubin(entry), file.read_bytes()
    file.write_bytes(damage(whole))
    for _ in range(2):
        with pytest.raises(DigestError, match=f"{entry.kernel}/{entry.variant}@sm_121a"):
            bundle.cubin(entry)
    file.unlink()
    with pytest.raises(BundleError, match=f"has no cubins/{entry.sha256}"):
        bundle.cubin(entry)
    file.write_bytes(whole)
    assert bundle.cubin(entry) == cubin


def test_what_is_no_bundle_is_explained(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        open_bundle(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        open_bundle(tmp_path / "empty")
    with pytest.raises(BundleError, match="neither a bundle nor a directory of bundles"):
        open_bundles(tmp_path)
    (tmp_path / "empty" / MANIFEST).write_text("{}")
    with pytest.raises(ManifestError, match=r"empty.manifest\.json: schema: given None"):
        open_bundle(tmp_path / "empty")


def test_a_directory_of_bundles_is_opened_in_order(tmp_path: Path) -> None:
    for arch in ("9.0", "12.1"):
        sample_bundle(tmp_path / str(parse(arch)), parse(arch), SMALL)
    write_wheel(tmp_path, *parts(parse("12.0"), SMALL))
    (tmp_path / ".sm_80.new-0123").mkdir()
    (tmp_path / ".sm_80.new-0123" / MANIFEST).write_text("cut sho")
    (tmp_path / "notes").mkdir()
    opened = open_bundles(tmp_path)
    assert [str(b.manifest.target) for b in opened] == ["sm_121a", "sm_90a", "sm_120f"]
    assert open_bundles(tmp_path / "sm_90a")[0].path == tmp_path / "sm_90a"


def test_an_interrupted_replacement_is_explained(tmp_path: Path) -> None:
    place = sample_bundle(tmp_path / "b", TARGET, SMALL).path
    place.rename(tmp_path / ".b.old-0123")
    with pytest.raises(BundleError, match=r"\.b\.old-0123: rename that to b, or build again"):
        open_bundle(place)
    (tmp_path / ".b.old-0123").rename(place)
    open_bundle(place)


@needs_links
def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", TARGET, SMALL)
    entry = bundle.manifest.cubins[0]
    file = bundle.path / "cubins" / f"{entry.sha256}.cubin.z"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        bundle.cubin(entry)
    (tmp_path / "elsewhere").rename(bundle.path / "within")
    file.unlink()
    file.symlink_to("../within")
    assert bundle.cubin(entry)
    (bundle.path / "link").symlink_to(tmp_path, target_is_directory=True)
    assert "link" in bundle.files()
    (bundle.path / MANIFEST).rename(tmp_path / "manifest")
    (bundle.path / MANIFEST).symlink_to(tmp_path / "manifest")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        open_bundle(bundle.path)
    (tmp_path / "alias").symlink_to(bundle.path)
    (bundle.path / MANIFEST).unlink()
    (tmp_path / "manifest").rename(bundle.path / MANIFEST)
    assert open_bundle(tmp_path / "alias").cubin(entry)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders on this system")
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", TARGET, SMALL)
    entry = bundle.manifest.cubins[0]
    (bundle.path / "cubins" / f"{entry.sha256}.cubin.z").unlink()
    os.mkfifo(bundle.path / "cubins" / f"{entry.sha256}.cubin.z")
    with pytest.raises(BundleError, match="not a regular file"):
        bundle.cubin(entry)


def rewrite(wheel_file: Path, change: Callable[[zipfile.ZipFile], None], drop: str = "") -> Path:
    """The wheel with something added, and the member whose name ends with `drop` left out."""
    changed = wheel_file.with_name("changed.whl")
    with zipfile.ZipFile(wheel_file) as old, zipfile.ZipFile(changed, "w") as new:
        for member in old.infolist():
            if not drop or not member.filename.endswith(drop):
                new.writestr(member, old.read(member))
        change(new)
    return changed


def link(name: str) -> zipfile.ZipInfo:
    found = zipfile.ZipInfo(name)
    found.create_system = 3
    found.external_attr = (stat.S_IFLNK | 0o777) << 16
    return found


def named(name: str) -> zipfile.ZipInfo:
    found = zipfile.ZipInfo("x")
    found.filename = name  # as it stands, which the constructor would mend
    return found


CUBIN = f"{PACKAGE}/cubins/{'0' * 64}.cubin.z"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: z.writestr(f"{PACKAGE}/__init__.py", ""), "nothing else"),
        (lambda z: z.writestr("evil.pth", ""), "nothing else"),
        (lambda z: z.writestr(f"{PACKAGE}-0.1.0.data/scripts/run", ""), "nothing else"),
        (lambda z: z.writestr(f"{PACKAGE}/cubins/../../x", ""), "nothing else"),
        (lambda z: z.writestr("/etc/passwd", ""), "nothing else"),
        (lambda z: z.writestr(f"{PACKAGE}\\cubins\\x", ""), "nothing else"),
        (lambda z: z.writestr(named(f"{CUBIN}\0.py"), ""), "nothing else"),
        (lambda z: z.writestr(f"{PACKAGE}/cubins/", ""), "nothing else"),
        (lambda z: z.writestr(f"{PACKAGE}/manifest.json", "{}"), "is there twice"),
        (lambda z: z.writestr(link(CUBIN), "/etc/passwd"), "is a link"),
        (lambda z: z.writestr(CUBIN, bytes((64 << 20) + 1), zipfile.ZIP_DEFLATED), "larger than"),
        (lambda z: z.writestr(CUBIN, b"x", zipfile.ZIP_BZIP2), "compressed by method 12"),
        (lambda z: z.writestr("warpsmith_bundle_sm_90a/manifest.json", "{}"), "does not hold one bundle"),
    ],
)
def test_a_wheel_with_anything_else_is_refused(
    tmp_path: Path, change: Callable[[zipfile.ZipFile], None], message: str
) -> None:
    good = write_wheel(tmp_path, *parts(TARGET, SMALL))
    with pytest.raises(BundleError, match=message):
        open_bundle(rewrite(good, change))


def test_a_manifest_too_large_is_refused_unread(tmp_path: Path) -> None:
    place = sample_bundle(tmp_path / "b", TARGET, SMALL).path
    with (place / MANIFEST).open("ab") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(BundleError, match="more than the 16777216 expected"):
        open_bundle(place)
    good = write_wheel(tmp_path, *parts(TARGET, SMALL))
    huge = rewrite(
        good, lambda z: z.writestr(f"{PACKAGE}/{MANIFEST}", bytes((16 << 20) + 1), zipfile.ZIP_DEFLATED), drop=MANIFEST
    )
    with pytest.raises(BundleError, match="larger than 16777216 bytes"):
        open_bundle(huge)


def test_a_wheel_must_be_what_it_says(tmp_path: Path) -> None:
    good = write_wheel(tmp_path, *parts(TARGET, SMALL))
    with pytest.raises(BundleError, match="does not hold one bundle"):
        open_bundle(rewrite(good, lambda z: z.writestr(CUBIN, "x"), drop=MANIFEST))
    other = write_wheel(tmp_path, *parts(parse("9.0"), SMALL))
    with zipfile.ZipFile(other) as archive:
        manifest = archive.read(f"warpsmith_bundle_sm_90a/{MANIFEST}")
    swapped = rewrite(good, lambda z: z.writestr(f"{PACKAGE}/{MANIFEST}", manifest), drop=MANIFEST)
    with pytest.raises(BundleError, match="its manifest is for sm_90a"):
        open_bundle(swapped)


def test_encryption_and_false_sizes_are_refused(tmp_path: Path) -> None:
    good = write_wheel(tmp_path, *parts(TARGET, SMALL))
    bundle = open_bundle(good)
    entry = bundle.manifest.cubins[0]
    data = bytearray(good.read_bytes())
    name = f"{PACKAGE}/cubins/{entry.sha256}.cubin.z".encode()
    central = data.rindex(name) - 46
    assert data[central : central + 4] == b"PK\1\2"
    encrypted = data.copy()
    encrypted[central + 8] |= 1
    good.write_bytes(encrypted)
    with pytest.raises(BundleError, match="is encrypted"):
        open_bundle(good)
    smaller = data.copy()  # more comes out of the stream than the archive's directory says
    smaller[central + 24 : central + 28] = (10).to_bytes(4, "little")
    good.write_bytes(smaller)
    with pytest.raises(BundleError, match="does not match its size"):
        open_bundle(good).cubin(entry)


def test_an_archive_too_long_to_list_is_refused_before_it_is_listed(tmp_path: Path) -> None:
    file = write_wheel(tmp_path, *parts(TARGET, SMALL))
    data = file.read_bytes()
    for changed in (
        data[:-12] + b"\xff\xff" + data[-10:],  # the count that announces a 64-bit directory
        data[:-10] + (65 << 20).to_bytes(4, "little") + data[-6:],
        data[:-22] + b"PK\6\7" + bytes(16) + data[-22:],
    ):
        file.write_bytes(changed)
        with pytest.raises(BundleError, match="more files than a bundle has"):
            open_bundle(file)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=5)), min_size=1, max_size=3)
)
def test_a_changed_wheel_raises_nothing_else(tmp_path: Path, changes: list[tuple[float, bytes]]) -> None:
    good = tmp_path / "good.whl"
    if not good.exists():
        manifest, cubins = parts(TARGET, Selection(formats=("f8",)))
        write_wheel(tmp_path, manifest, cubins).rename(good)
    data = bytearray(good.read_bytes())
    for place, value in changes:
        start = int(place * len(data))
        data[start : start + len(value)] = value
    changed = tmp_path / "changed.whl"
    changed.write_bytes(data)
    with suppress(BundleError):
        bundle = open_bundle(changed)
        for entry in bundle.manifest.cubins:
            assert hashlib.sha256(bundle.cubin(entry)).hexdigest() == entry.sha256


def test_a_truncated_or_absent_wheel_is_refused(tmp_path: Path) -> None:
    good = write_wheel(tmp_path, *parts(TARGET, SMALL))
    data = good.read_bytes()
    for length in (0, 10, len(data) // 2, len(data) - 1):
        good.write_bytes(data[:length])
        with pytest.raises(BundleError, match="is not a wheel, or is damaged"):
            open_bundle(good)
    good.unlink()
    with pytest.raises(BundleError, match="cannot read"):
        open_bundle(good)


def test_a_manifest_that_does_not_match_its_checksum_is_refused(tmp_path: Path) -> None:
    good = write_wheel(tmp_path, *parts(TARGET, SMALL))
    data = bytearray(good.read_bytes())
    data[data.rindex(f"{PACKAGE}/{MANIFEST}".encode()) - 46 + 16] ^= 1
    good.write_bytes(data)
    with pytest.raises(BundleError, match=r"manifest\.json in .* does not match its size and checksum"):
        open_bundle(good)


def test_a_member_that_claims_a_large_stream_is_not_read(tmp_path: Path) -> None:
    good = write_wheel(tmp_path, *parts(TARGET, SMALL))
    entry = open_bundle(good).manifest.cubins[0]
    data = bytearray(good.read_bytes())
    central = data.rindex(f"{PACKAGE}/cubins/{entry.sha256}.cubin.z".encode()) - 46
    data[central + 20 : central + 24] = (2**31).to_bytes(4, "little")
    good.write_bytes(data)
    with pytest.raises(BundleError, match=f"{entry.sha256}.cubin.z in .* claims"):
        open_bundle(good).cubin(entry)


def test_a_wheel_that_is_exchanged_while_open_is_noticed(tmp_path: Path) -> None:
    bundle = open_bundle(write_wheel(tmp_path, *parts(TARGET, SMALL)))
    shutil.copyfile(write_wheel(tmp_path / "other", *parts(parse("9.0"), SMALL)), bundle.path)
    for entry in bundle.manifest.cubins:
        with pytest.raises(BundleError):
            bundle.cubin(entry)


def test_the_manifest_of_a_newer_schema_says_to_upgrade(tmp_path: Path) -> None:
    place = sample_bundle(tmp_path / "b", TARGET, SMALL).path
    document = json.loads((place / MANIFEST).read_text())
    (place / MANIFEST).write_text(json.dumps({**document, "schema": 5}))
    with pytest.raises(ManifestError, match="upgrade warpsmith"):
        open_bundle(place)


def test_no_name_of_a_wheel_can_be_a_python_file() -> None:
    for name in (f"{PACKAGE}/x.py", f"{PACKAGE}-1.dist-info/x.py", "x.py", f"{PACKAGE}-1.dist-info/METADATA\n"):
        assert wheel._DATA.fullmatch(name) is None
        assert wheel._META.fullmatch(name) is None
