# SPDX-License-Identifier: Apache-2.0
"""The GEMM kernels in NumPy: they read and write host memory by the arguments of a launch, as the kernels do."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import ml_dtypes
import numpy as np

from warpsmith.catalog import CATALOG
from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.gemm import PLAIN, sm80_tile
from warpsmith.catalog.spec import operands
from warpsmith.ops import gemm_args as args
from warpsmith.ops.gemm_map_args import tile_of
from warpsmith.reference import unpack_codes
from warpsmith.reference.formats import decode_e4m3, decode_ue8m0
from warpsmith.reference.layouts import index_128x4, index_m_major
from warpsmith.runtime.tensor_map import NBYTES, MapSpec

NAMES = [p.name for p in CATALOG.kernel("sm80_gemm").params]
MAP_KERNEL = CATALOG.kernel("sm12x_blockscaled_gemm_emulated")
MAP_NAMES = [p.name for p in MAP_KERNEL.params]
TYPES = {0: np.dtype(ml_dtypes.bfloat16), 1: np.dtype(np.float16), 2: np.dtype(np.float32)}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E2M1 = np.concatenate([E2M1, -E2M1])


def memory(address: int, count: int, dtype: Any = np.uint8) -> np.ndarray:
    """A view of host memory."""
    dtype = np.dtype(dtype)
    return np.frombuffer((ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address), dtype)


def elements(format: str, address: int, k: int, packing: str = "") -> np.ndarray:
    """One row of K elements in float64, without scales."""
    if format in PLAIN:
        return memory(address, k, TYPES[PLAIN.index(format)]).astype(np.float64)
    if FORMATS[format].element_bits == 8:
        return decode_e4m3(memory(address, k)).astype(np.float64)
    codes = memory(address, k // 2)
    codes = unpack_codes(codes, packing) if packing else codes
    return E2M1[np.stack([codes & 15, codes >> 4], -1).reshape(-1)]


def row_scales(format: str, address: int, row: int, layout_row: int, rows: int, k: int, tiled: bool) -> np.ndarray:
    """The scale of each of a row's K elements."""
    if format in PLAIN:
        return np.ones(k)
    spec = FORMATS[format]
    if spec.whole:
        at = row if spec.whole == "row" else 0
        return np.repeat(memory(address + 4 * at, 1, np.float32).astype(np.float64), k)
    columns = np.arange(k // spec.block[1])
    at = row // spec.block[0] * len(columns) + columns
    if tiled and spec.scale == "fp32":
        at = index_m_major(row, columns, rows)
    elif tiled:
        at = index_128x4(layout_row, columns, -(-len(columns) // 4) * 4)
    raw = memory(address, (int(at.max()) + 1) * spec.scale_bytes, np.uint8)
    if spec.scale == "fp32":
        scales = raw.view(np.float32)[at].astype(np.float64)
    else:
        scales = (decode_e4m3 if spec.scale == "ue4m3" else decode_ue8m0)(raw[at]).astype(np.float64)
    return np.repeat(scales, spec.block[1])


def encode(driver: Any, device: int, address: int, spec: MapSpec) -> bytes:  # noqa: ARG001 - in place of `tensor_map.encode`
    """A tensor map that the emulated kernels understand."""
    assert address % 16 == spec.row_stride % 16 == spec.batch_stride % 16 == 0
    assert min(spec) >= 0
    return struct.pack("8q?", address, *spec).ljust(NBYTES, b"\0")


def launch_maps(variant: str, grid: tuple[int, int, int], values: tuple[Any, ...]) -> None:
    """What `sm12x_blockscaled_gemm` does, by way of what `sm80_gemm` does with pointers."""
    p = dict(zip(MAP_NAMES, values, strict=True))
    tile, (a_format, b_format) = tile_of(MAP_KERNEL, variant), operands(variant.rpartition("_")[0])
    grouped = p["flags"] & 3 == 1
    sides = (
        ("a", a_format, p["m"], 1 if grouped else p["batches"], tile.m),
        ("b", b_format, p["n"], p["batches"], tile.n),
    )
    for name, format, rows, batches, box_rows in sides:
        address, *numbers = struct.unpack_from("8q", p.pop(f"{name}_map"))
        spec, bits = MapSpec(*numbers), FORMATS[format].element_bits
        assert spec[:3] == (p["k"] * bits // 8, rows, batches)
        assert spec[5:] == (tile.k * bits // 8, box_rows, False)
        p |= {name: address, f"{name}_row": spec.row_stride, f"{name}_batch": spec.batch_stride}
    splits, units = p["splits"], -(-p["k"] // max(tile.k, 128))
    columns = -(-p["n"] // tile.n)
    tiles = (p["m"] // tile.m + p["batches"] if grouped else -(-p["m"] // tile.m) * p["batches"]) * columns
    assert 1 <= splits <= units
    assert splits == 1 or p["flags"] & 3 == 0
    assert grid == (min(132, tiles * splits), 1, 1)
    tiled_b = args.TILED_SCALES_B if b_format != "fp8_block_128x128" else 0
    p["flags"] |= args.TILED_SCALES_A | tiled_b
    packing = a_format if a_format != b_format and bits == 4 else ""
    compute(p, (a_format, b_format), (tile.m, tile.n, -(-p["k"] // units)), (tiles, splits), packing)


def launch(variant: str, grid: tuple[int, int, int], values: tuple[Any, ...]) -> None:
    """What `sm80_gemm` does, or `sm90_stream_gemm`, whose blocks may be any number."""
    a_format, b_format = operands(variant.rpartition("_")[0])
    p = dict(zip(NAMES, values, strict=True))
    a_format = "fp8_tensor" if p["flags"] & args.ONE_SCALE_A else a_format
    b_format = "fp8_tensor" if p["flags"] & args.ONE_SCALE_B else b_format
    if variant.endswith("_stream"):
        assert grid[1:] == (1, 1)
        tiles = -(-p["n"] // 8) * (p["m"] + p["batches"]) * p["batches"]
        compute(p, (a_format, b_format), (8, 8, p["k"]), (tiles, 1))
        return
    tile = sm80_tile(variant)
    compute(p, (a_format, b_format), (tile.m, tile.n, tile.k), grid[:2])


def compute(
    p: dict[str, Any], formats: tuple[str, str], tile: tuple[int, int, int], grid: tuple[int, int], packing: str = ""
) -> None:
    """A product by the arguments of `sm80_gemm`; raises AssertionError where the kernel's demands are not met."""
    (a_format, b_format), (tile_m, tile_n, tile_k), flags = formats, tile, p["flags"]
    mode, out, bias_type = flags & 3, TYPES[flags >> 2 & 3], flags >> 4 & 3
    m, n, k, batches = (p[name] for name in ("m", "n", "k", "batches"))
    for name in ("a", "b", "d", "a_row", "b_row", "d_row", "a_batch", "b_batch", "d_batch", "bias"):
        assert p[name] % 16 == 0, name
    assert min(m, n, k, batches) >= 1
    assert 1 <= grid[1] <= -(-k // tile_k)
    if grid[1] > 1:
        assert (memory(p["arrivals"], grid[0], np.uint32) == 0).all()
        memory(p["workspace"], grid[0] * grid[1] * tile_m * tile_n, np.float32)[:] = np.nan
    index = np.zeros(0, np.int64)
    if mode:
        index = memory(p["index"], batches + (mode == 1), np.int64 if flags & args.INDEX_64 else np.int32)
        index = np.clip(index, 0, m)
    used = 0
    for g in range(batches):
        first, end = (int(index[g]), int(index[g + 1])) if mode == 1 else (0, int(index[g]) if mode == 2 else m)
        used += -(-max(end - first, 0) // tile_m) * -(-n // tile_n)
        start = (first + 127 * g) // 128 * 128 if mode == 1 else 0
        batch = 0 if mode == 1 else g
        b = np.zeros((n, k))
        for i in range(n):
            at, tiled = p["b_scales"] + g * p["b_scale_batch"], bool(flags & args.TILED_SCALES_B)
            scale = row_scales(b_format, at, i, i, n, k, tiled)
            b[i] = elements(b_format, p["b"] + g * p["b_batch"] + i * p["b_row"], k, packing) * scale
        alpha = p["alpha"]
        for name, flag in (("a_global_scale", args.GLOBAL_A_PER_BATCH), ("b_global_scale", args.GLOBAL_B_PER_BATCH)):
            if p[name]:
                scale = float(memory(p[name], batches, np.float32)[g if flags & flag else 0])
                alpha = alpha / scale if scale > 0 and np.isfinite(scale) else np.nan
        bias = 0.0
        if bias_type:
            bias = memory(p["bias"] + g * p["bias_batch"], n, TYPES[bias_type - 1]).astype(np.float64)
        for i in range(first, end):
            tiled = bool(flags & args.TILED_SCALES_A)
            at = p["a_scales"] + batch * p["a_scale_batch"]
            scale = row_scales(a_format, at, i, start + i - first, m, k, tiled)
            row = elements(a_format, p["a"] + batch * p["a_batch"] + i * p["a_row"], k) * scale
            with np.errstate(all="ignore"):
                memory(p["d"] + batch * p["d_batch"] + i * p["d_row"], n, out)[:] = (b @ row * alpha + bias).astype(out)
    assert used <= grid[0]
