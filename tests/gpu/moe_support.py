# SPDX-License-Identifier: Apache-2.0
"""MoE layers for GPU tests, and their value in float64, computed on the GPU since a CPU would take minutes."""

from __future__ import annotations

from typing import Any

import warpsmith as ws

from .support import DEVICE, torch

MODELS: dict[str, dict[str, Any]] = {
    "Qwen3-30B-A3B": {"hidden": 2048, "inner": 768, "experts": 128, "rule": "softmax_topk_renormalize", "top_k": 8},
    "Qwen3-235B-A22B": {"hidden": 4096, "inner": 1536, "experts": 16, "rule": "softmax_topk_renormalize", "top_k": 8},
    "Mixtral-8x7B": {"hidden": 4096, "inner": 14336, "experts": 8, "rule": "softmax_topk_renormalize", "top_k": 2},
    "DeepSeek-V3": {
        "hidden": 7168, "inner": 2048, "experts": 32, "rule": "sigmoid_bias_grouped", "top_k": 8, "scale": 2.5,
        "n_group": 8, "topk_group": 4,
    },
    "gpt-oss-120b": {"hidden": 2880, "inner": 2880, "experts": 32, "rule": "topk_softmax", "top_k": 4},
    "Kimi-K2": {
        "hidden": 7168, "inner": 2048, "experts": 24, "rule": "sigmoid_bias_grouped", "top_k": 8, "scale": 2.827,
    },
    "Llama-4": {"hidden": 5120, "inner": 1024, "experts": 16, "rule": "sigmoid_input", "top_k": 1},
}  # fmt: skip
"""The layers of shapes.json, and one that scales its input; some with fewer experts than they have."""


def routing_of(model: str) -> ws.Routing:
    """A model's rule, with a bias where it has one."""
    given = {name: MODELS[model][name] for name in MODELS[model] if name not in ("hidden", "inner", "experts")}
    if given["rule"] == "sigmoid_bias_grouped":
        given["bias"] = torch.randn(MODELS[model]["experts"], device=DEVICE) / 10
    return ws.Routing(**given)


def quantized(w: Any, format: str) -> Any:
    """Weights in a format; nvfp4 with a global scale for each expert."""
    if format in ("bf16", "fp16"):
        return w.bfloat16() if format == "bf16" else w.half()
    if format != "nvfp4":
        return ws.quantize(w, format)
    parts = [ws.quantize(one, format) for one in w]
    data, scales = torch.stack([p.data for p in parts]), torch.stack([p.scales.view(torch.uint8) for p in parts])
    factors = torch.cat([p.global_scale for p in parts])
    return ws.QTensor(data, scales.view(torch.float8_e4m3fn), format, tuple(w.shape), global_scale=factors)


def make_experts(
    number: int, hidden: int, inner: int, weights: str = "bf16", *, biased: bool = False, **options: Any
) -> ws.Experts:
    """Random experts whose outputs are about as large as their inputs."""
    gates = 1 if options.get("activation") == "relu2" else 2
    w13 = torch.randn(number, gates * inner, hidden, device=DEVICE, dtype=torch.bfloat16) / hidden**0.5
    w2 = torch.randn(number, hidden, inner, device=DEVICE, dtype=torch.bfloat16) / inner**0.5
    if biased:
        options["bias13"] = torch.randn(number, gates * inner, device=DEVICE).bfloat16() / 3
        options["bias2"] = torch.randn(number, hidden, device=DEVICE) / 3
    return ws.Experts(quantized(w13, weights), quantized(w2, weights), **options)


def model_experts(model: str, weights: str, **options: Any) -> ws.Experts:
    """A model's experts."""
    sizes = MODELS[model]
    if model.startswith("gpt-oss"):
        options = {"activation": "swiglu_oai", "biased": True, **options}
    return make_experts(sizes["experts"], sizes["hidden"], sizes["inner"], weights, **options)


def _expert(w: Any, e: int) -> Any:
    """One expert's weights in float64."""
    if not isinstance(w, ws.QTensor):
        return w[e].double()
    factor = w.global_scale
    factor = factor[e : e + 1] if factor is not None and factor.numel() > 1 else factor
    one = ws.QTensor(w.data[e], w.scales[e], w.format, tuple(w.shape[1:]), global_scale=factor)
    return ws.dequantize(one, dtype="float32").double()


def _requantized(values: Any, layer: ws.Experts, scale: Any, e: int, dtype: Any) -> Any:
    """What the format does to the inputs of a product."""
    if layer.format is None:
        return values.to(dtype).double()
    options = {}
    if layer.format == "nvfp4":
        options["global_scale"] = 1.0 if scale is None else scale.reshape(-1)[e if scale.numel() > 1 else 0].reshape(1)
    return ws.dequantize(ws.quantize(values.float(), layer.format, **options), dtype="float32").double()


def _activated(h: Any, layer: ws.Experts) -> Any:
    if layer.activation == "relu2":
        return h.clamp(min=0) ** 2
    gate, up = h.chunk(2, -1)
    if layer.activation == "swiglu_oai":
        gate, up = gate.clamp(max=layer.limit), up.clamp(-layer.limit, layer.limit) + 1
        return gate * torch.sigmoid(layer.alpha * gate) * up
    if layer.activation == "swiglu":
        return torch.nn.functional.silu(gate) * up
    approximate = "tanh" if layer.activation == "geglu_tanh" else "none"
    return torch.nn.functional.gelu(gate, approximate=approximate) * up


def right(
    x: Any, layer: ws.Experts, ids: Any, weights: Any, *, expert_offset: int = 0, scales_input: bool = False
) -> Any:
    """The layer in float64; `reference.moe.fused_moe` on the GPU."""
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for e in range(layer.number):
        tokens, choices = torch.where(ids == e + expert_offset)
        if not len(tokens):
            continue
        factors = weights[tokens, choices, None].double()
        a = x[tokens].double() * (factors if scales_input else 1.0)
        a = _requantized(a.to(x.dtype), layer, layer.a1, e, x.dtype)
        h = a @ _expert(layer.w13, e).T + (0.0 if layer.bias13 is None else layer.bias13[e].double())
        act = _requantized(_activated(h, layer), layer, layer.a2, e, x.dtype)
        y = act @ _expert(layer.w2, e).T + (0.0 if layer.bias2 is None else layer.bias2[e].double())
        out.index_add_(0, tokens, y if scales_input else y * factors)
    return out
