# SPDX-License-Identifier: Apache-2.0
"""Blocks of `transformers` beside ours on the host: the weights, biases and routing given to both are the same."""

from __future__ import annotations

import pytest

from warpsmith.bench import blocks
from warpsmith.bench.moe import MODELS
from warpsmith.errors import InvalidArgumentError

SMALL = {
    "Qwen3-30B-A3B": {"hidden_size": 64, "moe_intermediate_size": 32, "num_experts": 16},
    "Mixtral-8x7B": {"hidden_size": 64, "intermediate_size": 32, "num_local_experts": 8},
    "DeepSeek-V3": {"hidden_size": 64, "moe_intermediate_size": 32, "n_routed_experts": 64},
    "gpt-oss-20b": {"hidden_size": 64, "intermediate_size": 32, "num_local_experts": 16},
}


@pytest.mark.parametrize("name", blocks.KINDS)
def test_both_sides_compute_the_same(name: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    torch.manual_seed(1)
    kind = blocks.KINDS[name]
    experts = next(SMALL[name][field] for field in SMALL[name] if "experts" in field)
    small = kind._replace(fields={**kind.fields, **SMALL[name]}, experts=experts)
    pair = blocks.make(small, "cpu")
    x = blocks.untied(pair, small, 24)
    theirs, ours = pair.theirs[blocks.EAGER](x).float(), pair.ours(x).float()
    assert float((theirs - ours).norm() / theirs.norm()) < blocks.SAME


def test_blocks_are_of_models_that_are_measured() -> None:
    known = {model.name: model for model in MODELS}
    for name, kind in blocks.KINDS.items():
        assert (kind.of, kind.top_k) == (known[name].experts, known[name].top_k)
        assert kind.fields["hidden_size"] == known[name].hidden


def test_unknown_models_are_refused() -> None:
    pytest.importorskip("torch")
    with pytest.raises(InvalidArgumentError, match="Qwen3-30B-A3B"):
        blocks.run(["Qwen3"])
