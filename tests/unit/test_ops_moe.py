# SPDX-License-Identifier: Apache-2.0
"""The MoE operations on the host, and everything that they refuse."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import warpsmith as ws
from warpsmith.errors import FormatError, InvalidArgumentError, WarpsmithError
from warpsmith.ops.moe_args import CHUNK, Layer, buffers, permute_launch, route_launch
from warpsmith.reference import moe

E, H, INNER = 4, 32, 64


def draw(*shape: int, dtype: Any = np.float16, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) / 4).astype(dtype)


def experts(**options: Any) -> ws.Experts:
    return ws.Experts(draw(E, 2 * INNER, H, seed=1), draw(E, H, INNER, seed=2), **options)


TOP2 = ws.Routing("topk_softmax", 2)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_numpy_and_torch_on_the_cpu_give_the_reference(dtype: Any) -> None:
    torch = pytest.importorskip("torch")
    x, logits = draw(7, H, dtype=dtype), draw(7, E, dtype=np.float32, seed=3)
    w13, w2 = draw(E, 2 * INNER, H, dtype=dtype, seed=1), draw(E, H, INNER, dtype=dtype, seed=2)
    got = ws.fused_moe(x, logits, ws.Experts(w13, w2), TOP2)
    assert (got.shape, got.dtype) == ((7, H), np.dtype(dtype))
    ids, weights = moe.route(logits, 2, "topk_softmax")
    name = "fp16" if dtype is np.float16 else "bf16"
    want = moe.fused_moe(x, w13, w2, ids, weights, between=moe.rounding(name))
    assert np.linalg.norm(got.astype(np.float64) - want) < 4e-3 * np.linalg.norm(want)

    def tensor(a: np.ndarray) -> Any:
        return torch.from_numpy(a) if a.dtype != ml_dtypes.bfloat16 else torch.from_numpy(a.view(np.int16)).view(
            torch.bfloat16
        )  # fmt: skip

    again = ws.fused_moe(tensor(x), tensor(logits), ws.Experts(tensor(w13), tensor(w2)), TOP2)
    np.testing.assert_array_equal(again.float().numpy(), got.astype(np.float32))


def test_chosen_experts_and_out_and_few_tokens() -> None:
    x, logits, layer = draw(5, H), draw(5, E, dtype=np.float32, seed=3), experts()
    ids, weights = ws.route(logits, TOP2)
    whole, out = ws.fused_moe(x, logits, layer, TOP2), np.empty_like(x)
    assert ws.fused_moe(x, None, layer, None, ids=ids, weights=weights, out=out) is out
    np.testing.assert_array_equal(out, whole)
    part = ws.fused_moe(x, logits, layer, TOP2, num_tokens=np.array([2], np.int32))
    np.testing.assert_array_equal(part[:2], whole[:2])
    assert (part[2:] == 0).all()
    assert ws.fused_moe(x[:0], logits[:0], layer, TOP2).shape == (0, H)
    ids[0] = (-1, 2**31 - 1)
    assert (ws.fused_moe(x, None, layer, None, ids=ids, weights=weights)[0] == 0).all()


def test_pieces() -> None:
    x, logits = draw(5, H), draw(5, E, dtype=np.float32, seed=3)
    ids, weights = ws.route(logits, TOP2, num_tokens=np.array([4], np.int32))
    assert ids[4].tolist() == [-1, -1]
    assert weights[4].tolist() == [0, 0]
    made = ws.moe_permute(ids, E, x=x)
    assert made.offsets[-1] == 8
    np.testing.assert_array_equal(made.gathered[:8], x[made.rows[:8] // 2])
    whole = ws.moe_combine(made.gathered, weights, made.positions)
    np.testing.assert_allclose(whole.astype(np.float64)[:4], x[:4] * weights[:4].sum(1, keepdims=True), rtol=4e-3)
    ones = ws.moe_combine(made.gathered, None, made.positions, top_k=2)
    np.testing.assert_allclose(ones[:4].astype(np.float64), 2 * x[:4].astype(np.float64), rtol=1e-3)


def quantized(format: str, *shape: int, **options: Any) -> ws.QTensor:
    return ws.quantize(draw(*shape, dtype=np.float32), format, **options)


def bad_experts() -> dict[str, tuple[Any, type[WarpsmithError], str]]:
    w13, w2 = draw(E, 2 * INNER, H), draw(E, H, INNER)
    return {
        "rows": (lambda: ws.Experts(w13[:, :-8], w2), FormatError, r"\[4, 120, 32\] and w2 \[4, 32, 64\]; expected"),
        "hidden": (lambda: ws.Experts(w13[..., :16], w2), FormatError, "w13 has shape"),
        "count": (lambda: ws.Experts(w13[:3], w2), FormatError, "w13 has shape"),
        "dims": (lambda: ws.Experts(w13[0], w2), FormatError, "three dimensions"),
        "no tensor": (lambda: ws.Experts([1], w2), FormatError, "w13 is list"),
        "empty": (lambda: ws.Experts(w13[:0], w2[:0]), FormatError, "none 0"),
        "dtype": (lambda: ws.Experts(w13.astype(np.float32), w2), FormatError, "w13 is float32"),
        "mixed": (lambda: ws.Experts(w13, w2.astype(ml_dtypes.bfloat16)), FormatError, "expected one format"),
        "gateless": (lambda: ws.Experts(w13, w2, activation="relu2"), FormatError, r"expected \[E, I, H\]"),
        "activation": (lambda: ws.Experts(w13, w2, activation="swish"), InvalidArgumentError, "swiglu_oai"),
        "format": (lambda: ws.Experts(w13, w2, format="mxfp8"), FormatError, "expected activations in fp16"),
        "unknown": (lambda: ws.Experts(w13, w2, format="fp3"), FormatError, "unknown format"),
        "weights": (
            lambda: ws.Experts(quantized("fp8_block", E, 256, 128), quantized("fp8_block", E, 128, 128)),
            FormatError, "no kernel",
        ),
        "tiled": (
            lambda: ws.Experts(
                quantized("mxfp8", E, 128, 64, scale_layout="128x4"), quantized("mxfp8", E, 64, 64)
            ),
            FormatError, "prepare both weights or none|expected linear",
        ),
        "multiple": (lambda: ws.Experts(draw(E, 24, H), draw(E, H, 12)), FormatError, "I = 12 must be a multiple of 8"),
        "bias": (lambda: experts(bias13=draw(E, INNER)), FormatError, r"bias13 is float16 \[4, 64\]"),
        "scale": (lambda: experts(a1=np.ones(1, np.float32)), FormatError, "a1 is a global scale of nvfp4"),
        "scales": (
            lambda: ws.Experts(
                quantized("nvfp4", E, 128, 64), quantized("nvfp4", E, 64, 64), format="nvfp4",
                a2=np.ones(3, np.float32),
            ),
            FormatError, "1 or 4 elements",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", bad_experts())
def test_experts_that_do_not_fit_are_refused(name: str) -> None:
    make, kind, says = bad_experts()[name]
    with pytest.raises(kind, match=says):
        make()


def bad_routings() -> dict[str, tuple[dict[str, Any], str]]:
    return {
        "rule": ({"rule": "best", "top_k": 1}, "sigmoid_bias_grouped"),
        "none": ({"rule": "topk_softmax", "top_k": 0}, "from 1 to 16"),
        "many": ({"rule": "topk_softmax", "top_k": 17}, "from 1 to 16"),
        "scale": ({"rule": "topk_softmax", "top_k": 1, "scale": float("nan")}, "finite"),
        "groups": ({"rule": "sigmoid_bias_grouped", "top_k": 1, "n_group": 2, "topk_group": 3}, "topk_group"),
        "not grouped": ({"rule": "topk_softmax", "top_k": 1, "n_group": 2}, "are for sigmoid_bias_grouped"),
        "bias": ({"rule": "sigmoid_bias_grouped", "top_k": 1, "bias": draw(4)}, "bias is float16"),
    }


@pytest.mark.parametrize("name", bad_routings())
def test_routings_that_do_not_fit_are_refused(name: str) -> None:
    given, says = bad_routings()[name]
    with pytest.raises(InvalidArgumentError, match=says):
        ws.Routing(**given)


def bad_calls() -> dict[str, tuple[Any, str]]:
    x, logits, layer = draw(5, H), draw(5, E, dtype=np.float32), experts()
    ids, weights = ws.route(logits, TOP2)
    grouped = ws.Routing("sigmoid_bias_grouped", 3, n_group=2, topk_group=1)
    biased = ws.Routing("sigmoid_bias_grouped", 1, bias=draw(3, dtype=np.float32))
    return {
        "tokens": (lambda: ws.fused_moe(x[:4], logits, layer, TOP2), "x has 4 tokens, and 5 were routed"),
        "hidden": (lambda: ws.fused_moe(x[:, :16], logits, layer, TOP2), "16 columns and the experts H = 32"),
        "x": (lambda: ws.fused_moe(x.astype(np.float32), logits, layer, TOP2), "x is float32"),
        "type": (lambda: ws.fused_moe(x.astype(ml_dtypes.bfloat16), logits, layer, TOP2), "convert one"),
        "logits": (lambda: ws.fused_moe(x, logits.astype(np.float64), layer, TOP2), "router_logits is float64"),
        "fewer": (lambda: ws.fused_moe(x, logits[:, :3], layer, TOP2), "more than the 3 that are routed to"),
        "top_k": (lambda: ws.route(logits, ws.Routing("topk_softmax", 5)), "more than the 4 experts"),
        "group": (lambda: ws.route(logits, grouped), "more than the 2 experts of 1 groups"),
        "uneven": (
            lambda: ws.route(logits, ws.Routing("sigmoid_bias_grouped", 1, n_group=3)), "4 experts in 3 groups",
        ),
        "bias": (lambda: ws.route(logits, biased), "bias has 3 elements; expected 4"),
        "experts": (lambda: ws.route(draw(1, 513), TOP2), "513 experts; expected 1 to 512"),
        "routing": (lambda: ws.route(logits, "topk_softmax"), "expected a warpsmith.Routing"),
        "layer": (lambda: ws.fused_moe(x, logits, (1, 2), TOP2), "expected a warpsmith.Experts"),
        "both": (lambda: ws.fused_moe(x, logits, layer, TOP2, ids=ids, weights=weights), "in their place"),
        "neither": (lambda: ws.fused_moe(x, None, layer, TOP2), "in their place"),
        "no weights": (lambda: ws.fused_moe(x, None, layer, None, ids=ids), "in their place"),
        "ids": (lambda: ws.fused_moe(x, None, layer, None, ids=ids.astype(np.int64), weights=weights), "ids is int64"),
        "weights": (lambda: ws.fused_moe(x, None, layer, None, ids=ids, weights=weights[:4]), "weights is float32"),
        "offset": (lambda: ws.fused_moe(x, logits, layer, TOP2, expert_offset=-1), "expert_offset is -1"),
        "slice": (lambda: ws.fused_moe(x, logits, layer, TOP2, expert_offset=1), "from expert_offset 1 on"),
        "count": (lambda: ws.fused_moe(x, logits, layer, TOP2, num_tokens=3), "num_tokens is int"),
        "out": (lambda: ws.fused_moe(x, logits, layer, TOP2, out=draw(5, 16)), "out is float16"),
        "workspace": (lambda: ws.fused_moe(x, logits, layer, TOP2, workspace=x), "leave it out on the host"),
        "sorted": (lambda: ws.moe_permute(ids.astype(np.int64), E), "ids is int64"),
        "local": (lambda: ws.moe_permute(ids, 0), "0 local experts"),
        "gather": (lambda: ws.moe_permute(ids, E, x=x[:3]), r"shape \[3, 32\]; expected \[5"),
        "columns": (lambda: ws.moe_permute(ids, E, x=x[:, :12]), "a multiple of 8"),
        "positions": (lambda: ws.moe_combine(x, weights, np.zeros(9, np.int32)), "9 elements and weights 5 × 2"),
        "no top_k": (lambda: ws.moe_combine(x, None, np.zeros(9, np.int32)), "top_k must divide"),
        "size": (lambda: ws.moe_workspace(-1, layer, 2), "tokens is -1"),
        "too many": (lambda: ws.moe_workspace(1 << 31, layer, 2), "too many for one call"),
    }  # fmt: skip


@pytest.mark.parametrize("name", bad_calls())
def test_arguments_that_do_not_fit_are_refused(name: str) -> None:
    call, says = bad_calls()[name]
    with pytest.raises(InvalidArgumentError, match=says):
        call()


def test_two_devices_are_refused() -> None:
    torch = pytest.importorskip("torch")
    layer = ws.Experts(torch.zeros(E, 2 * INNER, H).half(), torch.zeros(E, H, INNER).half())
    with pytest.raises(FormatError, match="the experts are on cpu and x on numpy"):
        ws.fused_moe(draw(5, H), draw(5, E, dtype=np.float32), layer, TOP2)
    with pytest.raises(FormatError, match="x is on numpy and what was routed on cpu"):
        ws.fused_moe(draw(5, H), torch.zeros(5, E), experts(), TOP2)


def test_a_workspace_never_shrinks_as_tokens_grow() -> None:
    for layer in (experts(), ws.Experts(quantized("mxfp8", E, 128, 64), quantized("mxfp8", E, 64, 64), format="mxfp8")):
        sizes = [ws.moe_workspace(tokens, layer, 3) for tokens in (0, 1, 2, 63, 64, 1000, 20000, 1 << 20)]
        assert sizes == sorted(sizes)


def test_buffers_do_not_overlap_but_for_y_and_a() -> None:
    at = buffers(Layer(1000, 16, 256, 512, 8, 2, "mxfp8"))
    starts = list(at)
    assert starts == sorted(starts)
    assert all(start % 256 == 0 for start in starts)
    assert at.y == at.a


def test_grids() -> None:
    assert route_launch(17, 8, row_bytes=16, top_k=2, rule=0).grid == (2, 1, 1)
    assert route_launch(17, 8, row_bytes=16, top_k=2, rule=0, sorts=True).grid == (1, 1, 1)
    assert permute_launch(CHUNK + 1, top_k=2, experts=8).grid == (2, 1, 1)
    assert permute_launch(8, top_k=8, experts=8, row=4096, x_row=4096).grid == (1, 1, 1)
    assert permute_launch(CHUNK, top_k=8, experts=8, row=4096, x_row=4096).grid == (1, 32, 1)
    assert permute_launch(100 * CHUNK, top_k=8, experts=8, row=4096, x_row=4096).grid == (100, 2, 1)
