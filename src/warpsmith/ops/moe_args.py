# SPDX-License-Identifier: Apache-2.0
"""Buffers, grids and arguments of the MoE kernels, from plain integers; see ``kernels/fused_moe``."""

from __future__ import annotations

from typing import NamedTuple

from warpsmith.catalog.formats import FORMATS, M_MAJOR, TILED
from warpsmith.catalog.fused_moe import ACTIVATIONS, GATHER
from warpsmith.errors import InvalidArgumentError
from warpsmith.ops.quantization_args import SCALE_PER_GROUP

CHUNK = 512
"""Pairs that a block sorts; also the most that routing's only block sorts by itself."""
COUNTED_CHUNKS = 64
"""Chunks from which a launch of its own counts them: without it every block reads all ids."""
ROUTE_TOKENS = 16
ROWS_FP16 = 1
MIXED_COLUMNS = 1 << 10
"""The flag of columns in the order of a gated w13; in ``kernels/fused_moe/sm80_moe_quantize.cuh`` too."""

_UNIT = 8
_ACTIVATION_THREADS, _ACTIVATION_BLOCKS = 256, 4096
_COMBINE_THREADS = 128
_ALIGNED = 256
_MOST_PAIRS = 1 << 31
_MOST_SCALES = 1 << 34
_GATHER_BLOCKS = 264
_PITCH = 4


class Layer(NamedTuple):
    """Sizes of a layer's call.

    Attributes
    ----------
    tokens, top_k, hidden, inner, experts
        T, k, H, I and the local experts.
    gates
        2, or 1 for an activation without a gate.
    format
        What activations are quantized to; empty if they are not.
    tiled
        Whether their scales are in the grouped layout 128x4, as prepared weights ask for.
    """

    tokens: int
    top_k: int
    hidden: int
    inner: int
    experts: int
    gates: int = 2
    format: str = ""
    tiled: bool = False

    @property
    def pairs(self) -> int:
        """Tokens times choices."""
        return self.tokens * self.top_k

    @property
    def chunks(self) -> int:
        """Chunks of pairs."""
        return -(-self.pairs // CHUNK)


class Buffers(NamedTuple):
    """Where each buffer of a layer's call starts in its workspace, in bytes, and how long that is.

    `y` lies where `a` was. `codes` and `x_scales` are the quantized x, in order of tokens, `a_scales` and `act_scales`
    belong to quantized `a` and `act`; `plain` is an activation that is quantized in a launch of its own. With tiled
    scales `codes`, `x_scales` and `plain` are empty.
    """

    ids: int
    weights: int
    offsets: int
    rows: int
    positions: int
    counts: int
    codes: int
    x_scales: int
    a: int
    a_scales: int
    h: int
    act: int
    act_scales: int
    plain: int
    total: int

    @property
    def y(self) -> int:
        """The rows of the second product."""
        return self.a


def row_bytes(format: str, columns: int) -> int:
    """Bytes of a row of activations: 16-bit ones, or the codes of a format."""
    return FORMATS[format].data_columns(columns) if format else 2 * columns


def scale_bytes(format: str, columns: int) -> int:
    """Bytes of a row's linear scales."""
    return columns // FORMATS[format].block[1] * FORMATS[format].scale_bytes if format else 0


def scale_layout(format: str) -> str:
    """How the scales of sorted rows lie: as the fastest products read them, where experts need no padding for it."""
    return FORMATS[format].layouts[-1 if M_MAJOR in FORMATS[format].layouts else 0]


def scale_pitch(format: str, rows: int) -> int:
    """Rows from one block of 128 columns to the next where scales are m_major; 0 where they are linear."""
    return -(-rows // _PITCH) * _PITCH if format and scale_layout(format) == M_MAJOR else 0


def sorted_scales(layer: Layer, columns: int) -> int:
    """Bytes of the scales of all sorted rows of a layer."""
    if not layer.tiled:
        return (scale_pitch(layer.format, layer.pairs) or layer.pairs) * scale_bytes(layer.format, columns)
    rows, pitch = FORMATS[layer.format].scale_shape(TILED, (), layer.pairs, columns, layer.experts)
    return rows * pitch


def buffers(layer: Layer) -> Buffers:
    """Lay the buffers of a call out; their sizes never fall as tokens grow.

    Raises
    ------
    InvalidArgumentError
        If there are 2^31 pairs or more, or rows that 32-bit numbers do not reach.
    """
    pairs, f = layer.pairs, layer.format
    if pairs + 127 * layer.experts >= _MOST_PAIRS or pairs * layer.inner // _UNIT >= 1 << 32:
        raise InvalidArgumentError(
            f"{layer.tokens} tokens of {layer.top_k} experts are too many for one call; expected fewer than 2^31 "
            "pairs, and fewer than 2^35 elements between the products"
        )
    early = "" if layer.tiled else f  # x is quantized before it is gathered
    counted = layer.chunks if layer.chunks > COUNTED_CHUNKS else 0
    sizes: dict[str, int] = {
        "ids": 4 * pairs,
        "weights": 4 * pairs,
        "offsets": 4 * (layer.experts + 1),
        "rows": 4 * pairs,
        "positions": 4 * pairs,
        "counts": 4 * counted * layer.experts,
        "codes": layer.tokens * row_bytes(early, layer.hidden) if early else 0,
        "x_scales": layer.tokens * scale_bytes(early, layer.hidden),
        "a": pairs * 2 * layer.hidden,
        "a_scales": sorted_scales(layer, layer.hidden),
        "h": pairs * 2 * layer.gates * layer.inner,
        "act": pairs * row_bytes(f, layer.inner),
        "act_scales": sorted_scales(layer, layer.inner),
        "plain": pairs * 2 * max(layer.inner, layer.hidden) if early else 0,
    }
    starts: dict[str, int] = {}
    end = 0
    for name, size in sizes.items():
        starts[name] = end
        end += -(-size // _ALIGNED) * _ALIGNED
    return Buffers(**starts, total=end)


class Launch(NamedTuple):
    """One launch but for its pointers: the arguments are the kernel's pointers followed by `tail`."""

    grid: tuple[int, int, int]
    tail: tuple[int | float, ...]


def route_launch(
    tokens: int,
    experts: int,
    *,
    row_bytes: int,
    top_k: int,
    rule: int,
    n_group: int = 1,
    topk_group: int = 1,
    scale: float = 1.0,
    expert_offset: int = 0,
    local_experts: int = 0,
    sorts: bool = False,
) -> Launch:
    """Plan ``ws_moe_route``; pointers ``logits, bias, num_tokens, ids, weights, offsets, rows, positions``.

    With `sorts`, for at most 512 pairs, one block also sorts; the last three pointers are 0 otherwise.
    """
    blocks = 1 if sorts else -(-tokens // ROUTE_TOKENS)
    tail = (row_bytes, tokens, experts, top_k, rule, n_group, topk_group, scale, expert_offset, local_experts)
    return Launch((blocks, 1, 1), tail)


def permute_launch(
    pairs: int,
    *,
    top_k: int,
    experts: int,
    expert_offset: int = 0,
    x_row: int = 0,
    row: int = 0,
    scales: int = 0,
    pitch: int = 0,
    zeros: int = 0,
    fp16: bool = False,
    counts: bool = False,
) -> Launch:
    """Plan ``ws_moe_permute``, or with `counts` the launch that counts for it.

    Pointers are ``ids, num_tokens, offsets, rows, positions, counts, zeros, x, a, x_scales, a_scales, weights``. `row`
    and `scales` are the bytes of a row and of its scales, `x_row` those between rows of x; 0 if nothing is gathered.
    `pitch` is that of sorted scales that are m_major.
    """
    chunks = -(-pairs // CHUNK)
    share = 1
    if row and not counts:  # a warp a row while there are few, and enough blocks for every multiprocessor
        share = max(1, min(_GATHER_BLOCKS // chunks, -(-min(pairs, CHUNK) // (CHUNK // 32))))
    tail = (x_row, row, scales, pitch, pairs, top_k, expert_offset, experts, zeros, ROWS_FP16 if fp16 else 0)
    return Launch((chunks, share, 1), tail)


def activation_launch(rows: int, inner: int, activation: int, alpha: float, limit: float) -> Launch:
    """Plan ``ws_moe_activation``; pointers ``h, act, last_offset``."""
    units = inner // _UNIT
    blocks = min(-(-rows * units // _ACTIVATION_THREADS), _ACTIVATION_BLOCKS)
    return Launch((blocks, 1, 1), (rows, units, activation, alpha, limit))


def quantize_launch(
    layer: Layer,
    columns: int,
    *,
    x_row: int,
    activation: str = "",
    alpha: float = 0.0,
    limit: float = 0.0,
    scale_per_expert: bool = False,
    expert_offset: int = 0,
    gated: bool = False,
) -> Launch:
    """Plan ``ws_moe_quantize``: sorted rows are made of tokens' rows or, with an activation, of the first product's.

    Pointers are ``x, codes, scales, global_scale, offsets, ids, positions, weights``. `x_row` is the bytes between rows
    of what is read; with `gated`, 16 columns of the gate and 16 of up follow each other there.

    Raises
    ------
    InvalidArgumentError
        If there are more parts of rows than 32-bit numbers reach.
    """
    units, pitch = columns // _UNIT, -(-columns // FORMATS[layer.format].block[1] // 4) * 4
    rows = layer.pairs if activation else layer.tokens
    items = rows * -(-units // 32)
    if items >= _MOST_PAIRS or sorted_scales(layer, columns) >= _MOST_SCALES:
        raise InvalidArgumentError(
            f"{rows} rows of {columns} columns are too many for one call; expected fewer than 2^38 elements"
        )
    blocks = min(-(-items // (_ACTIVATION_THREADS // 32)), _ACTIVATION_BLOCKS)
    number = ACTIVATIONS[activation] if activation else GATHER
    flags = (SCALE_PER_GROUP if scale_per_expert else 0) | (MIXED_COLUMNS if gated else 0)
    tail = (
        x_row, units, layer.experts, pitch, rows, layer.top_k, expert_offset, number, alpha, limit, flags,
    )  # fmt: skip
    return Launch((blocks, 1, 1), tail)


def combine_launch(tokens: int, rows: int, top_k: int, hidden: int) -> Launch:
    """Plan ``ws_moe_combine``; pointers ``y, weights, positions, out``."""
    units = hidden // _UNIT
    return Launch((tokens, -(-units // _COMBINE_THREADS), 1), (2 * hidden, rows, top_k, units))
