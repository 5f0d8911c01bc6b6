# SPDX-License-Identifier: Apache-2.0
"""The reference of MoE layers against the blocks of `transformers`, where that is installed: random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from warpsmith.reference import moe

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

TOKENS, H, INNER, E, K = 37, 32, 48, 8, 3


def filled(block: Any) -> Any:
    """The block with random parameters and buffers, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for tensor in (*block.parameters(), *(b for n, b in block.named_buffers() if n.endswith("bias"))):
        tensor.data.copy_(torch.randn(tensor.shape, generator=generator) / max(tensor.shape[-1], 4) ** 0.5)
    return block.eval()


def array(tensor: Any) -> np.ndarray:
    return tensor.detach().double().numpy()


def stacked(experts: Any, names: tuple[str, str, str]) -> tuple[np.ndarray, np.ndarray]:
    """w13 and w2 of experts that are a list of modules, or one module of stacked weights (transformers 5)."""
    if hasattr(experts, "gate_up_proj"):
        return array(experts.gate_up_proj), array(experts.down_proj)
    gate, up, down = ([array(getattr(expert, name).weight) for expert in experts] for name in names)
    return np.stack([np.concatenate(pair) for pair in zip(gate, up, strict=True)]), np.stack(down)


def run(block: Any, x: Any) -> np.ndarray:
    with torch.no_grad():
        out = block(x[None])
    return array(out[0] if isinstance(out, tuple) else out).reshape(TOKENS, H)


def inputs(weight: Any) -> tuple[Any, np.ndarray]:
    x = torch.randn(TOKENS, H, generator=torch.Generator().manual_seed(2))
    return x, (x @ weight.detach().T).numpy()


def check(block: Any, x: Any, want: np.ndarray) -> None:
    np.testing.assert_allclose(run(block, x), want, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("renormalize", [True, False])
def test_qwen3_moe(renormalize: bool) -> None:
    from transformers.models.qwen3_moe import modeling_qwen3_moe as module

    config = module.Qwen3MoeConfig(
        hidden_size=H, moe_intermediate_size=INNER, num_experts=E, num_experts_per_tok=K, norm_topk_prob=renormalize
    )
    block = filled(module.Qwen3MoeSparseMoeBlock(config))
    x, logits = inputs(block.gate.weight)
    w13, w2 = stacked(block.experts, ("gate_proj", "up_proj", "down_proj"))
    ids, weights = moe.route(logits, K, "softmax_topk_renormalize" if renormalize else "softmax_topk")
    check(block, x, moe.fused_moe(x.numpy(), w13, w2, ids, weights))


def test_mixtral() -> None:
    from transformers.models.mixtral import modeling_mixtral as module

    config = module.MixtralConfig(hidden_size=H, intermediate_size=INNER, num_local_experts=E, num_experts_per_tok=2)
    block = filled(module.MixtralSparseMoeBlock(config))
    x, logits = inputs(block.gate.weight)
    w13, w2 = stacked(block.experts, ("w1", "w3", "w2"))
    check(block, x, moe.fused_moe(x.numpy(), w13, w2, *moe.route(logits, 2, "topk_softmax")))


def test_deepseek_v3() -> None:
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as module

    config = module.DeepseekV3Config(
        hidden_size=H, moe_intermediate_size=INNER, n_routed_experts=E, num_experts_per_tok=K, n_group=4, topk_group=2,
        n_shared_experts=1, routed_scaling_factor=2.5, norm_topk_prob=True,
    )  # fmt: skip
    block = filled(module.DeepseekV3MoE(config))
    bias = block.gate.e_score_correction_bias
    bias.copy_(bias.abs())  # transformers takes experts of other groups as 0; none of ours is below that
    x, logits = inputs(block.gate.weight)
    w13, w2 = stacked(block.experts, ("gate_proj", "up_proj", "down_proj"))
    ids, weights = moe.route(logits, K, "sigmoid_bias_grouped", bias=bias.numpy(), n_group=4, topk_group=2, scale=2.5)
    with torch.no_grad():
        shared = array(block.shared_experts(x))
    check(block, x, moe.fused_moe(x.numpy(), w13, w2, ids, weights) + shared)


def test_gpt_oss() -> None:
    from transformers.models.gpt_oss import modeling_gpt_oss as module

    config = module.GptOssConfig(hidden_size=H, intermediate_size=INNER, num_local_experts=E, num_experts_per_tok=K)
    block = filled(module.GptOssMLP(config))
    experts = block.experts
    experts.gate_up_proj.data *= 20  # far enough to reach the limit
    x, logits = inputs(block.router.weight)
    logits = logits + block.router.bias.detach().numpy()
    order = np.concatenate([np.arange(0, 2 * INNER, 2), np.arange(1, 2 * INNER, 2)])  # theirs alternate
    w13, bias13 = array(experts.gate_up_proj).swapaxes(1, 2)[:, order], array(experts.gate_up_proj_bias)[:, order]
    w2, bias2 = array(experts.down_proj).swapaxes(1, 2), array(experts.down_proj_bias)
    want = moe.fused_moe(
        x.numpy(), w13, w2, *moe.route(logits, K, "topk_softmax"), activation="swiglu_oai", bias13=bias13, bias2=bias2
    )
    check(block, x, want)


def test_llama4() -> None:
    from transformers.models.llama4 import modeling_llama4 as module

    config = module.Llama4TextConfig(
        hidden_size=H, intermediate_size=INNER, intermediate_size_mlp=INNER, num_local_experts=E, num_experts_per_tok=1
    )
    block = filled(module.Llama4TextMoe(config))
    x, logits = inputs(block.router.weight)
    w13, w2 = (array(w).swapaxes(1, 2) for w in (block.experts.gate_up_proj, block.experts.down_proj))
    ids, weights = moe.route(logits, 1, "sigmoid_input")
    with torch.no_grad():
        shared = array(block.shared_expert(x))
    check(block, x, moe.fused_moe(x.numpy(), w13, w2, ids, weights, scales_input=True) + shared)
