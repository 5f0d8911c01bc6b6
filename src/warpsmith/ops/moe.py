# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts: the public operations of `fused_moe`."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from warpsmith.errors import FormatError, InvalidArgumentError
from warpsmith.ops.moe_args import Layer, buffers
from warpsmith.ops.moe_checks import (
    check_choice,
    check_layer,
    check_logits,
    check_num_tokens,
    check_result,
    check_slice,
)
from warpsmith.ops.moe_types import Experts, Routing
from warpsmith.ops.qtensor import device_of, dtype_name
from warpsmith.ops.quantization import on_gpu


class Permutation(NamedTuple):
    """Pairs (token, choice) sorted by expert; pair t·k + j is token t's j-th choice.

    Attributes
    ----------
    offsets
        [E + 1] int32: local expert e has the sorted rows offsets[e] .. offsets[e + 1] − 1.
    rows
        [T·k] int32: the pair of each sorted row; undefined from offsets[E] on.
    positions
        [T·k] int32: the sorted row of each pair, −1 where its expert is not a local one.
    gathered
        [T·k, H]: the sorted rows' tokens, or None; undefined from row offsets[E] on.
    """

    offsets: Any
    rows: Any
    positions: Any
    gathered: Any


@cache
def _cuda() -> ModuleType:
    """The half that needs torch, imported when the first CUDA tensor comes."""
    from warpsmith.ops import cuda_moe

    return cuda_moe


@cache
def _host() -> ModuleType:
    """The half for the host, imported when the first host array comes."""
    from warpsmith.ops import host_moe

    return host_moe


def route(router_logits: Any, routing: Routing, *, num_tokens: Any = None) -> tuple[Any, Any]:
    """Choose each token's experts and their weights.

    Parameters
    ----------
    router_logits
        [T, E], bfloat16, float16 or float32; E ≤ 512.
    routing
        The rule.
    num_tokens
        An int32 tensor of one element on the same device: tokens from there on get ids −1 and weights 0. It is read
        when the kernel runs, so that a captured graph can serve any number of tokens up to T.

    Returns
    -------
    ids : torch.Tensor or numpy.ndarray
        [T, k] int32, best first; equal values go to the lowest index.
    weights : torch.Tensor or numpy.ndarray
        [T, k] float32.

    Raises
    ------
    FormatError, InvalidArgumentError
        If an argument does not fit; the message says what was given and what is expected.

    Notes
    -----
    The host and every GPU choose exactly the same experts: the values that decide are defined in fp32, operation by
    operation. A NaN logit is chosen after all others (and after −∞), and makes all weights of its token NaN.

    Examples
    --------
    >>> import numpy as np, warpsmith as ws
    >>> ids, weights = ws.route(np.array([[0, 2, 1, 2]], np.float32), ws.Routing("topk_softmax", 2))
    >>> ids.tolist(), weights.tolist()
    ([[1, 3]], [[0.5, 0.5]])
    """
    if on_gpu(router_logits, "router_logits"):
        made: tuple[Any, Any] = _cuda().route(router_logits, routing, num_tokens)
        return made
    check_logits(router_logits, routing)
    check_num_tokens(num_tokens, router_logits)
    return _host().route(router_logits, routing, num_tokens)  # type: ignore[no-any-return]


def moe_permute(
    ids: Any, experts: int, *, expert_offset: int = 0, x: Any = None, num_tokens: Any = None
) -> Permutation:
    """Sort (token, choice) pairs by expert, stably, and gather their tokens' rows.

    Parameters
    ----------
    ids
        [T, k] int32, as `route` gives them; others than the local experts' are left out.
    experts, expert_offset
        The local experts: `experts` of them, from `expert_offset` on.
    x
        [T, H] bfloat16 or float16 to gather, H a multiple of 8; nothing is gathered without it.
    num_tokens
        As for `route`.

    Returns
    -------
    Permutation

    Raises
    ------
    FormatError, InvalidArgumentError
        If an argument does not fit.

    Examples
    --------
    >>> import numpy as np, warpsmith as ws
    >>> sorted_pairs = ws.moe_permute(np.array([[1, 0], [1, 7]], np.int32), 2)
    >>> sorted_pairs.offsets.tolist(), sorted_pairs.positions.tolist()
    ([0, 1, 3], [1, 0, 2, -1])
    """
    gpu = on_gpu(ids, "ids")
    if not hasattr(ids, "dtype") or dtype_name(ids) != "int32" or len(ids.shape) != 2 or not ids.shape[1]:
        raise FormatError(f"ids is {dtype_name(ids)} {list(ids.shape)}; expected int32 [tokens, top_k]")
    check_slice(experts, None, expert_offset)
    check_num_tokens(num_tokens, ids)
    if x is not None:
        _check_rows("x", x, ids, ids.shape[0])
    return Permutation(*(_cuda() if gpu else _host()).permute(ids, experts, expert_offset, x, num_tokens))


def moe_combine(y: Any, weights: Any, positions: Any, *, top_k: int | None = None, out: Any = None) -> Any:
    """Add each token's rows: out[t] = Σ_j weights[t, j] · y[positions[t·k + j]], in float32, j ascending.

    Parameters
    ----------
    y
        [rows, H] bfloat16 or float16, in sorted order; H a multiple of 8.
    weights
        [T, k] float32, or None: every row counts 1 (`top_k` is needed then).
    positions
        [T·k] int32, as `moe_permute` gives them; rows at −1, or beyond those of y, are left out.
    out
        [T, H] like y, to write into.

    Returns
    -------
    torch.Tensor or numpy.ndarray
        [T, H]; zeros for a token without rows.

    Raises
    ------
    FormatError, InvalidArgumentError
        If an argument does not fit.
    """
    gpu = on_gpu(y, "y")
    if not hasattr(positions, "dtype") or dtype_name(positions) != "int32" or len(positions.shape) != 1:
        raise FormatError("positions must be an int32 tensor [tokens · top_k], as moe_permute gives it")
    pairs = int(positions.shape[0])
    if weights is not None:
        if not hasattr(weights, "dtype") or dtype_name(weights) != "float32" or len(weights.shape) != 2:
            raise FormatError("weights must be a float32 tensor [tokens, top_k]")
        tokens, top_k = map(int, weights.shape)
        if device_of(weights) != device_of(y):
            raise FormatError(f"weights is on {device_of(weights)} and y on {device_of(y)}; expected the same device")
    elif not isinstance(top_k, int) or top_k < 1 or pairs % top_k:
        raise InvalidArgumentError(f"without weights, top_k must divide the {pairs} positions; it is {top_k!r}")
    else:
        tokens = pairs // top_k
    if tokens * top_k != pairs:
        raise FormatError(f"positions has {pairs} elements and weights {tokens} × {top_k}; expected as many")
    _check_rows("y", y, positions, None)
    if out is not None:
        check_result(out, y, (tokens, int(y.shape[1])))
    return (_cuda() if gpu else _host()).combine(y, weights, positions, tokens, top_k, out)


def _check_rows(what: str, x: Any, other: Any, rows: int | None) -> None:
    if not hasattr(x, "dtype") or dtype_name(x) not in ("bfloat16", "float16") or len(x.shape) != 2:
        raise FormatError(f"{what} must be a bfloat16 or float16 matrix")
    if x.shape[1] == 0 or x.shape[1] % 8 or (rows is not None and x.shape[0] != rows):
        raise FormatError(
            f"{what} has shape {list(x.shape)}; expected [{'rows' if rows is None else rows}, a multiple of 8]"
        )
    if device_of(x) != device_of(other):
        raise FormatError(f"{what} is on {device_of(x)}, the indices are on {device_of(other)}; expected one device")


def fused_moe(
    x: Any,
    router_logits: Any,
    experts: Experts,
    routing: Routing | None,
    *,
    ids: Any = None,
    weights: Any = None,
    expert_offset: int = 0,
    num_tokens: Any = None,
    out: Any = None,
    workspace: Any = None,
) -> Any:
    """Run a MoE layer: route, the chosen experts' two products with the activation between, weighted sum.

    Parameters
    ----------
    x
        [T, H] bfloat16 or float16.
    router_logits
        [T, E], bfloat16, float16 or float32; or None, with `ids` and `weights`.
    experts
        The local experts' weights.
    routing
        The rule. With `ids` it may be None; all that is taken from it then is whether weights multiply the input.
    ids, weights
        [T, k] int32 and float32, in place of logits: experts that have been chosen already. An id that is no local
        expert's, whatever its value, contributes nothing.
    expert_offset
        The first local expert: for expert parallelism, where each rank calls with all tokens and its own experts and
        the ranks' results are added up. Tensor-parallel slices of I need nothing but sliced weights.
    num_tokens
        An int32 tensor of one element on x's device: rows of x from there on give zeros. It is read when the kernels
        run, so that one captured graph serves any number of tokens up to T.
    out
        [T, H] like x, contiguous, to write into.
    workspace
        uint8 on x's device, of `moe_workspace` bytes or more; allocated by torch if left out. One stream at a time may
        use it.

    Returns
    -------
    torch.Tensor or numpy.ndarray
        [T, H] of x's type; zeros for a token without a local expert.

    Raises
    ------
    FormatError, InvalidArgumentError
        If an argument does not fit; the message says what was given and what is expected.
    MissingKernelError
        If no bundle holds a kernel and compiling is forbidden or impossible.

    Notes
    -----
    torch CUDA tensors run the kernels; torch CPU tensors and NumPy arrays run the reference, in float64. The same call
    gives the same bits each time. Between the kernels values are rounded to x's type: after the first product (unless
    the activation is part of its kernel), after the activation, and after the second product; sums are float32. See
    ``docs/moe.md`` for tolerances, formats and what NaN does.

    Examples
    --------
    >>> import numpy as np, warpsmith as ws
    >>> rng = np.random.default_rng(0)
    >>> w13, w2 = (rng.standard_normal(s).astype(np.float16) for s in ((4, 32, 16), (4, 16, 16)))
    >>> x, logits = rng.standard_normal((3, 16)).astype(np.float16), rng.standard_normal((3, 4)).astype(np.float32)
    >>> ws.fused_moe(x, logits, ws.Experts(w13, w2), ws.Routing("topk_softmax", 2)).shape
    (3, 16)
    """
    if (router_logits is None) == (ids is None) or (ids is None) != (weights is None):
        raise InvalidArgumentError("fused_moe takes router_logits, or ids and weights in their place")
    if not isinstance(experts, Experts):
        raise InvalidArgumentError(f"experts is a {type(experts).__name__}; expected a warpsmith.Experts")
    chosen = (x, router_logits, experts, routing, ids, weights, expert_offset, num_tokens, out)
    if on_gpu(x, "x"):
        return _cuda().fused(*chosen, workspace)
    if workspace is not None:
        raise InvalidArgumentError("workspace is for CUDA tensors; leave it out on the host")
    if router_logits is not None:
        check_logits(router_logits, routing)
        tokens, total, source = router_logits.shape[0], router_logits.shape[1], router_logits
    else:
        tokens, total, source = check_choice(ids, weights).tokens, None, ids
    check_layer(x, tokens, source, experts, total, expert_offset)
    check_num_tokens(num_tokens, x)
    if out is not None:
        check_result(out, x, tuple(x.shape))
    return _host().fused(*chosen)


def moe_workspace(tokens: int, experts: Experts, top_k: int) -> int:
    """Bytes of the workspace that `fused_moe` needs for up to `tokens` tokens of `top_k` experts each.

    Raises
    ------
    InvalidArgumentError
        If a number is none, or the call would be too large.

    Examples
    --------
    >>> import numpy as np, warpsmith as ws
    >>> experts = ws.Experts(np.ones((4, 32, 16), np.float16), np.ones((4, 16, 16), np.float16))
    >>> ws.moe_workspace(1, experts, 2) < ws.moe_workspace(100, experts, 2)
    True
    """
    if not isinstance(experts, Experts):
        raise InvalidArgumentError(f"experts is a {type(experts).__name__}; expected a warpsmith.Experts")
    for what, value, least in (("tokens", tokens, 0), ("top_k", top_k, 1)):
        if not isinstance(value, int) or value < least:
            raise InvalidArgumentError(f"{what} is {value!r}; expected a whole number from {least} on")
    sizes = experts.hidden, experts.inner, experts.number, experts.gates
    return buffers(Layer(tokens, top_k, *sizes, experts.format or "", experts.tiled)).total
