# SPDX-License-Identifier: Apache-2.0
"""Products by weights prepared for few rows: against float64, and through the public operations."""

from __future__ import annotations

import pytest

from gpu import need_gpu
from warpsmith.arch import Capability, parse
from warpsmith.catalog import CATALOG
from warpsmith.catalog.gemm import FEW_ROWS
from warpsmith.catalog.gemm_mixed_packed import KERNEL
from warpsmith.catalog.spec import CubinId, operands
from warpsmith.evidence.gemm import packed_cases
from warpsmith.evidence.gemm_packed_cases import many_rows_cases
from warpsmith.evidence.verify import verify
from warpsmith.runtime.device import device_facts
from warpsmith.runtime.driver import default_driver
from warpsmith.settings import Settings

need_gpu()


@pytest.fixture(autouse=True)
def hopper() -> None:
    if device_facts(0, default_driver()).capability != Capability(9, 0):
        pytest.skip("the kernel is for 9.0")


@pytest.mark.parametrize("format", FEW_ROWS)
def test_few_rows_are_right_in_every_case(format: str) -> None:
    cases = [c for c in packed_cases(*operands(format)) if c.size.rows <= 16]
    outcomes = verify(CATALOG, Settings.from_environment(), 0, default_driver(), seed=1, cases=cases)
    assert {o.cubin.kernel for o in outcomes} == {"sm90_packed_gemm", "sm90_packed_pair_gemm"}
    assert [m for o in outcomes for m in o.mismatches] == []


def test_many_rows_are_right_in_every_case() -> None:
    cases = list(many_rows_cases())
    outcomes = verify(CATALOG, Settings.from_environment(), 0, default_driver(), seed=1, cases=cases)
    assert {o.cubin for o in outcomes if o.cubin.kernel == KERNEL.name} == {
        CubinId(KERNEL.name, v.name, parse("sm_90a")) for v in KERNEL.variants
    }
    assert [m for o in outcomes for m in o.mismatches] == []


@pytest.mark.parametrize("format", ["nvfp4", "mxfp4"])
@pytest.mark.parametrize(("m", "k"), [(1, 2880), (8, 7168), (16, 7168), (40, 1024), (300, 2880)])
def test_prepared_weights_give_what_the_others_give(format: str, m: int, k: int) -> None:
    torch = pytest.importorskip("torch")
    import warpsmith as ws

    w = ws.quantize(torch.randn(2, 96, k, device="cuda"), format)
    prepared = ws.prepare_weight(w, "bf16", few_rows=True)
    assert (ws.dequantize(prepared) == ws.dequantize(w)).all()
    a = torch.randn(2, m, k, device="cuda", dtype=torch.bfloat16)
    counts = torch.tensor([m, m // 2], device="cuda")
    bias = torch.randn(96, device="cuda")
    for got, want in (
        (ws.gemm(a, x, bias=bias, out_dtype="float32") for x in (prepared, w)),
        (ws.grouped_gemm(a, x, counts=counts, out_dtype="float32")[0] for x in (prepared, w)),
    ):
        assert (got - want).norm() <= 1e-5 * want.norm()


def test_a_captured_call_is_replayed() -> None:
    torch = pytest.importorskip("torch")
    import warpsmith as ws

    prepared = ws.prepare_weight(ws.quantize(torch.randn(256, 512, device="cuda"), "nvfp4"), "bf16", few_rows=True)
    a = torch.randn(3, 512, device="cuda", dtype=torch.bfloat16)
    want, out = ws.gemm(a, prepared), torch.empty(3, 256, device="cuda", dtype=torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ws.gemm(a, prepared, out=out)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, want)
