# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have, and how their texts are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from warpsmith.arch import Capability, Target, parse, parse_list
from warpsmith.catalog.selection import Selection
from warpsmith.catalog.shapes import read_models
from warpsmith.catalog.spec import Catalog
from warpsmith.errors import InvalidArgumentError
from warpsmith.settings import Settings

_ARCH_HELP = (
    "Architectures, separated by spaces, commas or semicolons: a capability (12.1), a target (sm_121a, 120f) or a "
    "generation (12x). Default: WARPSMITH_ARCH_LIST."
)

ArchOption = Annotated[str, typer.Option("--arch", help=_ARCH_HELP, show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
ModulesOption = Annotated[str, typer.Option("--modules", help="Only these modules.", show_default="all")]
FormatsOption = Annotated[str, typer.Option("--formats", help="Only these formats.", show_default="all")]
ModelsOption = Annotated[
    Path | None,
    typer.Option("--models", metavar="FILE", help="Only what the shapes in this file reach.", show_default="all"),
]

_PLAIN = re.compile(r"[0-9]+\.?[0-9]")


def words(text: str) -> tuple[str, ...]:
    """The words of a list separated by spaces, commas or semicolons."""
    return tuple(w for w in re.split(r"[\s,;]+", text) if w)


def selection(catalog: Catalog, modules: str, formats: str, models: Path | None) -> Selection:
    """What ``--modules``, ``--formats`` and ``--models`` select.

    Raises
    ------
    InvalidArgumentError
        If the models file cannot be read, or does not fit the catalog.
    """
    if models is None:
        return Selection(words(modules), words(formats))
    try:
        text = models.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"cannot read --models {models}: {error.strerror}") from error
    return Selection(words(modules), words(formats), read_models(text, catalog))


def targets(arch: str, settings: Settings) -> tuple[Target, ...]:
    """The targets that ``--arch`` names.

    Raises
    ------
    InvalidArgumentError
        If neither it nor WARPSMITH_ARCH_LIST names any, or what they name is no target.
    """
    return parse_list(_given(arch, settings))


def capabilities(arch: str, settings: Settings) -> tuple[Capability, ...]:
    """The devices that ``--arch`` means: a plain capability itself, a target or generation all that it serves.

    Raises
    ------
    InvalidArgumentError
        As `targets`.
    """
    found: dict[Capability, None] = {}
    for word in words(_given(arch, settings)):
        target = parse(word)
        served = (target.capability,) if _PLAIN.fullmatch(word) else target.serves
        found.update(dict.fromkeys(served))
    return tuple(found)


def _given(arch: str, settings: Settings) -> str:
    text = arch or settings.arch_list
    if not words(text):
        raise InvalidArgumentError(
            "no architecture was given; write for example --arch '12.0 12.1', or set WARPSMITH_ARCH_LIST"
        )
    return text
