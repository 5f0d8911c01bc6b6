# SPDX-License-Identifier: Apache-2.0
"""Compile copies and operands of `sm90_mixed_packed_gemm` for the CPU, and compare each lane's registers.

Every tile, with N and K that end within tiles and stages, several matrices, and NaN scales.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import warpsmith
from warpsmith import reference
from warpsmith.catalog.gemm_mixed_packed import KERNEL
from warpsmith.catalog.spec import Variant, operands
from warpsmith.ops.prepared_order import few_rows_weight
from warpsmith.ops.qtensor import QTensor

HERE = Path(__file__).resolve().parent
KERNELS = Path(warpsmith.__file__).parent / "kernels"
SIZES = ((2, 32, 64), (2, 96, 192), (1, 288, 128), (3, 256, 448), (1, 544, 64))
NAMES = {"u8": "uint8_t", "u32": "uint32_t", "u64": "uint64_t", "i64": "int64_t"}
TYPES = f"namespace ws {{ {' '.join(f'using {short} = {full};' for short, full in NAMES.items())} }}"
GIVEN = ("WS_A_FORMAT", "WS_SWAP", "WS_PACKED")


def _between(text: str, start: str, end: str) -> str:
    return text[text.index(start) : text.index(end, text.index(start))]


def write_sources(folder: Path) -> None:
    """The parts of the headers that need no GPU, and headers in place of those that do."""
    order = (KERNELS / "common/prepared_weights.cuh").read_text(encoding="utf-8")
    packed = (KERNELS / "gemm/sm90_mixed_packed.cuh").read_text(encoding="utf-8")
    parts = (
        _between(order, "constexpr u32 kPreparedTileRows", "// Pairs of bf16 times"),
        _between(order, "// The left operand of an MMA", "}  // namespace ws"),
        _between(packed, "constexpr u32 kUnpackedTiles", "// The warp that copies rows of B"),
        _between(packed, "// A lane's codes and scales", "// Releases the stage before"),
    )
    (folder / "pieces.inc").write_text(re.sub(r"#pragma unroll.*", "", "".join(parts)), encoding="utf-8")
    (folder / "common").mkdir()
    (folder / "common/types.cuh").write_text(f"#pragma once\n#include <cstdint>\n{TYPES}\n", encoding="utf-8")
    wgmma = "#pragma once\nnamespace ws { enum class WgmmaType { bf16, fp16, e4m3 }; }\n"
    (folder / "common/wgmma.cuh").write_text(wgmma, encoding="utf-8")


def build(variant: Variant, folder: Path) -> ctypes.CDLL:
    """One variant."""
    macros = [
        f"-D{name}={value}" for name, value in variant.macros if name not in ("WS_A_FORMAT", "WS_SWAP", "WS_PACKED")
    ]
    out = folder / f"{variant.name}.so"
    options = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{folder}", f"-I{KERNELS}"]
    subprocess.run(["g++", *options, *macros, str(HERE / "packed.cpp"), "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


def _pointer(x: np.ndarray[Any, Any]) -> ctypes.c_void_p:
    return x.ctypes.data_as(ctypes.c_void_p)


def _matches(library: ctypes.CDLL, format: str, size: tuple[int, int, int], rng: np.random.Generator) -> bool:
    batches, n, k = size
    block = 16 if format == "nvfp4" else 32
    codes = rng.integers(0, 256, (batches, n, k // 2)).astype(np.uint8)
    low, high = (0, 127) if format == "nvfp4" else (119, 136)
    scales = rng.integers(low, high, (batches, n, k // block)).astype(np.uint8)
    scales[0, 1, 0] = 127 if format == "nvfp4" else 255
    w = few_rows_weight(QTensor(codes, scales, format, size), codes, scales)
    values = reference.decode_float64(codes, scales, format, shape=size, scale_layout="linear")
    factor = 1.0 if w.global_scale is None else np.asarray(w.global_scale, np.float64).reshape(-1, 1, 1)
    want = values * factor / (128.0 if format == "nvfp4" else 0.5)
    data, packed = (np.ascontiguousarray(x).view(np.uint8) for x in (w.data, w.scales))
    tile_n, tile_k, groups, left, m64 = _shape(library)
    for batch, column in ((b, c) for b in range(batches) for c in range(0, n, tile_n)):
        # stage, warpgroup, warp, g, t, tile of 64, step of 16, 64 rows, register, half of it
        out = np.zeros((-(-k // tile_k), groups, 4, 8, 4, tile_k // 64, 4, m64, 4), np.uint32)
        strides = ctypes.c_uint64(data[0].nbytes), ctypes.c_uint64(packed[0].nbytes)
        if not library.operands(_pointer(data), _pointer(packed), *strides, n, k, batch, column, _pointer(out)):
            return False
        got = out.view(ml_dtypes.bfloat16).astype(np.float64).reshape(*out.shape, 2)
        s, group, warp, g, t, of, step, i, j, h = np.indices(got.shape, sparse=True)
        row = column + (group * (tile_n // 2) if left == 2 else 0) + i * 64 + warp * 16 + g + j % 2 * 8
        at = s * tile_k + of * 64 + step * 16 + 2 * t + j // 2 * 8 + h
        row, at = np.broadcast_to(row, got.shape), np.broadcast_to(at, got.shape)
        inside, behind = (row < n) & (at < k), (row < n) & (at >= k)
        if not np.array_equal(got[inside], want[batch][row[inside], at[inside]], equal_nan=True):
            return False
        if not (np.isfinite(got[behind]) | np.isnan(want[batch]).any(1)[row[behind]]).all():
            return False
    return True


def _shape(library: ctypes.CDLL) -> list[int]:
    numbers = np.zeros(5, np.uint32)
    library.shape(_pointer(numbers))
    return [int(x) for x in numbers]


def main() -> None:
    """Compare."""
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        write_sources(Path(scratch))
        for variant in KERNEL.variants:
            library, rng = build(variant, Path(scratch)), np.random.default_rng(0)
            format = operands(dict(variant.serves)["format"][0])[1]
            failed = [size for size in SIZES if not _matches(library, format, size, rng)]
            wrong += len(failed)
            print(variant.name, "right" if not failed else f"wrong: {failed}", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
