# SPDX-License-Identifier: Apache-2.0
"""What a benchmark run returns: rows with their floors and peers, and where they were measured."""

from __future__ import annotations

import datetime
import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from warpsmith.errors import InvalidArgumentError

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes
    ----------
    name
        What was measured.
    shape
        Its sizes.
    microseconds
        Median time.
    floor
        The larger of bytes over copy bandwidth and operations over their unit's rate, in microseconds.
    bytes
        Bytes that have to move.
    peers
        Name → median time of the same work by someone else's code, in the same run.
    details
        Further figures of the same measurement, each with its own unit: the second floor, a difference.
    """

    name: str
    shape: dict[str, int]
    microseconds: float
    floor: float = 0.0
    bytes: int = 0
    peers: dict[str, float] = field(default_factory=dict)
    details: dict[str, float] = field(default_factory=dict)

    @property
    def best_peer(self) -> tuple[str, float] | None:
        """The fastest peer, or None."""
        return min(self.peers.items(), key=lambda item: item[1]) if self.peers else None


@dataclass(frozen=True)
class Result:
    """A benchmark run."""

    operation: str
    device: str
    driver: str
    versions: dict[str, str]
    ceilings: dict[str, float]
    rows: tuple[Row, ...]
    date: str = ""
    notes: tuple[str, ...] = ()
    clocks: str = ""

    def to_json(self) -> str:
        """The run as JSON text."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n"


def environment() -> tuple[str, str, dict[str, str], str, str]:
    """Device name, driver version, versions of what took part, today's date, power limit and clocks."""
    import torch

    from warpsmith import __version__

    versions = {"warpsmith": __version__, "torch": torch.__version__, "python": platform.python_version()}
    for name in ("triton", "flashinfer"):
        try:
            versions[name] = __import__(name).__version__
        except Exception as error:
            versions[name] = f"not available ({type(error).__name__})"
    driver = _asked("driver_version")
    limits = _asked("power.limit,clocks.max.sm,clocks.max.mem").split(", ")
    clocks = "power limit {}, at most {} (SM) and {} (memory)".format(*limits) if len(limits) == 3 else "unknown"
    return torch.cuda.get_device_name(), driver, versions, datetime.date.today().isoformat(), clocks


def _asked(fields: str) -> str:
    """What nvidia-smi says about the GPU that torch uses."""
    import subprocess

    import torch

    uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", f"GPU-{uuid}"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip()


def read(path: Path) -> Result:
    """Read a run that `Result.to_json` wrote."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if document.pop("schema", None) != SCHEMA:
        raise InvalidArgumentError(f"{path} is no benchmark run of schema {SCHEMA}")
    rows = tuple(Row(**row) for row in document.pop("rows"))
    return Result(rows=rows, notes=tuple(document.pop("notes", ())), **document)
