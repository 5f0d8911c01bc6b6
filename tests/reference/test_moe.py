# SPDX-License-Identifier: Apache-2.0
"""The reference of MoE layers: routing rules, ties, NaN, sorting, activations, the whole layer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from warpsmith.errors import InvalidArgumentError
from warpsmith.reference import moe

NAN = float("nan")


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rule", moe.ROUTING_RULES)
@pytest.mark.parametrize(("experts", "top_k"), [(8, 1), (8, 2), (128, 8), (512, 16), (3, 3)])
def test_the_chosen_are_the_best_and_in_order(rule: str, experts: int, top_k: int) -> None:
    logits = draw(20, experts)
    ids, weights = moe.route(logits, top_k, rule)
    assert ids.dtype == np.int32
    chosen = np.take_along_axis(logits, ids, 1)
    np.testing.assert_array_equal(chosen, -np.sort(-logits, axis=1)[:, :top_k])
    assert (np.diff(weights) <= 0).all()
    assert (weights > 0).all()


def test_ties_go_to_the_lowest_index_and_zeros_are_equal() -> None:
    logits = np.array([[0.0, -0.0, 1.0, 1.0, -0.0]], np.float32)
    for rule in moe.ROUTING_RULES:
        assert moe.route(logits, 5, rule)[0].tolist() == [[2, 3, 0, 1, 4]]


def test_softmax_over_all_or_over_the_chosen() -> None:
    logits = np.log(np.array([[1.0, 2.0, 5.0, 2.0]], np.float32))
    np.testing.assert_allclose(moe.route(logits, 2, "softmax_topk")[1], [[0.5, 0.2]], rtol=1e-6)
    for rule in ("softmax_topk_renormalize", "topk_softmax"):
        np.testing.assert_allclose(moe.route(logits, 2, rule)[1], [[5 / 7, 2 / 7]], rtol=1e-6)
    np.testing.assert_allclose(moe.route(logits, 2, "softmax_topk", scale=2.0)[1], [[1.0, 0.4]], rtol=1e-6)


def test_sigmoids_with_a_bias_that_only_chooses() -> None:
    logits = np.array([[0.0, 1.0, 2.0, 3.0]], np.float32)
    bias = np.array([9.0, 0.0, 0.0, 0.0], np.float32)
    ids, weights = moe.route(logits, 2, "sigmoid_bias_grouped", bias=bias, scale=2.5)
    scores = 1 / (1 + np.exp([-0.0, -3.0]))
    assert ids.tolist() == [[0, 3]]
    np.testing.assert_allclose(weights[0], 2.5 * scores / scores.sum(), rtol=1e-12)
    np.testing.assert_allclose(moe.route(logits, 1, "sigmoid_input")[1], [[1 / (1 + math.exp(-3))]], rtol=1e-12)


def test_groups_count_their_two_best_and_shut_the_others_out() -> None:
    logits = np.array([[5.0, -5.0, 2.0, 2.0, 1.0, 1.5]], np.float32)
    ids, _ = moe.route(logits, 2, "sigmoid_bias_grouped", n_group=3, topk_group=1)
    assert ids.tolist() == [[2, 3]]
    ids, _ = moe.route(logits, 4, "sigmoid_bias_grouped", n_group=3, topk_group=2)
    assert ids.tolist() == [[2, 3, 5, 4]]
    negative = np.full(6, -3.0, np.float32)  # below every bias, yet an expert of another group is never taken
    assert set(moe.route(logits, 2, "sigmoid_bias_grouped", bias=negative, n_group=3, topk_group=1)[0][0]) == {2, 3}


def test_nan_is_chosen_last_and_shows_in_all_weights_of_its_token() -> None:
    logits = np.array([[NAN, 1.0, -np.inf, 0.0], [0.0, 1.0, 2.0, 3.0]], np.float32)
    for rule in moe.ROUTING_RULES:
        ids, weights = moe.route(logits, 4, rule)
        assert ids.tolist() == [[1, 3, 2, 0], [3, 2, 1, 0]]
        assert np.isnan(weights[0]).all()
        assert np.isfinite(weights[1]).all()
    bias = np.array([0.0, NAN, 0.0, 0.0], np.float32)
    ids, weights = moe.route(logits[1:], 4, "sigmoid_bias_grouped", bias=bias)
    assert ids.tolist() == [[3, 2, 0, 1]]
    assert np.isnan(weights).all()


def test_the_fp32_sigmoid_is_near_the_exact_one() -> None:
    v = np.linspace(-80, 80, 4001).astype(np.float32)
    np.testing.assert_allclose(moe.sigmoid(v), 1 / (1 + np.exp(-v.astype(np.float64))), rtol=3e-7)
    assert moe.sigmoid(np.array([np.inf, -np.inf], np.float32)).round(30).tolist() == [1.0, 0.0]
    assert np.isnan(moe.sigmoid(np.array([NAN], np.float32))).all()


@pytest.mark.parametrize(("offset", "local"), [(0, 8), (2, 3), (6, 2), (7, 4)])
def test_pairs_are_sorted_stably_and_foreign_ones_left_out(offset: int, local: int) -> None:
    ids = np.random.default_rng(1).integers(-1, 10, (50, 3)).astype(np.int32)
    offsets, rows, positions = moe.permute(ids, local, expert_offset=offset)
    flat = ids.reshape(-1) - offset
    for expert in range(local):
        mine = rows[offsets[expert] : offsets[expert + 1]]
        assert mine.tolist() == np.flatnonzero(flat == expert).tolist()
    assert (positions[rows] == np.arange(len(rows))).all()
    assert ((positions < 0) == ((flat < 0) | (flat >= local))).all()


def test_activations() -> None:
    h = np.array([[-1.0, 0.5, 9.0, 2.0, -3.0, -8.0]])
    gate, up = h[:, :3], h[:, 3:]
    sigmoid = 1 / (1 + np.exp(-gate))
    np.testing.assert_allclose(moe.activate(h, "swiglu"), gate * sigmoid * up)
    clamped, up7 = np.minimum(gate, 7), np.clip(up, -7, 7)
    want = clamped / (1 + np.exp(-1.702 * clamped)) * (up7 + 1)
    np.testing.assert_allclose(moe.activate(h, "swiglu_oai"), want)
    exact = [0.5 * g * (1 + math.erf(g / math.sqrt(2))) for g in gate[0]]
    np.testing.assert_allclose(moe.activate(h, "geglu"), [exact] * up)
    np.testing.assert_allclose(moe.activate(h, "geglu_tanh"), [exact] * up, atol=2e-3)
    np.testing.assert_allclose(moe.activate(h, "relu2"), np.maximum(h, 0) ** 2)
    for activation in moe.ACTIVATIONS:
        assert np.isnan(moe.activate([[NAN, NAN]], activation)).all()


def layer(tokens: int = 9, top_k: int = 3) -> dict[str, np.ndarray]:
    ids, weights = moe.route(draw(tokens, 6, seed=1), top_k, "topk_softmax")
    return {"x": draw(tokens, 16), "w13": draw(6, 24, 16, seed=2), "w2": draw(6, 16, 12, seed=3), "ids": ids,
            "weights": weights}  # fmt: skip


def test_the_layer_is_the_weighted_sum_of_its_experts() -> None:
    given = layer()
    bias13, bias2 = draw(6, 24, seed=4), draw(6, 16, seed=5)
    want = np.zeros((9, 16))
    for t in range(9):
        for expert, weight in zip(given["ids"][t], given["weights"][t], strict=True):
            h = given["w13"][expert].astype(np.float64) @ given["x"][t] + bias13[expert]
            y = given["w2"][expert].astype(np.float64) @ moe.activate(h, "swiglu_oai") + bias2[expert]
            want[t] += weight * y
    np.testing.assert_allclose(moe.fused_moe(**given, activation="swiglu_oai", bias13=bias13, bias2=bias2), want)


def test_slices_of_experts_and_of_the_intermediate_size_add_up() -> None:
    given = layer()
    want = moe.fused_moe(**given)
    parts = []
    for first, last in ((0, 2), (2, 6)):
        own = {**given, "w13": given["w13"][first:last], "w2": given["w2"][first:last]}
        parts.append(moe.fused_moe(**own, expert_offset=first))
    np.testing.assert_allclose(sum(parts), want)
    parts = []
    for part in (slice(0, 5), slice(5, 12)):
        gate, up = given["w13"][:, :12][:, part], given["w13"][:, 12:][:, part]
        parts.append(moe.fused_moe(**{**given, "w13": np.concatenate([gate, up], 1), "w2": given["w2"][..., part]}))
    np.testing.assert_allclose(sum(parts), want)


def test_weights_on_the_input_and_rounding_between() -> None:
    given = layer(top_k=1)
    scaled = moe.fused_moe(**given, scales_input=True)
    by_hand = moe.fused_moe(**{**given, "x": given["x"] * given["weights"], "weights": np.ones((9, 1))})
    np.testing.assert_allclose(scaled, by_hand, rtol=1e-6)
    rounded = moe.fused_moe(**given, between=moe.rounding("bf16"))
    error = np.linalg.norm(rounded - moe.fused_moe(**given)) / np.linalg.norm(rounded)
    assert 1e-4 < error < 3e-3


def test_no_tokens_and_unknown_names() -> None:
    given = layer()
    empty = {**given, "x": given["x"][:0], "ids": given["ids"][:0], "weights": given["weights"][:0]}
    assert moe.fused_moe(**empty).shape == (0, 16)
    with pytest.raises(InvalidArgumentError, match="topk_softmax"):
        moe.route(draw(1, 4), 1, "best")
    with pytest.raises(InvalidArgumentError, match="swiglu_oai"):
        moe.activate(draw(1, 4), "swish")
