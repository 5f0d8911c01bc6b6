# SPDX-License-Identifier: Apache-2.0
"""Writing bundles: whole or not at all, and the same bytes for the same cubins.

A directory is written beside its place, put on the disk, and renamed. What was there is first renamed aside, since no
system call that Python has swaps two directories: a crash between the two renames leaves the old bundle under a name
that `open_bundle` finds and explains.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from warpsmith.bundle.files import is_stale, sync_folder, temporary_name, write_file
from warpsmith.bundle.manifest import MANIFEST, RAW, Manifest, parse_manifest
from warpsmith.bundle.packing import pack
from warpsmith.bundle.reader import ASIDE, UNFINISHED, beside
from warpsmith.bundle.signature import SIGNATURE, SigningKey
from warpsmith.bundle.wheel import distribution_name, entry_points, package_name, wheel_version
from warpsmith.errors import BundleError

_OWN_FILE = re.compile(r"manifest\.json|manifest\.sig|cubins/[0-9a-f]{64}\.cubin(\.z)?")
_VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9]+(\.[a-z0-9]+)*)?")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip archive can name
_ATTEMPTS = 20


def write_bundle(out: Path, manifest: Manifest, cubins: Mapping[str, bytes], signing: SigningKey | None = None) -> Path:
    """Write a bundle as a directory; the bundle that is there, if any, is replaced whole or left whole.

    Parameters
    ----------
    out
        The directory. It may exist if it is empty or a bundle.
    manifest
        What the bundle holds.
    cubins
        SHA-256 in hex → the cubin, for each of the manifest's and no other.
    signing
        The key that signs the manifest; by default it is not signed.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    BundleError
        If the cubins do not fit the manifest, the directory holds anything else, or it cannot be written.
    """
    files = _files(manifest, cubins, signing)
    place = Path(os.path.realpath(out))
    with _writing(out):
        _check_place(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = _beside(place, UNFINISHED)
        try:
            (fresh / "cubins").mkdir(parents=True)
            for name, data in files:
                write_file(fresh / name, [data])
            sync_folder(fresh / "cubins")
            sync_folder(fresh)
            _put_in_place(fresh, place)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        sync_folder(place.parent)
        _remove_leftovers(place)
    return out


def write_wheel(dist: Path, manifest: Manifest, cubins: Mapping[str, bytes], signing: SigningKey | None = None) -> Path:
    """Write a bundle as a wheel: data only, found by its entry point once it is installed.

    Parameters
    ----------
    dist
        The directory for the wheel; a wheel of the same name is replaced.
    manifest, cubins, signing
        As for `write_bundle`.

    Returns
    -------
    Path
        The wheel, ``warpsmith_bundle_<target>-<version>-py3-none-any.whl``; the version is `wheel_version`'s.

    Raises
    ------
    BundleError
        If the cubins do not fit the manifest, the version is none that a wheel can have, or it cannot be written.
    """
    if not _VERSION.fullmatch(manifest.package_version):
        raise BundleError(f"version {manifest.package_version!r} is not one that a wheel can have, such as 0.1.0")
    package = package_name(manifest.target)
    files = [(f"{package}/{name}", data) for name, data in _files(manifest, cubins, signing)]
    files += _metadata(manifest, package, files)
    wheel = dist / f"{package}-{wheel_version(manifest)}-py3-none-any.whl"
    fresh = _beside(wheel, UNFINISHED)
    with _writing(wheel):
        dist.mkdir(parents=True, exist_ok=True)
        try:
            with fresh.open("xb") as file:
                with zipfile.ZipFile(file, "w", allowZip64=False) as archive:
                    for name, data in files:
                        packed = name.endswith(".z")
                        archive.writestr(_member(name), data, zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED, 9)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(wheel)
        finally:
            fresh.unlink(missing_ok=True)
        sync_folder(dist)
        _remove_leftovers(wheel)
    return wheel


def _files(manifest: Manifest, cubins: Mapping[str, bytes], signing: SigningKey | None) -> list[tuple[str, bytes]]:
    """The bundle's files, sorted, once manifest and cubins have been held against each other."""
    text = manifest.to_json().encode()
    parse_manifest(text)  # whoever opens it will: no bundle is written that cannot be
    held = {entry.sha256: manifest.file(entry) for entry in manifest.cubins}
    for entry in manifest.cubins:
        data = cubins.get(entry.sha256)
        if data is None or len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleError(f"{manifest.id(entry)}: the manifest's digest or size is not that of the cubin given")
    for digest in sorted(set(cubins) - set(held)):
        raise BundleError(f"a cubin with SHA-256 {digest} was given, but the manifest does not list it")
    signature = [(SIGNATURE, signing.sign(text))] if signing else []
    stored = ((file, cubins[d] if manifest.encoding == RAW else pack(cubins[d])) for d, file in held.items())
    return sorted([(MANIFEST, text), *signature, *stored])


def _metadata(manifest: Manifest, package: str, files: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The wheel's dist-info; RECORD, which lists all the rest with its digests, comes last."""
    version = wheel_version(manifest)
    folder = f"{package}-{version}.dist-info"
    texts = {
        "METADATA": f"Metadata-Version: 2.1\nName: {distribution_name(manifest.target)}\nVersion: {version}\n"
        f"Summary: Warpsmith kernels, built for {manifest.target}\nLicense: Apache-2.0\n",
        "WHEEL": f"Wheel-Version: 1.0\nGenerator: warpsmith {manifest.package_version}\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": entry_points(manifest.target),
    }
    made = [(f"{folder}/{file}", text.encode()) for file, text in sorted(texts.items())]
    record = f"{folder}/RECORD"
    lines = [f"{file},sha256={_urlsafe(data)},{len(data)}" for file, data in (*files, *made)]
    return [*made, (record, "\n".join([*lines, f"{record},,", ""]).encode())]


def _urlsafe(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _EPOCH)
    member.create_system = 3  # Unix, on every platform
    member.external_attr = 0o100644 << 16
    return member


def _check_place(place: Path) -> None:
    """Refuse to replace anything but a bundle: what is replaced is deleted."""
    try:
        mode = place.stat().st_mode
    except FileNotFoundError:
        return
    if not place.name or not stat.S_ISDIR(mode):
        raise BundleError(f"{place} cannot become a bundle: it is not a directory of its own; choose another place")
    for folder, _, names in os.walk(place):
        for name in names:
            file = Path(folder, name).relative_to(place).as_posix()
            if not _OWN_FILE.fullmatch(file):
                raise BundleError(
                    f"{place} holds {file}, which is no part of a bundle: move it, or choose another place"
                )


def _put_in_place(fresh: Path, place: Path) -> None:
    """Rename `fresh` to `place`, first moving aside what is there; several writers may do so at once."""
    for _ in range(_ATTEMPTS):
        aside = _move_aside(place)
        try:
            fresh.rename(place)
        except OSError:
            if not place.exists():
                if aside is not None:
                    aside.rename(place)
                raise
            # Another writer put its own there in between; it is replaced in the next round.
        if aside is not None:
            _discard(aside, place)
        if not fresh.exists():
            return
    raise BundleError(f"{place} could not be written: {_ATTEMPTS} times another writer replaced it at the same moment")


def _move_aside(place: Path) -> Path | None:
    aside = _beside(place, ASIDE)
    try:
        place.rename(aside)
    except FileNotFoundError:
        return None
    return aside


def _discard(aside: Path, place: Path) -> None:
    """Delete a bundle that was moved aside; under another name first, so that what lies aside is always whole."""
    doomed = _beside(place, UNFINISHED)
    with suppress(OSError):
        aside.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _remove_leftovers(place: Path) -> None:
    """Remove what killed writers left: a new bundle is in place, so nothing beside it is needed any more."""
    for aside in beside(place, ASIDE):
        _discard(aside, place)
    for path in filter(is_stale, beside(place, UNFINISHED)):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _beside(place: Path, what: str) -> Path:
    return place.with_name(temporary_name(f".{place.name}{what}"))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"cannot write {path}: {error.strerror or error}; what was there before is whole: make room, or choose a "
            "place that can be written"
        ) from error
    except zipfile.LargeZipFile as error:
        raise BundleError(f"{path} would hold more than a wheel can ({error}); write a directory") from error
