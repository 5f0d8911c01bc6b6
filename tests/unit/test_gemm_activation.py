# SPDX-License-Identifier: Apache-2.0
"""Activations of `gemm` and `grouped_gemm`: on the host, and what is planned where kernels have them or not."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemm_notes import PORTABLE, Notes, without_device

import warpsmith as ws
from warpsmith.catalog import CATALOG
from warpsmith.catalog.fused_moe import ACTIVATIONS
from warpsmith.errors import FormatError, InvalidArgumentError
from warpsmith.ops.gemm_activation import ACTIVATION_SHIFT, Activation, activation_of
from warpsmith.ops.gemm_args import Operand, Output, Size
from warpsmith.ops.gemm_map_args import map_launch, tile_of
from warpsmith.reference.moe import activate
from warpsmith.runtime.tensor_map import MapSpec

torch = pytest.importorskip("torch")
KERNEL = CATALOG.kernel("sm90_gemm")
SCHEDULE = Path(ws.__file__).parent / "kernels" / "gemm" / "sm90_schedule.cuh"
SWIGLU = Activation("swiglu", 1.702, 7.0)


def random(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def rows_of(activation: str, columns: int) -> int:
    return columns if activation == "relu2" else 2 * columns


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_the_host_activates_what_was_not_rounded(activation: str, framework: str) -> None:
    a, b = random(5, 32, seed=1), random(rows_of(activation, 16), 32, seed=2)
    bias = random(len(b), seed=3)
    give = (lambda x: x) if framework == "numpy" else torch.from_numpy
    got = ws.gemm(give(a), give(b), bias=give(bias), activation=activation, alpha=1.5, limit=2.0, out_dtype="float32")
    product = a.astype(np.float64) @ b.astype(np.float64).T + bias.astype(np.float64)
    want = activate(product, activation, alpha=1.5, limit=2.0).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(got), want)


@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_groups_on_the_host_leave_other_rows_alone(activation: str) -> None:
    a, b = random(6, 32, seed=1), random(2, rows_of(activation, 8), 32, seed=2)
    out = np.full((6, 8), 7, np.float16)
    offsets = np.array([0, 2, 5])
    assert ws.grouped_gemm(a, b, offsets=offsets, activation=activation, out=out) is out
    assert (out[5] == 7).all()
    for g, part in enumerate((slice(0, 2), slice(2, 5))):
        np.testing.assert_array_equal(out[part], ws.gemm(a[part], b[g], activation=activation))
    masked = ws.grouped_gemm(a.reshape(2, 3, 32), b, counts=np.array([3, 1]), activation=activation)
    assert masked.shape == (2, 3, 8)
    np.testing.assert_array_equal(masked[1, 0], ws.gemm(a[3:4], b[1], activation=activation)[0])


def test_what_does_not_fit_is_named() -> None:
    a, b = random(2, 32, seed=1), random(24, 32, seed=2)
    with pytest.raises(InvalidArgumentError, match="activation 'silu' is unknown; expected one of swiglu"):
        ws.gemm(a, b, activation="silu")
    with pytest.raises(InvalidArgumentError, match="limit is inf; expected a finite number"):
        ws.gemm(a, b, activation="swiglu_oai", limit=math.inf)
    with pytest.raises(FormatError, match="N = 24 rows; with swiglu expected gate rows, then as many up rows"):
        ws.gemm(a, b, activation="swiglu")
    with pytest.raises(InvalidArgumentError, match=r"out has shape \[2, 32\]; expected \[2, 16\]"):
        ws.gemm(a, random(32, 32, seed=2), activation="swiglu", out=np.zeros((2, 32), np.float16))


def test_the_gate_of_every_fused_activation_is_the_references() -> None:
    names = {name for v in KERNEL.variants for name in v.activations}
    assert names == set(ACTIVATIONS) - {"geglu"}
    h = np.random.default_rng(0).standard_normal((4, 64)) * 8
    gate, up = h[:, :32], h[:, 32:]
    for name in names - {"relu2"}:
        slope, cube, limit, offset = Activation(name, 1.702, 7.0).gate
        g, u = np.minimum(gate, limit), np.clip(up, -limit, limit)
        got = g / (1 + np.exp(-g * (slope + cube * g * g))) * (u + offset)
        np.testing.assert_allclose(got, activate(h, name), rtol=1e-9, atol=1e-12)


def test_the_numbers_are_those_of_the_device_source() -> None:
    text = SCHEDULE.read_text(encoding="utf-8")
    found = {name: int(value) for name, value in re.findall(r"\b(k\w+) = ([0-9]+)[, ]", text)}
    assert found["kActivationShift"] == ACTIVATION_SHIFT
    kinds = {"swiglu": "kSwiglu", "relu2": "kSquaredRelu", "swiglu_oai": "kGated", "geglu_tanh": "kGated"}
    for name, kind in kinds.items():
        assert Activation(name, 1.0, 1.0).flags == found[kind] << ACTIVATION_SHIFT
    assert activation_of(None, 1.0, 1.0) is None


def test_a_launch_interleaves_the_halves_of_b_alone() -> None:
    tile, size = tile_of(KERNEL, "bf16_x_bf16_s32"), Size("dense", 100, 512, 256, 2)
    a, b, d = Operand("bf16", 512, 51200), Operand("bf16", 512, 512 * 512), Output("bf16", 512, 51200)
    for name, halves in (("swiglu", True), ("relu2", False)):
        launch = map_launch(tile, size, a, b, d, sm_count=132, activation=Activation(name, 1.0, 2.0))
        assert launch.a == MapSpec(512, 100, 2, 512, 51200, 128, 32)
        assert launch.b == MapSpec(512, 512, 2, 512, 512 * 512, 128, 64, halves)
        tail = dict(zip((p.name for p in KERNEL.params[12:]), launch.tail, strict=False))
        assert (tail["n"], tail["gate_limit"], tail["up_offset"]) == (512, math.inf, 0.0)
    plain = map_launch(tile, size, a, b, d, sm_count=132)
    assert len(plain.tail) == len(launch.tail)
    assert plain.b == launch.b
    dims = MapSpec(512, 512, 2, 512, 512 * 512, 128, 32, True).dims
    assert dims == ((512, 8, 2, 32, 2), (512, 256 * 512, 8 * 512, 512 * 512), (128, 8, 2, 2, 1))


def test_a_kernel_that_has_it_writes_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, notes = without_device(monkeypatch), Notes()
    monkeypatch.setattr(cuda, "runtime", lambda: notes)
    a, b = torch.zeros(300, 256, dtype=torch.bfloat16), torch.zeros(1024, 256, dtype=torch.bfloat16)
    for _ in range(2):
        d = cuda.dense(a, b, None, None, None, SWIGLU)
        assert d.shape == (300, 512)
    assert [variant for variant, _, _ in notes.launches] == ["bf16_x_bf16_t128x128"] * 2
    assert (notes.last["n"], notes.last["d_row"], notes.last["flags"] >> ACTIVATION_SHIFT & 3) == (1024, 1024, 3)
    cuda.dense(a, b, None, None, None)
    assert notes.last["flags"] >> ACTIVATION_SHIFT & 3 == 0


@pytest.mark.parametrize("name", ["swiglu", "geglu", "relu2"])
def test_elsewhere_a_launch_follows_the_product(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from warpsmith.ops import cuda_activation

    cuda, notes = without_device(monkeypatch, PORTABLE), Notes(PORTABLE)
    for module in (cuda, cuda_activation):
        monkeypatch.setattr(module, "runtime", lambda: notes)
    monkeypatch.setattr(cuda_activation, "_current_stream", lambda _: 7)
    a, b = torch.zeros(30, 64, dtype=torch.float16), torch.zeros(rows_of(name, 32), 64, dtype=torch.float16)
    out = torch.ones(30, 32, dtype=torch.float16)
    assert cuda.dense(a, b, None, None, out, Activation(name, 1.0, 2.0)) is out
    first, second = notes.launches
    assert (first[2]["n"], second[0]) == (len(b), "fp16")
    assert second[2] == {
        "h": first[2]["d"], "act": second[2]["act"], "last_offset": second[2]["last_offset"],
        "most_rows": 30, "units": 4, "activation": ACTIVATIONS[name], "alpha": 1.0, "limit": 2.0,
    }  # fmt: skip
    with pytest.raises(InvalidArgumentError, match="out_dtype is float32, and no kernel for these operands"):
        cuda.dense(a, b, None, "float32", None, Activation(name, 1.0, 2.0))


def test_other_rows_of_a_grouped_result_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from warpsmith.ops import cuda_activation

    cuda, notes = without_device(monkeypatch, PORTABLE), Notes(PORTABLE)
    for module in (cuda, cuda_activation):
        monkeypatch.setattr(module, "runtime", lambda: notes)
    monkeypatch.setattr(cuda_activation, "_current_stream", lambda _: 7)
    monkeypatch.setattr(cuda_activation.torch, "empty", torch.zeros)  # what the launches would write
    a, b = torch.zeros(6, 64, dtype=torch.float16), torch.zeros(2, 32, 64, dtype=torch.float16)
    out: Any = torch.ones(6, 16, dtype=torch.float16)
    cuda.grouped(a, b, torch.tensor([1, 2, 4]), None, None, None, out, SWIGLU)
    assert out[:, 0].tolist() == [1, 0, 0, 0, 1, 1]
    out = torch.ones(2, 3, 16, dtype=torch.float16)
    cuda.grouped(a.reshape(2, 3, 64), b, None, torch.tensor([1, 3]), None, None, out, SWIGLU)
    assert out[..., 0].tolist() == [[0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize(("name", "kind", "fused"), [("swiglu", "bf16", True), ("geglu", "bf16", False),
                                                     ("swiglu", "mxfp8", False), ("relu2", "bf16", True)])  # fmt: skip
def test_a_layer_activates_in_its_first_product_where_the_kernel_can(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: str, fused: bool
) -> None:
    from warpsmith.ops import cuda_moe_plan

    cuda, notes = without_device(monkeypatch), Notes()
    for module in (cuda, cuda_moe_plan):
        monkeypatch.setattr(module, "runtime", lambda: notes)
    x, w13 = torch.zeros(300, 64, dtype=torch.bfloat16), torch.zeros(2, rows_of(name, 32), 64, dtype=torch.bfloat16)
    w2, bias = torch.zeros(2, 64, 32, dtype=torch.bfloat16), torch.zeros(2, rows_of(name, 32))
    if kind != "bf16":
        w13, w2 = ws.quantize(w13, kind), ws.quantize(w2, kind)
    layer = ws.Experts(w13, w2, activation=name, bias13=bias)
    plan = cuda_moe_plan.make_plan(x, torch.zeros(300, 2), layer, ws.Routing("topk_softmax", 1), 1, 0)
    assert (plan.first_activates, plan.activate is None) == (fused, fused)
    if fused:
        tail = dict(zip((p.name for p in KERNEL.params[12:]), plan.first.launch.tail, strict=False))
        assert (tail["n"], tail["d_row"], tail["bias_batch"]) == (rows_of(name, 32), 64, 4 * rows_of(name, 32))
        assert tail["flags"] >> ACTIVATION_SHIFT & 3 == {"swiglu": 3, "relu2": 2}[name]
