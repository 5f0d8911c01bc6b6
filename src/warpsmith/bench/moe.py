# SPDX-License-Identifier: Apache-2.0
"""Benchmark of MoE layers: GPU time from router logits to output, beside the floor and other people's code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from warpsmith.bench import ceilings
from warpsmith.bench.gemm_peers import Call, failure
from warpsmith.bench.moe_peers import PEERS, Given
from warpsmith.bench.moe_products import PREFILL, PRODUCTS, products
from warpsmith.bench.result import Result, Row, environment
from warpsmith.bench.timing import by_turns, gpu_time, host_time
from warpsmith.catalog.fp4_gemm import PAIRS as BLOCK_SCALED
from warpsmith.catalog.fused_moe import TILED_FORMATS
from warpsmith.catalog.spec import pair
from warpsmith.errors import DriverError, InvalidArgumentError

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048, 8192)
_SETS, _OURS = 4, "ours"
_SAME, _SAME_QUANTIZED = 2e-2, 8e-2
"""Relative difference up to which a peer does the same work: it rounds elsewhere, and it quantizes no activations."""


@dataclass(frozen=True)
class Model:
    """A MoE layer as a model has it.

    Attributes
    ----------
    hidden, inner, experts, top_k
        H, I, E and k.
    rule, options
        Of its `Routing`.
    activation
        Of its `Experts`; with biases for ``swiglu_oai``.
    formats
        The formats of weights that are measured, or of `PAIRS` or `FEW_ROWS`.
    """

    name: str
    hidden: int
    inner: int
    experts: int
    top_k: int
    rule: str = "softmax_topk_renormalize"
    options: tuple[tuple[str, Any], ...] = ()
    activation: str = "swiglu"
    formats: tuple[str, ...] = ("bf16",)


PREPARED = {pair(a, b): (a, b) for a, b in BLOCK_SCALED if a in TILED_FORMATS}
"""Formats of activations and of prepared weights beside them, as 12.x reads both."""

PAIRS = {"fp8_block": ("fp8_block", "fp8_block_128x128"), **PREPARED}
"""What is measured with quantized activations: their format, and that of the weights."""

FEW_ROWS = {f"{name}_few_rows": name for name in ("nvfp4", "mxfp4")}
"""What is measured with weights in the order for few rows: their format."""

_GROUPED = "sigmoid_bias_grouped"
MODELS = (
    Model("Qwen3-30B-A3B", 2048, 768, 128, 8),
    Model("Qwen3-235B-A22B", 4096, 1536, 128, 8),
    Model("Mixtral-8x7B", 4096, 14336, 8, 2),
    Model(
        "DeepSeek-V3", 7168, 2048, 256, 8, _GROUPED, (("n_group", 8), ("topk_group", 4), ("scale", 2.5)),
        formats=("fp8_block", "fp8_block_128x128"),
    ),
    Model(
        "gpt-oss-120b", 2880, 2880, 128, 4, "topk_softmax", activation="swiglu_oai",
        formats=("mxfp4", "mxfp4_few_rows"),
    ),
    Model(
        "gpt-oss-20b", 2880, 2880, 32, 4, "topk_softmax", activation="swiglu_oai",
        formats=("mxfp4", "mxfp4_few_rows", "bf16"),
    ),
    Model("Kimi-K2", 7168, 2048, 384, 8, _GROUPED, (("scale", 2.827),), formats=("fp8_block", "fp8_block_128x128")),
)  # fmt: skip
"""The layers of models in use, in their own format, and in bf16 where torch's grouped products can be a peer."""


def run(models: Sequence[str] = (), tokens: Sequence[int] = TOKENS, formats: Sequence[str] = ()) -> Result:
    """Measure models' layers over numbers of tokens, uniform random routing, bf16 activations.

    Parameters
    ----------
    models
        Names; all of `MODELS` if empty.
    tokens
        Tokens of a call.
    formats
        Weights' formats; each model's own if empty.

    Raises
    ------
    DriverError
        If there is no GPU.
    InvalidArgumentError
        If a model is unknown.
    """
    import torch

    known = {model.name: model for model in MODELS}
    for name in models:
        if name not in known:
            raise InvalidArgumentError(f"there is no model {name!r}; expected one of {', '.join(known)}")
    if not torch.cuda.is_available():
        raise DriverError("the benchmark needs a CUDA GPU and a torch that sees it; there is none here")
    device, driver, versions, date, clocks = environment()
    most = ceilings.measure()
    rows: list[Row] = []
    notes: list[str] = []
    for name in models or known:
        for format in formats or known[name].formats:
            rows += _measure(known[name], format, tokens, most, notes)
            torch.cuda.empty_cache()
    return Result("moe", device, driver, versions, most, tuple(rows), date, tuple(notes), clocks)


def _weights(rows: int, columns: int, model: Model, format: str) -> Any:
    """Random weights of all experts, quantized a few at a time."""
    import torch

    import warpsmith as ws

    def draw(count: int) -> Any:
        return torch.randn(count, rows, columns, device="cuda", dtype=torch.bfloat16) / columns**0.5

    if format == "bf16":
        return draw(model.experts)
    options: dict[str, Any] = {"global_scale": 2688.0} if format == "nvfp4" else {}
    parts = [ws.quantize(draw(8), format, **options) for _ in range(model.experts // 8)]
    data = torch.cat([p.data.view(torch.uint8) for p in parts]).view(parts[0].data.dtype)
    kind = parts[0].scales.dtype
    scales = [p.scales.view(torch.uint8) if kind is not torch.float32 else p.scales for p in parts]
    shape = (model.experts, rows, columns)
    return ws.QTensor(data, torch.cat(scales).view(kind), format, shape, global_scale=parts[0].global_scale)


def _measure(model: Model, format: str, tokens: Sequence[int], most: dict[str, float], notes: list[str]) -> list[Row]:
    import torch

    import warpsmith as ws

    gates, biases = 2, {}
    if model.activation == "swiglu_oai":
        for name, width in (("bias13", 2 * model.inner), ("bias2", model.hidden)):
            biases[name] = torch.randn(model.experts, width, device="cuda", dtype=torch.bfloat16)
    few = format in FEW_ROWS
    activations, weights = PAIRS.get(format, (None, FEW_ROWS.get(format, format)))
    w13 = _weights(gates * model.inner, model.hidden, model, weights)
    w2 = _weights(model.hidden, model.inner, model, weights)
    own = [w13, w2]
    if few or format in PREPARED:
        own = [ws.prepare_weight(w, activations or "bf16", few_rows=few) for w in own]
    layer = ws.Experts(*own, activation=model.activation, format=activations, **biases)
    options = dict(model.options)
    if model.rule == _GROUPED:
        options["bias"] = torch.randn(model.experts, device="cuda") / 10
    routing = ws.Routing(model.rule, model.top_k, **options)
    plain = tuple(w if format == "bf16" else ws.dequantize(w, "bfloat16") for w in (w13, w2))
    del w13, w2
    rows = [_row(model, format, layer, routing, plain, t, most, notes) for t in tokens]
    if 1 in tokens:
        rows.append(_host_row(model, format, layer, routing))
    return rows


def _inputs(model: Model, tokens: int) -> tuple[list[Any], list[Any]]:
    import torch

    quantiles = torch.linspace(-1, 1, model.experts + 2, device="cuda")[1:-1]
    values = (torch.erfinv(quantiles) * 2**0.5).bfloat16()  # no two alike, for `torch.topk` may order these either way
    xs = [torch.randn(tokens, model.hidden, device="cuda", dtype=torch.bfloat16) for _ in range(_SETS)]
    return xs, [values[torch.rand(tokens, model.experts, device="cuda").argsort(-1)] for _ in range(_SETS)]


def _row(
    model: Model, format: str, layer: Any, routing: Any, plain: tuple[Any, Any], tokens: int,
    most: dict[str, float], notes: list[str],
) -> Row:  # fmt: skip
    import torch

    import warpsmith as ws

    xs, logits = _inputs(model, tokens)
    outs = [torch.empty_like(x) for x in xs]

    def ours(i: int) -> Any:
        return ws.fused_moe(xs[i], logits[i], layer, routing, out=outs[i])

    chosen = [ws.route(one, routing) for one in logits]
    hit = sum(len(ids.unique()) for ids, _ in chosen) / _SETS
    per_expert = sum(_bytes(w) for w in (layer.w13, layer.w2)) / model.experts
    operations = 2 * 3 * tokens * model.top_k * model.hidden * model.inner
    rate = ceilings.FP8 if layer.format == "fp8_block" else ceilings.BF16
    floors = ceilings.floors(most, int(hit * per_expert), operations, rate)
    given = [
        Given(format, x, one, *pair, *plain, layer, routing)
        for x, one, pair in zip(xs, logits, chosen, strict=True)
    ]  # fmt: skip
    name = f"{model.name} {format}"
    what = f"{name}, {tokens} tokens"
    contenders = _right_peers(what, given, ours(0), notes)
    contenders[_OURS] = [partial(ours, i) for i in range(_SETS)]
    times = by_turns(contenders, lambda peer, error: notes.append(failure(peer, what, error)))
    details = floors
    if tokens >= PREFILL:
        made = [products(x, ids, layer) for x, (ids, _) in zip(xs, chosen, strict=True)]
        alone = [run for run in made if run is not None]
        details = {**floors, PRODUCTS: gpu_time(alone)} if alone else floors
    return Row(name, {"tokens": tokens}, times.pop(_OURS), max(floors.values()), int(hit * per_expert), times, details)


def _right_peers(what: str, given: Sequence[Given], mine: Any, notes: list[str]) -> dict[str, list[Call]]:
    """The calls of the peers whose output is right; why the others do not count goes to the notes."""
    found: dict[str, list[Call]] = {}
    for name, make in PEERS.items():
        try:
            made = [peer for peer in (make(one) for one in given) if peer is not None]
            if not made:
                continue
            difference = float((mine.float() - made[0].result().float()).norm() / mine.float().norm())
            if not difference <= (_SAME if given[0].layer.format is None else _SAME_QUANTIZED):
                notes.append(f"{name}, {what}: its result differs by {difference:.1e}; not counted")
            else:
                found[name] = [peer.timed for peer in made]
        except Exception as error:
            notes.append(failure(name, what, error))
    return found


def _bytes(w: Any) -> int:
    parts = (w.data, w.scales) if hasattr(w, "scales") else (w,)
    return sum(part.numel() * part.element_size() for part in parts)


def _host_row(model: Model, format: str, layer: Any, routing: Any) -> Row:
    """The host cost of a call, out and workspace given."""
    import torch

    import warpsmith as ws

    x, logits = (one[0] for one in _inputs(model, 1))
    out = torch.empty_like(x)
    work = torch.empty(ws.moe_workspace(1, layer, model.top_k), device="cuda", dtype=torch.uint8)
    cost = host_time(lambda: ws.fused_moe(x, logits, layer, routing, out=out, workspace=work), calls=50)
    return Row(f"host: {model.name} {format}", {"tokens": 1}, cost)
