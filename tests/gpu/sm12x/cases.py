# SPDX-License-Identifier: Apache-2.0
"""The cases of the GEMM: dense, batched, grouped, masked, with index values that are wrong; a list a kind."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .operands import STYLES

OUTPUTS = ("bf16", "fp16", "fp32")
_BIASES = (None, *OUTPUTS)


@dataclass(frozen=True)
class Case:
    """One problem.

    Attributes
    ----------
    sizes
        Rows of each group; `tail` rows of A belong to none.
    counts
        Rows of each batch that are multiplied.
    raw_index
        Given to the kernel in place of right offsets: nothing but the surroundings of D is checked then.
    bad_global
        The global scale of B's first matrix.
    """

    mode: str = "dense"
    batches: int = 1
    m: int = 1
    n: int = 8
    k: int = 128
    out: str = "bf16"
    style: str = "plain"
    bias: str | None = None
    scaled: bool = False
    blocks: int = 132
    splits: int = 1
    sizes: tuple[int, ...] = ()
    tail: int = 0
    counts: tuple[int, ...] = ()
    int64: bool = False
    raw_index: tuple[int, ...] = ()
    bad_global: float | None = None

    @property
    def work(self) -> int:
        """Multiplications."""
        return (sum(self.sizes) + self.tail or self.batches * self.m) * self.n * self.k

    def __str__(self) -> str:
        default = Case()
        given = {name: value for name, value in vars(self).items() if value != getattr(default, name)}
        return " ".join(f"{name}={value}" for name, value in given.items())


class Suite:
    """Cases for one variant; `quick` keeps a part that an emulator can compute in a minute."""

    def __init__(self, pair: str, tile_m: int, quick: bool, seed: int) -> None:
        self.pair, self.tile_m, self.quick = pair, tile_m, quick
        self.fp32_scales = pair == "fp8_block"
        step = 128 if self.fp32_scales else 32
        self.small_k = (128, 256, 384, 1152) if self.fp32_scales else tuple(step * x for x in (1, 2, 3, 5, 9, 34))
        self._rng = np.random.default_rng(seed)
        self._out, self._bias = itertools.cycle(OUTPUTS), itertools.cycle(_BIASES)
        self._flip, self._third = itertools.cycle((False, True)), itertools.cycle((False, True, False))

    def kinds(self) -> dict[str, Iterator[Case]]:
        """The cases by kind."""
        return {
            "dense": itertools.chain(self._sizes(), self._batched(), self._styles(), self._grids(), self._others()),
            "grouped": self._grouped(),
            "masked": self._masked(),
            "wrong index": self._wrong_index(),
        }

    def _skip(self, out: str) -> bool:
        """Whether a quick run leaves this output out; each of them in turn is kept."""
        return self.quick and out != next(self._out)

    def _sizes(self) -> Iterator[Case]:
        for m, n, k in itertools.product((1, 3, 17, 129, 777), (8, 24, 136, 520), self.small_k):
            if self.quick and (m * n * k > 2e7 or self._rng.random() < 0.7):
                continue
            yield Case(m=m, n=n, k=k, out=next(self._out))
        if not self.quick and self.tile_m >= 64:
            yield Case(m=1000, n=2056, k=4096)

    def _batched(self) -> Iterator[Case]:
        for batches, m, n, count in (
            *((3, 17, 136, 3), (2, 129, 8, 9), (5, 128, 128, 4)),
            *((2, 300, 264, 90), (2, 65, 392, 40)),
        ):
            k = 128 * (count // 4 + 1) if self.fp32_scales else 32 * count
            for out in OUTPUTS:
                if not (self.quick and count > 9) and not self._skip(out):
                    bias = next(self._bias)
                    yield Case(batches=batches, m=m, n=n, k=k, out=out, bias=bias, scaled=True)

    def _styles(self) -> Iterator[Case]:
        for style, out in itertools.product(STYLES, OUTPUTS):
            if self._skip(out):
                continue
            yield Case(m=129, n=136, k=384 if self.fp32_scales else 416, out=out, style=style)
            k = 512 if self.quick else 1024
            bias = next(self._bias)
            yield Case(batches=2, m=77, n=264, k=k, out=out, style=style, bias=bias)

    def _grids(self) -> Iterator[Case]:
        m, k = 300 if self.quick else 600, 384 if self.fp32_scales else 352
        for blocks in (1, 3, 7):
            yield Case(batches=2, m=m, n=520, k=k, out="fp16", blocks=blocks, scaled=True)

    def _others(self) -> Iterator[Case]:
        narrow = Case(batches=2, m=70, n=136, k=640, blocks=5, scaled=True)
        for splits, out in ((2, "bf16"), (3, "fp16"), (7, "fp32"), (64, "bf16")):
            yield Case(m=17, n=264, k=1152, out=out, splits=splits, bias=next(self._bias))
            yield replace(narrow, out=out, splits=splits)
        if self.pair == "nvfp4":
            for value in (0.0, -1.0, np.inf, np.nan):
                yield Case(batches=2, m=40, n=72, k=160, bad_global=value)

    def _grouped(self) -> Iterator[Case]:
        lists: tuple[tuple[int, ...], ...] = (
            *((5,), (0, 1, 5, 0, 129, 300, 0), (1,) * 9, (128, 256, 64), (0, 0, 0)),
            *((0,) * 150 + (3,) + (0,) * 140 + (17, 2), (33, 7, 1, 0, 64, 190), (2,) * 300),
        )
        for i, (sizes, out) in enumerate(itertools.product(lists, OUTPUTS)):
            tail, many = i % 5, len(sizes) > 100
            if (self.quick and (i % 3 != i // 3 % 3 or len(sizes) > 200)) or sum(sizes) + tail == 0:
                continue
            n = (72, 8, 136)[i % 3] if many else (136, 264, 8, 400)[i % 4]
            at = 1 if many else i % 3 if self.quick else (i + 2) % len(self.small_k)
            yield Case(
                mode="grouped",
                sizes=sizes,
                tail=tail,
                n=n,
                k=self.small_k[at],
                out=out,
                bias=next(self._bias),
                scaled=next(self._flip),
                int64=next(self._third),
                blocks=(132, 3, 20)[i % 3],
            )
        for style in STYLES:
            out = next(self._out)
            yield Case("grouped", sizes=(3, 140, 0, 61), n=136, k=384, out=out, style=style)

    def _masked(self) -> Iterator[Case]:
        lists: tuple[tuple[int, tuple[int, ...]], ...] = (
            *((40, (40, 0, 1, 17, 40)), (130, (129, 130, 3)), (300, (0, 299, 1, 256, 128, 0))),
            *((8, (1,) * 200), (64, (64,)), (16, (99, -5, 16))),
        )
        for i, (capacity, counts) in enumerate(lists):
            for out in OUTPUTS:
                if self._skip(out) or (self.quick and len(counts) > 100):
                    continue
                at = i % 3 if self.quick or len(counts) > 100 else (i + 1) % len(self.small_k)
                yield Case(
                    mode="masked",
                    batches=len(counts),
                    m=capacity,
                    counts=counts,
                    n=(136, 72, 264)[i % 3],
                    k=self.small_k[at],
                    out=out,
                    bias=next(self._bias),
                    scaled=next(self._flip),
                    int64=next(self._third),
                    blocks=(132, 5)[i % 2],
                )
        for style in STYLES:
            yield Case("masked", batches=3, m=70, counts=(70, 1, 33), n=136, k=384, out=next(self._out), style=style)

    def _wrong_index(self) -> Iterator[Case]:
        short = (
            *((0, 50, 20, 90, 100), (-7, 50, 1 << 30, 3, 100), (100, 0, 100, 0, 100)),
            *((90, 95, 200, -(1 << 31), 5), ((1 << 31) - 1,) * 5),
        )
        long = (-(1 << 62), 1 << 62, 5, 1 << 40, -1)
        for index, int64 in (*((x, next(self._flip)) for x in short), (long, True)):
            yield Case(mode="grouped", sizes=(25,) * 4, n=136, k=256, raw_index=index, int64=int64)
