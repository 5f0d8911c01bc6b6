# SPDX-License-Identifier: Apache-2.0
"""Tuning tables from timings: only where another tile saves time, and the chooser follows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from warpsmith.arch import Capability
from warpsmith.bench.gemm import DEFAULT, GAIN, WEIGHTS, Timed, faster
from warpsmith.bench.gemm_peers import FP8_BLOCKS, FP8_WHOLE, SAME, Operands, _same_scales
from warpsmith.bench.report import render
from warpsmith.bench.result import Result, Row
from warpsmith.catalog import CATALOG
from warpsmith.catalog.resolve import DeviceFacts
from warpsmith.cli.app import app
from warpsmith.runtime.kernels import Runtime
from warpsmith.settings import Settings
from warpsmith.tuning import Bound, Rule, dump

SPARK = Capability(12, 1)
KERNEL = "sm12x_blockscaled_gemm"
FIELDS = (("format", "nvfp4_x_nvfp4"), ("layout", "tiled"), ("mode", "dense"))


def timed(tile: str, m: int, microseconds: float, chosen: bool = False, n: int = 4096) -> Timed:
    return Timed(KERNEL, tile, FIELDS, m, n, 4096, microseconds, chosen)


MEASURED = [
    timed("s8", 8, 10.0, chosen=True),
    timed("s16", 8, 10.0 * (1 - GAIN / 2)),
    timed("s64", 64, 20.0, chosen=True),
    timed("t128", 64, 15.0),
    timed("s32", 64, 18.0),
    timed("t128", 64, 9.0, chosen=True, n=8192),
    timed("s64", 64, 12.0, n=8192),
]


def test_a_rule_is_made_where_a_tile_saves_time_and_nowhere_else() -> None:
    (rule,) = faster(MEASURED, SPARK)
    assert (rule.kernel, rule.tile, rule.capabilities) == (KERNEL, "t128", (SPARK,))
    assert rule.bounds == (Bound(("m",), 9, 64), Bound(("n",), 4096, 4096), Bound(("k",), 4096, 4096))
    assert faster([], SPARK) == ()


def test_a_runtime_that_loads_the_table_follows_it(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(dump(faster(MEASURED, SPARK)), encoding="utf-8")
    tuned = Runtime(Settings(tuning_path=path, cache_dir=tmp_path), CATALOG, installed=list)
    plain = Runtime(Settings(cache_dir=tmp_path), CATALOG, installed=list)
    operation = CATALOG.operation("gemm")
    for m, tile in ((40, "t128"), (8, None), (65, None)):
        problem = operation.problem({"format": "nvfp4_x_nvfp4", "m": m})
        found, before = (r.locate(problem, DeviceFacts(SPARK, 48)).cubin for r in (tuned, plain))
        assert found.variant == (f"nvfp4_x_nvfp4_{tile}" if tile else before.variant)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gemm", "--shapes", "16x7168"], "cannot read '16x7168' as a size; write MxNxK"),
        (["quantize", "--shapes", "1x2x3"], "cannot read '1x2x3' as a size; write MxK"),
        (["gemm", "--formats", "nvfp5"], "unknown format 'nvfp5'"),
        (["quantize", "--tune", "table.json"], "--tune is for gemm"),
        (["dequantize"], "there is no benchmark of 'dequantize'"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(app, ["bench", *arguments, "--json"])
    assert done.exit_code == 2
    assert says in done.output + json.dumps(str(done.exception))


def test_a_run_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from warpsmith.bench.plot import draw

    peers = {"torch.mm bf16": 3.0, "Triton": 2.5}
    rows = tuple(
        Row(format, {"m": m, "n": n, "k": k}, 2.0, 1.0, 4096, peers)
        for format in ("bf16_x_bf16", "nvfp4_x_nvfp4")
        for m, n, k in ((1, *WEIGHTS[0]), (64, *WEIGHTS[0]), (8192, 8192, 8192))
    )
    draw(Result("gemm", "a device", "580", {}, {}, rows), tmp_path / "plot.png")
    for name in ("plot.png", "plot-ratios.png"):
        assert (tmp_path / name).stat().st_size > 1000


def test_default_sizes_are_problems_of_their_formats() -> None:
    known = CATALOG.operation("gemm").formats
    for format, shapes in DEFAULT:
        assert format in known
        assert len(set(shapes)) == len(shapes)
    assert {format: len(shapes) for format, shapes in DEFAULT if format in FP8_WHOLE} == dict.fromkeys(FP8_WHOLE, 8)


@pytest.mark.parametrize("format", FP8_WHOLE)
@pytest.mark.parametrize("fast", [True, False])
def test_scaled_mm_is_given_our_operands_and_their_scales(
    format: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    import warpsmith as ws

    def scaled_mm(a: Any, b: Any, **given: Any) -> Any:
        assert (given["out_dtype"], given["use_fast_accum"]) == (torch.bfloat16, fast)
        assert (a.dtype, b.dtype, a.is_contiguous(), b.t().is_contiguous()) == (torch.float8_e4m3fn,) * 2 + (True, True)
        rows, columns = ((len(a), 1), (1, b.shape[1])) if format == FP8_WHOLE[0] else ((1,), (1,))
        assert (tuple(given["scale_a"].shape), tuple(given["scale_b"].shape)) == (rows, columns)
        product = (a.float() * given["scale_a"]) @ (b.float() * given["scale_b"])
        return given["out"].copy_(product.to(given["out_dtype"]))

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    x, w = (torch.randn(rows, 64, dtype=torch.bfloat16) for rows in (5, 16))
    a, b = (ws.quantize(one, format.partition("_x_")[0]) for one in (x, w))
    out = ws.gemm(a, b)
    sets = [Operands(x, w, a, b, out, torch.empty_like(out))]
    peer = _same_scales(fast, format, sets)
    assert peer is not None
    (call,) = peer.calls
    assert float((call().float() - out.float()).norm() / out.float().norm()) < SAME <= peer.same
    assert _same_scales(fast, FP8_BLOCKS, sets) is None


def test_a_table_of_scaled_products_has_both_peers() -> None:
    rows = [
        Row(FP8_WHOLE[0], {"m": m, "n": 4096, "k": 7168}, 10.0, 8.0, 1 << 20, {
            "torch.mm bf16": 20.0, "torch._scaled_mm": 9.0, "torch._scaled_mm, fp32 sums": 12.0,
        }, {"floor of bytes": 8.0, "floor of operations": 2.0})
        for m in (1, 64)
    ]  # fmt: skip
    text = render(Result("gemm", "a device", "580", {}, {}, tuple(rows)), "bench/x.json")
    assert "**fp8_row × fp8_row**: time over ours in geometric mean:" in text
    assert "torch._scaled_mm 0.90 (0.90 to 0.90, 2 shapes); torch._scaled_mm, fp32 sums 1.20" in text
    assert "| 1×4096×7168 | 10.0 |" in text
    assert "| 0.90 |" in text


def test_a_forced_tile_is_taken_within_the_block_and_not_after(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from warpsmith.ops import state

    monkeypatch.setenv("WARPSMITH_TUNING_PATH", "")
    shared = Runtime(Settings(cache_dir=tmp_path), CATALOG, installed=list)
    monkeypatch.setattr(state, "_runtime", shared)
    problem = CATALOG.operation("gemm").problem({"format": "nvfp4_x_nvfp4", "m": 4096})
    with state.tuned((Rule(KERNEL, "s8"),)):
        assert state.runtime() is not shared
        assert state.runtime().locate(problem, DeviceFacts(SPARK, 48)).cubin.variant == "nvfp4_x_nvfp4_s8"
    assert state.runtime() is shared
