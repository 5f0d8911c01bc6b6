# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of one reader with atheris: ``python fuzz.py READER RUNS SEEDS RESULT``.

SEEDS is a folder with a real bundle (``bundle/``) and its wheel (``bundle.whl``), signed with ``key.pub``. Anything
but a deliberate error, a wrong byte let through, more than 1 GiB of memory or 20 s for one input ends the process with
a failure; the result is written when all inputs have been read.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["warpsmith", "zipfile", "json"]):
    from warpsmith.bundle.elf import read_cubin
    from warpsmith.bundle.manifest import parse_manifest
    from warpsmith.bundle.packing import unpack
    from warpsmith.bundle.reader import open_bundle
    from warpsmith.bundle.signature import PublicKey, read_public_key
    from warpsmith.catalog import CATALOG
    from warpsmith.catalog.shapes import read_models
    from warpsmith.errors import WarpsmithError

Reader = Callable[[bytes], None]
_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
_NAMES = ("../x", "/etc/passwd", "x.py", "x.pth", "a.data/x", "cubins/..", "manifest.json\0", "C:\\x", "\u202e", "")


def changed(seed: bytes, data: bytes) -> bytes:
    """A real file with the changes that the fuzzer's bytes describe; or, if they begin so, those bytes alone."""
    if not data or data[0] == 0:
        return data[1:]
    found = bytearray(seed)
    position = 1
    while position + 6 <= len(data) and found:
        kind, value, place = (
            data[position],
            data[position + 1],
            int.from_bytes(data[position + 2 : position + 6], "little"),
        )
        position += 6
        at = place % len(found)
        if kind % 6 == 0:
            found[at] = value
        elif kind % 6 == 1:
            size = (1, 2, 4, 8)[value & 3]
            number = _NUMBERS[(value >> 2) % len(_NUMBERS)] % (1 << 8 * size)
            found[at : at + size] = number.to_bytes(size, "little")
        elif kind % 6 == 2:
            del found[at : at + 1 + value]
        elif kind % 6 == 3:
            found[at:at] = found[at : at + 1 + value]
        elif kind % 6 == 4:
            found[at:at] = data[position : position + value % 32]
            position += value % 32
        else:
            del found[at:]
    return bytes(found)


def cubin_reader(seeds: Path, _: Path) -> Reader:
    """The ELF reader, over changes of real cubins."""
    bundle = open_bundle(seeds / "bundle")
    cubins = [bundle.cubin(entry) for entry in bundle.manifest.cubins]

    def read(data: bytes) -> None:
        read_cubin(changed(cubins[len(data) % len(cubins)], data))

    return read


def packing_reader(seeds: Path, _: Path) -> Reader:
    """Unpacking, over changes of real streams whose checksum is made to fit; nothing else of that size comes out."""
    bundle = open_bundle(seeds / "bundle")
    entries = bundle.manifest.cubins
    streams = [(seeds / "bundle" / bundle.manifest.file(entry)).read_bytes()[:-4] for entry in entries]

    def read(data: bytes) -> None:
        which = len(data) % len(entries)
        stream = changed(streams[which], data)
        try:
            found = unpack(stream + zlib.crc32(stream).to_bytes(4, "little"), entries[which].size)
        except ValueError as error:
            raise WarpsmithError(str(error)) from error
        if len(found) != entries[which].size:
            raise AssertionError("another size came out than was asked for")

    return read


def manifest_reader(seeds: Path, _: Path) -> Reader:
    """The manifest reader; what it accepts has to read back the same."""
    text = (seeds / "bundle" / "manifest.json").read_bytes()

    def read(data: bytes) -> None:
        manifest = parse_manifest(changed(text, data))
        if parse_manifest(manifest.to_json().encode()) != manifest:
            raise AssertionError("a manifest does not read back as it was read")

    return read


def models_reader(seeds: Path, _: Path) -> Reader:
    """The reader of models files."""
    text = (seeds / "models.json").read_bytes()

    def read(data: bytes) -> None:
        read_models(changed(text, data), CATALOG)

    return read


def use(path: Path, key: PublicKey, genuine: frozenset[str]) -> None:
    """Open a bundle and read all of it; nothing comes out but what its digests say."""
    bundle = open_bundle(path)
    bundle.files()
    bundle.faults()
    for entry in bundle.manifest.cubins:
        if hashlib.sha256(bundle.cubin(entry)).hexdigest() != entry.sha256:
            raise AssertionError("a cubin came out whose digest is wrong")
    bundle.check_signature(key)
    if {entry.sha256 for entry in bundle.manifest.cubins} != genuine:
        raise AssertionError("a signature was accepted for another manifest")


def folder_reader(seeds: Path, scratch: Path) -> Reader:
    """The bundle reader, over directories with one file changed or added."""
    key = read_public_key(seeds / "key.pub")
    genuine = frozenset(e.sha256 for e in open_bundle(seeds / "bundle").manifest.cubins)
    files = {str(p.relative_to(seeds / "bundle")): p.read_bytes() for p in (seeds / "bundle").rglob("*") if p.is_file()}
    place = scratch / "folder"
    shutil.copytree(seeds / "bundle", place)
    names = sorted(files)

    def read(data: bytes) -> None:
        name = names[data[-1] % len(names)] if data else names[0]
        file = place / name
        file.write_bytes(changed(files[name], data))
        try:
            use(place, key, genuine)
        finally:
            file.write_bytes(files[name])

    return read


def wheel_reader(seeds: Path, scratch: Path) -> Reader:
    """The wheel reader: changes of a real wheel's bytes, and archives that are well-formed but hold something else."""
    key = read_public_key(seeds / "key.pub")
    genuine = frozenset(e.sha256 for e in open_bundle(seeds / "bundle").manifest.cubins)
    wheel = (seeds / "bundle.whl").read_bytes()
    with zipfile.ZipFile(seeds / "bundle.whl") as archive:
        members = [(m.filename, archive.read(m)) for m in archive.infolist()]
    place = scratch / "fuzzed.whl"

    def rebuilt(data: bytes) -> None:
        which, how, name = data[1] % len(members), data[2] % 5, _NAMES[data[3] % len(_NAMES)]
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED if data[4] & 1 else zipfile.ZIP_STORED) as archive:
            for index, (file, content) in enumerate(members):
                info = zipfile.ZipInfo(file)
                if index == which and how == 0:
                    info = zipfile.ZipInfo(file.rpartition("/")[0] + "/" + name if data[4] & 2 else name)
                elif index == which and how == 1:
                    content = changed(content, data[4:])
                elif index == which and how == 2:
                    info.external_attr = struct.unpack("<I", data[5:9].ljust(4, b"\0"))[0]
                elif index == which and how == 3:
                    content = bytes([data[4]]) * (1 << data[5] % 22)
                archive.writestr(info, content, archive.compression)

    def read(data: bytes) -> None:
        if len(data) > 8 and data[0] == 1:
            rebuilt(data)
        else:
            place.write_bytes(changed(wheel, data))
        use(place, key, genuine)

    return read


READERS = {
    "manifest": manifest_reader,
    "cubin": cubin_reader,
    "packing": packing_reader,
    "models": models_reader,
    "directory": folder_reader,
    "wheel": wheel_reader,
}


def main() -> None:
    """Fuzz one reader."""
    name, runs, seeds, result = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    scratch = result.with_suffix(".scratch")
    scratch.mkdir()
    reader = READERS[name](seeds, scratch)
    count = {"accepted": 0, "refused": 0}
    kinds: dict[str, int] = {}
    started = time.monotonic()

    def test(data: bytes) -> None:
        try:
            reader(data)
            count["accepted"] += 1
        except WarpsmithError as error:
            count["refused"] += 1
            kinds[type(error).__name__] = kinds.get(type(error).__name__, 0) + 1
        if sum(count.values()) == runs:
            found = {
                "inputs": runs,
                **count,
                "errors": dict(sorted(kinds.items())),
                "seconds": round(time.monotonic() - started, 1),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
            result.write_text(json.dumps(found))
            os._exit(0)

    options = ["-rss_limit_mb=1024", "-timeout=20", "-max_len=4096", "-len_control=0", "-seed=1", f"-runs={2 * runs}"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={scratch}/"], test)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
