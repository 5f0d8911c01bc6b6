# SPDX-License-Identifier: Apache-2.0
"""The cases of the module `fused_moe`: one launch each, or two where counting is a launch of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from warpsmith.catalog import fused_moe as module
from warpsmith.catalog import moe_packed
from warpsmith.catalog.gemm import PLAIN
from warpsmith.evidence.cases import DISTRIBUTIONS, DTYPES
from warpsmith.reference import moe

LOGITS = ("normal", "ties", "not_finite", "large")


@dataclass(frozen=True)
class RouteCase:
    """Tokens to route; `local` experts from `offset` on are sorted in the same launch, if there are any."""

    dtype: str
    rule: str
    tokens: int
    experts: int
    top_k: int
    kind: str = "normal"
    n_group: int = 1
    topk_group: int = 1
    biased: bool = False
    counted: int | None = None
    local: int = 0
    offset: int = 0

    operation = "moe_route"


@dataclass(frozen=True)
class SortCase:
    """Pairs to sort and rows to gather: ids ``uniform``, ``zipf``, ``one`` expert's, or ``wild`` numbers."""

    tokens: int
    top_k: int
    experts: int
    offset: int = 0
    kind: str = "uniform"
    hidden: int = 0
    scale_bytes: int = 0
    scaled: str = ""
    m_major: bool = False
    counted: int | None = None

    operation = "moe_permute"


@dataclass(frozen=True)
class ActivationCase:
    """Rows to activate, of `most` that there could be."""

    dtype: str
    activation: str
    rows: int
    inner: int
    most: int

    operation = "moe_activation"


@dataclass(frozen=True)
class CombineCase:
    """Rows to add."""

    dtype: str
    tokens: int
    top_k: int
    hidden: int
    weighted: bool = True

    operation = "moe_combine"


@dataclass(frozen=True)
class DecodeCase:
    """A layer of a few tokens; `local` experts from `offset` on are here, and there are `bias`es of a type, or none."""

    dtype: str
    tokens: int
    top_k: int
    experts: int
    hidden: int
    inner: int
    logits: str = "fp32"
    rule: str = "topk_softmax"
    activation: str = "swiglu"
    bias: str = ""
    local: int = 0
    offset: int = 0
    counted: int | None = None

    operation = "moe_decode_up"

    def __post_init__(self) -> None:
        """All experts are here unless some are named."""
        object.__setattr__(self, "local", self.local or self.experts)


@dataclass(frozen=True)
class PackedCase(DecodeCase):
    """The same with 4-bit weights of a `format` in the order for few rows."""

    format: str = "mxfp4"

    operation = "moe_packed_up"


@dataclass(frozen=True)
class QuantizeRowsCase:
    """Sorted rows to quantize: of as many tokens, gathered, or the activation of as many pairs' rows.

    Values are of a `distribution` of `cases.DISTRIBUTIONS`; `weighted` rows are multiplied first. nvfp4 has the global
    scales of `scale`: one, one an expert, or none. Gate and up may be `mixed` as a gated w13 has them.
    """

    format: str
    dtype: str
    tokens: int
    top_k: int
    experts: int
    columns: int
    activation: str = ""
    distribution: str = "normal"
    weighted: bool = False
    scale: tuple[float, ...] = ()
    ids: str = "uniform"
    mixed: bool = False

    operation = "moe_quantize"


MoeCase = RouteCase | SortCase | ActivationCase | QuantizeRowsCase | CombineCase | DecodeCase | PackedCase


def route_cases() -> Iterator[RouteCase]:
    """The cases of routing."""
    shapes = (
        (8, 2, 1, 1),
        (128, 8, 1, 1),
        (256, 8, 8, 4),
        (384, 8, 1, 1),
        (512, 16, 16, 4),
        (33, 5, 3, 2),
        (1, 1, 1, 1),
    )
    for dtype in DTYPES:
        for number, (rule, (experts, top_k, groups, kept)) in enumerate(
            (rule, shape) for rule in moe.ROUTING_RULES for shape in shapes
        ):
            base = RouteCase(dtype, rule, (1, 17, 130)[number % 3], experts, top_k)
            if rule == "sigmoid_bias_grouped":
                base = replace(base, n_group=groups, topk_group=kept, biased=number % 2 == 0)
            yield replace(base, kind=LOGITS[number % len(LOGITS)])
            yield replace(base, kind="ties", counted=number % 5)
        for kind in LOGITS:
            yield RouteCase(dtype, "topk_softmax", 61, 128, 8, kind, local=48, offset=32)


def sort_cases() -> Iterator[SortCase]:
    """The cases of sorting and gathering."""
    for tokens, top_k, experts, offset in (
        (1, 1, 1, 0), (5, 3, 8, 0), (64, 8, 128, 0), (65, 8, 128, 64), (171, 3, 5, 2), (33, 16, 512, 0),
        (4097, 8, 64, 32), (1000, 16, 384, 0),
    ):  # fmt: skip
        for kind in ("uniform", "zipf", "one", "wild"):
            yield SortCase(
                tokens, top_k, experts, offset, kind, hidden=40, counted=None if kind != "zipf" else tokens // 2
            )
    for scaled in ("", *PLAIN):
        for scale_bytes in (0, 4, 5):
            yield SortCase(70, 3, 8, 0, "uniform", 1000, 0 if scaled else scale_bytes, scaled)
    for tokens in (1, 7, 200):
        yield SortCase(tokens, 5, 8, 0, "uniform", 1000, 148, m_major=True)


def activation_cases() -> Iterator[ActivationCase]:
    """The cases of activations."""
    for dtype in PLAIN:
        for activation in module.ACTIVATIONS:
            for rows, inner, most in ((0, 8, 3), (1, 1024, 1), (37, 2880, 40), (300, 768, 1000)):
                yield ActivationCase(dtype, activation, rows, inner, most)


def quantize_rows_cases() -> Iterator[QuantizeRowsCase]:
    """The cases of quantizing sorted rows: every number of blocks that a row can end in, and of rows in a group."""
    for format in module.TILED_FORMATS:
        nvfp4 = format == "nvfp4"
        for dtype in PLAIN:
            base = QuantizeRowsCase(format, dtype, 1, 1, 1, 32, scale=(3.5,) if nvfp4 else ())
            for tokens, top_k, experts, columns in (
                (1, 1, 1, 32), (1, 8, 256, 2880), (17, 4, 32, 2048), (129, 2, 8, 736), (1000, 8, 128, 96),
                (40, 16, 512, 352), (700, 1, 5, 1056),
            ):  # fmt: skip
                sizes = replace(base, tokens=tokens, top_k=top_k, experts=experts, columns=columns)
                yield sizes
                yield replace(sizes, ids="zipf", weighted=True, scale=(0.5,) * experts if nvfp4 else ())
            some = replace(base, tokens=37, top_k=3, experts=6, columns=480)
            for distribution in DISTRIBUTIONS[1:]:
                yield replace(some, distribution=distribution)
            for value in (1e-30, 3e38, float("nan"), -2.0) if nvfp4 else ():
                yield replace(some, scale=(1.0, 2.0, value, 0.25, 100.0, 3000.0))
            for activation in module.ACTIVATIONS:
                each = tuple(50.0 * (e + 1) for e in range(6)) if nvfp4 else ()
                yield replace(some, activation=activation, scale=each)
                yield replace(some, activation=activation, tokens=300, columns=768, ids="one")
                if activation not in module.UNGATED:
                    yield replace(some, activation=activation, mixed=True)


def combine_cases() -> Iterator[CombineCase]:
    """The cases of weighted sums."""
    for dtype in PLAIN:
        for tokens, top_k, hidden in ((1, 1, 1024), (9, 3, 8), (3, 8, 2048), (130, 16, 2880), (17, 5, 1032)):
            yield CombineCase(dtype, tokens, top_k, hidden)
        yield CombineCase(dtype, 9, 1, 64, weighted=False)


def decode_cases() -> Iterator[DecodeCase]:
    """The cases of the kernels for a few tokens."""
    for dtype in PLAIN:
        for tokens in (1, 2, 3, 8):
            yield DecodeCase(dtype, tokens, 8, 64, 256, 96, "bf16", "softmax_topk_renormalize")
            yield DecodeCase(dtype, tokens, 4, 12, 1032, 40, "fp16", activation="swiglu_oai", bias=dtype)
            yield DecodeCase(dtype, tokens, 3, 40, 64, 72, rule="sigmoid_bias_grouped", local=9, offset=20, bias="fp32")
            yield DecodeCase(dtype, tokens, 16, 512, 40, 8, rule="softmax_topk", activation="geglu")
            yield DecodeCase(dtype, tokens, 2, 3, 8, 520, activation="geglu_tanh", counted=tokens - 1)


def packed_cases() -> Iterator[PackedCase]:
    """The cases of the kernels for a few tokens and weights prepared for few rows."""
    for format in moe_packed.WEIGHTS:
        for tokens in (1, 2, 3, 8):
            base = PackedCase(
                "bf16", tokens, 4, 12, 1088, 96, "bf16", activation="swiglu_oai", bias="bf16", format=format
            )
            yield replace(base, inner=192)
            yield replace(base, hidden=64, inner=64, rule="softmax_topk", activation="geglu", top_k=12, bias="")
            yield replace(
                base,
                hidden=192,
                inner=128,
                experts=40,
                logits="fp32",
                rule="sigmoid_bias_grouped",
                top_k=3,
                local=9,
                offset=20,
                bias="fp32",
                activation="swiglu",
            )
            yield replace(
                base,
                hidden=448,
                inner=320,
                experts=3,
                top_k=2,
                rule="softmax_topk_renormalize",
                activation="geglu_tanh",
                counted=tokens - 1,
            )


def all_moe_cases() -> Iterator[MoeCase]:
    """Every case of the module."""
    yield from route_cases()
    yield from sort_cases()
    yield from activation_cases()
    yield from quantize_rows_cases()
    yield from combine_cases()
    yield from decode_cases()
    yield from packed_cases()
