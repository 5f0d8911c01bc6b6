# SPDX-License-Identifier: Apache-2.0
"""What a first call does not do, and the script that times what it does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bundle_samples import parts

from warpsmith.arch import parse
from warpsmith.bundle.writer import write_bundle
from warpsmith.catalog import CATALOG

SCRIPT = Path(__file__).parents[2] / "scripts" / "first_call.py"
PARTS = ("bundle.signature", "bundle.audit", "compiler.build", "ops.loading", "ops.multiplication", "ops.warming")
NEEDLESS = (*(f"warpsmith.{part}" for part in PARTS), "cryptography", "torch")
PROGRAM = f"""
import sys, warpsmith as ws
ws.quantize
from warpsmith.ops.state import runtime
runtime().places()
print(sorted(set(sys.modules).intersection({NEEDLESS})))
"""


def test_what_a_first_call_does_not_need_is_not_imported() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_script_times_each_part(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", *parts(parse("sm_90a"), catalog=CATALOG))
    command = [sys.executable, str(SCRIPT), str(bundle), "--processes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {row["part"]: row["median_ms"] for row in map(json.loads, done.stdout.splitlines())}
    assert list(found)[-1] == "all"
    assert abs(sum(found.values()) - 2 * found["all"]) < 0.1
