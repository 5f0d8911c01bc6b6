# SPDX-License-Identifier: Apache-2.0
"""A manifest of which only the head is read at once, and a cubin's entry when it is asked for.

A process that runs a few kernels needs as many of hundreds of entries. Text that is laid out as `Manifest.to_json` lays
it out is cut at the lines between entries; any other is read whole. What is read is held to the same rules as by
`parse_manifest`.
"""

from __future__ import annotations

import re

from warpsmith.bundle.fields import DAMAGED
from warpsmith.bundle.manifest import (
    MAX_CUBINS,
    MAX_MANIFEST_BYTES,
    CubinEntry,
    Manifest,
    Tables,
    parse_entry,
    parse_head,
    parse_manifest,
)
from warpsmith.errors import ManifestError

_START, _BETWEEN, _END = b'\n "cubins": [\n  ', b",\n  ", b"\n ],\n"
_KERNEL = re.compile(rb'"kernel":"([0-9A-Za-z_.,+=:-]{1,200})"')
_VARIANT = re.compile(rb'"variant":"([0-9A-Za-z_.,+=:-]{1,200})"\}(?:,\n|$)')


class Outline:
    """A manifest's head, and its cubins' entries as text.

    Attributes
    ----------
    head
        The manifest as if it listed no cubins.
    """

    def __init__(
        self, text: bytes, head: Manifest, tables: Tables, entries: dict[tuple[str, str], tuple[int, bytes]]
    ) -> None:
        self._text = text
        self._tables = tables
        self._entries = entries
        self.head = head

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, kernel: str, variant: str) -> CubinEntry | None:
        """What the manifest says of a kernel's variant, or None if it does not list it.

        Raises
        ------
        ManifestError
            If the entry is damaged; the message names the field, what was given and what was expected.
        """
        found = self._entries.get((kernel, variant))
        if found is None:
            return None
        index, text = found
        entry = parse_entry(text, f"cubins[{index}]", self._tables)
        if (entry.kernel, entry.variant) != (kernel, variant):
            raise ManifestError(
                f"cubins[{index}]: given {entry.kernel}/{entry.variant}, expected {kernel}/{variant}; {DAMAGED}"
            )
        return entry

    def whole(self) -> Manifest:
        """The manifest with every entry read.

        Raises
        ------
        ManifestError
            As `parse_manifest`.
        """
        return parse_manifest(self._text)


def read_outline(text: bytes) -> Outline | Manifest:
    """Read the head of a manifest; the manifest, if its text is not laid out so that it can be cut.

    Raises
    ------
    ManifestError
        If what was read is damaged, of another schema, or too large.
    """
    before, start, rest = text.partition(_START)
    body, end, after = rest.partition(_END)
    if not start or not end or len(text) > MAX_MANIFEST_BYTES:
        return parse_manifest(text)
    pieces = body.split(_BETWEEN)
    kernels, variants = _KERNEL.findall(body), _VARIANT.findall(body)
    if not len(kernels) == len(variants) == len(pieces) <= MAX_CUBINS:
        return parse_manifest(text)
    names = ((kernel.decode(), variant.decode()) for kernel, variant in zip(kernels, variants, strict=True))
    entries = dict(zip(names, enumerate(pieces), strict=True))
    if len(entries) != len(pieces):
        return parse_manifest(text)
    head, tables = parse_head(before + b'\n "cubins": [],\n' + after)
    return Outline(text, head, tables, entries)
