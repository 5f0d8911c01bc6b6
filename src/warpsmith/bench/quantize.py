# SPDX-License-Identifier: Apache-2.0
"""Benchmark of the quantization module: GPU time beside copy and FlashInfer, and the host cost of a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from warpsmith.bench.result import Result, Row, environment
from warpsmith.bench.timing import copy_bandwidth, gpu_time, host_time, rotation
from warpsmith.catalog.formats import FORMATS, LINEAR, M_MAJOR, TILED
from warpsmith.errors import DriverError

SHAPES = ((1, 7168), (128, 7168), (4096, 7168), (8192, 8192), (16384, 4096), (65536, 2880))
"""[M, K] of real models' activations."""

Maker = Callable[[Any], Callable[[], Any]]


def _flashinfer(format: str, layout: str) -> Maker | None:
    """FlashInfer's quantization of the same format and layout as a function of x, or None."""
    try:
        import flashinfer
        import torch
    except Exception:
        return None
    swizzled = layout == TILED
    one = torch.ones(1, device="cuda", dtype=torch.float32)
    functions: dict[str, Callable[[Any], Any]] = {
        "nvfp4": lambda x: flashinfer.fp4_quantize(x, one, 16, False, swizzled),
        "mxfp4": lambda x: flashinfer.fp4_quantize(x, None, 32, True, swizzled),
        "mxfp8": lambda x: flashinfer.mxfp8_quantize(x, swizzled),
    }
    function = functions.get(format)
    return None if function is None else lambda x: lambda: function(x)


def _on_current_stream(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call on torch's current stream: FlashInfer 0.7 launches on tvm-ffi's, which a graph capture does not move."""
    import tvm_ffi

    def run() -> Any:
        with tvm_ffi.use_torch_stream():
            return call()

    return run


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
    device, driver, versions, date = environment()
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
        "quantize", device, driver, versions, {"copy_bytes_per_second": bandwidth}, tuple(rows), date, tuple(notes)
    )


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
    peers: dict[str, float] = {}
    maker = _flashinfer(format, layout)
    if maker is not None:
        try:
            time_of_peer = gpu_time([_on_current_stream(maker(x)) for x in inputs])
            if time_of_peer * 3 > moved / bandwidth * 1e6:
                peers["flashinfer"] = time_of_peer
            else:
                notes.append(f"flashinfer {format} {layout} {m}x{k}: {time_of_peer:.2f} µs is no time for this work")
        except Exception as error:
            notes.append(f"flashinfer {format} {layout} {m}x{k}: {type(error).__name__}: {str(error)[:200]}")
    return Row(f"{format} {layout}", {"m": m, "k": k}, time, floor=moved / bandwidth * 1e6, bytes=moved, peers=peers)


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
    y = torch.empty_like(x)
    rows.append(Row("host: torch.add out=", {}, host_time(lambda: torch.add(x, x, out=y))))
    rows.append(
        Row("host: torch.empty", {}, host_time(lambda: torch.empty((16, 256), dtype=torch.uint8, device="cuda")))
    )
    maker = _flashinfer("nvfp4", TILED)
    if maker is not None:
        rows.append(Row("host: flashinfer fp4_quantize", {}, host_time(maker(x))))
    return rows
