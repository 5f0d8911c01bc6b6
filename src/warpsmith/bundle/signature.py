# SPDX-License-Identifier: Apache-2.0
"""Signatures of bundles: Ed25519 over the manifest's digest, and so over every cubin, since it names their digests.

Optional: nothing here is imported before a key is given, and the package ``cryptography`` (the extra ``sign``) is
needed only then.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warpsmith.bundle.files import read_file
from warpsmith.errors import BundleError, InvalidArgumentError, SignatureError

SIGNATURE = "manifest.sig"
"""Name of the signature's file in a bundle."""

MAX_SIGNATURE_BYTES = 256
_MAX_KEY_BYTES = 16 << 10
_DOMAIN = b"warpsmith bundle manifest 1\0"
_FILE = re.compile(rb"ed25519 ([0-9a-f]{16}) ([A-Za-z0-9+/]{86}==)\n")


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are held against.

    Attributes
    ----------
    raw
        Its 32 bytes.
    name
        Where it came from, for messages.
    """

    raw: bytes
    name: str

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits that tell keys apart."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def check(self, manifest_digest: bytes, signature: bytes) -> None:
        """Hold a signature file's content against a manifest's SHA-256.

        Raises
        ------
        SignatureError
            If it is no signature, one by another key, or one of another manifest.
        """
        found = _FILE.fullmatch(signature)
        if found is None:
            raise SignatureError(f"its {SIGNATURE} is no signature; sign the bundle again: warpsmith build --sign")
        if found[1].decode() != self.id:
            raise SignatureError(
                f"it is signed by the key {found[1].decode()}, expected {self.id} ({self.name}): do not use it, "
                "unless that other key is yours"
            )
        _, _, invalid, ed25519 = _cryptography()
        try:
            raw = base64.b64decode(found[2], validate=True)
            ed25519.Ed25519PublicKey.from_public_bytes(self.raw).verify(raw, _DOMAIN + manifest_digest)
        except (invalid, binascii.Error, ValueError) as error:
            raise SignatureError(
                f"its signature by {self.id} is not one of this manifest: the manifest or the signature was changed; "
                "do not use it"
            ) from error


@dataclass(frozen=True)
class SigningKey:
    """A private key."""

    key: Any
    public: PublicKey

    def __repr__(self) -> str:
        return f"SigningKey({self.public.id})"

    def sign(self, manifest: bytes) -> bytes:
        """The content of the signature file for a manifest's text; always the same for the same text."""
        signature = self.key.sign(_DOMAIN + hashlib.sha256(manifest).digest())
        return f"ed25519 {self.public.id} {base64.b64encode(signature).decode()}\n".encode()


def signer(signature: bytes) -> str:
    """The id of the key that a signature file names, unchecked; empty if it is no signature."""
    found = _FILE.fullmatch(signature)
    return found[1].decode() if found else ""


def read_public_key(path: Path) -> PublicKey:
    """Read an Ed25519 public key (PEM, as ``openssl pkey -pubout`` writes it).

    Raises
    ------
    InvalidArgumentError
        If the file cannot be read, or holds no such key.
    SignatureError
        If the package ``cryptography`` is not installed.
    """
    serialization, unsupported, _, ed25519 = _cryptography()
    text = _read(path)
    try:
        key = serialization.load_pem_public_key(text)
    except (ValueError, unsupported) as error:
        raise InvalidArgumentError(f"{path} holds no public key in PEM; make one: openssl pkey -pubout") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise InvalidArgumentError(f"{path} holds a key of another kind; expected an Ed25519 public key")
    return PublicKey(key.public_bytes_raw(), str(path))


def read_signing_key(path: Path) -> SigningKey:
    """Read an Ed25519 private key (PEM without password, as ``openssl genpkey -algorithm ed25519`` writes it).

    Raises
    ------
    InvalidArgumentError
        If the file cannot be read, or holds no such key.
    SignatureError
        If the package ``cryptography`` is not installed.
    """
    serialization, unsupported, _, ed25519 = _cryptography()
    text = _read(path)
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except (ValueError, TypeError, unsupported) as error:
        raise InvalidArgumentError(
            f"{path} holds no private key in PEM without a password; make one: openssl genpkey -algorithm ed25519"
        ) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise InvalidArgumentError(f"{path} holds a key of another kind; expected an Ed25519 private key")
    return SigningKey(key, PublicKey(key.public_key().public_bytes_raw(), str(path)))


def _read(path: Path) -> bytes:
    try:
        return read_file(path, _MAX_KEY_BYTES)
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the key {path}: {error.strerror}") from error
    except BundleError as error:
        raise InvalidArgumentError(f"the key {path} cannot be one: {error}") from error


def _cryptography() -> tuple[Any, Any, Any, Any]:
    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise SignatureError(
            f"signatures need the package cryptography ({error}): pip install 'warpsmith[sign]'"
        ) from error
    return serialization, UnsupportedAlgorithm, InvalidSignature, ed25519
