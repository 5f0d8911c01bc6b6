# SPDX-License-Identifier: Apache-2.0
"""The MoE blocks of `transformers` beside ours: the same weights, the same input, one run.

A block is made in its model's real configuration with random bfloat16 weights; `transformers` runs it as it is, router
and shared experts included, and so do we. Blocks that loop over experts in Python wait for the GPU, so that no CUDA
graph can hold them: both sides are timed as calls, ours in a graph as well.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from warpsmith.bench.result import Result, Row, environment
from warpsmith.bench.timing import copy_bandwidth, gpu_time
from warpsmith.errors import DriverError, InvalidArgumentError

TOKENS = (1, 8, 64, 512, 2048)
EAGER, GROUPED = "transformers", "transformers, grouped_mm"
"""Its loop over experts, what it does when not told otherwise; and the fastest of its ways."""
SAME = 2e-2
"""‖theirs − ours‖ / ‖ours‖ up to which both compute the same; blocks round weights and sums to bfloat16."""
_CALLS = 24
_SETS = 4


class Kind(NamedTuple):
    """A block of `transformers`: where it is, its configuration, and our routing of it.

    `experts` may be fewer than the model has; `of` is how many that is.
    """

    module: str
    config: str
    block: str
    fields: dict[str, Any]
    experts: int
    of: int
    top_k: int
    rule: str
    options: dict[str, Any]


KINDS = {
    "Qwen3-30B-A3B": Kind(
        "qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeSparseMoeBlock",
        {"hidden_size": 2048, "moe_intermediate_size": 768, "num_experts": 128, "norm_topk_prob": True},
        128, 128, 8, "softmax_topk_renormalize", {},
    ),
    "Mixtral-8x7B": Kind(
        "mixtral", "MixtralConfig", "MixtralSparseMoeBlock",
        {"hidden_size": 4096, "intermediate_size": 14336, "num_local_experts": 8},
        8, 8, 2, "softmax_topk_renormalize", {},
    ),
    "DeepSeek-V3": Kind(
        "deepseek_v3", "DeepseekV3Config", "DeepseekV3MoE",
        {"hidden_size": 7168, "moe_intermediate_size": 2048, "n_routed_experts": 64, "n_shared_experts": 1,
         "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
        64, 256, 8, "sigmoid_bias_grouped", {"n_group": 8, "topk_group": 4, "scale": 2.5},
    ),
    "gpt-oss-20b": Kind(
        "gpt_oss", "GptOssConfig", "GptOssMLP",
        {"hidden_size": 2880, "intermediate_size": 2880, "num_local_experts": 32},
        32, 32, 4, "topk_softmax", {},
    ),
}  # fmt: skip
"""By model."""


class Pair(NamedTuple):
    """One layer, by `transformers` (in each of its ways) and by us; all take x [T, H] and return [T, H]."""

    theirs: dict[str, Callable[[Any], Any]]
    ours: Callable[[Any], Any]
    logits: Callable[[Any], Any]
    device: Any


def run(models: Sequence[str] = (), tokens: Sequence[int] = TOKENS) -> Result:
    """Compare and time the blocks of models, bfloat16.

    Parameters
    ----------
    models
        Names; all of `KINDS` if empty.
    tokens
        Tokens of a call.

    Raises
    ------
    DriverError
        If there is no GPU.
    InvalidArgumentError
        If a model is unknown, or `transformers` is not installed.
    """
    import torch

    for name in models:
        if name not in KINDS:
            raise InvalidArgumentError(f"there is no block of {name!r} to compare with; expected {', '.join(KINDS)}")
    try:
        version = str(importlib.import_module("transformers").__version__)
    except ImportError as error:
        raise InvalidArgumentError("the comparison needs transformers: pip install transformers") from error
    if not torch.cuda.is_available():
        raise DriverError("the benchmark needs a CUDA GPU and a torch that sees it; there is none here")
    device, driver, versions, date, clocks = environment()
    rows: list[Row] = []
    notes: list[str] = []
    for name in models or KINDS:
        try:
            pair = make(KINDS[name])
            rows += [_row(name, KINDS[name], pair, t) for t in tokens]
            del pair
        except Exception as error:  # a block of another release of transformers may be made in another way
            notes.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
        torch.cuda.empty_cache()
    ceilings = {"copy_bytes_per_second": copy_bandwidth()}
    found = {**versions, "transformers": version}
    return Result("blocks", device, driver, found, ceilings, tuple(rows), date, tuple(notes), clocks)


def make(kind: Kind, device: str = "cuda") -> Pair:
    """A block with random weights on a device, and our layer on the same weights."""
    import torch

    module = importlib.import_module(f"transformers.models.{kind.module}.modeling_{kind.module}")
    configuration = importlib.import_module(f"transformers.models.{kind.module}.configuration_{kind.module}")
    config = getattr(configuration, kind.config)(num_experts_per_tok=kind.top_k, **kind.fields)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            block = getattr(module, kind.block)(config)
    finally:
        torch.set_default_dtype(before)
    block.requires_grad_(False).eval()
    for parameter in block.parameters():
        parameter.data.normal_(std=max(parameter.shape[-1], 4) ** -0.5)

    def theirs(implementation: str, x: Any) -> Any:
        config._experts_implementation = implementation
        with torch.inference_mode():
            out = block(x[None])
            return (out[0] if isinstance(out, tuple) else out).reshape(x.shape)

    ways: dict[str, Callable[[Any], Any]] = {EAGER: partial(theirs, "eager")}
    if hasattr(block.experts, "config") and device == "cuda":  # transformers 5 knows more than a loop over experts
        ways[GROUPED] = partial(theirs, "grouped_mm")
    return _pair(kind, block, ways)


def _pair(kind: Kind, block: Any, theirs: dict[str, Callable[[Any], Any]]) -> Pair:
    """Our layer of a block's weights."""
    import torch

    import warpsmith as ws

    linear = torch.nn.functional.linear
    router = block.router if hasattr(block, "router") else block.gate
    options, weight, bias = dict(kind.options), router.weight, getattr(router, "bias", None)
    if kind.rule == "sigmoid_bias_grouped":
        # transformers takes experts of other groups as 0; with a bias that is not below 0 that is no choice
        router.e_score_correction_bias = (torch.rand(kind.experts, device=weight.device) / 10).float()
        options["bias"], weight = router.e_score_correction_bias, weight.float()
    layer = ws.Experts(*_weights(block.experts), **_biases(block.experts))
    routing = ws.Routing(kind.rule, kind.top_k, **options)
    shared = getattr(block, "shared_experts", None)

    def logits(x: Any) -> Any:
        return linear(x.to(weight.dtype), weight, bias)

    def ours(x: Any) -> Any:
        with torch.inference_mode():
            out = ws.fused_moe(x, logits(x), layer, routing)
            return out if shared is None else out + shared(x)

    return Pair(theirs, ours, logits, weight.device)


def _weights(experts: Any) -> tuple[Any, Any]:
    """w13 [E, 2·I, H] and w2 [E, H, I] of a block; a list of modules is moved into them, so that both read the same."""
    import torch

    if hasattr(experts, "gate_up_proj"):
        w13, w2 = experts.gate_up_proj.data, experts.down_proj.data
        if not hasattr(experts, "gate_up_proj_bias"):
            return w13, w2
        # gpt-oss: [E, H, 2·I], gate and up columns alternating, and [E, I, H]
        return torch.cat([w13[..., 0::2], w13[..., 1::2]], -1).mT.contiguous(), w2.mT.contiguous()
    names = ("gate_proj", "up_proj", "down_proj") if hasattr(experts[0], "gate_proj") else ("w1", "w3", "w2")
    inner, hidden = getattr(experts[0], names[0]).weight.shape
    like = getattr(experts[0], names[0]).weight
    w13, w2 = like.new_empty(len(experts), 2 * inner, hidden), like.new_empty(len(experts), hidden, inner)
    for e, expert in enumerate(experts):
        for name, place in zip(names, (w13[e, :inner], w13[e, inner:], w2[e]), strict=True):
            one = getattr(expert, name).weight
            place.copy_(one.data)
            one.data = place
    return w13, w2


def _biases(experts: Any) -> dict[str, Any]:
    import torch

    if not hasattr(experts, "gate_up_proj_bias"):
        return {}
    bias = experts.gate_up_proj_bias.data
    return {
        "bias13": torch.cat([bias[:, 0::2], bias[:, 1::2]], 1), "bias2": experts.down_proj_bias.data,
        "activation": "swiglu_oai",
    }  # fmt: skip


def untied(pair: Pair, kind: Kind, tokens: int) -> Any:
    """Random tokens whose choice of experts is not between equal logits, which `torch.topk` may order either way."""
    import torch

    x = torch.randn(2 * tokens + 64, kind.fields["hidden_size"], device=pair.device, dtype=torch.bfloat16)
    logits = pair.logits(x)
    if logits.dtype is not torch.float32:
        best = logits.topk(kind.top_k + 1, dim=-1).values
        x = x[best[:, -1] < best[:, -2]]
    if len(x) < tokens:
        raise InvalidArgumentError(f"only {len(x)} random tokens choose without ties; {tokens} needed")
    return x[:tokens].contiguous()


def _row(name: str, kind: Kind, pair: Pair, tokens: int) -> Row:
    import torch

    xs = [untied(pair, kind, tokens) for _ in range(_SETS)]
    ours, difference = pair.ours(xs[0]).float(), 0.0
    for way, theirs in pair.theirs.items():
        found = float((theirs(xs[0]).float() - ours).norm() / ours.norm())
        if not found <= SAME:
            raise InvalidArgumentError(f"{way}, {tokens} tokens: the results differ by {found:.1e}, limit {SAME}")
        difference = max(difference, found)
    called = called_time([partial(pair.ours, x) for x in xs])
    peers = {way: called_time([partial(theirs, x) for x in xs]) for way, theirs in pair.theirs.items()}
    with torch.inference_mode():
        graph = gpu_time([partial(pair.ours, x) for x in xs])
    told = f"{name} bf16" if kind.experts == kind.of else f"{name} bf16, {kind.experts} of {kind.of} experts"
    details = {"difference": difference, "in a CUDA graph": graph}
    return Row(told, {"tokens": tokens}, called, peers=peers, details=details)


def called_time(calls: Sequence[Callable[[], Any]], count: int = _CALLS) -> float:
    """Median time of a call between two events on its stream, in microseconds; the host's part counts if longer."""
    import torch

    for call in calls:
        call()
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times: list[float] = []
    for i in range(count):
        torch.cuda.synchronize()
        start.record()
        calls[i % len(calls)]()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e3)
    return statistics.median(times)
