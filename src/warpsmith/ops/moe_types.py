# SPDX-License-Identifier: Apache-2.0
"""What a MoE layer is made of: its experts, and the rule that chooses among them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from warpsmith.catalog.formats import LINEAR, STREAMED, TILED, get_format, is_gated, packing_of_elements
from warpsmith.catalog.fused_moe import ACTIVATIONS, FORMATS, MAX_GROUPS, MAX_TOP_K, RULES, UNGATED
from warpsmith.catalog.gemm import N_MULTIPLE, k_multiple
from warpsmith.errors import FormatError, InvalidArgumentError
from warpsmith.ops.checks import NUMBERS
from warpsmith.ops.gemm_checks import OUT_NAMES, data_of, format_of
from warpsmith.ops.qtensor import QTensor, device_of, dtype_name

GROUPED_RULE, INPUT_RULE = "sigmoid_bias_grouped", "sigmoid_input"


@dataclass(frozen=True, eq=False)
class Routing:
    """How a token's experts and their weights follow from its router logits.

    Parameters
    ----------
    rule
        ``softmax_topk``: softmax over all experts, the best of them. ``softmax_topk_renormalize`` (Qwen3, Mixtral) and
        ``topk_softmax`` (gpt-oss), the same function: softmax over the chosen. ``sigmoid_bias_grouped`` (DeepSeek-V3,
        Kimi-K2): chosen by sigmoid + bias within the best groups, weights are the sigmoids divided by their sum.
        ``sigmoid_input`` (Llama 4): the sigmoids of the best logits, which multiply the experts' input.
    top_k
        Experts a token, 1 to 16.
    scale
        Multiplies the weights (``routed_scaling_factor``).
    bias
        [E] float32, for ``sigmoid_bias_grouped``: the correction bias.
    n_group, topk_group
        For ``sigmoid_bias_grouped``: groups of consecutive experts, and how many of them a token may use. A group
        counts the sum of its two best.

    Raises
    ------
    InvalidArgumentError
        If a value does not fit.
    FormatError
        If the bias is not a float32 tensor [E].
    """

    rule: str
    top_k: int
    scale: float = 1.0
    bias: Any = None
    n_group: int = 1
    topk_group: int = 1

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise InvalidArgumentError(f"routing rule {self.rule!r} is unknown; expected one of {', '.join(RULES)}")
        if not isinstance(self.top_k, int) or not 1 <= self.top_k <= MAX_TOP_K:
            raise InvalidArgumentError(f"top_k is {self.top_k!r}; expected a whole number from 1 to {MAX_TOP_K}")
        if not isinstance(self.scale, NUMBERS) or not math.isfinite(self.scale):
            raise InvalidArgumentError(f"scale is {self.scale!r}; expected a finite number")
        if not 1 <= self.topk_group <= self.n_group <= MAX_GROUPS:
            raise InvalidArgumentError(
                f"n_group is {self.n_group} and topk_group {self.topk_group}; expected 1 ≤ topk_group ≤ n_group ≤ "
                f"{MAX_GROUPS}"
            )
        if self.rule != GROUPED_RULE and (self.bias is not None or self.n_group > 1):
            raise InvalidArgumentError(f"bias and groups are for {GROUPED_RULE}; the rule is {self.rule}")
        if self.bias is not None and (
            not hasattr(self.bias, "dtype") or dtype_name(self.bias) != "float32" or len(self.bias.shape) != 1
        ):
            given = f"{dtype_name(self.bias)} {list(self.bias.shape)}" if hasattr(self.bias, "dtype") else self.bias
            raise FormatError(f"the routing bias is {given}; expected a float32 tensor [experts]")

    @property
    def scales_input(self) -> bool:
        """Whether weights multiply the experts' input."""
        return self.rule == INPUT_RULE

    @property
    def numbers(self) -> tuple[Any, ...]:
        """All of it but the bias's values, to key plans by."""
        return self.rule, self.top_k, self.scale, self.n_group, self.topk_group


class Experts:
    """The weights of a MoE layer's experts, or of the slice of them that a rank has.

    Parameters
    ----------
    w13
        [E, 2·I, H]: an expert's gate rows, then its up rows; ``relu2``, which has no gate, [E, I, H]. A bfloat16 or
        float16 tensor, or a `QTensor` (nvfp4: with one global scale, or one an expert) with linear scales, or as
        `prepare_weight` makes it: with `format` for such activations (`gated` too), without for few rows of bfloat16.
    w2
        [E, H, I], of the same kind, never `gated`.
    activation
        ``swiglu``, ``swiglu_oai`` (gpt-oss: clamped, uses `alpha` and `limit`), ``geglu``, ``geglu_tanh``, ``relu2``.
    bias13, bias2
        [E, 2·I] and [E, H], bfloat16, float16 or float32; added in float32. Of tensor-parallel slices of I, give
        `bias2` to one rank only.
    alpha, limit
        Of ``swiglu_oai``.
    format
        What activations are quantized to before each product (``nvfp4``, ``mxfp4``, ``mxfp8``, ``fp8_block``), or None:
        they stay in x's type.
    a1, a2
        For ``nvfp4`` activations: their global scales, float32 with one element or one an expert. By default 1.

    Raises
    ------
    FormatError
        If shapes, formats, dtypes or devices do not go together; the message says which.
    InvalidArgumentError
        If the activation is unknown.

    Notes
    -----
    An `Experts` keeps the tensors that it was made with: weights may be written into, but not be moved. `bias13` always
    has the gate's biases, then up's; beside a `gated` w13 the first call on a GPU copies it, and later writes are not
    seen.
    """

    __slots__ = (
        "__weakref__",
        "_lies",
        "a1",
        "a2",
        "activation",
        "alpha",
        "bias2",
        "bias13",
        "format",
        "hidden",
        "inner",
        "limit",
        "number",
        "w2",
        "w13",
    )

    def __init__(
        self,
        w13: Any,
        w2: Any,
        *,
        activation: str = "swiglu",
        bias13: Any = None,
        bias2: Any = None,
        alpha: float = 1.702,
        limit: float = 7.0,
        format: str | None = None,
        a1: Any = None,
        a2: Any = None,
    ) -> None:
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise InvalidArgumentError(f"activation {activation!r} is unknown; expected one of {known}")
        self.w13, self.w2, self.activation, self.format = w13, w2, activation, format
        self.bias13, self.bias2, self.a1, self.a2 = bias13, bias2, a1, a2
        self.alpha, self.limit = float(alpha), float(limit)
        self._lies: Any = None
        self._check_shapes()
        self._check_formats()
        self._check_extras()

    @property
    def gates(self) -> int:
        """Rows of w13 for each of I: 2, or 1 without a gate."""
        return 1 if self.activation in UNGATED else 2

    @property
    def tiled(self) -> bool:
        """Whether the weights' scales, and so those of the activations beside them, are in the layout 128x4."""
        return isinstance(self.w13, QTensor) and self.w13.scale_layout == TILED

    @property
    def gated(self) -> bool:
        """Whether rows of w13 are in the order of products that are activated where they are made."""
        return isinstance(self.w13, QTensor) and is_gated(self.w13.packing)

    @property
    def device(self) -> str:
        """Where the weights live."""
        return device_of(data_of(self.w13))

    def __repr__(self) -> str:
        kind = format_of(self.w13, "w13")
        return f"Experts({self.number} × {kind}, H={self.hidden}, I={self.inner}, {self.activation}, {self.device})"

    def _check_shapes(self) -> None:
        for what, w in (("w13", self.w13), ("w2", self.w2)):
            if not hasattr(data_of(w), "dtype") or len(w.shape) != 3 or 0 in w.shape:
                given = list(w.shape) if hasattr(w, "shape") else type(w).__name__
                raise FormatError(f"{what} is {given}; expected a tensor or QTensor of three dimensions, none 0")
        experts, rows, hidden = self.w13.shape
        count, out, inner = self.w2.shape
        if count != experts or out != hidden or rows != self.gates * inner:
            wanted = "[E, 2·I, H]" if self.gates == 2 else "[E, I, H]"
            raise FormatError(
                f"w13 has shape {list(self.w13.shape)} and w2 {list(self.w2.shape)}; expected {wanted} and [E, H, I] "
                f"for {self.activation}"
            )
        self.number, self.hidden, self.inner = int(experts), int(hidden), int(inner)

    def _check_formats(self) -> None:
        kinds = format_of(self.w13, "w13"), format_of(self.w2, "w2")
        if kinds[0] != kinds[1]:
            raise FormatError(f"w13 is {kinds[0]} and w2 {kinds[1]}; expected one format")
        if self.format is not None:
            get_format(self.format)
        served = [a for a, w in FORMATS if w == kinds[0]]
        if not served or (self.format is not None and self.format not in served):
            raise FormatError(
                f"activations in {self.format or 'bf16 or fp16'} by {kinds[0]} weights have no kernel; "
                f"expected activations in {', '.join(served) or 'another format'}"
            )
        step = max(k_multiple(a, kinds[0]) for a in ([self.format] if self.format else served[:1]))
        for what, size in (("H", self.hidden), ("I", self.inner)):
            if size % max(step, N_MULTIPLE):
                raise FormatError(
                    f"{what} = {size} must be a multiple of {max(step, N_MULTIPLE)} for {kinds[0]} weights"
                )
        self._check_layouts()

    def _check_layouts(self) -> None:
        """Both weights as they were quantized, or both as they are prepared for `format`, or for few rows of x."""
        found = []
        for what, w in (("w13", self.w13), ("w2", self.w2)):
            if not isinstance(w, QTensor):
                continue
            found.append((w.scale_layout, packing_of_elements(w.packing)))
            if w.offsets is not None:
                raise FormatError(f"{what} is a grouped QTensor; expected weights without groups")
            if w.scale_layout != LINEAR and self.format is None:
                raise FormatError(
                    f"{what} has {w.scale_layout} scales, and x stays as it is; expected linear scales, or a format "
                    "of activations"
                )
            if is_gated(w.packing):
                self._check_gated(what, w)
            elif w.packing and w.packing != (self.format or STREAMED):
                raise FormatError(
                    f"{what} is prepared for {w.packing} activations, and the format is {self.format}; expected "
                    "weights as they were quantized, or prepared for the format"
                )
        if len(set(found)) > 1:
            (layout, packing), (second, other) = found
            raise FormatError(
                f"w13 has {layout} scales and packing {packing!r}, w2 {second} scales and packing {other!r}; prepare "
                "both weights or none"
            )

    def _check_gated(self, what: str, w: QTensor) -> None:
        """Rows of gate and up that are mixed are w13's, where there is a gate, for the format's activations."""
        if what != "w13" or self.gates == 1:
            why = f"{self.activation} has no gate" if what == "w13" else "only w13 has a gate"
            raise FormatError(f"{what} is prepared as a gated w13, and {why}: prepare it without gated")
        elements = packing_of_elements(w.packing)
        if elements != (self.format if self.format in get_format(w.format).packings else ""):
            raise FormatError(
                f"w13 is prepared for {elements or w.format} activations, and the format is {self.format}; expected "
                "weights prepared for the format"
            )

    def _check_extras(self) -> None:
        where = self.device
        for what, b, columns in (
            ("bias13", self.bias13, self.gates * self.inner), ("bias2", self.bias2, self.hidden),
        ):  # fmt: skip
            if b is None:
                continue
            if not hasattr(b, "dtype") or dtype_name(b) not in OUT_NAMES or tuple(b.shape) != (self.number, columns):
                given = f"{dtype_name(b)} {list(b.shape)}" if hasattr(b, "dtype") else type(b).__name__
                raise FormatError(f"{what} is {given}; expected a float tensor [{self.number}, {columns}]")
        for what, a in (("a1", self.a1), ("a2", self.a2)):
            if a is None:
                continue
            if self.format != "nvfp4":
                raise FormatError(f"{what} is a global scale of nvfp4 activations; the format is {self.format}")
            if not hasattr(a, "dtype") or dtype_name(a) != "float32" or math.prod(a.shape) not in (1, self.number):
                raise FormatError(f"{what} must be a float32 tensor of 1 or {self.number} elements")
        for what in ("w2", "bias13", "bias2", "a1", "a2"):
            part = getattr(self, what)
            if part is not None and device_of(data_of(part)) != where:
                raise FormatError(f"{what} is on {device_of(data_of(part))} and w13 on {where}; expected one device")
