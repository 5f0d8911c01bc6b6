# SPDX-License-Identifier: Apache-2.0
"""One wheel serves every host: the recorded run of ``scripts/aarch64``, and the same in small where qemu is at hand.

``WARPSMITH_TEST_AARCH64`` names a folder with an aarch64 Python (``$WORK/root`` of ``scripts/aarch64``).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from bundle_samples import parts, sources

from warpsmith.arch import parse
from warpsmith.bundle.writer import write_wheel

ROOT = Path(__file__).parents[2]
PROGRAM = """
import platform, sys
from pathlib import Path
from warpsmith.bundle.elf import read_cubin
from warpsmith.bundle.reader import open_bundle

bundle = open_bundle(Path(sys.argv[1]))
cubins = [read_cubin(bundle.cubin(entry)) for entry in bundle.manifest.cubins]
print(platform.machine(), len(cubins), *sorted({str(c.target) for c in cubins}))
"""


def test_the_recorded_run_says_the_same_on_both_hosts() -> None:
    record = json.loads((ROOT / "docs" / "aarch64.json").read_text(encoding="utf-8"))
    here, there = record["host"], record["aarch64"]
    assert (there["machine"], there["findings"], there["missing"]) == ("aarch64", [], 0)
    for name in ("wheels", "cubins", "kernels", "cubins_sha256", "decisions_sha256"):
        assert here[name] == there[name]


def test_an_aarch64_python_reads_a_wheel_made_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    root = Path(os.environ.get("WARPSMITH_TEST_AARCH64") or tmp_path)
    python = root / "usr" / "bin" / "python3"
    if qemu is None or not python.exists():
        pytest.skip("no qemu-user, or no aarch64 Python in WARPSMITH_TEST_AARCH64")
    sources(monkeypatch)
    wheel = write_wheel(tmp_path, *parts(parse("12.1")))
    command = [qemu, "-L", str(root), str(python), "-B", "-c", PROGRAM, str(wheel)]
    environment = {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == "aarch64 8 sm_121a\n", done.stderr
