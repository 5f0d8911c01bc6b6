# SPDX-License-Identifier: Apache-2.0
"""Layers with prepared weights: the host's, and what the CUDA half plans and launches for every architecture."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gemm_emulator
import moe_emulator
import numpy as np
import pytest

import warpsmith as ws
from warpsmith.arch import Capability
from warpsmith.catalog import CATALOG, fp4_gemm, fused_moe
from warpsmith.catalog.gemm import EMULATED_PATH
from warpsmith.catalog.resolve import DeviceFacts, resolve
from warpsmith.catalog.spec import Problem, pair
from warpsmith.errors import FormatError, MissingKernelError
from warpsmith.ops import moe_args

torch = pytest.importorskip("torch")

PAIRS = [("nvfp4", "nvfp4"), ("mxfp4", "mxfp4"), ("mxfp8", "mxfp8"), ("mxfp8", "mxfp4")]
EVERY_PAIR = pytest.mark.parametrize(("activations", "weights"), PAIRS)
SM12X = ("12.0", "12.1")
TOP2 = ws.Routing("topk_softmax", 2)
FEW = ["moe_route", "moe_quantize", "product", "moe_quantize", "product", "moe_combine"]
MORE = [FEW[0], "moe_permute", *FEW[1:]]


def random(*shape: int, dtype: Any = None, seed: int = 0) -> Any:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype or torch.bfloat16)


def experts(
    activations: str | None, weights: str, number: int = 3, hidden: int = 128, inner: int = 96, **options: Any
) -> ws.Experts:
    """A layer with weights as they were quantized."""
    gates = 1 if options.get("activation") == "relu2" else 2
    w13, w2 = random(number, gates * inner, hidden, seed=1) / 6, random(number, hidden, inner, seed=2) / 6
    return ws.Experts(ws.quantize(w13, weights), ws.quantize(w2, weights), format=activations, **options)


def prepared(layer: ws.Experts) -> ws.Experts:
    names = ("activation", "bias13", "bias2", "format", "a1", "a2")
    w13, w2 = (ws.prepare_weight(w, str(layer.format)) for w in (layer.w13, layer.w2))
    return ws.Experts(w13, w2, **{name: getattr(layer, name) for name in names})


class Notes:
    """A runtime of a capability whose kernels compute, and note the names of what they are of."""

    driver = None

    def __init__(self, facts: DeviceFacts) -> None:
        self.facts, self.kernels, self.products = facts, [], []

    def prepare(self, problem: Problem, device: int) -> Any:
        assert device == -1  # the number of a CPU tensor
        decision = resolve(CATALOG, problem, self.facts)
        choice = decision.choice
        if choice is None:
            raise MissingKernelError(decision.explain())
        row = CATALOG.kernel(choice.kernel)

        def launch(grid: tuple[int, int, int], given: tuple[Any, ...], stream: int) -> None:
            assert stream == 7
            self.kernels.append("product" if row.operation == "gemm" else row.operation)
            self.products += [row.name] if row.operation == "gemm" else []
            if row.takes_maps and row.operation == "gemm":
                gemm_emulator.launch_maps(choice.variant, grid, given)
            else:
                moe_emulator.launch(choice, grid, given)

        return SimpleNamespace(cubin=choice, shared_memory=50000, launch=launch)


def device(monkeypatch: pytest.MonkeyPatch, capability: str) -> tuple[Any, Notes]:
    """`warpsmith.ops.cuda_moe` for CPU tensors, and what a device of that capability would launch."""
    from warpsmith.ops import cuda_gated, cuda_gemm, cuda_moe, cuda_moe_plan, cuda_moe_prepared
    from warpsmith.runtime import tensor_map

    facts = DeviceFacts(Capability.parse(capability), 132)
    notes = Notes(facts)
    for module in (cuda_gated, cuda_gemm, cuda_moe_plan, cuda_moe_prepared):
        monkeypatch.setattr(module, "runtime", lambda: notes)
    monkeypatch.setattr(tensor_map, "encode", gemm_emulator.encode)
    monkeypatch.setattr(cuda_gemm, "_facts", lambda _: facts)
    monkeypatch.setattr(cuda_moe, "_current_stream", lambda _: 7)
    monkeypatch.setattr(cuda_moe, "_plans", {})
    return cuda_moe, notes


def run(cuda: Any, x: Any, logits: Any, layer: ws.Experts, routing: Any, **options: Any) -> Any:
    names = ("ids", "weights", "expert_offset", "num_tokens", "out", "workspace")
    given = {"expert_offset": 0, **options}
    return cuda.fused(x, logits, layer, routing, *(given.get(name) for name in names))


def as_quantized(monkeypatch: pytest.MonkeyPatch, x: Any, logits: Any, layer: ws.Experts, routing: Any = TOP2) -> Any:
    """What the kernels make of weights as they were quantized, which `test_ops_cuda_moe` holds against the host."""
    return run(device(monkeypatch, "8.0")[0], x, logits, layer, routing)


def assert_near(got: Any, want: Any, limit: float = 1e-2) -> None:
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    assert (got.double() - want.double()).norm() <= limit * want.double().norm()


@EVERY_PAIR
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_the_host_gives_what_it_gives_with_weights_as_quantized(framework: str, activations: str, weights: str) -> None:
    x, logits, layer = random(9, 128, dtype=torch.float16), random(9, 3, dtype=torch.float32), None
    layer = experts(activations, weights)
    if framework == "numpy":
        w13, w2 = (
            ws.quantize(a.float().numpy(), weights, **({"global_scale": 2.5} if weights == "nvfp4" else {}))
            for a in (random(3, 192, 128) / 6, random(3, 128, 96) / 6)
        )
        layer, x, logits = ws.Experts(w13, w2, format=activations), x.numpy(), logits.numpy()
    same = ws.fused_moe(x, logits, layer, TOP2), ws.fused_moe(x, logits, prepared(layer), TOP2)
    assert bool((same[0] == same[1]).all())


@EVERY_PAIR
@pytest.mark.parametrize("capability", SM12X)
def test_both_products_run_on_the_tensor_cores_of_12x(
    monkeypatch: pytest.MonkeyPatch, capability: str, activations: str, weights: str
) -> None:
    layer = experts(activations, weights)
    for tokens in (1, 19):
        x, logits = random(tokens, 128), random(tokens, 3, seed=3)
        want = as_quantized(monkeypatch, x, logits, layer)
        cuda, notes = device(monkeypatch, capability)
        assert_near(run(cuda, x, logits, prepared(layer), TOP2), want)
        assert notes.kernels == (FEW if tokens == 1 else MORE)
        assert set(notes.products) == {"sm12x_blockscaled_gemm"}


def test_fp8_blocks_do_so_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = experts("fp8_block", "fp8_block_128x128", inner=128)
    ready = prepared(layer)
    assert ready.w13 is layer.w13
    assert ready.w2 is layer.w2
    x, logits = random(5, 128), random(5, 3, seed=3)
    for capability in SM12X:
        want = as_quantized(monkeypatch, x, logits, layer)
        cuda, notes = device(monkeypatch, capability)
        assert_near(run(cuda, x, logits, ready, TOP2), want)
        assert set(notes.products) == {"sm12x_blockscaled_gemm"}


@EVERY_PAIR
def test_elsewhere_other_kernels_read_them_or_none_does(
    monkeypatch: pytest.MonkeyPatch, activations: str, weights: str
) -> None:
    packed = weights != activations
    linear, x, logits = experts(activations, weights), random(5, 128), random(5, 3, seed=3)
    layer, want = prepared(linear), as_quantized(monkeypatch, x, logits, linear)
    for capability in ("8.0", "9.0", "10.0"):
        cuda, notes = device(monkeypatch, capability)
        if packed and capability != "9.0":
            with pytest.raises(MissingKernelError, match="pass the weights as they were quantized"):
                run(cuda, x, logits, layer, TOP2)
            continue
        assert_near(run(cuda, x, logits, layer, TOP2), want)
        assert set(notes.products) == {"sm12x_blockscaled_gemm_emulated" if packed else "sm80_gemm"}


@pytest.mark.parametrize(("activations", "weights"), PAIRS[:3])
def test_on_hopper_products_that_ask_for_it_are_emulated(
    monkeypatch: pytest.MonkeyPatch, activations: str, weights: str
) -> None:
    layer, x, logits = experts(activations, weights), random(5, 128), random(5, 3, seed=3)
    want = as_quantized(monkeypatch, x, logits, layer)
    cuda, notes = device(monkeypatch, "9.0")
    from warpsmith.ops import cuda_gemm

    monkeypatch.setattr(cuda_gemm, "DEFAULT_PATH", EMULATED_PATH)
    assert_near(run(cuda, x, logits, prepared(layer), TOP2), want)
    assert set(notes.products) == {"sm12x_blockscaled_gemm_emulated"}


@pytest.mark.parametrize("activation", ["swiglu_oai", "geglu", "geglu_tanh", "relu2"])
def test_every_activation_is_one_launch(monkeypatch: pytest.MonkeyPatch, activation: str) -> None:
    gates = 1 if activation == "relu2" else 2
    biases = {"bias13": random(3, gates * 96, seed=4), "bias2": random(3, 128, dtype=torch.float32, seed=5)}
    layer = prepared(experts("mxfp8", "mxfp4", activation=activation, **biases))
    x, logits = random(7, 128), random(7, 3, seed=3)
    cuda, notes = device(monkeypatch, "12.1")
    assert_near(run(cuda, x, logits, layer, TOP2), ws.fused_moe(x, logits, layer, TOP2), 6e-2)
    assert notes.kernels == FEW


def test_scales_of_each_expert_and_weights_of_the_input_need_no_launch_more(monkeypatch: pytest.MonkeyPatch) -> None:
    scales = {"a1": torch.tensor([100.0, 200.0, 50.0]), "a2": torch.tensor([90.0, 20.0, 500.0])}
    layer, x, logits = experts("nvfp4", "nvfp4", **scales), random(5, 128), random(5, 3, seed=3)
    for routing in (TOP2, ws.Routing("sigmoid_input", 1)):
        want = as_quantized(monkeypatch, x, logits, layer, routing)
        cuda, notes = device(monkeypatch, "12.0")
        assert_near(run(cuda, x, logits, prepared(layer), routing), want)
        assert notes.kernels == FEW


def test_slices_chosen_experts_fewer_tokens_and_a_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, _ = device(monkeypatch, "12.0")
    layer, x, logits = prepared(experts("mxfp8", "mxfp8")), random(9, 128), random(9, 8, seed=3)
    count = torch.tensor([4], dtype=torch.int32)
    for options in ({"expert_offset": 5}, {"num_tokens": count}):
        want = ws.fused_moe(x, logits, layer, TOP2, **options)
        assert_near(run(cuda, x, logits, layer, TOP2, **options), want, 6e-2)
    ids = torch.tensor([[0, 2], [-1, 6], [2**31 - 1, -(2**31)]], dtype=torch.int32)
    chosen = {"ids": ids, "weights": torch.rand(3, 2)}
    got = run(cuda, x[:3], None, layer, None, **chosen)
    assert_near(got, ws.fused_moe(x[:3], None, layer, None, **chosen), 6e-2)
    assert (got[2] == 0).all()
    work = torch.full((ws.moe_workspace(9, layer, 2),), 255, dtype=torch.uint8)
    assert torch.equal(run(cuda, x, logits, layer, TOP2, workspace=work), run(cuda, x, logits, layer, TOP2))
    assert run(cuda, x[:0], logits[:0], layer, TOP2).shape == (0, 128)


def test_the_workspace_grows_with_tokens_and_has_whole_tiles_of_scales() -> None:
    sizes = [
        moe_args.buffers(moe_args.Layer(t, 8, 2880, 768, 40, 2, "mxfp8", tiled=True)).total for t in range(0, 300, 7)
    ]
    assert sizes == sorted(sizes)
    layer = moe_args.Layer(3, 8, 2880, 768, 40, 2, "mxfp8", tiled=True)
    assert moe_args.sorted_scales(layer, 2880) == (24 + 127 * 40) // 128 * 128 * 92
    linear = experts("nvfp4", "nvfp4")
    assert ws.moe_workspace(5, linear, 2) != ws.moe_workspace(5, prepared(linear), 2)


def test_rows_that_numbers_do_not_reach_are_refused() -> None:
    layer = moe_args.Layer(1 << 26, 8, 1 << 14, 1 << 10, 8, 2, "nvfp4", tiled=True)
    with pytest.raises(ws.errors.InvalidArgumentError, match="too many for one call"):
        moe_args.quantize_launch(layer, layer.hidden, x_row=2 << 14)


def bad() -> dict[str, tuple[Any, str]]:
    mixed, ready = experts("mxfp8", "mxfp4"), prepared(experts("mxfp8", "mxfp4"))
    tiled = prepared(experts("mxfp4", "mxfp4"))
    return {
        "one": (lambda: ws.Experts(ready.w13, mixed.w2, format="mxfp8"), "prepare both weights or none"),
        "packing": (lambda: ws.Experts(ready.w13, tiled.w2, format="mxfp8"), "prepare both weights or none"),
        "other": (lambda: ws.Experts(ready.w13, ready.w2, format="mxfp4"), "prepared for mxfp8 activations"),
        "plain": (lambda: ws.Experts(tiled.w13, tiled.w2), "linear scales, or a format"),
    }


@pytest.mark.parametrize("name", ["one", "packing", "other", "plain"])
def test_weights_that_are_not_prepared_alike_are_refused(name: str) -> None:
    make, says = bad()[name]
    with pytest.raises(FormatError, match=says):
        make()


@pytest.mark.parametrize("capability", SM12X)
def test_every_quantized_layer_has_block_scaled_products_on_12x(capability: str) -> None:
    for activations, weights in fused_moe.FORMATS:
        if (activations, weights) not in fp4_gemm.PAIRS:
            continue
        layout = "prepared" if weights != activations and weights == "mxfp4" else "tiled"
        for m in (1, 16, 100, 5000):
            decision = ws.explain(
                "gemm", device=capability, format=pair(activations, weights), mode="grouped", layout=layout,
                m=m, n=4096, k=4096, batches=32,
            )  # fmt: skip
            assert decision.choice is not None
            assert decision.choice.kernel == "sm12x_blockscaled_gemm"
    for format in fused_moe.TILED_FORMATS:
        assert ws.explain("moe_quantize", device=capability, format=format, type="bf16").choice is not None


def test_the_kernel_has_the_number_of_gathering() -> None:
    from warpsmith.catalog.source import kernel_sources

    assert f"kGather = {fused_moe.GATHER} " in kernel_sources()["fused_moe/sm80_moe_quantize.cuh"]
    assert np.count_nonzero([k.name == "moe_quantize" for k in fused_moe.KERNELS]) == 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # products that nothing computes
@pytest.mark.parametrize("weights", ["mxfp4", "mxfp8", "fp8_block_128x128"])
def test_on_hopper_both_products_beside_bf16_run_on_wgmma(monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    layer = experts(None, weights, inner=128)
    x, logits = random(40, 128), random(40, 3, seed=3)
    cuda, notes = device(monkeypatch, "9.0")
    monkeypatch.setattr(gemm_emulator, "launch_maps", lambda *_: None)
    run(cuda, x, logits, layer, TOP2)
    assert notes.products == ["sm90_mixed_gemm"] * 2
