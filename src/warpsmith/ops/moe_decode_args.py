# SPDX-License-Identifier: Apache-2.0
"""Grids and arguments of the MoE kernels for a few tokens; see ``kernels/fused_moe/decode.cuh``."""

from __future__ import annotations

from typing import NamedTuple

from warpsmith.catalog import moe_packed
from warpsmith.catalog.moe_decode import BIAS_SHIFT, BIAS_TYPES, LOGIT_TYPES, MOST_ROWS
from warpsmith.ops.moe_args import Launch


class Router(NamedTuple):
    """How tokens are routed, and which experts are here.

    Attributes
    ----------
    logits, row_bytes
        Type of the router logits, and bytes from row to row.
    tokens, experts, top_k, rule, n_group, topk_group, scale
        As `moe_args.route_launch` has them; the experts are those of the logits.
    expert_offset, local_experts
        The experts whose weights are here.
    """

    logits: str
    row_bytes: int
    tokens: int
    experts: int
    top_k: int
    rule: int
    n_group: int
    topk_group: int
    scale: float
    expert_offset: int
    local_experts: int

    def flags(self, bias: str) -> int:
        """The kernels' flags; `bias` is the type of one, empty for none."""
        return LOGIT_TYPES.index(self.logits) | BIAS_TYPES.index(bias) << BIAS_SHIFT


def up_launch(
    router: Router,
    *,
    x_row: int,
    hidden: int,
    inner: int,
    activation: int,
    alpha: float,
    limit: float,
    bias: str,
    blocks: int,
    own_scales: tuple[bool, bool] = (False, False),
) -> Launch:
    """Plan ``ws_moe_decode_up``; pointers ``x, w13, bias, logits, route_bias, num_tokens, act``.

    Or ``ws_moe_packed_up``; pointers ``x, w13, scales, global_scale, global_scale2, bias, logits, route_bias,
    num_tokens, act``. `own_scales` says whether each expert has global scales of its own of w13, and of w2.
    """
    flags = router.flags(bias)
    for bit, own in zip(moe_packed.OWN_SCALES, own_scales, strict=True):
        flags |= bit if own else 0
    return Launch((blocks, 1, 1), (x_row, *router[1:], inner, hidden, activation, alpha, limit, flags))


def down_launch(router: Router, *, hidden: int, inner: int, bias: str, blocks: int) -> Launch:
    """Plan ``ws_moe_decode_down``; pointers ``act, w2, bias, logits, route_bias, num_tokens, out``.

    There are `blocks` blocks, or more where rows of w2 would be too many for them.
    """
    grid = max(blocks, -(-hidden // MOST_ROWS))
    return Launch((grid, 1, 1), (*router[1:], inner, hidden, router.flags(bias)))


def packed_down_launch(router: Router, *, hidden: int, inner: int, bias: str, blocks: int) -> Launch:
    """Plan ``ws_moe_packed_down``; pointers ``act, w2, scales, bias, logits, route_bias, num_tokens, out``.

    There are whole clusters, at most `blocks` blocks of them, or more where rows of w2 would be too many for them.
    """
    clusters = max(blocks // moe_packed.CLUSTER, -(-hidden // moe_packed.MOST_ROWS))
    return Launch((moe_packed.CLUSTER * clusters, 1, 1), (*router[1:], inner, hidden, router.flags(bias)))
