# SPDX-License-Identifier: Apache-2.0
"""The last result of the long tests is there, is large enough, and found nothing."""

from __future__ import annotations

import json
from pathlib import Path

RECORD = json.loads((Path(__file__).parents[2] / "docs" / "soak.json").read_text(encoding="utf-8"))


def test_a_million_inputs_were_read_and_refused_deliberately() -> None:
    fuzzed = RECORD["fuzzing"]
    assert set(fuzzed) == {"manifest", "cubin", "wheel", "directory", "models"}
    assert sum(f["inputs"] for f in fuzzed.values()) >= 1_000_000
    for found in fuzzed.values():
        assert found["accepted"] + found["refused"] == found["inputs"]
        assert sum(found["errors"].values()) == found["refused"]
        assert found["accepted"] > 0
        assert found["peak_mib"] < 1024


def test_builders_and_workers_were_killed_fifty_times_each() -> None:
    assert {what: found["killed"] for what, found in RECORD["kills"].items()} == {"builder": 50, "worker": 50}


def test_processes_that_started_at_once_touched_nothing() -> None:
    started = {s["processes"]: s for s in RECORD["starting"]}
    assert 64 in started
    assert all((s["touched"], s["changed"]) == ([], False) for s in started.values())
    assert len({s["kernels"] for s in started.values()}) == 1
