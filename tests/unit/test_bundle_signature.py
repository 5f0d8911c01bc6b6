# SPDX-License-Identifier: Apache-2.0
"""Signatures: tampering, another key and a missing signature are refused at audit and at load."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from bundle_samples import parts, sources
from driver_fake import FakeApi
from runtime_samples import FORBIDDEN, FakeJit
from synthetic import CATALOG, problem
from typer.testing import CliRunner

from warpsmith.arch import parse
from warpsmith.bundle.audit import audit
from warpsmith.bundle.index import write_index
from warpsmith.bundle.manifest import MANIFEST
from warpsmith.bundle.reader import Bundle, open_bundle
from warpsmith.bundle.signature import SIGNATURE, SigningKey, read_public_key, read_signing_key
from warpsmith.bundle.writer import write_bundle, write_wheel
from warpsmith.cli.app import app
from warpsmith.errors import BundleError, DigestError, InvalidArgumentError, MissingKernelError, SignatureError
from warpsmith.runtime.driver import Driver
from warpsmith.runtime.kernels import Runtime
from warpsmith.settings import Settings

serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
PEM = serialization.Encoding.PEM
TARGET = parse("12.1")


def private_pem(key: object, password: bytes | None = None) -> bytes:
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, how)  # type: ignore[attr-defined,no-any-return]


def public_pem(key: object) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(PEM, form)  # type: ignore[attr-defined,no-any-return]


def keys(folder: Path, name: str) -> Path:
    """A private key in ``<name>``, its public one in ``<name>.pub``."""
    key = ed25519.Ed25519PrivateKey.generate()
    (folder / name).write_bytes(private_pem(key))
    (folder / f"{name}.pub").write_bytes(public_pem(key))
    return folder / name


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SigningKey:
    sources(monkeypatch)
    return read_signing_key(keys(tmp_path, "key"))


@pytest.fixture(params=["directory", "wheel"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path, key: SigningKey) -> Bundle:
    made = parts(TARGET)
    if request.param == "wheel":
        return open_bundle(write_wheel(tmp_path, *made, key))
    return open_bundle(write_bundle(tmp_path / "b", *made, key))


def change(bundle: Bundle, changes: Callable[[str, bytes], bytes | None]) -> Bundle:
    """The bundle with files changed, or removed, by whoever holds it on the way."""
    if bundle.path.is_dir():
        for file in [p for p in bundle.path.rglob("*") if p.is_file()]:
            data = changes(file.name, file.read_bytes())
            file.unlink() if data is None else file.write_bytes(data)
        return open_bundle(bundle.path)
    with zipfile.ZipFile(bundle.path) as archive:
        members = [(m, archive.read(m)) for m in archive.infolist()]
    with zipfile.ZipFile(bundle.path, "w") as archive:
        for member, data in members:
            changed = changes(member.filename.rpartition("/")[2], data)
            if changed is not None:
                archive.writestr(member, changed)
    return open_bundle(bundle.path)


def refused(bundle: Bundle, tmp_path: Path, message: str) -> None:
    """At audit and at load, in the same words."""
    public = read_public_key(tmp_path / "key.pub")
    found = [f for f in audit([bundle], None, CATALOG, public) if f.code == "signature-refused"]
    assert [f.subject for f in found] == [str(bundle.path)]
    assert message in found[0].message
    settings = Settings(bundle_path=(bundle.path,), jit=False, require_signature=tmp_path / "key.pub")
    run = Runtime(settings, CATALOG, Driver(FakeApi()), installed=lambda: [bundle], jit=FakeJit(FORBIDDEN))
    with pytest.warns(RuntimeWarning, match="a bundle cannot be used"), pytest.raises(MissingKernelError) as caught:
        run.prepare(problem(), 0)
    assert str(caught.value).count(message) == 2  # of the path and of the installed one


def test_a_signed_bundle_is_used_where_a_signature_is_required(bundle: Bundle, key: SigningKey, tmp_path: Path) -> None:
    assert audit([bundle], None, CATALOG, key.public) == []
    assert audit([bundle], None, CATALOG) == []
    assert bundle.signer() == key.public.id
    settings = Settings(bundle_path=(bundle.path,), jit=False, require_signature=tmp_path / "key.pub")
    run = Runtime(settings, CATALOG, Driver(FakeApi()), installed=list, jit=FakeJit(FORBIDDEN))
    assert run.prepare(problem(), 0) is not None


def test_an_unsigned_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    bundle = change(bundle, lambda name, data: None if name == SIGNATURE else data)
    assert bundle.signer() == ""
    refused(bundle, tmp_path, "is not signed")


def test_another_key_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = read_signing_key(keys(tmp_path, "other"))
    bundle = change(bundle, lambda name, data: other.sign(bundle_text(bundle)) if name == SIGNATURE else data)
    refused(bundle, tmp_path, f"it is signed by the key {other.public.id}")


def bundle_text(bundle: Bundle) -> bytes:
    return bundle.manifest.to_json().encode()


def test_another_key_under_the_right_keys_name_is_refused(bundle: Bundle, key: SigningKey, tmp_path: Path) -> None:
    other = read_signing_key(keys(tmp_path, "other"))
    forged = other.sign(bundle_text(bundle)).replace(other.public.id.encode(), key.public.id.encode())
    refused(change(bundle, lambda n, d: forged if n == SIGNATURE else d), tmp_path, "is not one of this manifest")


def test_a_changed_manifest_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    def lower(name: str, data: bytes) -> bytes:
        if name != MANIFEST:
            return data
        document = json.loads(data)
        document["cubins"][0]["registers"] += 1
        return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"

    refused(change(bundle, lower), tmp_path, "is not one of this manifest")


def test_the_smallest_change_of_the_text_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    bundle = change(bundle, lambda name, data: data + b"\n" if name == MANIFEST else data)
    refused(bundle, tmp_path, "is not one of this manifest")


def test_a_changed_cubin_does_not_match_the_signed_digest(bundle: Bundle, key: SigningKey) -> None:
    def flip(name: str, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if name.endswith(".cubin.z") else data

    bundle = change(bundle, flip)
    bundle.check_signature(key.public)
    for entry in bundle.manifest.cubins:
        with pytest.raises(DigestError):
            bundle.cubin(entry)
    assert {f.code for f in audit([bundle], (), CATALOG, key.public)} == {"digest-mismatch"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"x", "is no signature"),
        (b"ed25519 " + b"0" * 16 + b" " + b"A" * 86 + b"==", "is no signature"),
        (b"x" * 300, "manifest.sig"),
    ],
)
def test_a_signature_that_is_none_is_refused(bundle: Bundle, tmp_path: Path, text: bytes, message: str) -> None:
    bundle = change(bundle, lambda n, d: text if n == SIGNATURE else d)
    refused(bundle, tmp_path, message)


def test_every_changed_bit_of_a_signature_is_refused(tmp_path: Path, key: SigningKey) -> None:
    manifest, cubins = parts(TARGET)
    bundle = open_bundle(write_bundle(tmp_path / "b", manifest, cubins, key))
    good = (bundle.path / SIGNATURE).read_bytes()
    raw = base64.b64decode(good.split()[2])
    for bit in range(0, 512, 7):
        bad = bytearray(raw)
        bad[bit // 8] ^= 1 << bit % 8
        (bundle.path / SIGNATURE).write_bytes(b" ".join([*good.split()[:2], base64.b64encode(bad)]) + b"\n")
        with pytest.raises(SignatureError, match="is not one of this manifest"):
            bundle.check_signature(key.public)


def test_signing_is_repeatable_and_in_the_index(tmp_path: Path, key: SigningKey) -> None:
    first = write_wheel(tmp_path / "a", *parts(TARGET), key)
    second = write_wheel(tmp_path / "b", *parts(TARGET), key)
    assert first.read_bytes() == second.read_bytes()
    assert write_index(tmp_path / "a")["wheels"][0]["signed_by"] == key.public.id
    assert "PRIVATE" not in repr(key)


def test_a_signature_that_leads_out_of_the_bundle_is_not_followed(tmp_path: Path, key: SigningKey) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "b", *parts(TARGET), key))
    (bundle.path / SIGNATURE).rename(tmp_path / "outside")
    (bundle.path / SIGNATURE).symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        bundle.check_signature(key.public)


@pytest.mark.parametrize("read", [read_public_key, read_signing_key])
def test_a_key_that_is_none_is_an_argument_error(tmp_path: Path, read: Callable[[Path], object]) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    secret = ed25519.Ed25519PrivateKey.generate()
    path = tmp_path / "k"
    texts = {
        b"": "no (public|private) key in PEM",
        b"x" * 20_000: "cannot be one",
        private_pem(other): "another kind" if read is read_signing_key else "no public key",
        public_pem(other): "another kind" if read is read_public_key else "no private key",
        private_pem(secret, b"secret"): "without a password" if read is read_signing_key else "no public key",
    }
    for text, message in texts.items():
        path.write_bytes(text)
        with pytest.raises(InvalidArgumentError, match=message):
            read(path)
    with pytest.raises(InvalidArgumentError, match="cannot read the key"):
        read(tmp_path / "absent")


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public = keys(tmp_path, "key").with_name("key.pub")
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(SignatureError, match=r"pip install 'warpsmith\[sign\]'"):
        Runtime(Settings(require_signature=public), CATALOG, Driver(FakeApi()))


def test_without_a_key_the_package_is_not_imported() -> None:
    program = "import warpsmith.cli.app, warpsmith.runtime.kernels, sys; assert 'cryptography' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_command_line_audits_with_a_key(tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warpsmith.cli.audit.CATALOG", CATALOG)
    signed, plain = (str(write_bundle(tmp_path / n, *parts(TARGET), k)) for n, k in (("s", key), ("p", None)))
    keys(tmp_path, "other")

    def status(bundle: str, *arguments: str) -> tuple[int, list[str]]:
        result = CliRunner().invoke(app, ["audit", bundle, "--json", *arguments])
        return result.exit_code, [f["code"] for f in json.loads(result.stdout)["findings"]]

    good, bad = str(tmp_path / "key.pub"), str(tmp_path / "other.pub")
    assert status(signed) == status(plain) == status(signed, "--key", good) == (0, [])
    assert status(signed, "--key", bad) == status(plain, "--key", good) == (1, ["signature-refused"])
    monkeypatch.setenv("WARPSMITH_REQUIRE_SIGNATURE", good)
    assert (status(signed), status(plain)) == ((0, []), (1, ["signature-refused"]))
    assert status(signed, "--key", str(tmp_path / "key")) == (2, [])


def test_the_command_line_reads_the_key_before_it_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def build(*_: object, signing: SigningKey, **__: object) -> SimpleNamespace:
        calls.append(signing)
        return SimpleNamespace(findings=(), bundles=(), compiled=0, cached=0, seconds=0.0)

    monkeypatch.setattr("warpsmith.compiler.build.build", build)
    path = keys(tmp_path, "key")
    arguments = ["build", "--arch", "12.1", "--out", str(tmp_path), "--sign"]
    assert CliRunner().invoke(app, [*arguments, f"{path}.pub"]).exit_code == 2
    assert calls == []
    assert CliRunner().invoke(app, [*arguments, str(path)]).exit_code == 0
    assert calls[0].public == read_signing_key(path).public  # type: ignore[attr-defined]
