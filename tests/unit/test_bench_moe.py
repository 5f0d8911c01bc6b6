# SPDX-License-Identifier: Apache-2.0
"""The MoE benchmark without a GPU: what it refuses, that its models are real layers, its plot."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from warpsmith.bench import plot
from warpsmith.bench.moe import FEW_ROWS, MODELS, PAIRS, Model, run
from warpsmith.bench.moe_peers import _routed
from warpsmith.bench.moe_products import products
from warpsmith.bench.result import Result, Row
from warpsmith.catalog.fused_moe import FORMATS
from warpsmith.cli.app import app
from warpsmith.errors import InvalidArgumentError
from warpsmith.ops.moe_types import Routing


def test_models_have_rules_and_formats_that_exist() -> None:
    for model in MODELS:
        assert Routing(model.rule, model.top_k, **dict(model.options)).top_k <= model.experts
        assert all(PAIRS.get(format, ("bf16", FEW_ROWS.get(format, format))) in FORMATS for format in model.formats)
        assert model.experts % 8 == 0


def test_unknown_models_and_tokens_are_refused() -> None:
    pytest.importorskip("torch")
    with pytest.raises(InvalidArgumentError, match="Mixtral-8x7B"):
        run(models=("Mixtral",))
    for options, says in (
        (["moe", "--shapes", "4x4"], "number of tokens"),
        (["moe", "--formats", "fp3"], "unknown format"),
        (["blocks", "--formats", "mxfp4"], "compared in bf16"),
    ):
        result = CliRunner().invoke(app, ["bench", *options])
        assert result.exit_code == 2
        assert says in result.output


def test_a_run_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = tuple(
        Row(name, {"tokens": t}, 9.0 * t, floor=5.0 * t, bytes=7, peers={"torch grouped": 20.0 * t} if t > 1 else {})
        for name in ("a bf16", "b mxfp4")
        for t in (1, 8)
    )
    result = Result("moe", "GPU", "1", {}, {}, (*rows, Row("host: a bf16", {"tokens": 1}, 40.0)))
    plot.draw(result, tmp_path / "moe.png")
    assert (tmp_path / "moe.png").stat().st_size > 1000


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_routing_of_the_peer_is_ours(model: Model) -> None:
    torch = pytest.importorskip("torch")
    import warpsmith as ws

    generator = torch.Generator().manual_seed(1)
    options = dict(model.options)
    if model.rule == "sigmoid_bias_grouped":
        options["bias"] = torch.randn(model.experts, generator=generator) / 10
    routing = ws.Routing(model.rule, model.top_k, **options)
    logits = torch.randn(50, model.experts, generator=generator)
    weights, ids = _routed(logits, routing)
    our_ids, ours = ws.route(logits, routing)
    dense, our_dense = (torch.zeros(50, model.experts) for _ in range(2))
    dense.scatter_(1, ids, weights)
    our_dense.scatter_(1, our_ids.long(), ours)
    torch.testing.assert_close(dense, our_dense)


@pytest.mark.parametrize("activation", ["swiglu", "swiglu_oai"])
def test_the_products_alone_are_those_of_the_layer(activation: str) -> None:
    torch = pytest.importorskip("torch")
    import warpsmith as ws

    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16() / 4

    layer = ws.Experts(draw(4, 64, 16), draw(4, 16, 32), activation=activation, bias13=draw(4, 64), bias2=draw(4, 16))
    x, routing = draw(9, 16), ws.Routing("topk_softmax", 2)
    ids, weights = ws.route(draw(9, 4), routing)
    alone = products(x, ids, layer)
    assert alone is not None
    out = ws.moe_combine(alone(), weights, ws.moe_permute(ids, 4).positions)
    torch.testing.assert_close(out, ws.fused_moe(x, None, layer, None, ids=ids, weights=weights), rtol=2e-2, atol=2e-2)
    quantized = [ws.quantize(w, "mxfp8") for w in (draw(4, 64, 32), draw(4, 32, 32))]
    assert products(draw(9, 32), ids, ws.Experts(*quantized, format="mxfp8")) is None
