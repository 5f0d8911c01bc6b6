# SPDX-License-Identifier: Apache-2.0
"""How often a tile's K is split, where that is a rule and no estimate."""

from __future__ import annotations

from typing import NamedTuple


class SplitRule(NamedTuple):
    """Splits of K for the dense problems of one tile of a kernel.

    Attributes
    ----------
    most
        Parts of K that every tile has at most.
    units_per_sm
        Parts of tiles, for each multiprocessor, that there may be.
    part_k
        K that a part has at least.
    tail
        Parts of each tile of an incomplete last wave, where that wave has few tiles; 0 for none.
    waves
        Waves of tiles, the last one with them, from which on the last one stays whole: it is too small a part.
    formats
        Of problems that it is for; all, if empty.
    """

    kernel: str
    tile: str
    most: int = 1
    units_per_sm: int = 1
    part_k: int = 128
    tail: int = 0
    waves: int = 4
    formats: tuple[str, ...] = ()

    def serves(self, kernel: str, tile: str, format: str) -> bool:
        """Whether it is for problems of a format on that tile."""
        return (self.kernel, self.tile) == (kernel, tile) and (not self.formats or format in self.formats)

    def parts(self, tiles: int, k: int, sm_count: int) -> int:
        """Parts of K of every tile."""
        return max(1, min(self.most, self.units_per_sm * sm_count // max(tiles, 1), k // self.part_k))

    def whole(self, tiles: int, k: int, sm_count: int) -> int:
        """Tiles in front that stay whole where those of the last wave have `tail` parts; 0 where none has.

        A last wave that is a third full or less ends sooner with its tiles in parts, unless many waves go before it.
        """
        rest = tiles % sm_count
        few = 0 < rest <= sm_count // 3 and sm_count < tiles < self.waves * sm_count
        return tiles - rest if self.tail > 1 and few and k // self.tail >= self.part_k else 0
