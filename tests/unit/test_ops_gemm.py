# SPDX-License-Identifier: Apache-2.0
"""`gemm` and `grouped_gemm` on the host: the reference's result, and an error for whatever does not fit."""

from __future__ import annotations

import importlib.util
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import warpsmith as ws
from warpsmith import reference
from warpsmith.catalog.gemm import PAIRS, k_multiple
from warpsmith.errors import FormatError, InvalidArgumentError

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"bf16": BF16, "fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
FRAMEWORKS = ("numpy", pytest.param("torch", marks=needs_torch))


def give(array: np.ndarray, framework: str) -> Any:
    """The array in a framework, sharing its memory."""
    if framework == "numpy":
        return array
    import torch

    if array.dtype == BF16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def take(array: Any) -> np.ndarray:
    """An array of a framework in float64."""
    return np.asarray(array if isinstance(array, np.ndarray) else array.double().numpy(), np.float64)


def operand(format: str, *shape: int, seed: int, framework: str = "numpy", **options: Any) -> tuple[Any, np.ndarray]:
    """An operand of a format, and its values in float64."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if format in DTYPES:
        plain = values.astype(DTYPES[format])
        return give(plain, framework), plain.astype(np.float64)
    if format == "nvfp4":
        options.setdefault("global_scale", 3.0)
    q = ws.quantize(values, format, **options)
    scale = None if q.global_scale is None else np.asarray(q.global_scale, np.float32)
    exact = reference.decode_float64(
        q.data.view(np.uint8), q.scales.view(np.uint8) if q.scales.dtype.itemsize == 1 else q.scales, format,
        shape=q.shape, scale_layout=q.scale_layout, offsets=q.offsets,
        global_scale=None if scale is None else scale if scale.size > 1 else scale[0],
    )  # fmt: skip
    if framework == "torch":
        q = ws.quantize(give(values, framework), format, **options)
    return q, exact


def close(got: Any, want: np.ndarray, limit: float) -> bool:
    """Whether the difference is small beside the whole."""
    error = np.linalg.norm(take(got) - want) / np.linalg.norm(want)
    return take(got).shape == want.shape and bool(error <= limit)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("a_format", "b_format"), PAIRS)
def test_every_pair_gives_the_product_of_its_values(a_format: str, b_format: str, framework: str) -> None:
    k = 2 * k_multiple(a_format, b_format)
    a, left = operand(a_format, 5, k, seed=1, framework=framework)
    b, right = operand(b_format, 16, k, seed=2, framework=framework)
    got = ws.gemm(a, b, out_dtype="float32")
    assert close(got, left @ right.T, 2e-7)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("name", "limit"), [("bfloat16", 3e-3), ("float16", 4e-4), ("float32", 2e-7)])
def test_types_of_the_result_and_of_the_bias(name: str, limit: float, framework: str) -> None:
    a, left = operand("bf16", 3, 4, 32, seed=1, framework=framework)
    b, right = operand("bf16", 8, 32, seed=2, framework=framework)
    bias, added = operand(
        {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[name], 8, seed=3, framework=framework
    )
    got = ws.gemm(a, b, bias=bias, out_dtype=name)
    assert str(got.dtype).removeprefix("torch.") == name
    assert close(got, left @ right.T + added, limit)
    assert str(ws.gemm(a, b).dtype).removeprefix("torch.") == "bfloat16"


def test_the_default_type_of_a_quantized_product() -> None:
    a, _ = operand("mxfp8", 4, 32, seed=1)
    b, _ = operand("mxfp8", 8, 32, seed=2)
    assert ws.gemm(a, b).dtype == np.float32


@needs_torch
def test_the_default_type_of_a_quantized_product_in_torch() -> None:
    import torch

    a, _ = operand("mxfp8", 4, 32, seed=1, framework="torch")
    assert ws.gemm(a, a_of(a)).dtype is torch.bfloat16


def a_of(q: ws.QTensor) -> ws.QTensor:
    """The same tensor with its rows twice, so that N is a multiple of 8."""
    import torch

    return ws.QTensor(torch.cat([q.data, q.data]), torch.cat([q.scales, q.scales]), q.format, (8, 32))


def test_batches_share_or_have_their_weights() -> None:
    a, left = operand("bf16", 2, 3, 4, 32, seed=1)
    shared, right = operand("nvfp4", 8, 32, seed=2, scale_layout="128x4")
    own, rights = operand("nvfp4", 2, 3, 8, 32, seed=3)
    assert close(ws.gemm(a, shared, out_dtype="float32"), left @ right.T, 2e-7)
    assert close(ws.gemm(a, own, out_dtype="float32"), left @ np.swapaxes(rights, -1, -2), 2e-7)
    one, single = operand("bf16", 4, 32, seed=4)
    assert close(ws.gemm(one, own, out_dtype="float32"), single @ np.swapaxes(rights, -1, -2), 2e-7)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("layout", ["linear", "128x4"])
def test_groups_of_rows(layout: str, framework: str) -> None:
    bounds = np.array([0, 3, 3, 7, 9], np.int32)
    offsets = give(bounds, framework)
    scales = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    values = np.random.default_rng(1).standard_normal((10, 64)).astype(np.float32)
    a = ws.quantize(give(values, framework), "nvfp4", scale_layout=layout, offsets=offsets,
                    global_scale=give(scales, framework))  # fmt: skip
    b, right = operand("nvfp4", 4, 8, 64, seed=2, framework=framework)
    left = take(ws.dequantize(a, "float32"))
    got = ws.grouped_gemm(a, b, out_dtype="float32")
    want = reference.grouped_gemm(left, right, bounds)
    assert close(got, want, 3e-7)
    out = give(np.full((10, 8), 7.0, np.float32), framework)
    assert ws.grouped_gemm(a, b, offsets=offsets, out=out) is out
    assert (take(out)[9] == 7).all()
    assert close(out[:9], want[:9], 3e-7)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_masked_groups_and_a_scale_for_each(framework: str) -> None:
    a, left = operand("bf16", 3, 5, 64, seed=1, framework=framework)
    entries = [operand("nvfp4", 8, 64, seed=s, framework=framework, global_scale=float(s)) for s in (2, 3, 5)]
    stack = np.stack if framework == "numpy" else __import__("torch").stack
    parts = [stack([getattr(q, part) for q, _ in entries]) for part in ("data", "scales")]
    scales = give(np.array([2, 3, 5], np.float32), framework)
    b = ws.QTensor(*parts, "nvfp4", (3, 8, 64), global_scale=scales)
    counts = np.array([5, 0, 2])
    out = give(np.full((3, 5, 8), 7.0, np.float32), framework)
    bias, added = operand("fp32", 3, 8, seed=9, framework=framework)
    ws.grouped_gemm(a, b, counts=give(counts, framework), bias=bias, out=out)
    right = np.stack([values for _, values in entries])
    want = reference.masked_gemm(left, right, counts, bias=added)
    for group, count in enumerate(counts):
        assert np.allclose(take(out)[group, :count], want[group, :count], rtol=1e-5, atol=1e-5)
        assert (take(out)[group, count:] == 7).all()
    with pytest.raises(InvalidArgumentError, match="one by one"):
        ws.dequantize(b)


def test_a_global_scale_that_is_none_gives_nan() -> None:
    a, _ = operand("bf16", 2, 32, seed=1)
    good, _ = operand("nvfp4", 8, 32, seed=2)
    for value in (0.0, -1.0, np.inf, np.nan):
        b = ws.QTensor(good.data, good.scales, "nvfp4", (8, 32), global_scale=np.array([value], np.float32))
        assert np.isnan(take(ws.gemm(a, b))).all()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_nothing_in_nothing_out(framework: str) -> None:
    b, _ = operand("bf16", 8, 32, seed=2, framework=framework)
    assert ws.gemm(operand("bf16", 0, 32, seed=1, framework=framework)[0], b).shape == (0, 8)
    experts, _ = operand("bf16", 2, 8, 32, seed=2, framework=framework)
    a, _ = operand("bf16", 0, 32, seed=1, framework=framework)
    offsets = give(np.zeros(3, np.int32), framework)
    assert ws.grouped_gemm(a, experts, offsets=offsets).shape == (0, 8)


def bad_calls() -> dict[str, tuple[Any, str]]:
    """What each call gets wrong: (call, what the error says)."""
    a, b = operand("bf16", 16, 128, seed=1)[0], operand("bf16", 8, 128, seed=2)[0]
    experts = operand("bf16", 2, 8, 128, seed=3)[0]
    half = a.astype(np.float16)
    q = {f: operand(f, 16, 128, seed=4)[0] for f in ("nvfp4", "mxfp4", "mxfp8", "fp8_block", "fp8_block_128x128")}
    offsets = np.array([0, 4, 16])
    tiled = ws.quantize(np.ones((16, 128), np.float32), "mxfp8", scale_layout="128x4")
    grouped = ws.quantize(np.ones((16, 128), np.float32), "mxfp8", scale_layout="128x4", offsets=offsets)
    weights = ws.quantize(np.ones((2, 8, 128), np.float32), "mxfp8")
    short = ws.quantize(np.ones((8, 48), np.float32), "nvfp4")
    return {
        "a list": (lambda: ws.gemm([[1.0]], b), "a is a list"),
        "fp32": (lambda: ws.gemm(a.astype(np.float32), b), "a is float32; expected bfloat16, float16 or a QTensor"),
        "bf16 by fp16": (lambda: ws.gemm(a, b.astype(np.float16)), "neither of bf16 and fp16"),
        "quantized A alone": (lambda: ws.gemm(q["nvfp4"], b), "exchange or dequantize"),
        "formats": (lambda: ws.gemm(q["nvfp4"], q["mxfp4"]), "no kernel multiplies nvfp4 by mxfp4"),
        "fp8 scales of B": (lambda: ws.gemm(a, q["fp8_block"]), "quantize B to fp8_block_128x128"),
        "fp8 scales of A": (lambda: ws.gemm(q["fp8_block_128x128"], q["fp8_block_128x128"]), "quantize A to fp8_block"),
        "K differs": (lambda: ws.gemm(a[:, :64], b), "a has K = 64 and b has K = 128"),
        "K % 8": (lambda: ws.gemm(a[:, :12], b[:, :12]), "K = 12 must be a positive multiple of 8"),
        "nvfp4 K % 32": (lambda: ws.gemm(a[:, :48], short), "K = 48 must be a positive multiple of 32"),
        "N % 8": (lambda: ws.gemm(a, b[:4]), "N = 4 rows; expected a positive multiple of 8"),
        "one dimension": (lambda: ws.gemm(a[0], b), "expected at least two dimensions"),
        "batches": (lambda: ws.gemm(np.stack([a] * 3), experts), "a has batches [3] and b [2]"),
        "a grouped A": (lambda: ws.gemm(grouped, q["mxfp8"]), "multiply it with grouped_gemm"),
        "a grouped B": (lambda: ws.gemm(q["mxfp8"], grouped), "b is a grouped QTensor"),
        "bias shape": (lambda: ws.gemm(a, b, bias=b[:, 0][:4]), "bias has shape [4]; expected [8]"),
        "bias type": (lambda: ws.gemm(a, b, bias=np.ones(8)), "bias is float64"),
        "bias list": (lambda: ws.gemm(a, b, bias=[1.0] * 8), "bias is list"),
        "type": (lambda: ws.gemm(a, b, out_dtype="float64"), "out_dtype 'float64' is unknown"),
        "out shape": (lambda: ws.gemm(a, b, out=np.zeros((8, 16), np.float32)), "has shape [8, 16]; expected [16, 8]"),
        "out type": (lambda: ws.gemm(a, b, out=np.zeros((16, 8), np.float64)), "'float64' is unknown"),
        "out and type": (
            lambda: ws.gemm(a, b, out=np.zeros((16, 8), np.float32), out_dtype="bfloat16"),
            "out is float32, but out_dtype is bfloat16",
        ),
        "out kind": (lambda: ws.gemm(a, b, out=[0.0]), "out is a list"),
        "aliasing": (lambda: ws.gemm(a, b, out=a[:, :8]), "out shares memory with a"),
        "aliased weights": (lambda: ws.gemm(b, b, out=b[:, :8]), "out shares memory with a"),
        "neither": (lambda: ws.grouped_gemm(a, experts), "neither was given"),
        "both": (lambda: ws.grouped_gemm(a, experts, offsets=offsets, counts=offsets), "both was given"),
        "shapes": (lambda: ws.grouped_gemm(a, b, offsets=offsets), "expected a [M, K] with offsets"),
        "masked shapes": (lambda: ws.grouped_gemm(a, experts, counts=offsets[:2]), "[groups, capacity, K]"),
        "offsets' length": (lambda: ws.grouped_gemm(a, experts, offsets=offsets[:2]), "int32 or int64 [3]"),
        "offsets' type": (lambda: ws.grouped_gemm(a, experts, offsets=offsets * 1.0), "offsets is float64"),
        "offsets' kind": (lambda: ws.grouped_gemm(a, experts, offsets=[0, 1, 2]), "offsets is a list"),
        "falling": (lambda: ws.grouped_gemm(a, experts, offsets=np.array([0, 9, 8])), "never fall"),
        "beyond M": (lambda: ws.grouped_gemm(a, experts, offsets=np.array([0, 9, 17])), "end at 16 or before"),
        "counts": (lambda: ws.grouped_gemm(np.stack([a, a]), experts, counts=np.array([1, 17])), "from 0 to 16"),
        "half by bf16": (lambda: ws.grouped_gemm(half, experts, offsets=offsets), "neither of bf16 and fp16"),
        "ungrouped scales": (lambda: ws.grouped_gemm(tiled, weights, offsets=offsets), "128x4 scales without groups"),
        "other offsets": (lambda: ws.grouped_gemm(grouped, weights, offsets=offsets.copy()), "leave them out"),
    }  # fmt: skip


@pytest.mark.parametrize("name", bad_calls())
def test_what_does_not_fit_is_an_error_that_says_so(name: str) -> None:
    call, says = bad_calls()[name]
    with pytest.raises(InvalidArgumentError) as caught:
        call()
    assert says in str(caught.value)


@needs_torch
def test_two_frameworks_at_once_are_refused() -> None:
    a, b = operand("fp16", 4, 32, seed=1)[0], operand("fp16", 8, 32, seed=2, framework="torch")[0]
    with pytest.raises(InvalidArgumentError, match="two frameworks"):
        ws.gemm(a, b)


def test_every_pair_without_a_kernel_has_a_reason() -> None:
    formats = ("bf16", "fp16", "nvfp4", "mxfp4", "mxfp8", "fp8_block", "fp8_block_128x128")
    made = {f: operand(f, 16, 128, seed=1)[0] for f in formats}
    for a in formats:
        for b in formats:
            if (a, b) not in PAIRS:
                with pytest.raises(FormatError, match=f"a is {a} and b is {b}: "):
                    ws.gemm(made[a], made[b])
