# SPDX-License-Identifier: Apache-2.0
"""Names of compiled things that follow from their inputs alone: no paths, no times."""

from __future__ import annotations

from warpsmith.arch import Target
from warpsmith.catalog.source import PROGRAM_NAME, SourceUnit, digest_parts, source_digest
from warpsmith.catalog.spec import Catalog

SCHEMA = "warpsmith-cubin-1"


def compile_key(nvrtc_version: str, target: Target, unit: SourceUnit) -> str:
    """The key of a cubin in the compile cache: SHA-256, in hex, of everything that NVRTC is given.

    Parameters
    ----------
    nvrtc_version
        In full, such as ``13.5.37``.
    target
        What it is compiled for.
    unit
        The rendered source with its closure of headers and options.
    """
    return digest_parts([SCHEMA, nvrtc_version, str(target), PROGRAM_NAME, unit.digest, *unit.options])


def catalog_digest(catalog: Catalog) -> str:
    """A digest of the whole catalog, sources included; a manifest carries it to say what it was planned from."""
    sources = [source_digest(catalog, k.name, v.name) for k in catalog.kernels for v in k.variants]
    return digest_parts([repr(catalog), *sources])
