# SPDX-License-Identifier: Apache-2.0
"""The ledger: what it refuses, how entries go stale, and that the table says so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from warpsmith.arch import parse
from warpsmith.errors import EvidenceError
from warpsmith.evidence.ledger import COMPILED, EXECUTED, STALE, Entry, Record, merge, read, read_all, standing, write
from warpsmith.evidence.table import BEGIN, END, render, replaced

TARGET = parse("9.0")
ENTRY = Entry("nvfp4_bf16_p1", "a" * 64, EXECUTED, "NVIDIA H200", "CUDA 13.0", "2026-11-22", "abc1234", 45)
RECORD = Record("quantize", TARGET, "nvrtc 13.5.37", (ENTRY,))


def test_a_record_reads_back(tmp_path: Path) -> None:
    path = write(tmp_path, RECORD)
    assert path.name == "quantize.sm_90a.json"
    assert read(path) == RECORD
    assert read_all(tmp_path) == (RECORD,)
    assert read_all(tmp_path / "none") == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "wonderful"}, "wonderful"),
        ({"device": ""}, "without device"),
        ({"cases": 0}, "without device, driver, date and cases"),
        ({"cubin": "abc"}, "64 hexadecimal"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_claim_without_its_proof_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write(tmp_path, RECORD)
    document = json.loads(path.read_text())
    document["entries"][0].update(change)
    path.write_text(json.dumps(document))
    with pytest.raises(EvidenceError, match=message):
        read(path)


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 2}', '{"schema": 1, "entries": []}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(EvidenceError, match=r"x\.json"):
        read(path)


def test_a_changed_cubin_is_stale_and_an_unknown_one_compiled() -> None:
    cubins = [
        ("quantize", "nvfp4_bf16_p1", TARGET, "b" * 64),
        ("quantize", "nvfp4_bf16_p4", TARGET, "c" * 64),
    ]
    (found,) = standing([RECORD], cubins)
    assert dict(found.counts) == {STALE: 1, COMPILED: 1}
    (fresh,) = standing([RECORD], [(*cubins[0][:3], "a" * 64)])
    assert dict(fresh.counts) == {EXECUTED: 1}
    assert (fresh.cases, fresh.devices) == (45, ("NVIDIA H200",))


def test_merging_keeps_runs_drops_what_is_gone_and_takes_what_is_new() -> None:
    gone = dataclasses.replace(ENTRY, variant="gone")
    old = dataclasses.replace(RECORD, entries=(ENTRY, gone))
    compiled = dataclasses.replace(ENTRY, status=COMPILED, cases=0)
    kept = merge(old, dataclasses.replace(RECORD, entries=(compiled,)), {ENTRY.variant: ENTRY.cubin})
    assert kept.entries == (ENTRY,)
    newer = dataclasses.replace(ENTRY, cubin="d" * 64, cases=50)
    assert merge(old, dataclasses.replace(RECORD, entries=(newer,)), {ENTRY.variant: "d" * 64}).entries == (newer,)


def test_the_table_says_executed_stale_and_compiled() -> None:
    executed = render([RECORD], [("quantize", "nvfp4_bf16_p1", TARGET, "a" * 64)])
    assert "**executed**, 45 cases" in executed
    assert "NVIDIA H200" in executed
    stale = render([RECORD], [("quantize", "nvfp4_bf16_p1", TARGET, "b" * 64)])
    assert "stale (1 of 1)" in stale
    assert "**executed**" not in stale
    assert "| `dequantize` | compiled |" in executed


def test_only_the_part_between_the_markers_changes() -> None:
    assert replaced(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"
    with pytest.raises(EvidenceError, match="two markers"):
        replaced(f"{END} {BEGIN}", "new")
