# SPDX-License-Identifier: Apache-2.0
"""Tables of the documentation: they say what the run says, and the committed ones are those of the committed runs."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from warpsmith.bench.chart import spread
from warpsmith.bench.report import main, render, replaced
from warpsmith.bench.result import Result, Row, read
from warpsmith.errors import InvalidArgumentError

DOCS = Path(__file__).parents[2] / "docs"
WHERE = ("a GPU", "580", {"torch": "2", "flashinfer": "not available (ImportError)"}, {"copy_bytes_per_second": 4.2e12})
GEMM = Result(
    "gemm", *WHERE,
    (
        Row("bf16_x_bf16", {"m": 1024, "n": 1024, "k": 1024}, 10.0, 5.0, 7, {"torch.mm bf16": 9.0, "Triton": 20.0},
            {"floor of bytes": 5.0, "floor of operations": 3.0}),
        Row("bf16_x_bf16", {"m": 1, "n": 1024, "k": 1024}, 2.0, 1.0, 7, {"torch.mm bf16": 4.0}),
        Row("bf16_x_bf16 grouped", {"groups": 2, "rows": 64, "n": 8, "k": 8}, 2.0, 1.0, 7, {}, {"dense": 1.5}),
        Row("host: gemm, out given", {"m": 1, "n": 8, "k": 8}, 15.0, peers={"torch.mm bf16": 10.0}),
    ),
    "2026-01-02", ("Triton, x: slow",), "power limit 700 W",
)  # fmt: skip
TEXT = "before\n<!-- bench/run.json: begin -->\nold\n<!-- bench/run.json: end -->\nafter\n"


def test_products_are_told_with_floors_rates_and_peers() -> None:
    text = render(GEMM, "bench/run.json")
    assert "a GPU, driver 580, power limit 700 W, torch 2. Measured beside it: copy 4.20 TB/s" in text
    assert "| 1024×1024×1024 | 10.0 | 215 | 5.0, 3.0 | 9.0 | 20.0 | 0.90 |" in text
    assert "| 1×1024×1024 | 2.0 | 1 | 1.0 | 4.0 |  | 2.00 |" in text
    assert "cuBLASLt bf16 1.34 (0.90 to 2.00, 2 shapes); Triton 2.00 (2.00 to 2.00, 1 shapes)" in text
    assert "| 2×64×8×8 | 2.0 | 0 | 1.0 | 1.5 | 0.75 |  |" in text
    assert "- Not counted: Triton, x: slow" in text
    assert "Host, a call: 15.0 µs (gemm, out given); 10.0 µs torch.mm bf16." in text


def test_layers_and_blocks_are_told() -> None:
    layers = (
        Row("a bf16", {"tokens": 1}, 10.0, 5.0, 7, {"torch grouped": 25.0}),
        Row("a bf16", {"tokens": 8}, 200.0, 150.0),
        Row("a bf16", {"tokens": 2048}, 400.0, 200.0, 7, {"torch grouped": 600.0}, {"products alone": 300.0}),
        Row("host: a bf16", {"tokens": 1}, 42.0),
    )
    text = render(Result("moe", *WHERE, layers), "bench/moe.json")
    assert "| a bf16 | 10.0 (0.50) 2.50× torch | 200 (0.75) | 400 (0.50) products 0.75 1.50× torch |" in text
    assert "42 to 42 µs" in text
    block = Row(
        "a bf16", {"tokens": 1}, 20.0, peers={"transformers": 50.0},
        details={"difference": 0.004, "in a CUDA graph": 9.0},
    )  # fmt: skip
    assert "| a bf16 | 1 | 50.0 | 20.0 | 2.5 | 9.0 | 4.0e-03 |" in render(Result("blocks", *WHERE, (block,)), "b.json")


def test_parts_are_replaced_and_checked(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/run.json").write_text(GEMM.to_json(), encoding="utf-8")
    assert read(tmp_path / "bench/run.json") == GEMM
    (tmp_path / "page.md").write_text(TEXT + TEXT.replace("run", "missing"), encoding="utf-8")
    drawn: list[Path] = []
    assert main([str(tmp_path), "--check"]) == 1
    assert main([str(tmp_path)], plot=lambda _, path: drawn.append(path)) == 0
    assert drawn == [tmp_path / "bench/run.png"]
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "<!-- bench/missing.json: begin -->\nold\n" in text
    assert text.count("old") == 1
    assert main([str(tmp_path), "--check"]) == 0


def test_a_run_without_a_table_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="quantize"):
        render(Result("quantize", *WHERE, ()), "bench/q.json")


def test_the_committed_tables_are_those_of_the_committed_runs() -> None:
    for path in DOCS.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert replaced(text, DOCS) == text, f"run python -m warpsmith.bench.report {DOCS.name}"


def test_labels_are_moved_apart_in_their_order() -> None:
    places = spread([0.5, 0.5, 0.1, 0.52], 0.1)
    ordered = sorted(places)
    assert all(b - a > 0.099 for a, b in itertools.pairwise(ordered))
    assert places[2] == ordered[0] == 0.1
    assert places[3] == ordered[3]
