# SPDX-License-Identifier: Apache-2.0
"""Finding installed bundles, by their distributions' own metadata and file lists: no foreign code is imported."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from warpsmith.bundle.manifest import MANIFEST
from warpsmith.bundle.reader import Bundle, open_bundle
from warpsmith.bundle.wheel import ENTRY_POINTS
from warpsmith.errors import BundleError

_PACKAGE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


def installed_bundles(*, lazily: bool = False) -> list[Bundle | BundleError]:
    """Every installed bundle, in the order of their distributions' names; an unusable one as the error that says why.

    A bundle is a distribution with an entry point in the group ``warpsmith.bundles`` whose value is the package folder
    that holds the manifest. `lazily` is as in `open_bundle`.
    """
    points = metadata.entry_points(group=ENTRY_POINTS)
    return [_open(point, lazily) for point in sorted(points, key=lambda p: (_distribution(p), p.name))]


def _open(point: metadata.EntryPoint, lazily: bool) -> Bundle | BundleError:
    where = f"the installed distribution {_distribution(point)}"
    if not _PACKAGE.fullmatch(point.value):
        return BundleError(f"{where} names {point.value!r} as its bundle; expected a package's name")
    wanted = f"{point.value.replace('.', '/')}/{MANIFEST}"
    try:
        for file in (point.dist.files if point.dist is not None else None) or []:
            if file.as_posix() == wanted:
                return open_bundle(Path(str(file.locate())).parent, lazily=lazily)
    except BundleError as error:
        return error
    except (ValueError, OSError) as error:
        return BundleError(f"the file list of {where} cannot be read ({error}): reinstall it with pip")
    return BundleError(f"{where} lists no {wanted} among its files: reinstall it with pip")


def _distribution(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "?"
