# SPDX-License-Identifier: Apache-2.0
"""The index of a folder of wheels: what is in each, as JSON for programs and as a table for people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from warpsmith.bundle.files import sync_folder, temporary_name, write_file
from warpsmith.bundle.reader import Bundle, open_bundle
from warpsmith.bundle.wheel import wheel_version
from warpsmith.errors import BundleError

SCHEMA = 1
INDEX_JSON, INDEX_TABLE = "index.json", "index.md"
_WHEELS = "warpsmith_bundle_*.whl"


def write_index(folder: Path) -> dict[str, Any]:
    """Describe every bundle's wheel in a folder, in ``index.json`` and ``index.md`` beside them.

    Returns
    -------
    dict
        What ``index.json`` holds.

    Raises
    ------
    BundleError
        If a wheel cannot be read, or the folder cannot be written.
    """
    wheels = [_wheel(open_bundle(path)) for path in sorted(folder.glob(_WHEELS))]
    document = {"schema": SCHEMA, "wheels": wheels}
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    try:
        for name, data in ((INDEX_JSON, text), (INDEX_TABLE, table(wheels))):
            fresh = folder / temporary_name(f".{name}.new-")
            try:
                write_file(fresh, [data.encode()])
                fresh.replace(folder / name)
            finally:
                fresh.unlink(missing_ok=True)
        sync_folder(folder)
    except OSError as error:
        raise BundleError(f"cannot write the index of {folder}: {error.strerror or error}") from error
    return document


def _wheel(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    try:
        data = bundle.path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {bundle.path}: {error.strerror}") from error
    modules: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for entry in manifest.cubins:
        sizes = {"bytes": entry.size, "stored_bytes": bundle.stored(entry)}
        row = {"variant": entry.variant, **sizes, "sha256": entry.sha256}
        modules.setdefault(entry.module, {}).setdefault(entry.kernel, []).append(row)
    return {
        "file": bundle.path.name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "version": wheel_version(manifest),
        "target": str(manifest.target),
        "serves": [str(capability) for capability in manifest.target.serves],
        "min_driver": manifest.min_driver,
        "toolchain": manifest.toolchain,
        "signed_by": bundle.signer(),
        "selection": manifest.selection.document(),
        "modules": [
            {"name": name, "kernels": [{"name": kernel, "cubins": cubins} for kernel, cubins in kernels.items()]}
            for name, kernels in modules.items()
        ],
    }


def table(wheels: Sequence[dict[str, Any]]) -> str:
    """The index as Markdown: one line a wheel, then one a kernel."""
    lines = [
        "# Wheels",
        "",
        "| wheel | target | runs on | modules | formats | models | cubins | bytes | SHA-256 |",
        "| --- | --- | --- | --- | --- | --- | ---: | ---: | --- |",
    ]
    for wheel in wheels:
        chosen = wheel["selection"]
        models = ", ".join(_cell(model["name"]) for model in chosen.get("models", ()))
        count = sum(len(kernel["cubins"]) for module in wheel["modules"] for kernel in module["kernels"])
        cells = (
            f"`{wheel['file']}`",
            wheel["target"],
            ", ".join(wheel["serves"]),
            ", ".join(chosen["modules"]) or "all",
            ", ".join(chosen["formats"]) or "all",
            models or "all",
            count,
            wheel["bytes"],
            f"`{wheel['sha256']}`",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| wheel | module | kernel | cubins | bytes | stored |", "| --- | --- | --- | ---: | ---: | ---: |"]
    for wheel in wheels:
        for module in wheel["modules"]:
            for kernel in module["kernels"]:
                cubins = {cubin["sha256"]: cubin for cubin in kernel["cubins"]}.values()
                sizes = " | ".join(str(sum(cubin[name] for cubin in cubins)) for name in ("bytes", "stored_bytes"))
                count = len(kernel["cubins"])
                lines.append(f"| `{wheel['file']}` | {module['name']} | {kernel['name']} | {count} | {sizes} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
