# SPDX-License-Identifier: Apache-2.0
"""What a machine does with bundles' wheels: opens, audits and resolves them, and says so as JSON.

``python foreign_host.py WHEEL…``: needs nothing but Python and Warpsmith's sources, on whatever processor.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from pathlib import Path

from warpsmith.bundle.audit import audit
from warpsmith.bundle.reader import open_bundle
from warpsmith.catalog import CATALOG
from warpsmith.catalog.plan import probe_problems
from warpsmith.catalog.resolve import DeviceFacts
from warpsmith.runtime.kernels import Runtime
from warpsmith.settings import Settings


def main() -> None:
    """Look at every wheel."""
    started = time.monotonic()
    paths = [Path(argument) for argument in sys.argv[1:]]
    bundles = [open_bundle(path) for path in paths]
    findings = audit(bundles, None, CATALOG)
    state = hashlib.sha256()
    for bundle in bundles:
        for entry in bundle.manifest.cubins:
            state.update(bundle.cubin(entry))
    runtime = Runtime(Settings(bundle_path=tuple(paths), jit=False), CATALOG, installed=list)
    chosen = {}
    for capability in sorted({c for b in bundles for c in b.manifest.target.serves}):
        found = set()
        for operation in CATALOG.operations:
            for format in operation.formats:
                for problem in probe_problems(operation, format):
                    found.add(str(runtime.decide(problem, DeviceFacts(capability, 48, 13000)).choice))
        chosen[str(capability)] = sorted(found)
    decisions = json.dumps(chosen, sort_keys=True).encode()
    said = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "wheels": [path.name for path in paths],
        "cubins": sum(len(b.manifest.cubins) for b in bundles),
        "findings": [f.as_json() for f in findings],
        "kernels": {capability: len(names) for capability, names in chosen.items()},
        "missing": sum("None" in names for names in chosen.values()),
        "cubins_sha256": state.hexdigest(),
        "decisions_sha256": hashlib.sha256(decisions).hexdigest(),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
