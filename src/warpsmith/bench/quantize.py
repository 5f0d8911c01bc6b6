# SPDX-License-Identifier: Apache-2.0
"""Benchmark of the quantization module: GPU time beside copy and FlashInfer, and the host cost of a call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from warpsmith.bench.peers import Function, agrees, peers
from warpsmith.bench.result import Result, Row, environment
from warpsmith.bench.timing import copy_bandwidth, gpu_time, host_time, rotation
from warpsmith.catalog.formats import FORMATS, LINEAR, M_MAJOR, TILED
from warpsmith.errors import DriverError

SHAPES = ((1, 7168), (128, 7168), (4096, 7168), (8192, 8192), (16384, 4096), (65536, 2880))
"""[M, K] of real models' activations."""

_COMPILED_FROM = 1 << 26
"""Bytes from which torch.compile is a peer: it compiles for each size, which takes seconds."""

_SAME = 0.9
"""The share of equal code bytes from which a peer does the same work; formulas differ in roundings of the scale."""


def run(
    shapes: Sequence[tuple[int, int]] = SHAPES, formats: Sequence[str] = tuple(FORMATS), host: bool = True
) -> Result:
    """Measure every format and layout over `shapes`, bf16 input.

    Raises
    ------
    DriverError
        If there is no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise DriverError("the benchmark needs a CUDA GPU and a torch that sees it; there is none here")
    device, driver, versions, date, clocks = environment()
    bandwidth = copy_bandwidth()
    rows: list[Row] = []
    notes: list[str] = []
    for format in formats:
        for layout in FORMATS[format].layouts:
            for m, k in shapes:
                if k % FORMATS[format].block[1] == 0:
                    rows.append(_measure(format, layout, m, k, bandwidth, notes))
    if host:
        rows += _host_rows()
    return Result(
        "quantize", device, driver, versions, {"copy_bytes_per_second": bandwidth}, tuple(rows), date, tuple(notes),
        clocks,
    )  # fmt: skip


def _measure(format: str, layout: str, m: int, k: int, bandwidth: float, notes: list[str]) -> Row:
    import torch

    import warpsmith as ws

    spec = FORMATS[format]
    scales = 1
    for size in spec.scale_shape(layout, (), m, k):
        scales *= size
    moved = 2 * m * k + m * spec.data_columns(k) + scales * spec.scale_bytes
    properties = torch.cuda.get_device_properties(0)
    sets = rotation(moved, properties.L2_cache_size, torch.cuda.mem_get_info()[0])
    inputs = [torch.randn(m, k, device="cuda", dtype=torch.bfloat16) for _ in range(sets)]
    one = torch.ones(1, device="cuda", dtype=torch.float32) if spec.has_global_scale else None
    outs = [ws.quantize(x, format, scale_layout=layout, global_scale=one) for x in inputs]

    def ours(x: Any, out: Any) -> Callable[[], Any]:
        return lambda: ws.quantize(x, format, scale_layout=layout, global_scale=one, out=out)

    time = gpu_time([ours(x, o) for x, o in zip(inputs, outs, strict=True)])
    others = peers(format, layout)
    if moved < _COMPILED_FROM:
        others.pop("torch.compile", None)
    times = _peer_times(f"{format} {layout} {m}x{k}", others, inputs, outs[0], notes)
    return Row(f"{format} {layout}", {"m": m, "k": k}, time, floor=moved / bandwidth * 1e6, bytes=moved, peers=times)


def _peer_times(
    what: str, functions: dict[str, Function], inputs: Sequence[Any], ours: Any, notes: list[str]
) -> dict[str, float]:
    """The times of the peers whose output is right; why the others do not count goes to the notes."""
    times: dict[str, float] = {}
    for name, function in functions.items():
        try:
            share = agrees(function(inputs[0])[0], ours.data)
            if share < _SAME:
                notes.append(f"{name} {what}: {share:.1%} of its code bytes are those of the reference; not counted")
                continue
            times[name] = gpu_time([partial(function, x) for x in inputs])
        except Exception as error:
            notes.append(f"{name} {what}: {type(error).__name__}: {str(error)[:200]}")
    return times


def _host_rows() -> list[Row]:
    """The host cost of one call, beside what it is made of."""
    import torch

    import warpsmith as ws

    x = torch.randn(16, 512, device="cuda", dtype=torch.bfloat16)
    one = torch.ones(1, device="cuda", dtype=torch.float32)
    rows = []
    for format, layout in (("nvfp4", LINEAR), ("nvfp4", TILED), ("mxfp8", LINEAR), ("fp8_block", M_MAJOR)):
        scale = one if format == "nvfp4" else None
        out = ws.quantize(x, format, scale_layout=layout, global_scale=scale)

        def given(f: str = format, la: str = layout, s: Any = scale, o: Any = out) -> Any:
            return ws.quantize(x, f, scale_layout=la, global_scale=s, out=o)

        def allocating(f: str = format, la: str = layout, s: Any = scale) -> Any:
            return ws.quantize(x, f, scale_layout=la, global_scale=s)

        shape = {"m": 16, "k": 512}
        rows.append(Row(f"host: quantize {format} {layout}, out given", shape, host_time(given)))
        rows.append(Row(f"host: quantize {format} {layout}, out allocated", shape, host_time(allocating)))
    rows.append(Row("host: cuLaunchKernelEx with new pointers", {}, host_time(_bare_launch())))
    y = torch.empty_like(x)
    rows.append(Row("host: torch.add out=", {}, host_time(lambda: torch.add(x, x, out=y))))
    rows.append(
        Row("host: torch.empty", {}, host_time(lambda: torch.empty((16, 256), dtype=torch.uint8, device="cuda")))
    )
    function = peers("nvfp4", TILED).get("flashinfer")
    if function is not None:
        rows.append(Row("host: flashinfer fp4_quantize", {}, host_time(partial(function, x))))
    return rows


def _bare_launch() -> Callable[[], Any]:
    """A launch through cuda.bindings with arguments that are made anew each time, and nothing else."""
    import torch
    from cuda.bindings import driver

    from warpsmith.catalog.spec import Problem
    from warpsmith.ops.state import runtime

    kernel = runtime().prepare(Problem.of("global_scale", {}, {"count": 1024}), 0)
    partials = torch.ones(4, device="cuda", dtype=torch.int32)
    result = torch.empty(1, device="cuda", dtype=torch.float32)
    config = driver.CUlaunchConfig()
    config.gridDimX = config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1
    config.blockDimX = kernel.threads
    types = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)

    def launch() -> Any:
        config.hStream = torch._C._cuda_getCurrentRawStream(0)
        values = (partials.data_ptr(), result.data_ptr(), 4)
        return driver.cuLaunchKernelEx(config, kernel.function, (values, types), 0)

    return launch
