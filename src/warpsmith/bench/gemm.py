# SPDX-License-Identifier: Apache-2.0
"""Benchmark of `gemm`: GPU time beside the floor of its bytes and `torch.mm`, and the fastest tile of each size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from warpsmith.arch import Capability
from warpsmith.bench import ceilings, gemm_groups, gemm_peers
from warpsmith.bench.gemm_peers import FP8, FP8_BLOCKS, FP8_WHOLE, Operands
from warpsmith.bench.result import Result, Row, environment
from warpsmith.bench.timing import by_turns, gpu_time, host_time, rotation
from warpsmith.catalog import CATALOG
from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.gemm import DEFAULT_PATH, PREPARED, k_multiple
from warpsmith.catalog.spec import Problem, operands
from warpsmith.errors import DriverError
from warpsmith.tuning import Bound, Rule

WEIGHTS = ((4096, 7168), (7168, 2048), (24576, 1536))
"""N, K of the weights whose speed is drawn over M."""
_SINGLE = (
    (8192, 8192, 8192), (4096, 7168, 16384), (128, 7168, 16384), (2048, 4096, 4096), (777, 11008, 4096),
    (100, 512, 1024), (33, 2880, 2880),
)  # fmt: skip
SHAPES = (*((m, n, k) for n, k in WEIGHTS for m in (1, 16, 64, 128, 512, 2048, 4096)), *_SINGLE)
"""M, N, K."""
_FOUR_BITS = tuple((m, n, k) for n, k in WEIGHTS for m in (1, 4, 8, 16, 64, 128, 512, 2048, 4096))
_WHOLE = (
    (1, 4096, 7168), (16, 4096, 7168), (64, 4096, 7168), (128, 24576, 1536), (512, 4096, 7168), (2048, 7168, 2048),
    (4096, 4096, 7168), (8192, 8192, 8192),
)  # fmt: skip
DEFAULT = (
    ("bf16_x_bf16", SHAPES),
    (FP8_BLOCKS, SHAPES),
    *((format, _WHOLE) for format in FP8_WHOLE),
    ("bf16_x_mxfp4", _FOUR_BITS),
    ("bf16_x_nvfp4", _FOUR_BITS),
)
"""What is measured if nothing is asked for; groups too."""

_OURS = "ours"

GAIN = 0.02
"""The part of its time that another tile has to save to be put into a tuning table; less is noise."""


class Timed(NamedTuple):
    """What a product took with a tile; `chosen` marks the tile that dispatch takes by itself."""

    kernel: str
    tile: str
    fields: tuple[tuple[str, str], ...]
    m: int
    n: int
    k: int
    microseconds: float
    chosen: bool


def run(
    shapes: Sequence[tuple[int, int, int]] = (), formats: Sequence[str] = (), *, tune: bool = False
) -> tuple[Result, tuple[Rule, ...]]:
    """Measure pairs of formats over `shapes`, with tiled scales, prepared weights and a bf16 result.

    Parameters
    ----------
    shapes
        M, N and K; a pair leaves out those whose K does not divide. `SHAPES` if empty.
    formats
        Pairs, ``nvfp4_x_nvfp4``. If empty: all of them over the given shapes; without shapes, `DEFAULT` and groups.
    tune
        Whether to measure every tile too.

    Returns
    -------
    tuple
        The run, and rules for the sizes where another tile than the chosen one is faster.

    Raises
    ------
    DriverError
        If there is no GPU.
    """
    import torch

    from warpsmith.runtime.device import device_facts

    if not torch.cuda.is_available():
        raise DriverError("the benchmark needs a CUDA GPU and a torch that sees it; there is none here")
    device, driver, versions, date, clocks = environment()
    most = ceilings.measure()
    rows: list[Row] = []
    notes: list[str] = []
    timed: list[Timed] = []
    pairs = formats or (CATALOG.operation("gemm").formats if shapes else ())
    for format, sizes in tuple((pair, shapes or SHAPES) for pair in pairs) or DEFAULT:
        for m, n, k in sizes:
            if k % k_multiple(*operands(format)) == 0:
                sets = _operands(format, m, n, k)
                rows.append(_measure(format, sets, most, notes))
                timed += _every_tile(format, sets, m, n, k) if tune else ()
    if not pairs:
        rows += gemm_groups.rows(most, notes)
    rows += _host_rows(formats[0] if formats else "bf16_x_bf16")
    result = Result("gemm", device, driver, versions, most, tuple(rows), date, tuple(notes), clocks)
    return result, faster(timed, device_facts(torch.cuda.current_device()).capability)


def faster(timed: Sequence[Timed], capability: Capability) -> tuple[Rule, ...]:
    """Rules for the measured sizes at which another tile saves `GAIN` of the chosen one's time.

    A rule holds for M from above the next smaller one that was measured, at exactly its N and K.
    """

    def where(t: Timed) -> tuple[Any, ...]:
        return t.kernel, t.fields, t.n, t.k

    rules = []
    for (kernel, fields, n, k), same in groupby(sorted(timed, key=lambda t: (where(t), t.m)), key=where):
        below = 0
        for m, tiles in groupby(same, key=lambda t: t.m):
            every = list(tiles)
            chosen = next((t.microseconds for t in every if t.chosen), None)
            best = min(every, key=lambda t: t.microseconds)
            if chosen is not None and best.microseconds < (1 - GAIN) * chosen:
                bounds = (Bound(("m",), below + 1, m), Bound(("n",), n, n), Bound(("k",), k, k))
                about = tuple((name, (value,)) for name, value in fields)
                rules.append(Rule(kernel, best.tile, (capability,), about, bounds))
            below = m
    return tuple(rules)


def _operands(format: str, m: int, n: int, k: int) -> list[Operands]:
    """Operands and results, in as many copies as do not fit the L2."""
    import torch

    import warpsmith as ws

    a, b = operands(format)
    kind = torch.float16 if a == "fp16" else torch.bfloat16

    def made(name: str, x: Any) -> Any:
        return x if name not in FORMATS else ws.quantize(x, name, scale_layout=FORMATS[name].layouts[-1])

    properties = torch.cuda.get_device_properties(0)
    copies = rotation(_moved(format, m, n, k), properties.L2_cache_size, torch.cuda.mem_get_info()[0] // 4)
    sets = []
    for _ in range(copies):
        codes = [
            made(name, torch.randn(rows, k, device="cuda", dtype=kind)) for name, rows in ((a, m), (b, n))
        ]  # fmt: skip
        x, w = (
            one if name not in FORMATS else ws.dequantize(one, kind) for name, one in zip((a, b), codes, strict=True)
        )
        weights = ws.prepare_weight(codes[1], a) if format in PREPARED else codes[1]
        out, other = (torch.empty(m, n, device="cuda", dtype=kind) for _ in range(2))
        sets.append(Operands(x, w, codes[0], weights, out, other))
    return sets


def _moved(format: str, m: int, n: int, k: int) -> int:
    """Bytes of the operands' elements and of D."""
    a, b = ((FORMATS[f].element_bits if f in FORMATS else 16) for f in operands(format))
    return (m * k * a + n * k * b) // 8 + 2 * m * n


def _calls(sets: Sequence[Operands]) -> list[Callable[[], Any]]:
    import warpsmith as ws

    return [partial(ws.gemm, s.a, s.b, out=s.out) for s in sets]


def _measure(format: str, sets: Sequence[Operands], most: dict[str, float], notes: list[str]) -> Row:
    (m, k), n = sets[0].x.shape, len(sets[0].w)
    what, moved, calls = f"{format} {m}×{n}×{k}", _moved(format, m, n, k), _calls(sets)
    calls[0]()  # what peers' results are held against
    contenders = {_OURS: calls, **gemm_peers.right(what, format, sets, notes)}
    times = by_turns(contenders, lambda name, error: notes.append(gemm_peers.failure(name, what, error)))
    rate = ceilings.FP8 if format in FP8 else ceilings.BF16
    floors = ceilings.floors(most, moved, 2 * m * n * k, rate)
    if _OURS not in times:
        raise RuntimeError(f"ws.gemm of {what} could not be captured: {notes[-1]}")
    return Row(format, {"m": m, "n": n, "k": k}, times.pop(_OURS), max(floors.values()), moved, times, floors)


def _every_tile(format: str, sets: Sequence[Operands], m: int, n: int, k: int) -> Iterator[Timed]:
    """The real operation with each tile that its kernel has for the problem."""
    from warpsmith.ops.gemm_checks import layout_of
    from warpsmith.ops.state import runtime

    layout = layout_of(sets[0].a, sets[0].b)
    fields = {"format": format, "mode": "dense", "layout": layout, "path": DEFAULT_PATH}
    problem = Problem.of("gemm", fields, {"m": m, "n": n, "k": k, "batches": 1})
    chosen = runtime().prepare(problem, 0).cubin
    kernel = CATALOG.kernel(chosen.kernel)
    for variant in kernel.variants:
        if variant.mismatch(problem) is None:
            with _forced(kernel.name, variant.tile):
                time = gpu_time(_calls(sets))
            told = tuple(sorted((name, value) for name, value in fields.items() if name != "path"))
            yield Timed(kernel.name, variant.tile, told, m, n, k, time, variant.name == chosen.variant)


@contextmanager
def _forced(kernel: str, tile: str) -> Iterator[None]:
    """Have operations take a tile."""
    from warpsmith.ops import state
    from warpsmith.ops.cuda_gemm import forget_plans

    with state.tuned((Rule(kernel, tile),)):
        forget_plans()
        try:
            yield
        finally:
            forget_plans()


def _host_rows(format: str) -> list[Row]:
    """The host cost of one call with `out`, beside that of `torch.mm`."""
    import torch

    shape = {"m": 16, "n": 512, "k": 1024}
    call = _calls(_operands(format, 16, 512, 1024))[0]
    a, b = torch.randn(16, 1024, device="cuda").bfloat16(), torch.randn(1024, 512, device="cuda").bfloat16()
    peer = host_time(partial(torch.mm, a, b, out=a.new_empty(16, 512)))
    return [Row(f"host: gemm {format}, out given", shape, host_time(call), peers={"torch.mm bf16": peer})]
