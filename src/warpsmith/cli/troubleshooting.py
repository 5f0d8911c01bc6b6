# SPDX-License-Identifier: Apache-2.0
"""``docs/troubleshooting.md``, from the texts of ``warpsmith doctor`` and of the audit: run this module to print it."""

from __future__ import annotations

import re
import sys

from warpsmith.bundle.audit import FIXES
from warpsmith.cli.diagnoses import DIAGNOSES, Diagnosis

_HEAD = """\
# Troubleshooting

<!-- Generated: python -m warpsmith.cli.troubleshooting > docs/troubleshooting.md -->

`warpsmith doctor` looks at the driver, the devices, the compiler, the bundles and the cache, and says of each thing
that is wrong what to do. It changes nothing, needs no GPU, and ends with status 1 if it found something. Below is
everything that it can say; ⟨names⟩ stand for what is only known then. `warpsmith doctor --json` has the codes too.

A failing operation says the same in its error: a `MissingKernelError` lists every place that was searched, and why
each did not do.
"""
_AUDIT = """\
## What `warpsmith audit` finds

The codes are explained in [bundles.md](bundles.md#audit).

| code | what to do |
| --- | --- |
"""


def render() -> str:
    """The document."""
    parts = [_HEAD, "## What `warpsmith doctor` finds\n", *map(_section, DIAGNOSES.values())]
    rows = "".join(f"| `{code}` | {fix} |\n" for code, fix in sorted(FIXES.items()))
    return "\n".join([*parts, _AUDIT + rows])


def _section(diagnosis: Diagnosis) -> str:
    return (
        f"### {diagnosis.code}\n\n{diagnosis.when}\n\n> {_named(diagnosis.message)}\n\n"
        f"**What to do:** {_named(diagnosis.fix)}.\n"
    )


def _named(text: str) -> str:
    return re.sub(r"\{(\w+)\}", r"⟨\1⟩", text)


if __name__ == "__main__":
    sys.stdout.write(render())
