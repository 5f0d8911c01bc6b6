# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts: routing, sorting by expert, activations, and the whole layer in float64.

Which experts a token gets is defined in fp32, operation by operation, so that kernels can choose exactly the same ones;
everything that becomes a number of the result is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from warpsmith.errors import InvalidArgumentError
from warpsmith.reference.activation import exp
from warpsmith.reference.arithmetic import cast
from warpsmith.reference.formats import FloatArray

DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int32]
Between = Callable[[DoubleArray, int], DoubleArray]


class Stack(Protocol):
    """Experts' matrices: an array, or anything that makes one when asked for an expert."""

    def __len__(self) -> int: ...

    def __getitem__(self, expert: int, /) -> Any: ...


ROUTING_RULES: Final = (
    "softmax_topk",
    "softmax_topk_renormalize",
    "topk_softmax",
    "sigmoid_bias_grouped",
    "sigmoid_input",
)
ACTIVATIONS: Final = ("swiglu", "swiglu_oai", "geglu", "geglu_tanh", "relu2")
_SMALLEST_SUM: Final = 1e-20
_ERF: Final = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(values: FloatArray) -> FloatArray:
    """Return fl(1 / fl(1 + E(−v))) in fp32, E being `activation.exp` and v kept within ±80; NaN stays NaN."""
    with np.errstate(all="ignore"):
        bounded = np.fmin(np.fmax(values, np.float32(-80)), np.float32(80))
        result: FloatArray = np.float32(1) / (np.float32(1) + exp(-bounded))
    return np.where(np.isnan(values), np.float32(np.nan), result)


def _best_first(values: npt.NDArray[Any], excluded: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Indices along the last axis: largest first, equal ones by index, NaN behind −∞, excluded ones last."""
    return np.lexsort((-values, excluded), axis=-1)


def _excluded_groups(choice: FloatArray, n_group: int, topk_group: int) -> npt.NDArray[np.bool_]:
    """Experts outside of the best `topk_group` groups; a group counts fl(best + second best)."""
    tokens, experts = choice.shape
    if n_group == 1:
        return np.zeros(choice.shape, bool)
    grouped = choice.reshape(tokens, n_group, experts // n_group)
    order = _best_first(grouped, np.zeros(grouped.shape, bool))[..., :2]
    with np.errstate(invalid="ignore", over="ignore"):
        scores = np.take_along_axis(grouped, order, -1).sum(-1, dtype=np.float32)
    kept = _best_first(scores, np.zeros(scores.shape, bool))[:, :topk_group]
    excluded = np.ones((tokens, n_group), bool)
    np.put_along_axis(excluded, kept, False, axis=1)
    return np.repeat(excluded, experts // n_group, axis=1)


def route(
    logits: npt.NDArray[Any],
    top_k: int,
    rule: str,
    *,
    bias: npt.NDArray[Any] | None = None,
    n_group: int = 1,
    topk_group: int = 1,
    scale: float = 1.0,
) -> tuple[IntArray, DoubleArray]:
    """Choose experts and their weights.

    Parameters
    ----------
    logits : ndarray
        [T, E], float32, float16 or bfloat16.
    top_k : int
        Experts a token.
    rule : str
        One of `ROUTING_RULES`. The first three choose by logits and take the softmax over all of them, or over the
        chosen ones (the second and the third are the same function). The fourth chooses by fl(sigmoid + bias) within
        the best groups and divides the chosen sigmoids by their sum (DeepSeek-V3, Kimi-K2). The last chooses by logits
        and takes their sigmoid (Llama 4, where it multiplies the expert's input).
    bias : ndarray, optional
        [E], for ``sigmoid_bias_grouped``.
    n_group, topk_group : int
        Groups of consecutive experts, and how many of them a token may use.
    scale : float
        Multiplies the weights.

    Returns
    -------
    ids : ndarray of int32
        [T, k], best first; equal values go to the lowest index. A NaN is chosen after everything else that may be.
    weights : ndarray of float64
        [T, k]. All of a token's weights are NaN if one of its logits (or of the biases) is.

    Raises
    ------
    InvalidArgumentError
        If the rule is unknown.
    """
    if rule not in ROUTING_RULES:
        raise InvalidArgumentError(f"routing rule {rule!r} is unknown; expected one of {', '.join(ROUTING_RULES)}")
    values = np.asarray(logits).astype(np.float32)
    choice, excluded = values, np.zeros(values.shape, bool)
    if rule == "sigmoid_bias_grouped":
        choice = sigmoid(values)
        if bias is not None:
            with np.errstate(invalid="ignore", over="ignore"):
                choice = choice + np.asarray(bias).astype(np.float32)
        excluded = _excluded_groups(choice, n_group, topk_group)
    ids = _best_first(choice, excluded)[:, :top_k].astype(np.int32)
    weights = _weights(values.astype(np.float64), ids, rule) * scale
    weights[np.isnan(choice).any(1)] = np.nan
    return ids, weights


def _weights(logits: DoubleArray, ids: IntArray, rule: str) -> DoubleArray:
    chosen = np.take_along_axis(logits, ids, 1)
    with np.errstate(all="ignore"):
        if rule.startswith("sigmoid"):
            scores: DoubleArray = 1 / (1 + np.exp(-chosen))
            return scores if rule == "sigmoid_input" else scores / (scores.sum(1, keepdims=True) + _SMALLEST_SUM)
        largest = chosen[:, :1]
        among = logits if rule == "softmax_topk" else chosen
        softmax: DoubleArray = np.exp(chosen - largest) / np.exp(among - largest).sum(1, keepdims=True)
        return softmax


def permute(ids: npt.NDArray[Any], experts: int, *, expert_offset: int = 0) -> tuple[IntArray, IntArray, IntArray]:
    """Sort (token, choice) pairs by expert; equal ones stay in order.

    Parameters
    ----------
    ids : ndarray of int
        [T, k] experts of all ranks; others than `expert_offset` .. `expert_offset` + `experts` − 1 are left out.
    experts : int
        Local experts.

    Returns
    -------
    offsets : ndarray of int32
        [experts + 1]: expert e has the sorted rows offsets[e] .. offsets[e + 1] − 1.
    rows : ndarray of int32
        [offsets[-1]]: the pair t·k + j of each sorted row.
    positions : ndarray of int32
        [T·k]: the sorted row of each pair, −1 for those that are left out.

    Examples
    --------
    >>> offsets, rows, positions = permute(np.array([[1, 0], [1, 7]]), 2)
    >>> offsets.tolist(), rows.tolist(), positions.tolist()
    ([0, 1, 3], [1, 0, 2], [1, 0, 2, -1])
    """
    local = np.asarray(ids, np.int64).reshape(-1) - expert_offset
    mine = (local >= 0) & (local < experts)
    order = np.argsort(np.where(mine, local, experts), kind="stable")
    rows = order[: int(mine.sum())].astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(local[mine], minlength=experts))]).astype(np.int32)
    positions = np.full(local.shape, -1, np.int32)
    positions[rows] = np.arange(len(rows), dtype=np.int32)
    return offsets, rows, positions


def activate(h: npt.ArrayLike, activation: str, *, alpha: float = 1.702, limit: float = 7.0) -> DoubleArray:
    """Apply an activation in float64.

    Parameters
    ----------
    h : array_like
        [..., 2·I], gate then up; ``relu2`` has no gate and takes [..., I].
    activation : str
        One of `ACTIVATIONS`, of gate g and up u: ``swiglu`` g·sigmoid(g)·u; ``swiglu_oai`` g·sigmoid(alpha·g)·(u + 1)
        with g at most `limit` and u within ±`limit`; ``geglu`` and ``geglu_tanh`` gelu(g)·u, exact or by tanh;
        ``relu2`` max(h, 0)².

    Returns
    -------
    ndarray of float64
        [..., I]. NaN stays NaN.

    Raises
    ------
    InvalidArgumentError
        If the activation is unknown.
    """
    if activation not in ACTIVATIONS:
        raise InvalidArgumentError(f"activation {activation!r} is unknown; expected one of {', '.join(ACTIVATIONS)}")
    values = np.asarray(h, np.float64)
    with np.errstate(all="ignore"):
        if activation == "relu2":
            return np.asarray(np.square(np.maximum(values, 0)))
        half = values.shape[-1] // 2
        gate, up = values[..., :half], values[..., half:]
        if activation == "swiglu_oai":
            gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit) + 1
            return np.asarray(gate / (1 + np.exp(-alpha * gate)) * up)
        if activation == "swiglu":
            return np.asarray(gate / (1 + np.exp(-gate)) * up)
        if activation == "geglu":
            return np.asarray(0.5 * gate * (1 + _ERF(gate / math.sqrt(2))) * up)
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
        return np.asarray(0.5 * gate * (1 + np.tanh(inner)) * up)


def combine(y: npt.ArrayLike, weights: npt.ArrayLike, positions: npt.NDArray[Any]) -> DoubleArray:
    """Add the experts' rows of each token: Σ_j weights[t, j] · y[positions[t·k + j]], j ascending, −1 left out.

    Parameters
    ----------
    y : array_like
        [rows, H] in sorted order.
    weights : array_like
        [T, k].
    positions : ndarray of int
        [T·k], as `permute` gives them.

    Returns
    -------
    ndarray of float64
        [T, H].
    """
    rows, factors = np.asarray(y, np.float64), np.asarray(weights, np.float64)
    places = np.asarray(positions).reshape(factors.shape)
    out = np.zeros((len(factors), rows.shape[1]))
    with np.errstate(all="ignore"):
        for j in range(factors.shape[1]):
            here = places[:, j] >= 0
            out[here] += factors[here, j, None] * rows[places[here, j]]
    return out


def rounding(dtype: str) -> Between:
    """What happens to activations between the GEMMs of 16-bit formats: one rounding to ``"bf16"`` or ``"fp16"``."""
    return lambda values, _: cast(values, dtype).astype(np.float64)


def fused_moe(
    x: npt.NDArray[Any],
    w13: Stack,
    w2: Stack,
    ids: npt.NDArray[Any],
    weights: npt.ArrayLike,
    *,
    activation: str = "swiglu",
    alpha: float = 1.702,
    limit: float = 7.0,
    bias13: npt.NDArray[Any] | None = None,
    bias2: npt.NDArray[Any] | None = None,
    expert_offset: int = 0,
    scales_input: bool = False,
    first: Between | None = None,
    between: Between | None = None,
) -> DoubleArray:
    """Compute a whole MoE layer in float64 from chosen experts and weights.

    Parameters
    ----------
    x : ndarray
        [T, H].
    w13, w2 : ndarray or sequence
        [E, 2·I, H] (``relu2``: [E, I, H]) and [E, H, I]: the local experts' weights, dequantized. Experts without
        tokens are not touched, so that a sequence may make them when asked.
    ids, weights : ndarray
        [T, k], as `route` gives them.
    activation, alpha, limit
        As for `activate`.
    bias13, bias2 : ndarray, optional
        [E, 2·I] and [E, H].
    expert_offset : int
        The first local expert.
    scales_input : bool
        Whether weights multiply the expert's input (Llama 4), not its output.
    first, between : callable, optional
        (values, expert) → values: what the format does to the inputs of the first and of the second GEMM, such as
        `rounding` or quantizing.

    Returns
    -------
    ndarray of float64
        [T, H]; zero for tokens without a local expert.
    """
    offsets, rows, positions = permute(ids, len(w13), expert_offset=expert_offset)
    factors = np.asarray(weights, np.float64)
    top_k, values = factors.shape[1], np.asarray(x).astype(np.float64)
    y = np.zeros((len(rows), values.shape[1]))
    with np.errstate(all="ignore"):
        for expert in map(int, np.flatnonzero(np.diff(offsets))):
            part = slice(offsets[expert], offsets[expert + 1])
            a = values[rows[part] // top_k]
            if scales_input:
                a = a * factors.reshape(-1)[rows[part], None]
            if first is not None:
                a = first(a, expert)
            h = a @ np.asarray(w13[expert], np.float64).T
            if bias13 is not None:
                h = h + np.asarray(bias13[expert]).astype(np.float64)
            act = activate(h, activation, alpha=alpha, limit=limit)
            if between is not None:
                act = between(act, expert)
            y[part] = act @ np.asarray(w2[expert], np.float64).T
            if bias2 is not None:
                y[part] += np.asarray(bias2[expert]).astype(np.float64)
    return combine(y, np.ones_like(factors) if scales_input else factors, positions)
