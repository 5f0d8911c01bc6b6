# SPDX-License-Identifier: Apache-2.0
"""Benchmark of `gemm`: GPU time beside the floor of its bytes and `torch.mm`, and the fastest tile of each size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from warpsmith.arch import Capability
from warpsmith.bench.result import Result, Row, environment
from warpsmith.bench.timing import copy_bandwidth, gpu_time, host_time, rotation
from warpsmith.catalog import CATALOG
from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.gemm import DEFAULT_PATH, PREPARED, k_multiple
from warpsmith.catalog.spec import Problem, operands
from warpsmith.errors import DriverError
from warpsmith.tuning import Bound, Rule

SHAPES = tuple(
    (m, n, k) for n, k in ((4096, 4096), (7168, 2048), (24576, 1536)) for m in (1, 8, 16, 64, 128, 512, 4096)
)
"""M, N, K."""

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
    shapes: Sequence[tuple[int, int, int]] = SHAPES, formats: Sequence[str] = (), *, tune: bool = False
) -> tuple[Result, tuple[Rule, ...]]:
    """Measure pairs of formats over `shapes`, with tiled scales, prepared weights and a bf16 result.

    Parameters
    ----------
    shapes
        M, N and K; a pair leaves out those whose K does not divide.
    formats
        Pairs, ``nvfp4_x_nvfp4``; all if empty.
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
    device, driver, versions, date = environment()
    bandwidth = copy_bandwidth()
    rows: list[Row] = []
    timed: list[Timed] = []
    for format in formats or CATALOG.operation("gemm").formats:
        for m, n, k in shapes:
            if k % k_multiple(*operands(format)) == 0:
                sets = _operands(format, m, n, k)
                rows.append(_measure(format, sets, bandwidth, m, n, k))
                timed += _every_tile(format, sets, m, n, k) if tune else ()
    rows += _host_rows(formats[0] if formats else "bf16_x_bf16")
    result = Result("gemm", device, driver, versions, {"copy_bytes_per_second": bandwidth}, tuple(rows), date)
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


def _operands(format: str, m: int, n: int, k: int) -> list[tuple[Any, Any, Any]]:
    """A, B and D, in as many copies as do not fit the L2."""
    import torch

    import warpsmith as ws

    def make(name: str, rows: int) -> Any:
        x = torch.randn(rows, k, device="cuda", dtype=torch.float16 if name == "fp16" else torch.bfloat16)
        return x if name not in FORMATS else ws.quantize(x, name, scale_layout=FORMATS[name].layouts[-1])

    a, b = operands(format)
    properties = torch.cuda.get_device_properties(0)
    copies = rotation(_moved(format, m, n, k), properties.L2_cache_size, torch.cuda.mem_get_info()[0])
    sets = []
    for _ in range(copies):
        weights = ws.prepare_weight(make(b, n), a) if format in PREPARED else make(b, n)
        sets.append((make(a, m), weights, torch.empty(m, n, device="cuda", dtype=torch.bfloat16)))
    return sets


def _moved(format: str, m: int, n: int, k: int) -> int:
    """Bytes of the operands' elements and of D."""
    a, b = ((FORMATS[f].element_bits if f in FORMATS else 16) for f in operands(format))
    return (m * k * a + n * k * b) // 8 + 2 * m * n


def _calls(sets: Sequence[tuple[Any, Any, Any]]) -> list[Callable[[], Any]]:
    import warpsmith as ws

    return [partial(ws.gemm, a, b, out=d) for a, b, d in sets]


def _measure(format: str, sets: Sequence[tuple[Any, Any, Any]], bandwidth: float, m: int, n: int, k: int) -> Row:
    import torch

    copies = rotation(_moved("bf16_x_bf16", m, n, k), torch.cuda.get_device_properties(0).L2_cache_size, 1 << 34)
    plain = [[torch.randn(*s, device="cuda", dtype=torch.bfloat16) for s in ((m, k), (k, n))] for _ in range(copies)]
    outs = [torch.empty(m, n, device="cuda", dtype=torch.bfloat16) for _ in plain]
    peer = gpu_time([partial(torch.mm, *x, out=d) for x, d in zip(plain, outs, strict=True)])
    moved = _moved(format, m, n, k)
    return Row(
        format, {"m": m, "n": n, "k": k}, gpu_time(_calls(sets)), floor=moved / bandwidth * 1e6, bytes=moved,
        peers={"torch.mm bf16": peer, **_triton(format, sets)},
    )  # fmt: skip


def _triton(format: str, sets: Sequence[tuple[Any, Any, Any]]) -> dict[str, float]:
    """The product in Triton, where that is installed and has the pair."""
    try:
        from warpsmith.bench.triton_gemm import measure
    except ImportError:
        return {}
    return measure(format, sets)


def _every_tile(format: str, sets: Sequence[tuple[Any, Any, Any]], m: int, n: int, k: int) -> Iterator[Timed]:
    """The real operation with each tile that its kernel has for the problem."""
    from warpsmith.ops.gemm_checks import layout_of
    from warpsmith.ops.state import runtime

    layout = layout_of(*sets[0][:2])
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
