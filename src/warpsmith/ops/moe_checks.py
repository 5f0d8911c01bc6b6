# SPDX-License-Identifier: Apache-2.0
"""What the MoE operations check of their arguments, the same for every framework and device."""

from __future__ import annotations

from typing import Any, NamedTuple

from warpsmith.catalog.formats import STREAMED
from warpsmith.catalog.fused_moe import MAX_EXPERTS, MAX_TOP_K
from warpsmith.catalog.gemm import PLAIN
from warpsmith.errors import FormatError, InvalidArgumentError
from warpsmith.ops.gemm_checks import OUT_NAMES, PLAIN_NAMES, format_of
from warpsmith.ops.moe_types import Experts, Routing
from warpsmith.ops.qtensor import device_of, dtype_name


class Chosen(NamedTuple):
    """Experts of a checked layer: how many tokens, and choices a token."""

    tokens: int
    top_k: int


def _described(x: Any) -> str:
    return f"{dtype_name(x)} {list(x.shape)}" if hasattr(x, "dtype") else type(x).__name__


def check_logits(logits: Any, routing: Any) -> None:
    """Refuse logits that a rule cannot choose by.

    Raises
    ------
    FormatError
        If dtype, shape or device of logits or bias do not fit.
    InvalidArgumentError
        If `routing` is none, or asks for more experts than there are.
    """
    if not isinstance(routing, Routing):
        raise InvalidArgumentError(f"routing is a {type(routing).__name__}; expected a warpsmith.Routing")
    if not hasattr(logits, "dtype") or dtype_name(logits) not in OUT_NAMES or len(logits.shape) != 2:
        raise FormatError(
            f"router_logits is {_described(logits)}; expected bfloat16, float16 or float32 [tokens, experts]"
        )
    experts = logits.shape[1]
    if not 1 <= experts <= MAX_EXPERTS:
        raise InvalidArgumentError(f"router_logits has {experts} experts; expected 1 to {MAX_EXPERTS}")
    if routing.top_k > experts:
        raise InvalidArgumentError(f"top_k = {routing.top_k} is more than the {experts} experts of router_logits")
    size = experts // routing.n_group
    if routing.n_group > 1 and (experts % routing.n_group or size < 2):
        raise InvalidArgumentError(f"{experts} experts in {routing.n_group} groups; expected equal groups of 2 or more")
    if routing.top_k > routing.topk_group * size:
        raise InvalidArgumentError(
            f"top_k = {routing.top_k} is more than the {routing.topk_group * size} experts of "
            f"{routing.topk_group} groups"
        )
    if routing.bias is not None:
        if tuple(routing.bias.shape) != (experts,):
            raise FormatError(f"the routing bias has {routing.bias.shape[0]} elements; expected {experts}")
        _same_device("the routing bias", routing.bias, "router_logits", logits)


def check_choice(ids: Any, weights: Any) -> Chosen:
    """Refuse ids and weights that are not [T, k] of one device.

    Raises
    ------
    FormatError
        If dtype, shape or device do not fit.
    """
    if not hasattr(ids, "dtype") or dtype_name(ids) != "int32" or len(ids.shape) != 2:
        raise FormatError(f"ids is {_described(ids)}; expected int32 [tokens, top_k]")
    if not 1 <= ids.shape[1] <= MAX_TOP_K:
        raise FormatError(f"ids has {ids.shape[1]} columns; expected 1 to {MAX_TOP_K}")
    if not hasattr(weights, "dtype") or dtype_name(weights) != "float32" or tuple(weights.shape) != tuple(ids.shape):
        raise FormatError(f"weights is {_described(weights)}; expected float32 {list(ids.shape)}, as ids")
    _same_device("weights", weights, "ids", ids)
    return Chosen(int(ids.shape[0]), int(ids.shape[1]))


def check_layer(x: Any, tokens: int, source: Any, experts: Any, total: int | None, expert_offset: Any) -> None:
    """Refuse x, experts and a slice of them that do not go together with what was routed.

    Parameters
    ----------
    source
        The logits or ids, whose device x must share.
    total
        Experts of all ranks, if known.

    Raises
    ------
    FormatError, InvalidArgumentError
        If something does not fit; the message says what.
    """
    if not isinstance(experts, Experts):
        raise InvalidArgumentError(f"experts is a {type(experts).__name__}; expected a warpsmith.Experts")
    if not hasattr(x, "dtype") or dtype_name(x) not in PLAIN_NAMES or len(x.shape) != 2:
        raise FormatError(f"x is {_described(x)}; expected bfloat16 or float16 [tokens, hidden]")
    if x.shape[1] != experts.hidden:
        raise FormatError(f"x has {x.shape[1]} columns and the experts H = {experts.hidden}; expected the same")
    if x.shape[0] != tokens:
        raise FormatError(f"x has {x.shape[0]} tokens, and {tokens} were routed; expected the same")
    weights = format_of(experts.w13, "w13")
    if weights in PLAIN and weights != PLAIN_NAMES[dtype_name(x)]:
        raise FormatError(f"x is {dtype_name(x)} and the experts are {weights}; convert one of them")
    if getattr(experts.w13, "packing", "") == STREAMED and PLAIN_NAMES[dtype_name(x)] != STREAMED:
        raise FormatError(f"x is {dtype_name(x)} and the experts are prepared for few rows of bfloat16; convert x")
    _same_device("x", x, "what was routed", source)
    if device_of(x) != experts.device:
        raise FormatError(f"the experts are on {experts.device} and x on {device_of(x)}; expected the same device")
    check_slice(experts.number, total, expert_offset)


def check_slice(local: Any, total: int | None, expert_offset: Any) -> None:
    """Refuse local experts that are not among all of them.

    Raises
    ------
    InvalidArgumentError
        If they are not.
    """
    if not isinstance(local, int) or not 1 <= local <= MAX_EXPERTS:
        raise InvalidArgumentError(f"there are {local!r} local experts; expected 1 to {MAX_EXPERTS}")
    if not isinstance(expert_offset, int) or expert_offset < 0:
        raise InvalidArgumentError(f"expert_offset is {expert_offset!r}; expected a whole number from 0 on")
    if total is not None and expert_offset + local > total:
        raise InvalidArgumentError(
            f"{local} local experts from expert_offset {expert_offset} on are more than the {total} that are routed to"
        )


def check_num_tokens(num_tokens: Any, source: Any) -> None:
    """Refuse a number of tokens that is not one int32 on the device.

    Raises
    ------
    FormatError
        If it is not.
    """
    if num_tokens is None:
        return
    count = 1
    for size in getattr(num_tokens, "shape", (0,)):
        count *= size
    if not hasattr(num_tokens, "dtype") or dtype_name(num_tokens) != "int32" or count != 1:
        raise FormatError(f"num_tokens is {_described(num_tokens)}; expected an int32 tensor of one element")
    _same_device("num_tokens", num_tokens, "the tokens", source)


def check_result(out: Any, x: Any, shape: tuple[int, ...]) -> None:
    """Refuse an `out` that is not a contiguous tensor like x.

    Raises
    ------
    InvalidArgumentError
        If dtype, shape, device or contiguity are others.
    """
    if type(out) is not type(x) or dtype_name(out) != dtype_name(x) or tuple(out.shape) != shape:
        raise InvalidArgumentError(
            f"out is {_described(out)}; expected a {type(x).__name__} like x, {dtype_name(x)} {list(shape)}"
        )
    contiguous = out.is_contiguous() if hasattr(out, "is_contiguous") else out.flags.c_contiguous
    if not contiguous:
        raise InvalidArgumentError("out is not contiguous; expected a contiguous tensor")
    if device_of(out) != device_of(x):
        raise InvalidArgumentError(f"out is on {device_of(out)} and x on {device_of(x)}; expected the same device")


def _same_device(what: str, x: Any, other: str, y: Any) -> None:
    if device_of(x) != device_of(y):
        raise FormatError(f"{what} is on {device_of(x)} and {other} on {device_of(y)}; expected the same device")
