# SPDX-License-Identifier: Apache-2.0
"""Layers with 4-bit weights in the order for few rows: the host's result, what 9.0 launches, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import warpsmith as ws
from warpsmith.errors import FormatError

torch = pytest.importorskip("torch")

TOP2 = ws.Routing("topk_softmax", 2)


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def layers(weights: str, activation: str = "swiglu_oai") -> tuple[ws.Experts, ws.Experts]:
    """As quantized, and prepared."""
    experts, hidden, inner = 3, 128, 64
    w13, w2 = random(experts, 2 * inner, hidden, seed=1) / 6, random(experts, hidden, inner, seed=2) / 6
    bias13, bias2 = random(experts, 2 * inner, seed=3), random(experts, hidden, seed=4)
    plain = [ws.quantize(w, weights) for w in (w13, w2)]
    packed = [ws.prepare_weight(w, "bf16", few_rows=True) for w in plain]
    options = {"activation": activation, "bias13": bias13, "bias2": bias2}
    return ws.Experts(*plain, **options), ws.Experts(*packed, **options)


@pytest.mark.parametrize("weights", ["nvfp4", "mxfp4"])
def test_the_host_computes_the_same(weights: str) -> None:
    plain, packed = layers(weights)
    x, logits = random(5, 128), random(5, 3, seed=9)
    want, got = (ws.fused_moe(x, logits, layer, TOP2) for layer in (plain, packed))
    assert np.array_equal(got.float().numpy(), want.float().numpy())


@pytest.mark.parametrize("weights", ["nvfp4", "mxfp4"])
@pytest.mark.parametrize(
    ("tokens", "kernel"), [(1, "sm90_packed_gemm"), (5, "sm90_packed_gemm"), (300, "sm90_mixed_packed_gemm")]
)
def test_both_products_run_a_kernel_for_such_weights(
    monkeypatch: pytest.MonkeyPatch, weights: str, tokens: int, kernel: str
) -> None:
    from gemm_notes import Notes, without_device

    from warpsmith.ops import cuda_moe_plan

    cuda, notes = without_device(monkeypatch), Notes()
    for module in (cuda, cuda_moe_plan):
        monkeypatch.setattr(module, "runtime", lambda: notes)
    _, packed = layers(weights)
    plan = cuda_moe_plan.make_plan(random(tokens, 128), random(tokens, 3), packed, TOP2, 2, 0)
    for product in (plan.first, plan.second):
        assert product.kernel.cubin.kernel == kernel
        assert product.packed == (tokens == 300)


def test_what_they_are_not_for_is_refused() -> None:
    plain, packed = layers("nvfp4")
    with pytest.raises(FormatError, match="prepare both weights or none"):
        ws.Experts(packed.w13, plain.w2)
    with pytest.raises(FormatError, match="prepared for bf16 activations"):
        ws.Experts(packed.w13, packed.w2, format="nvfp4")
    x = random(5, 128).to(torch.float16)
    with pytest.raises(FormatError, match="few rows of bfloat16"):
        ws.fused_moe(x, random(5, 3), packed, TOP2)
