# SPDX-License-Identifier: Apache-2.0
"""Layers with a gated w13: the order of its rows, and what the CUDA half plans and launches for every architecture."""

from __future__ import annotations

import numpy as np
import pytest
from ops_samples import FRAMEWORKS, give, take
from ops_samples import random as numbers
from test_ops_moe_prepared import EVERY_PAIR, PAIRS, TOP2, assert_near, device, experts, prepared, random, run

import warpsmith as ws
from warpsmith.arch import CAPABILITIES, Capability
from warpsmith.catalog import CATALOG, fp4_gemm, fp4_gemm_gated
from warpsmith.catalog.formats import gated, is_gated, packing_of_elements
from warpsmith.catalog.gemm import EMULATED_PATH
from warpsmith.catalog.resolve import DeviceFacts, resolve
from warpsmith.catalog.source import kernel_sources, source_digest
from warpsmith.catalog.spec import Problem, pair
from warpsmith.errors import FormatError, MissingKernelError
from warpsmith.ops import moe_args
from warpsmith.ops.gated_order import mixed, mixed_bias, parted
from warpsmith.ops.gemm_map_args import GLOBAL_D_PER_BATCH

torch = pytest.importorskip("torch")

NATIVE, EMULATED = "sm12x_gated_gemm", "sm12x_gated_gemm_emulated"
FUSED = ["moe_route", "moe_quantize", "gated_gemm", "product", "moe_combine"]
COMPOSED = ["moe_route", "moe_quantize", "product", "moe_quantize", "product", "moe_combine"]


def with_gates(layer: ws.Experts) -> ws.Experts:
    names = ("activation", "bias13", "bias2", "alpha", "limit", "format", "a1", "a2")
    w13 = ws.prepare_weight(layer.w13, str(layer.format), gated=True)
    w2 = ws.prepare_weight(layer.w2, str(layer.format))
    return ws.Experts(w13, w2, **{name: getattr(layer, name) for name in names})


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_order_is_sixteen_rows_of_the_gate_and_sixteen_of_up(framework: str) -> None:
    rows = give(np.arange(2 * 128 * 3, dtype=np.int32).reshape(2, 128, 3), framework)
    found, natural = take(mixed(rows)), take(rows)
    for i in range(64):
        at = i // 16 * 32 + i % 16
        np.testing.assert_array_equal(found[:, at], natural[:, i])
        np.testing.assert_array_equal(found[:, at + 16], natural[:, 64 + i])
    np.testing.assert_array_equal(take(parted(mixed(rows))), natural)
    np.testing.assert_array_equal(take(mixed_bias(rows[..., 0])), found[..., 0])


@pytest.mark.parametrize("framework", FRAMEWORKS)
@EVERY_PAIR
def test_prepared_weights_mean_what_they_meant(framework: str, activations: str, weights: str) -> None:
    q = ws.quantize(give(numbers(2, 192, 160), framework), weights)
    made = ws.prepare_weight(q, activations, gated=True)
    assert is_gated(made.packing)
    assert packing_of_elements(made.packing) == ("mxfp8" if activations != weights else "")
    assert gated(packing_of_elements(made.packing)) == made.packing
    np.testing.assert_array_equal(take(ws.dequantize(made)), take(ws.dequantize(q)))
    plain = ws.prepare_weight(q, activations)
    again = ws.prepare_weight(plain, activations, gated=True)
    np.testing.assert_array_equal(take(again.data), take(made.data))
    np.testing.assert_array_equal(take(again.scales), take(made.scales))
    assert ws.prepare_weight(made, activations) is made
    mixed_first = ws.prepare_weight(q, activations, gated=True, interleaved=True)
    want = take(ws.dequantize(ws.prepare_weight(q, activations, interleaved=True)))
    np.testing.assert_array_equal(take(ws.dequantize(mixed_first)), want)


def test_what_has_no_gated_order_is_refused() -> None:
    w = ws.quantize(numbers(2, 96, 64), "nvfp4")
    made = ws.prepare_weight(ws.quantize(numbers(2, 128, 64), "mxfp4"), "mxfp8", gated=True)
    for call, says in (
        (lambda: ws.prepare_weight(w, "nvfp4", gated=True), "of each a multiple of 32"),
        (lambda: ws.prepare_weight(w, "bf16", gated=True), "leave it out"),
        (lambda: ws.prepare_weight(numbers(64, 64).astype(np.float16), "fp16", gated=True), "leave it out"),
        (lambda: ws.prepare_weight(made, "mxfp4"), "packed for mxfp8_gated"),
        (lambda: ws.prepare_weight(made, "mxfp8", interleaved=True), "before that"),
        (lambda: ws.gemm(ws.quantize(numbers(3, 64), "mxfp8", scale_layout="128x4"), made), "Experts alone"),
        (
            lambda: ws.QTensor(w.data, w.scales, "nvfp4", w.shape, scale_layout="linear", packing="gated"),
            "N a multiple of 64",
        ),
    ):
        with pytest.raises(FormatError, match=says):
            call()


def test_experts_take_it_as_their_w13_where_there_is_a_gate() -> None:
    layer = experts("mxfp8", "mxfp4")
    w13, w2 = (ws.prepare_weight(w, "mxfp8", gated=gate) for w, gate in ((layer.w13, True), (layer.w2, False)))
    other = ws.prepare_weight(layer.w13, "mxfp4", gated=True)
    square = ws.prepare_weight(ws.quantize(random(3, 128, 128), "mxfp4"), "mxfp8", gated=True)
    assert ws.Experts(w13, w2, format="mxfp8").gated
    assert not prepared(layer).gated
    for given, options, says in (
        ((w13, w2), {"format": "mxfp4"}, "prepared for mxfp8 activations"),
        ((other, w2), {"format": "mxfp8"}, "prepared for mxfp4 activations"),
        ((w13, layer.w2), {"format": "mxfp8"}, "prepare both"),
        ((w13, w2), {}, "linear scales, or a format"),
        ((ws.prepare_weight(layer.w13, "mxfp8"), ws.prepare_weight(layer.w2, "mxfp8", gated=True)), {}, "linear"),
        ((square, square), {"format": "mxfp8", "activation": "relu2"}, "relu2 has no gate"),
    ):
        with pytest.raises(FormatError, match=says):
            ws.Experts(*given, **options)
    with pytest.raises(FormatError, match="only w13 has a gate"):
        ws.Experts(
            ws.prepare_weight(layer.w13, "mxfp8"), ws.prepare_weight(layer.w2, "mxfp8", gated=True), format="mxfp8"
        )


@EVERY_PAIR
def test_the_host_gives_the_same(activations: str, weights: str) -> None:
    layer = experts(activations, weights, bias13=random(3, 192, seed=4))
    x, logits = random(9, 128, dtype=torch.float16), random(9, 3, dtype=torch.float32)
    assert torch.equal(ws.fused_moe(x, logits, layer, TOP2), ws.fused_moe(x, logits, with_gates(layer), TOP2))


@EVERY_PAIR
@pytest.mark.parametrize("capability", ["12.0", "12.1"])
def test_the_first_product_activates_and_quantizes_on_12x(
    monkeypatch: pytest.MonkeyPatch, capability: str, activations: str, weights: str
) -> None:
    for number, activation in enumerate(fp4_gemm_gated.ACTIVATIONS):
        biases = {"bias13": random(3, 192, seed=4), "bias2": random(3, 128, dtype=torch.float32, seed=5)}
        options = {"a2": torch.tensor([90.0, 20.0, 500.0])} if activations == "nvfp4" and number else {}
        layer = experts(activations, weights, activation=activation, **biases, **options)
        x, logits = random(7, 128), random(7, 3, seed=3)
        cuda, _ = device(monkeypatch, capability)
        want = run(cuda, x, logits, prepared(layer), TOP2)
        cuda, notes = device(monkeypatch, capability)
        assert torch.equal(run(cuda, x, logits, with_gates(layer), TOP2), want)
        assert notes.kernels == FUSED


@EVERY_PAIR
def test_elsewhere_the_layer_is_composed(monkeypatch: pytest.MonkeyPatch, activations: str, weights: str) -> None:
    packed = weights != activations
    linear, x, logits = (
        experts(activations, weights, bias13=random(3, 192, seed=4)),
        random(5, 128),
        random(5, 3, seed=3),
    )
    for capability in ("8.0", "9.0", "10.0"):
        cuda, notes = device(monkeypatch, capability)
        if packed and capability != "9.0":
            with pytest.raises(MissingKernelError, match="pass the weights as they were quantized"):
                run(cuda, x, logits, with_gates(linear), TOP2)
            continue
        got = run(cuda, x, logits, with_gates(linear), TOP2)
        assert notes.kernels == (FUSED if packed else COMPOSED)
        cuda, _ = device(monkeypatch, capability)
        assert_near(got, run(cuda, x, logits, prepared(linear), TOP2), 1e-6)


@pytest.mark.parametrize(("activations", "weights"), PAIRS[:3])
def test_on_hopper_products_that_ask_for_it_are_emulated(
    monkeypatch: pytest.MonkeyPatch, activations: str, weights: str
) -> None:
    from warpsmith.ops import cuda_gemm

    layer, x, logits = experts(activations, weights), random(5, 128), random(5, 3, seed=3)
    cuda, notes = device(monkeypatch, "9.0")
    monkeypatch.setattr(cuda_gemm, "DEFAULT_PATH", EMULATED_PATH)
    got = run(cuda, x, logits, with_gates(layer), TOP2)
    assert notes.kernels == FUSED
    cuda, _ = device(monkeypatch, "9.0")
    assert torch.equal(got, run(cuda, x, logits, prepared(layer), TOP2))


def test_slices_fewer_tokens_and_a_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, _ = device(monkeypatch, "12.0")
    linear, x, logits = experts("mxfp8", "mxfp8"), random(9, 128), random(9, 8, seed=3)
    layer, count = with_gates(linear), torch.tensor([4], dtype=torch.int32)
    for options in ({"expert_offset": 5}, {"num_tokens": count}):
        want = run(cuda, x, logits, prepared(linear), TOP2, **options)
        assert torch.equal(run(cuda, x, logits, layer, TOP2, **options), want)
    work = torch.full((ws.moe_workspace(9, layer, 2),), 255, dtype=torch.uint8)
    assert torch.equal(run(cuda, x, logits, layer, TOP2, workspace=work), run(cuda, x, logits, layer, TOP2))


def kernel_of(capability: Capability, sm_count: int = 48, **problem: str | int) -> str:
    given = CATALOG.operation("gated_gemm").problem(problem)
    decision = resolve(CATALOG, given, DeviceFacts(capability, sm_count))
    return "unsupported" if decision.unsupported else decision.choice.kernel if decision.choice else "nothing"


def test_dispatch_is_the_catalogs_alone() -> None:
    for format in fp4_gemm_gated.FORMATS:
        for capability in CAPABILITIES:
            native = capability in fp4_gemm.CAPABILITIES
            packed = capability == Capability(9, 0) and format == "mxfp8_x_mxfp4"
            assert kernel_of(capability, format=format) == (NATIVE if native else EMULATED if packed else "unsupported")
            if format != "mxfp8_x_mxfp4" and capability == Capability(9, 0):
                assert kernel_of(capability, format=format, path="emulated") == EMULATED


def test_every_size_has_a_kernel_of_three_tiles() -> None:
    for a, b in fp4_gemm_gated.PAIRS:
        for sm_count in (48, 84, 170, 188):
            tiles = {}
            for m in (1, 8, 33, 64, 128, 512, 4096, 65536):
                dims = {"m": m, "n": 1536, "k": 2048, "batches": 8}
                problem = Problem.of("gated_gemm", {"format": pair(a, b), "path": "default"}, dims)
                choice = resolve(CATALOG, problem, DeviceFacts(Capability(12, 1), sm_count)).choice
                assert choice is not None
                tiles[m] = CATALOG.kernel(NATIVE).variant(choice.variant).tile
            assert tiles[1] == tiles[33] == "s32"
            assert tiles[65536] == "t256"


def test_the_kernels_are_the_products_in_all_but_their_epilogue() -> None:
    native, emulated = fp4_gemm_gated.KERNELS
    product = fp4_gemm.KERNELS[0]
    assert emulated.emulates == native.name
    assert (native.may_spill, emulated.may_spill) == (False, True)
    assert native.params == emulated.params
    assert native.params[: len(product.params)] == product.params
    assert len(native.variants) == 12
    for one, other in zip(native.variants, emulated.variants, strict=True):
        assert one.macros == other.macros == product.variant(one.name).macros
        assert one.instructions == product.variant(one.name).instructions
        assert source_digest(CATALOG, native.name, one.name) == source_digest(CATALOG, emulated.name, other.name)


def test_host_and_device_have_the_same_numbers() -> None:
    sources = kernel_sources()
    assert f"kMixedColumns = 1 << {moe_args.MIXED_COLUMNS.bit_length() - 1} " in sources[
        "fused_moe/sm80_moe_quantize.cuh"
    ].replace("};", " };")
    assert (
        f"kGlobalDPerBatch = 1 << {GLOBAL_D_PER_BATCH.bit_length() - 1} "
        in sources["fp4_gemm/sm12x_gated_epilogue.cuh"]
    )
