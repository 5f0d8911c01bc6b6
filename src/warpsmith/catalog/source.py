# SPDX-License-Identifier: Apache-2.0
"""Sources as the compiler sees them: the rendered program, the closure of its headers, and their digest.

The digest is what a bundle's cubins are matched on. It covers the program, every header that it reaches with the name
it is included by, the options and the parameters; not paths, times or versions.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib import resources
from typing import NamedTuple

from warpsmith.catalog.spec import Catalog, Kernel, Param, Variant
from warpsmith.errors import CatalogError

SCHEMA = "warpsmith-source-1"
OPTIONS = ("-std=c++17", "--no-source-include", "--ptxas-options=-v", "--ptxas-options=--warn-on-spills")
"""NVRTC options of every compile, besides the target."""
SOFTWARE_OPTIONS = ("--Ofast-compile=mid",)
"""More where an instruction is made in software: half of the time to compile, and nobody waits for what such a kernel
does. The source's digest is without them: it is that of the kernel which has the instruction."""

PROGRAM_NAME = "warpsmith.cu"
_SOURCE = re.compile(r"[a-z0-9_]+(?:/[a-z0-9_]+)*\.cuh")
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)


class SourceUnit(NamedTuple):
    """A program ready to compile.

    Attributes
    ----------
    program
        Rendered text: macro definitions and one include of the kernel's source.
    headers
        (include name, text) of the closure, sorted by name.
    options
        NVRTC options, without the target.
    digest
        SHA-256 of all of it and of the parameter list, in hex.
    """

    program: str
    headers: tuple[tuple[str, str], ...]
    options: tuple[str, ...]
    digest: str


def digest_parts(parts: Iterable[str | bytes]) -> str:
    """SHA-256 over length-prefixed parts, in hex: no two lists of parts collide by concatenation."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


class _Sources(Mapping[str, str]):
    """The device sources of the package, each read when it is first asked for: a first call needs few of them."""

    def __init__(self) -> None:
        self._root = resources.files("warpsmith") / "kernels"
        self._texts: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        text = self._texts.get(name)
        if text is None:
            if not _SOURCE.fullmatch(name):
                raise KeyError(name)
            try:
                text = self._root.joinpath(*name.split("/")).read_text(encoding="utf-8")
            except (FileNotFoundError, NotADirectoryError):
                raise KeyError(name) from None
            text = self._texts[name] = text.replace("\r\n", "\n")
        return text

    def __iter__(self) -> Iterator[str]:
        pending = [("", self._root)]
        while pending:
            prefix, folder = pending.pop()
            for entry in folder.iterdir():
                if entry.is_dir():
                    pending.append((f"{prefix}{entry.name}/", entry))
                elif entry.name.endswith(".cuh"):
                    yield prefix + entry.name

    def __len__(self) -> int:
        return sum(1 for _ in self)


@lru_cache(maxsize=1)
def kernel_sources() -> Mapping[str, str]:
    """Every device source of the package: include name → text."""
    return _Sources()


def closure(name: str, sources: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The source `name` and all that it includes, directly or not.

    Raises
    ------
    CatalogError
        If an include is not one of the project's own sources (absolute paths and system headers too).
    """
    found: dict[str, str] = {}
    pending = [(name, "the catalog")]
    while pending:
        current, wanted_by = pending.pop()
        if current in found:
            continue
        if current not in sources:
            raise CatalogError(
                f"{wanted_by} includes {current!r}, which is not one of the project's sources; "
                "device code may only include files below warpsmith/kernels"
            )
        found[current] = sources[current]
        pending += [(quoted or angled, current) for quoted, angled in _INCLUDE.findall(sources[current])]
    return tuple(sorted(found.items()))


def render(kernel: Kernel, variant: Variant) -> str:
    """The program of a variant: its macros, then the kernel's source."""
    lines = [f"#define {name} {value}" for name, value in variant.macros]
    return "\n".join([*lines, f'#include "{kernel.source}"', ""])


def source_unit(kernel: Kernel, variant: Variant, sources: Mapping[str, str] | None = None) -> SourceUnit:
    """Render a variant and digest everything that its cubin is made from."""
    unit = _unit(render(kernel, variant), kernel.source, kernel.entry, kernel.params, sources)
    return unit._replace(options=unit.options + SOFTWARE_OPTIONS) if kernel.emulates else unit


def _unit(
    program: str, source: str, entry: str, params: tuple[Param, ...], sources: Mapping[str, str] | None = None
) -> SourceUnit:
    headers = closure(source, kernel_sources() if sources is None else sources)
    parts = [SCHEMA, PROGRAM_NAME, program, str(len(headers))]
    for name, text in headers:
        parts += [name, text]
    parts += [entry, str(len(OPTIONS)), *OPTIONS]
    for param in params:
        parts += [param.name, param.ctype]
    return SourceUnit(program, headers, OPTIONS, digest_parts(parts))


@lru_cache(maxsize=4096)
def _digest(program: str, source: str, entry: str, params: tuple[Param, ...]) -> str:
    return _unit(program, source, entry, params).digest


def source_digest(catalog: Catalog, kernel: str, variant: str) -> str:
    """The digest of a variant's source, as a bundle's manifest carries it."""
    row = catalog.kernel(kernel)
    program = render(row, row.variant(variant))
    return _digest(program, row.source, row.entry, row.params)  # not of the rows: these take long to hash
