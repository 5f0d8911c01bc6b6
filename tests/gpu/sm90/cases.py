# SPDX-License-Identifier: Apache-2.0
"""The cases of the GEMM: dense, batched, grouped, masked, with index values that are wrong."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

OUTPUTS = ("bf16", "fp16", "fp32")
_BIASES = (None, "bf16", None, "fp16", "fp32")


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
    rows_b
        fp8: B's scales are 1×128.
    constant_b
        Whether the kernel may read B before its predecessor has ended.
    activation
        Of the product, whose columns are then 2 · n if it has a gate.
    odd
        Rows of D are aligned to 8 bytes alone.
    plain
        Alpha is 1.
    """

    mode: str = "dense"
    batches: int = 1
    m: int = 1
    n: int = 8
    k: int = 128
    out: str = "bf16"
    bias: str | None = None
    scaled: bool = False
    blocks: int = 132
    splits: int = 1
    sizes: tuple[int, ...] = ()
    tail: int = 0
    counts: tuple[int, ...] = ()
    int64: bool = False
    rows_b: bool = False
    raw_index: tuple[int, ...] = ()
    odd: bool = False
    cancels: bool = False
    constant_b: bool = False
    activation: str = ""
    plain: bool = False

    @property
    def gated(self) -> bool:
        """Whether rows of B are a gate's and what it gates."""
        return self.activation not in ("", "relu2")

    @property
    def product_n(self) -> int:
        """Rows of B."""
        return self.n * (1 + self.gated)

    @property
    def multiplications(self) -> int:
        """Those that make D; with groups, at most."""
        return self.batches * max(self.m, sum(self.sizes) + self.tail) * self.n * self.k

    def __str__(self) -> str:
        default = Case()
        given = {name: value for name, value in vars(self).items() if value != getattr(default, name)}
        return " ".join(f"{name}={value}"[:60] for name, value in given.items())


def cases(format: str, tile_m: int, activates: bool) -> Iterator[Case]:
    """All cases for a variant of `format` whose tiles have `tile_m` rows; with activations if it has them."""
    fp8 = format == "fp8"
    ks = (128, 256, 384, 1152) if fp8 else (8, 64, 72, 128, 200, 1096)
    out, bias = itertools.cycle(OUTPUTS), itertools.cycle(_BIASES)
    constant = itertools.cycle((False, True, True, False, False))
    odd = itertools.cycle((False, False, True, False, False, False, True))
    rows, wide = itertools.cycle((False, True)), itertools.cycle((0, 1, 0))
    yield from _plain("fp16" if format == "fp16" else "bf16", ks)
    every = itertools.chain(_dense(ks, tile_m), _grouped(ks), _masked(ks), _wrong_index(ks))
    for case in itertools.chain(_activated(ks), every) if activates else every:
        yield replace(
            case,
            out=next(out),
            bias=case.bias or next(bias),
            odd=next(odd),
            rows_b=fp8 and next(rows),
            constant_b=next(constant),
            int64=case.int64 or bool(next(wide)),
        )


def _plain(out: str, ks: tuple[int, ...]) -> Iterator[Case]:
    """D as the operands' type and nothing but the sums, several tiles a block: large tiles store it late."""
    for k, blocks in zip(ks, itertools.cycle((5, 3, 1))):
        yield Case(m=700, n=1032, k=k, out=out, plain=True, blocks=blocks)
        yield Case("grouped", sizes=(300, 5, 128, 0, 77, 513), tail=2, n=520, k=k, out=out, plain=True, blocks=blocks)
    yield Case("masked", batches=4, m=300, counts=(300, 17, 0, 129), n=392, k=ks[-1], out=out, plain=True, blocks=3)
    yield Case(batches=3, m=257, n=776, k=ks[1], out=out, plain=True, blocks=4)
    for splits in (2, 6 << 8 | 3):
        yield Case(m=500, n=1032, k=1152, out=out, plain=True, blocks=4, splits=splits)


def _dense(ks: tuple[int, ...], tile_m: int) -> Iterator[Case]:
    for (m, n), k in zip(itertools.product((1, 3, 17, 64, 129, 300), (8, 24, 136, 264, 520)), itertools.cycle(ks)):
        yield Case(m=m, n=n, k=k)
    long = 4096
    if tile_m >= 64:
        yield Case(m=1000, n=2056, k=long)
        yield Case(m=640, n=1024, k=long, scaled=True)
        yield Case(m=2100, n=1288, k=ks[-1], blocks=20)
    yield Case(m=64, n=512, k=long, cancels=True)
    for batches, m, n, k in ((3, 17, 136, ks[1]), (2, 129, 8, ks[2]), (5, 128, 128, ks[3]), (2, 300, 264, ks[-1])):
        yield Case(batches=batches, m=m, n=n, k=k, scaled=True)
    for blocks in (1, 3, 7):
        yield Case(batches=2, m=300, n=520, k=ks[3], blocks=blocks, scaled=True)
    for splits in (2, 3, 7, 64, 1 << 8 | 2, 3 << 8 | 3, 99 << 8 | 2):
        yield Case(m=17, n=264, k=1152, splits=splits)
        yield Case(batches=2, m=170, n=136, k=640, blocks=6, scaled=True, splits=splits)


def _grouped(ks: tuple[int, ...]) -> Iterator[Case]:
    lists: tuple[tuple[int, ...], ...] = (
        *((5,), (0, 1, 5, 0, 129, 300, 0), (1,) * 9, (128, 256, 64), (0, 0, 0), (33, 7, 1, 0, 64, 190)),
        *((0,) * 150 + (3,) + (0,) * 140 + (17, 2), (2,) * 300, (513, 1, 255)),
    )
    for i, sizes in enumerate((*lists, *lists)):
        many = len(sizes) > 100
        n = (72, 8, 136)[i % 3] if many else (136, 264, 8, 400)[i % 4]
        k = ks[1] if many else ks[(i + 2) % len(ks)]
        case = Case("grouped", sizes=sizes, tail=i % 5, n=n, k=k, scaled=i % 2 == 0, blocks=(132, 4, 20)[i % 3])
        if sum(sizes) + case.tail:
            yield case


def _masked(ks: tuple[int, ...]) -> Iterator[Case]:
    lists: tuple[tuple[int, tuple[int, ...]], ...] = (
        *((40, (40, 0, 1, 17, 40)), (130, (129, 130, 3)), (300, (0, 299, 1, 256, 128, 0))),
        *((8, (1,) * 200), (64, (64,)), (16, (99, -5, 16))),
    )
    for i, (capacity, counts) in enumerate((*lists, *lists)):
        yield Case(
            "masked",
            batches=len(counts),
            m=capacity,
            counts=counts,
            n=(136, 72, 264)[i % 3],
            k=ks[(i + 1) % 3],
            scaled=i % 2 == 1,
            blocks=(132, 6)[i % 2],
        )


def _activated(ks: tuple[int, ...]) -> Iterator[Case]:
    kinds = itertools.cycle(("swiglu", "swiglu_oai", "geglu_tanh", "relu2", "swiglu"))
    for (m, n), k in zip(itertools.product((1, 7, 33, 64, 200), (8, 40, 72, 128, 264)), itertools.cycle(ks)):
        yield Case(m=m, n=n, k=k, activation=next(kinds))
    for case in itertools.chain(_grouped(ks), _masked(ks)):
        if case.n < 400:
            yield replace(case, activation=next(kinds))
    for splits in (2, 3, 3 << 8 | 2):
        yield Case(batches=2, m=170, n=136, k=640, blocks=6, scaled=True, splits=splits, activation=next(kinds))
    yield Case(m=1000, n=1032, k=2048, activation="swiglu_oai")
    yield Case(batches=3, m=140, n=264, k=ks[-1], scaled=True, activation="geglu_tanh")


def _wrong_index(ks: tuple[int, ...]) -> Iterator[Case]:
    short = (
        *((0, 50, 20, 90, 100), (-7, 50, 1 << 30, 3, 100), (100, 0, 100, 0, 100)),
        *((90, 95, 200, -(1 << 31), 5), ((1 << 31) - 1,) * 5),
    )
    long = (-(1 << 62), 1 << 62, 5, 1 << 40, -1)
    for index, int64 in (*((x, False) for x in short), (long, True)):
        yield Case("grouped", sizes=(25,) * 4, n=136, k=ks[1], raw_index=index, int64=int64)
