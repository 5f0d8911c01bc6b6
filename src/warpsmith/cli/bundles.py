# SPDX-License-Identifier: Apache-2.0
"""Opening the bundles that a command names; one that cannot be opened is a finding, the others still count."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from warpsmith.bundle.audit import unreadable
from warpsmith.bundle.manifest import MANIFEST
from warpsmith.bundle.reader import Bundle, open_bundle, open_bundles
from warpsmith.catalog.spec import Finding
from warpsmith.errors import BundleError, InvalidArgumentError

BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle's directory, a wheel, or a directory of bundles.")
]


def open_all(path: Path) -> tuple[list[Bundle], list[Finding]]:
    """The bundles at a path, and a finding for each that cannot be opened.

    Raises
    ------
    InvalidArgumentError
        If there is nothing at the path.
    """
    try:
        return list(open_bundles(path)), _headless(path)
    except BundleError as error:
        if not path.exists():
            raise InvalidArgumentError(str(error)) from error
        if not path.is_dir() or (path / MANIFEST).exists():
            return [], [unreadable(path, error)]
        reason = error
    bundles: list[Bundle] = []
    findings = _headless(path)
    for child in sorted(path.iterdir()):
        if child.suffix == ".whl" or (child / MANIFEST).exists():
            try:
                bundles.append(open_bundle(child))
            except BundleError as error:
                findings.append(unreadable(child, error))
    return bundles, findings or [unreadable(path, reason)]


def _headless(path: Path) -> list[Finding]:
    """Bundles in a directory of bundles that have lost their manifest, and would be passed over."""
    if not path.is_dir() or (path / MANIFEST).exists():
        return []
    lost = [p for p in sorted(path.iterdir()) if (p / "cubins").is_dir() and not (p / MANIFEST).exists()]
    return [unreadable(p, BundleError(f"{p} has cubins, but no {MANIFEST}")) for p in lost if p.name[0] != "."]
