# SPDX-License-Identifier: Apache-2.0
"""What a product costs by each tile and number of splits of K: waves, bytes and operations, by the multiprocessors.

Clocks are those of one multiprocessor. Blocks are persistent, one a multiprocessor, and take tiles in waves. A tile
takes as long as the slowest of three: its operations, its operands' way from the L2, and their way from shared memory
to registers; no product is faster than memory. What hides behind the slowest still costs a part: `HIDDEN`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

MAX_SPLITS = 64
HIDDEN = 0.25
"""The part of what overlaps with something slower that is paid for all the same; assumed."""


def _up(value: int, unit: int) -> int:
    return -(-value // unit)


def _together(*times: float) -> float:
    """What takes some time each and overlaps."""
    longest = max(times)
    return longest + HIDDEN * (sum(times) - longest)


class TileShape(NamedTuple):
    """A tile of D and the K that its loop takes at a time; `loads` is the time of its loads by that of its MMAs."""

    tile: str
    m: int
    n: int
    step: int
    loads: float


class FormatCost(NamedTuple):
    """A pair of formats: bytes of an element of A and of B, operations a clock, and the tiles there are.

    An operation is a multiplication or an addition.
    """

    format: str
    a_bytes: float
    b_bytes: float
    rate: float
    tiles: tuple[TileShape, ...]


class Estimate(NamedTuple):
    """The costs of a kernel.

    Attributes
    ----------
    kernel
        Whose they are.
    formats
        What depends on the formats.
    start
        Clocks that a block takes for a tile beside its operands: to fill the pipeline, to write D.
    split
        Clocks that splits of K cost beside their bytes.
    l2, memory
        Bytes a clock that a multiprocessor gets from the L2, and its share of what memory moves.
    """

    kernel: str
    formats: tuple[FormatCost, ...]
    start: float
    split: float
    l2: float
    memory: float

    def of(self, format: str) -> FormatCost | None:
        """What it knows of a pair of formats."""
        return next((f for f in self.formats if f.format == format), None)

    def unserved(self, fields: Mapping[str, str], tiles: Collection[str]) -> tuple[str, ...]:
        """The tiles that it knows for a problem, but for those given."""
        format = self.of(fields.get("format", ""))
        return () if format is None else tuple(s.tile for s in format.tiles if s.tile not in tiles)

    def clocks(
        self, format: FormatCost, shape: TileShape, dims: Mapping[str, int], splits: int, sm_count: int
    ) -> float:
        """What a product takes; m of a grouped one is the rows of a group, and batches are the groups."""
        m, n, k, batches = (max(dims.get(name, 1), 1) for name in ("m", "n", "k", "batches"))
        multiprocessors = max(sm_count, 1)
        tiles = batches * _up(m, shape.m) * _up(n, shape.n)
        steps = _up(_up(k, shape.step), splits)
        operations = 2 * shape.m * shape.n / format.rate
        operands = (shape.m * format.a_bytes + shape.n * format.b_bytes) / self.l2
        tile = self.start + steps * shape.step * _together(operations, operands, shape.loads * operations)
        if splits > 1:
            tile += self.split + (1 + splits) * shape.m * shape.n * 4 / self.l2
        busy = _up(tiles * splits, multiprocessors) * tile
        moved = batches * (k * (m * format.a_bytes + n * format.b_bytes) + 2 * m * n)
        return _together(busy, moved / (self.memory * multiprocessors))

    def _candidates(
        self, format: FormatCost, tiles: Collection[str], dims: Mapping[str, int], splittable: bool
    ) -> Iterator[tuple[TileShape, int]]:
        for shape in format.tiles:
            if shape.tile in tiles:
                most = min(_up(max(dims.get("k", 1), 1), shape.step), MAX_SPLITS) if splittable else 1
                for splits in range(1, most + 1):
                    yield shape, splits

    def best(
        self, fields: Mapping[str, str], tiles: Collection[str], dims: Mapping[str, int], sm_count: int
    ) -> tuple[str, int] | None:
        """The tile, of those given, and the splits that cost least; the first of equal ones, None if none is known.

        Only dense products are split.
        """
        format = self.of(fields.get("format", ""))
        if format is None:
            return None
        every = self._candidates(format, tiles, dims, fields.get("mode") == "dense")
        found = min(every, key=lambda c: self.clocks(format, c[0], dims, c[1], sm_count), default=None)
        return None if found is None else (found[0].tile, found[1])
