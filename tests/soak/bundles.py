# SPDX-License-Identifier: Apache-2.0
"""The long tests: killed builds, fuzzing of every reader, many processes that start at once. Writes the result.

``python bundles.py RESULT.json [INPUTS]``: INPUTS in all, a million if it is not given.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "tests" / "compile")]

import starting  # noqa: E402
import toy_catalog  # noqa: E402
from cryptography.hazmat.primitives import serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: E402

from warpsmith.arch import parse  # noqa: E402
from warpsmith.bundle.signature import SigningKey, read_signing_key  # noqa: E402
from warpsmith.catalog import CATALOG  # noqa: E402
from warpsmith.compiler.build import build  # noqa: E402

SHARES = {"manifest": 0.3, "cubin": 0.3, "packing": 0.1, "wheel": 0.2, "directory": 0.1, "models": 0.15}
PROCESSES = (1, 8, 64)
KILL_ROUNDS = 50


def make_key(folder: Path) -> SigningKey:
    """A key pair."""
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key").write_bytes(private)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub").write_bytes(public)
    return read_signing_key(folder / "key")


def make_seeds(folder: Path) -> None:
    """A small real bundle, its wheel, and a models file."""
    key = make_key(folder)
    with toy_catalog.installed():
        (made,) = build(toy_catalog.CATALOG, [parse("12.1")], folder / "out", signing=key).bundles
        made.rename(folder / "bundle")
        (wheel,) = build(toy_catalog.CATALOG, [parse("12.1")], folder / "out", signing=key, wheel=True).bundles
        wheel.rename(folder / "bundle.whl")
    (folder / "models.json").write_bytes((ROOT / "examples" / "models.json").read_bytes())


def fuzz(name: str, runs: int, folder: Path) -> dict[str, Any]:
    """One reader; a crash, a hang or a leak raises."""
    result = folder / f"{name}.json"
    command = [sys.executable, str(HERE / "fuzz.py"), name, str(runs), str(folder), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not result.exists():
        raise SystemExit(f"fuzzing the {name} reader failed:\n{done.stdout[-2000:]}{done.stderr[-6000:]}")
    found: dict[str, Any] = json.loads(result.read_text())
    print(f"{name}: {found}", file=sys.stderr)
    return found


def kill(rounds: int, folder: Path) -> dict[str, Any]:
    """Builders and single workers killed at random moments: how many were, and how long it took; a failure raises."""
    report = folder / "kills.xml"
    command = [sys.executable, "-m", "pytest", "-q", str(ROOT / "tests" / "compile" / "test_compile_kills.py")]
    command += [f"--kill-rounds={rounds}", f"--junitxml={report}", "-o", "junit_family=legacy"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a killed build was not made good:\n{done.stdout[-6000:]}")
    found: dict[str, Any] = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314
        for what in ("builder", "worker"):
            if case.get("name", "").startswith(f"test_a_{what}_killed"):
                killed = [int(p.get("value", "")) for p in case.iter("property") if p.get("name") == "killed"]
                found[what] = {"killed": killed[0], "seconds": round(float(case.get("time", "nan")), 1)}
    print(f"kills: {found}", file=sys.stderr)
    return found


def main() -> None:
    """Run all of it."""
    out, inputs = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    memory = Path("/dev/shm")  # a file system in memory, if there is one
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = Path(name)
        kills = kill(KILL_ROUNDS, folder)
        make_seeds(folder)
        fuzzed = {reader: fuzz(reader, int(inputs * share), folder) for reader, share in SHARES.items()}
    with tempfile.TemporaryDirectory() as name:
        (bundle,) = build(CATALOG, [parse("12.1")], Path(name)).bundles
        started = [starting.start(bundle, "12.1", count) for count in PROCESSES]
    result = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "kills": kills,
        "fuzzing": fuzzed,
        "inputs": sum(f["inputs"] for f in fuzzed.values()),
        "starting": started,
    }
    wrong = [s for s in started if s["touched"] or s["changed"]]
    out.write_text(json.dumps(result, indent=1) + "\n")
    if wrong:
        raise SystemExit(f"starting wrote or locked something: {wrong}")


if __name__ == "__main__":
    main()
