# SPDX-License-Identifier: Apache-2.0
"""What `warpsmith verify` runs of `moe_quantize`.

Gathered rows have exactly the reference's codes and scales, padding columns included, and nothing else is written.
Activations are computed in fp32: a value near the middle between two codes may become either, so that what the codes
stand for is compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from warpsmith import reference
from warpsmith.catalog import fused_moe as module
from warpsmith.catalog.formats import FORMATS, TILED
from warpsmith.catalog.spec import CubinId, Problem
from warpsmith.evidence.cases import DTYPES, Case, draw
from warpsmith.evidence.device import POISON, Array, Bench
from warpsmith.evidence.moe_cases import QuantizeRowsCase
from warpsmith.evidence.moe_memory import Memory, differs, norm_error, twice
from warpsmith.ops import moe_args as arguments
from warpsmith.ops.gated_order import parted
from warpsmith.reference import moe
from warpsmith.reference.layouts import unpack

_ALPHA, _LIMIT = 1.702, 7.0
_OFFSET = 3  # the first local expert; others' numbers occur too
_ACTIVATED = 5e-3  # ‖difference‖ / ‖value‖ of what codes stand for


def run_quantize_rows(
    bench: Bench, case: QuantizeRowsCase, rng: np.random.Generator
) -> Iterator[tuple[CubinId, str, float]]:
    """Run a case; the cubin that served it, a mismatch in words and the error."""
    memory, pairs = Memory(bench), case.tokens * case.top_k
    ids = _ids(case, rng)
    offsets, rows, positions = moe.permute(ids, case.experts, expert_offset=_OFFSET)
    x, values, weights = _values(case, rows, rng)
    scale = np.array(case.scale, np.float32) if case.scale else None
    gates = 1 if case.activation in ("", *module.UNGATED) else 2
    layer = arguments.Layer(case.tokens, case.top_k, case.columns, case.columns, case.experts, gates, case.format, True)
    launch = arguments.quantize_launch(
        layer, case.columns, x_row=x.shape[1] * x.itemsize, activation=case.activation, alpha=_ALPHA, limit=_LIMIT,
        scale_per_expert=len(case.scale) > 1, expert_offset=_OFFSET, gated=case.mixed,
    )  # fmt: skip
    problem = Problem.of("moe_quantize", {"format": case.format, "type": case.dtype}, {"m": pairs, "k": case.columns})
    kernel = next(iter(bench.kernels(problem).values()))
    width = FORMATS[case.format].data_columns(case.columns)
    pointers = (
        memory.give("x", x), memory.make("codes", pairs * width),
        memory.make("scales", arguments.sorted_scales(layer, case.columns)), memory.give("global_scale", scale),
        memory.give("offsets", offsets), 0 if case.activation else memory.give("ids", ids),
        0 if case.activation else memory.give("positions", positions), memory.give("weights", weights),
    )  # fmt: skip
    problems = [twice(bench, memory, [(kernel, launch.grid, (*pointers, *launch.tail))], ["codes", "scales"])]
    problems.append(memory.broken())
    got = memory.take("codes", np.uint8).reshape(pairs, width), memory.take("scales", np.uint8)
    error = 0.0
    if not case.activation:
        problems += _inexact(case, got, values, offsets, scale)
    else:
        error = difference(case.format, got, values, offsets, scale)
        problems.append("" if error <= _ACTIVATED else f"error {error:.2e}")
    problems.append(written_besides(got, offsets))
    memory.close()
    yield kernel.cubin, "; ".join(p for p in problems if p), error


def _ids(case: QuantizeRowsCase, rng: np.random.Generator) -> Array:
    shape = case.tokens, case.top_k
    if case.ids == "one":
        return np.full(shape, _OFFSET + case.experts // 2, np.int32)
    if case.ids == "zipf":
        return (_OFFSET + (rng.zipf(1.3, shape) - 1) % (case.experts + 1)).astype(np.int32)
    return rng.integers(_OFFSET - 1, _OFFSET + case.experts + 1, shape).astype(np.int32)


def _values(case: QuantizeRowsCase, rows: Array, rng: np.random.Generator) -> tuple[Array, Array, Array | None]:
    """The input in memory, what sorted rows are quantized from, and weights."""
    kind, gates = DTYPES[case.dtype], 2 if case.activation and case.activation not in module.UNGATED else 1
    lines = case.tokens * case.top_k if case.activation else case.tokens
    drawn = Case("quantize", case.format, case.dtype, TILED, 1, lines, case.columns, distribution=case.distribution)
    x = draw(drawn, gates * case.columns, rng)[0]
    if case.activation:
        x = (rng.standard_normal(x.shape) * 3).astype(kind)
        x[::7, 3] = np.nan
        columns = parted(x.T).T if case.mixed else x
        made = moe.activate(columns[: len(rows)].astype(np.float64), case.activation, alpha=_ALPHA, limit=_LIMIT)
        return x, made.astype(np.float32), None
    values = x[rows // case.top_k]
    if not case.weighted:
        return x, values, None
    weights = rng.random((case.tokens, case.top_k)).astype(np.float32)
    scaled = values.astype(np.float32) * weights.reshape(-1)[rows, None]
    return x, scaled.astype(kind), weights


def _scale_argument(scale: Array | None) -> Array | np.float32 | None:
    return scale if scale is None or scale.size > 1 else np.float32(scale[0])


def _inexact(
    case: QuantizeRowsCase, got: tuple[Array, Array], values: Array, offsets: Array, scale: Array | None
) -> Iterator[str]:
    codes, scales = reference.quantize(
        values, case.format, scale_layout=TILED, global_scale=_scale_argument(scale), offsets=offsets
    )
    yield differs("codes", got[0][: len(values)], codes.view(np.uint8))
    rows = _padded_rows(case.tokens * case.top_k, offsets)
    pitch = got[1].size // rows
    mine, wanted = (_of_rows(table, offsets, pitch) for table in (got[1], scales.view(np.uint8)))
    yield differs("scales", mine, wanted)


def _padded_rows(pairs: int, offsets: Array) -> int:
    return int((pairs + 127 * (len(offsets) - 1)) // 128 * 128)


def _of_rows(scales: Array, offsets: Array, pitch: int) -> Array:
    """The scales of the rows of groups, with the columns that pad them; a reference's buffer may end earlier."""
    return unpack(scales.reshape(-1, pitch), TILED, int(offsets[-1]), pitch, offsets=offsets)


def difference(format: str, got: tuple[Array, Array], values: Array, offsets: Array, scale: Array | None) -> float:
    """How far what codes of sorted rows stand for is from what those of the reference stand for.

    `got` are codes, a row of which there could be for each of its rows, and scales in the grouped layout 128x4.
    """
    factor, shape = _scale_argument(scale), values.shape
    codes, scales = reference.quantize(values, format, scale_layout="linear", global_scale=factor, offsets=offsets)
    table = _of_rows(got[1], offsets, got[1].size // _padded_rows(len(got[0]), offsets))
    mine = np.ascontiguousarray(table[:, : scales.shape[1]])
    decoded = [
        reference.decode_float64(c, s, format, shape=shape, global_scale=factor, offsets=offsets)
        for c, s in ((got[0][: len(values)], mine.view(scales.dtype)), (codes, scales))
    ]
    return norm_error(*decoded)


def written_besides(got: tuple[Array, Array], offsets: Array) -> str:
    """Whether codes beyond the last row, or scales of rows that only pad, were written."""
    if (got[0][int(offsets[-1]) :] != POISON).any():
        return "wrote rows that belong to no expert"
    rows = _padded_rows(len(got[0]), offsets)
    pitch = got[1].size // rows
    tiles = got[1].reshape(rows // 128, pitch // 4, 32, 4, 4)
    linear = np.moveaxis(tiles, (-4, -3, -2), (-2, -3, -4)).reshape(rows, pitch)
    real = np.zeros(rows, bool)
    starts = (offsets[:-1].astype(np.int64) + 127 * np.arange(len(offsets) - 1)) // 128 * 128
    for start, count in zip(starts, np.diff(offsets), strict=True):
        real[start : start + count] = True
    return "" if (linear[~real] == POISON).all() else "wrote scales of rows that only pad"


def padding_columns(format: str, got: tuple[Array, Array], columns: int, offsets: Array) -> str:
    """Whether the columns of scales that pad those of a row are zero."""
    pitch = got[1].size // _padded_rows(len(got[0]), offsets)
    padding = _of_rows(got[1], offsets, pitch)[:, columns // FORMATS[format].block[1] :]
    return "columns of scales that pad are not zero" if padding.any() else ""
