# SPDX-License-Identifier: Apache-2.0
"""What the CUDA half of the MoE operations plans and launches: CPU tensors, and kernels that NumPy stands in for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import moe_emulator
import numpy as np
import pytest

import warpsmith as ws
from warpsmith.arch import Capability
from warpsmith.catalog import CATALOG
from warpsmith.catalog.resolve import DeviceFacts, resolve
from warpsmith.catalog.spec import Problem
from warpsmith.errors import FormatError, InvalidArgumentError
from warpsmith.ops import moe_args

torch = pytest.importorskip("torch")

FACTS = DeviceFacts(Capability(8, 0), 132)  # where the products are those that the emulator knows
H, INNER = 32, 48


class Notes:
    """A runtime whose kernels compute, and note their launches: (kernel, grid, arguments by name)."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.launches: list[tuple[str, tuple[int, ...], dict[str, Any]]] = []

    def prepare(self, problem: Problem, device: int) -> Any:
        assert device == -1  # the number of a CPU tensor
        self.problems.append(problem)
        choice = resolve(CATALOG, problem, FACTS).choice
        assert choice is not None
        names = [p.name for p in CATALOG.kernel(choice.kernel).params]

        def launch(grid: tuple[int, int, int], given: tuple[Any, ...], stream: int) -> None:
            assert stream == 7
            self.launches.append((choice.kernel, grid, dict(zip(names, given, strict=True))))
            moe_emulator.launch(choice, grid, given)

        return SimpleNamespace(cubin=choice, shared_memory=50000, launch=launch)

    @property
    def kernels(self) -> list[str]:
        """The kernels launched since the last look, which forgets them."""
        found = [kernel for kernel, _, _ in self.launches]
        self.launches.clear()
        return found


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    from warpsmith.ops import cuda_gemm, cuda_moe, cuda_moe_plan

    made = Notes()
    for module in (cuda_gemm, cuda_moe_plan):
        monkeypatch.setattr(module, "runtime", lambda: made)
    monkeypatch.setattr(cuda_gemm, "_facts", lambda _: FACTS)
    monkeypatch.setattr(cuda_moe, "_current_stream", lambda _: 7)
    monkeypatch.setattr(cuda_moe, "_plans", {})
    monkeypatch.setattr(cuda_moe, "_steps", {})
    return made


@pytest.fixture
def cuda(notes: Notes) -> Any:  # noqa: ARG001  # it stands in for the device
    from warpsmith.ops import cuda_moe

    return cuda_moe


def random(*shape: int, dtype: Any = None, seed: int = 0) -> Any:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype or torch.bfloat16)


def experts(
    number: int = 6, kind: str = "bf16", hidden: int = H, inner: int = INNER, gates: int = 2, **options: Any
) -> ws.Experts:
    w13, w2 = random(number, gates * inner, hidden, seed=1) / 6, random(number, hidden, inner, seed=2) / 6
    if kind == "fp16":
        w13, w2 = w13.half(), w2.half()
    elif kind != "bf16":
        w13, w2 = ws.quantize(w13, kind), ws.quantize(w2, kind)
    return ws.Experts(w13, w2, **options)


def run(cuda: Any, x: Any, logits: Any, layer: ws.Experts, routing: Any, **options: Any) -> Any:
    names = ("ids", "weights", "expert_offset", "num_tokens", "out", "workspace")
    given = {"expert_offset": 0, **options}
    return cuda.fused(x, logits, layer, routing, *(given.get(name) for name in names))


def assert_near(got: Any, want: Any, limit: float = 1e-2) -> None:
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    assert (got.double() - want.double()).norm() <= limit * want.double().norm()


TOP2 = ws.Routing("topk_softmax", 2)
ROUTINGS = {
    "all": ws.Routing("softmax_topk", 3, scale=2.0),
    "chosen": ws.Routing("softmax_topk_renormalize", 2),
    "grouped": ws.Routing("sigmoid_bias_grouped", 2, scale=2.5, n_group=3, topk_group=2, bias=torch.arange(6) / 10),
    "input": ws.Routing("sigmoid_input", 1),
}


@pytest.mark.parametrize("tokens", [1, 19])
@pytest.mark.parametrize("name", ROUTINGS)
def test_a_layer_is_six_launches_that_compute_the_reference(cuda: Any, notes: Notes, name: str, tokens: int) -> None:
    x, logits, layer = random(tokens, H), random(tokens, 6, seed=3), experts()
    got = run(cuda, x, logits, layer, ROUTINGS[name])
    steps = ["moe_route", "moe_permute", "sm80_gemm", "moe_activation", "sm80_gemm", "moe_combine"]
    assert notes.kernels == steps
    assert_near(got, ws.fused_moe(x, logits, layer, ROUTINGS[name]))


@pytest.mark.parametrize("activation", ["swiglu_oai", "geglu", "geglu_tanh", "relu2"])
def test_activations_and_biases(cuda: Any, activation: str) -> None:
    gates = 1 if activation == "relu2" else 2
    biases = {"bias13": random(6, gates * INNER, seed=4), "bias2": random(6, H, dtype=torch.float32, seed=5)}
    layer = experts(gates=gates, activation=activation, **biases)
    x, logits = random(7, H), random(7, 6, seed=3)
    assert_near(run(cuda, x, logits, layer, TOP2), ws.fused_moe(x, logits, layer, TOP2))


QUANTIZED = [
    ("nvfp4", None), ("mxfp4", None), ("mxfp8", None), ("fp8_block_128x128", None), ("nvfp4", "nvfp4"),
    ("mxfp4", "mxfp4"), ("mxfp8", "mxfp8"), ("mxfp4", "mxfp8"), ("fp8_block_128x128", "fp8_block"),
]  # fmt: skip


@pytest.mark.parametrize(("weights", "activations"), QUANTIZED)
def test_every_format(cuda: Any, notes: Notes, weights: str, activations: str | None) -> None:
    layer = experts(3, weights, 128, 128, format=activations)
    x, logits = random(5, 128), random(5, 3, seed=3)
    got = run(cuda, x, logits, layer, TOP2)
    assert_near(got, ws.fused_moe(x, logits, layer, TOP2), 1e-2 if activations is None else 6e-2)
    kernels = notes.kernels
    assert kernels.count("quantize") == (activations is not None)
    assert ("silu_and_mul_quantize" in kernels) == (activations is not None)


@pytest.mark.parametrize("activation", ["swiglu", "geglu"])
def test_nvfp4_with_scales_of_each_expert(cuda: Any, activation: str) -> None:
    scales = {"a1": torch.tensor([100.0, 200.0, 50.0]), "a2": torch.tensor([90.0, 20.0, 500.0])}
    layer = experts(3, "nvfp4", 128, 128, format="nvfp4", activation=activation, **scales)
    x, logits = random(5, 128), random(5, 3, seed=3)
    assert_near(run(cuda, x, logits, layer, TOP2), ws.fused_moe(x, logits, layer, TOP2), 6e-2)


def test_a_quantized_input_is_scaled_before_it_is_quantized(cuda: Any) -> None:
    layer = experts(3, "mxfp8", 128, 128, format="mxfp8")
    x, logits, routing = random(5, 128), random(5, 3, seed=3), ws.Routing("sigmoid_input", 1)
    assert_near(run(cuda, x, logits, layer, routing), ws.fused_moe(x, logits, layer, routing), 6e-2)


def test_slices_chosen_experts_and_fewer_tokens(cuda: Any) -> None:
    x, logits = random(9, H), random(9, 16, seed=3)
    layer, count = experts(6), torch.tensor([4], dtype=torch.int32)
    for options in ({"expert_offset": 0}, {"expert_offset": 10}, {"num_tokens": count}):
        assert_near(run(cuda, x, logits, layer, TOP2, **options), ws.fused_moe(x, logits, layer, TOP2, **options))
    ids = torch.tensor([[0, 5], [-1, 6], [2**31 - 1, -(2**31)]], dtype=torch.int32)
    weights = torch.rand(3, 2)
    got = run(cuda, x[:3], None, layer, None, ids=ids, weights=weights)
    assert_near(got, ws.fused_moe(x[:3], None, layer, None, ids=ids, weights=weights))
    assert (got[2] == 0).all()


def test_many_pairs_are_counted_first(cuda: Any, notes: Notes) -> None:
    ids = torch.randint(-1, 9, (moe_args.CHUNK * moe_args.COUNTED_CHUNKS // 8 + 1, 8), dtype=torch.int32)
    x = random(ids.shape[0], 8)
    offsets, rows, positions, gathered = cuda.permute(ids, 5, 2, x, None)
    assert notes.kernels == ["moe_count", "moe_permute"]
    want = ws.moe_permute(ids, 5, expert_offset=2, x=x)
    used = int(offsets[-1])
    assert torch.equal(offsets, want.offsets)
    assert torch.equal(positions, want.positions)
    assert torch.equal(rows[:used], want.rows[:used])
    assert torch.equal(gathered[:used], want.gathered[:used])


def test_the_pieces_are_the_references(cuda: Any) -> None:
    logits, x = random(20, 6, seed=3), random(20, H)
    ids, weights = cuda.route(logits, TOP2, None)
    want = ws.route(logits, TOP2)
    assert torch.equal(ids, want[0])
    torch.testing.assert_close(weights, want[1])
    offsets, _, positions, gathered = cuda.permute(ids, 6, 0, x, None)
    assert int(offsets[-1]) == 40
    for factors in (weights, None):
        got = cuda.combine(gathered, factors, positions, 20, 2, None)
        assert_near(got, ws.moe_combine(gathered, factors, positions, top_k=2), 4e-3)
    assert cuda.permute(ids[:0], 6, 0, x[:0], None)[0].tolist() == [0] * 7
    assert cuda.route(logits[:0], TOP2, None)[0].shape == (0, 2)
    assert cuda.combine(gathered, weights[:0], positions[:0], 0, 2, None).shape == (0, H)


def test_a_plan_is_made_once_for_what_makes_it(cuda: Any, notes: Notes) -> None:
    x, logits, layer = random(4, H), random(4, 6, seed=3), experts()
    for _ in range(3):
        run(cuda, x, logits, layer, TOP2)
        run(cuda, random(4, H, seed=9), logits, experts(), TOP2)  # other weights that lie alike
    made = len(notes.problems)
    assert made == 7  # of the first product twice: whether its kernel activates is asked first
    run(cuda, random(5, H), random(5, 6), layer, TOP2)
    assert len(notes.problems) == 2 * made
    run(cuda, x, logits, layer, ws.Routing("topk_softmax", 3))
    assert len(notes.problems) == 3 * made


def test_what_kernels_cannot_read_is_copied(cuda: Any) -> None:
    layer = experts()
    x, logits = random(6, 2 * H)[:, 1 : 1 + H], random(6, 6, seed=3).t().contiguous().t()
    assert_near(run(cuda, x, logits, layer, TOP2), ws.fused_moe(x.contiguous(), logits.contiguous(), layer, TOP2))
    offset = torch.empty(6 * 96 * 32 + 1, dtype=torch.bfloat16)[1:].view(6, 96, 32)
    offset.copy_(layer.w13)
    odd = ws.Experts(offset, layer.w2)
    got = run(cuda, x, logits, odd, TOP2)
    assert torch.equal(got, run(cuda, x, logits, layer, TOP2))


def test_out_and_workspace(cuda: Any) -> None:
    x, logits, layer = random(6, H), random(6, 6, seed=3), experts()
    need = ws.moe_workspace(6, layer, 2)
    work, out = torch.zeros(need, dtype=torch.uint8), torch.empty(6, H, dtype=torch.bfloat16)
    assert run(cuda, x, logits, layer, TOP2, out=out, workspace=work) is out
    assert torch.equal(out, run(cuda, x, logits, layer, TOP2))
    assert run(cuda, x[:0], logits[:0], layer, TOP2).shape == (0, H)
    bad = {
        "bytes": torch.zeros(need - 16, dtype=torch.uint8),
        "uint8": torch.zeros(need, dtype=torch.int8),
        "aligned": torch.zeros(need + 1, dtype=torch.uint8)[1:],
    }
    for says, workspace in bad.items():
        with pytest.raises(InvalidArgumentError, match=says):
            run(cuda, x, logits, layer, TOP2, workspace=workspace)
    for target in (random(6, H + 8)[:, :H], random(5, H), random(6, H).half()):
        with pytest.raises(InvalidArgumentError, match="out"):
            run(cuda, x, logits, layer, TOP2, out=target)


def test_bad_input_is_refused_before_anything_is_planned(cuda: Any, notes: Notes) -> None:
    x, logits, layer = random(4, H), random(4, 6), experts()
    for given, says in (
        ((x, logits[:3], layer, TOP2), "4 tokens, and 3 were routed"),
        ((x, logits.int(), layer, TOP2), "router_logits is int32"),
        ((x.float(), logits, layer, TOP2), "x is float32"),
        ((x.half(), logits, layer, TOP2), "convert one"),
        ((x[:, :16], logits, layer, TOP2), "16 columns and the experts H = 32"),
    ):
        with pytest.raises(FormatError, match=says):
            run(cuda, *given)
    with pytest.raises(InvalidArgumentError, match="top_k = 9 is more than the 6 experts"):
        run(cuda, x, logits, layer, ws.Routing("topk_softmax", 9))
    with pytest.raises(InvalidArgumentError, match="expert_offset 2"):
        run(cuda, x, logits, layer, TOP2, expert_offset=2)
    arrays = ws.Experts(np.zeros((6, 96, H), np.float16), np.zeros((6, H, INNER), np.float16))
    with pytest.raises(FormatError, match="NumPy arrays"):
        run(cuda, x.half(), logits, arrays, TOP2)
    assert notes.problems == []
