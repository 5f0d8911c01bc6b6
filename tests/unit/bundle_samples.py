# SPDX-License-Identifier: Apache-2.0
"""Made-up cubins and bundles: ELF files with just the sections that are read, and bundles of a small catalog."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from synthetic import CATALOG

from warpsmith.arch import Target
from warpsmith.bundle.elf import RECORD_MAGIC
from warpsmith.bundle.manifest import CubinEntry, Manifest, layout
from warpsmith.bundle.reader import Bundle, open_bundle
from warpsmith.bundle.writer import write_bundle
from warpsmith.catalog import source
from warpsmith.catalog.plan import Selection, plan
from warpsmith.catalog.spec import Catalog, CubinId, Param

PARAM_BASE = {8: 0x160, 9: 0x210, 10: 0x380, 11: 0x380, 12: 0x380}


@dataclass(frozen=True)
class FakeCubin:
    """A cubin to write; every field can be set wrong."""

    target: str = "sm_121a"
    entry: str = "ws_k"
    params: tuple[Param, ...] = (Param("x", "ptr"), Param("n", "i64"), Param("flag", "i32"))
    registers: int = 40
    stack: int = 0
    static_shared: int = 0
    record: tuple[int, ...] | None = (RECORD_MAGIC, 4096, 256, 3, 1, 0, 0, 0)
    code: bytes = b"\x11" * 128
    version: str = "13.5.37"
    options: str | None = None
    flags: int | None = None
    accelerator: int | None = None
    skip: tuple[str, ...] = ()
    extra: tuple[tuple[str, int, bytes], ...] = ()
    twins: tuple[str, ...] = ()  # more kernels, whose sections are the first one's bytes

    def file(self) -> bytes:
        """The file."""
        number = int("".join(c for c in self.target if c.isdigit()))
        major = number // 10
        base = PARAM_BASE[major]
        rows = layout(self.params, base)
        end = rows[-1][2] + self.params[-1].size if rows else 0
        info = b"".join(
            struct.pack("<BBHIHHI", 4, 0x17, 12, 0, i, offset, self.params[i].size << 18 | 0x1F000)
            for i, (_, _, offset) in reversed(list(enumerate(rows)))
        )
        info += struct.pack("<BBH", 3, 0x1B, 0xFF)
        if rows:
            info += struct.pack("<BBH", 3, 0x19, end) + struct.pack("<BBHIHH", 4, 0x0A, 8, 1, base, end)
        usage = b"".join(
            struct.pack("<BBHII", 4, attribute, 8, symbol, value)
            for symbol in range(1, 2 + len(self.twins))
            for attribute, value in ((0x2F, self.registers), (0x11, self.stack), (0x12, self.stack))
        )
        options = f"-v -arch {self.target} " if self.options is None else self.options
        accelerator = int(self.target.endswith("a")) if self.accelerator is None else self.accelerator
        words = struct.pack(f"<{len(self.record)}I", *self.record) if self.record else b""
        shared = self.static_shared + (1024 if major >= 9 else 0)
        sections: list[tuple[str, int, bytes]] = [
            ("", 0, b""),
            (f".text.{self.entry}", 1, self.code),
            (".nv.constant3", 1, words),
            (".note.nv.tkinfo", 7, _note(self.version, options)),
            (".nv.info", 0x70000000, usage),
            (f".nv.info.{self.entry}", 0x70000000, info),
            (".nv.compat", 0x70000086, bytes((2, 9, accelerator, 0, 2, 2, 2, 0))),
            *self.extra,
        ]
        symbols = [("", 0, 0, 0, 0, 0), (self.entry, 0x12, 0x10, 1, 0, len(self.code))]
        for twin in self.twins:
            symbols.append((twin, 0x12, 0x10, len(sections), 0, len(self.code)))
            sections += [(f".text.{twin}", 1, self.code), (f".nv.info.{twin}", 0x70000000, info)]
        if self.record:
            symbols.append(("ws_record", 1, 0, 2, 0, len(words)))
        flags = 0x6000002 | number << 8 if self.flags is None else self.flags
        sizes = {f".nv.shared.{self.entry}": shared} if self.static_shared else {}
        return _elf(flags, [s for s in sections if s[0] not in self.skip], symbols, sizes)


def _note(version: str, options: str) -> bytes:
    strings, offsets = b"", []
    for text in ("", "ptxas", f"Cuda compilation tools, release 13.5, V{version}", "a branch", options):
        offsets.append(len(strings))
        strings += text.encode() + b"\0"
    body = struct.pack("<6I", 2, *offsets) + strings
    return struct.pack("<3I", 12, len(body), 2000) + b"NVIDIA Corp\0" + body + b"\0" * (-len(body) % 4)


def _strings(names: Sequence[str]) -> tuple[bytes, dict[str, int]]:
    text, offsets = b"\0", {"": 0}
    for name in names:
        if name not in offsets:
            offsets[name] = len(text)
            text += name.encode() + b"\0"
    return text, offsets


def _elf(
    flags: int,
    sections: list[tuple[str, int, bytes]],
    symbols: list[tuple[str, int, int, int, int, int]],
    nobits: Mapping[str, int],
) -> bytes:
    text, offsets = _strings([s[0] for s in symbols])
    table = b"".join(struct.pack("<IBBHQQ", offsets[n], *rest) for n, *rest in symbols)
    rows = [*sections, (".strtab", 3, text), (".symtab", 2, table)]
    rows += [(name, 8, b"") for name in nobits]
    names, offsets = _strings([*(r[0] for r in rows), ".shstrtab"])
    rows.append((".shstrtab", 3, names))
    body, headers = b"", b""
    places: dict[bytes, int] = {}  # sections with the same bytes share them
    for name, kind, data in rows:
        place = places.setdefault(data, 64 + len(body))
        body += data if place == 64 + len(body) else b""
        size = nobits.get(name, len(data))
        headers += struct.pack("<IIQQQQIIQQ", offsets[name], kind, 0, 0, place, size, 0, 0, 1, 0)
    ident = b"\x7fELF\x02\x01\x01\x41\x08" + b"\0" * 7
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 2, 190, 1, 0, 0, 64 + len(body), flags, 64, 0, 0, 64, len(rows), len(rows) - 1
    )
    return header + body + headers


def sources(monkeypatch: pytest.MonkeyPatch, text: str = "// scale\n") -> None:
    """Give the synthetic catalog's kernels their source."""
    monkeypatch.setattr(source, "kernel_sources", lambda: {"scale.cuh": text})
    source._digest.cache_clear()


def entry_of(catalog: Catalog, cubin: CubinId, fake: FakeCubin, **changes: object) -> tuple[CubinEntry, bytes]:
    """A cubin and the manifest's entry that describes it truly."""
    data = fake.file()
    kernel = catalog.kernel(cubin.kernel)
    record = fake.record or (0,) * 8
    entry = CubinEntry(
        kernel=cubin.kernel,
        variant=cubin.variant,
        module=kernel.module,
        entry=kernel.entry,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        source_digest=source.source_digest(catalog, cubin.kernel, cubin.variant),
        registers=fake.registers,
        stack=fake.stack,
        static_shared=fake.static_shared,
        dynamic_shared=record[1],
        threads=record[2],
        flags=record[4],
        params=layout(kernel.params, PARAM_BASE[cubin.target.capability.major]),
        instructions=(("FADD", 3), ("EXIT", 1)),
    )
    return replace(entry, **changes), data  # type: ignore[arg-type]  # tests change any field


def fake_for(catalog: Catalog, cubin: CubinId) -> FakeCubin:
    """A cubin that is what the catalog asks for, with code of its own."""
    kernel = catalog.kernel(cubin.kernel)
    code = hashlib.sha256(str(cubin).encode()).digest() * 4
    return FakeCubin(target=str(cubin.target), entry=kernel.entry, params=kernel.params, code=code)


def parts(
    target: Target, selection: Selection | None = None, catalog: Catalog = CATALOG
) -> tuple[Manifest, dict[str, bytes]]:
    """Manifest and cubins of a whole, sound bundle."""
    chosen = selection or Selection()
    entries, cubins = [], {}
    for cubin in plan(catalog, [target], chosen).cubins:
        entry, data = entry_of(catalog, cubin, fake_for(catalog, cubin))
        entries.append(entry)
        cubins[entry.sha256] = data
    manifest = Manifest(
        target=target,
        package_version="0.1.0",
        min_driver=13000,
        toolchain="nvrtc 13.5.37",
        selection=chosen,
        catalog_digest="ab" * 32,
        cubins=tuple(entries),
    )
    return manifest, cubins


def sample_bundle(out: Path, target: Target, selection: Selection | None = None) -> Bundle:
    """A sound bundle on the disk."""
    return open_bundle(write_bundle(out, *parts(target, selection)))
