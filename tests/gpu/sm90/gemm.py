# SPDX-License-Identifier: Apache-2.0
"""Launches of the GEMM, and D held against float64."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch

from warpsmith.arch import Capability, parse
from warpsmith.catalog.gemm_sm90 import Tile
from warpsmith.catalog.spec import CubinId
from warpsmith.runtime.driver import default_driver
from warpsmith.runtime.launch import Argument
from warpsmith.runtime.modules import load_kernel

from .cases import Case
from .kernels import KERNEL, VARIANTS, cubin, tile
from .problem import DTYPES, Problem, make_problem

LIMITS = {"bf16": 3e-3, "fp16": 4e-4, "fp32": 2e-6}
"""Of ‖D − reference‖ / ‖reference‖."""
ONE_ROUNDING = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp32": 0.0}
"""What a few values may be off by, where errors do not average out."""
FP8_LIMIT = 1e-3  # more, of the tensor cores' sums over 128 of K
ACTIVATED = 3.0  # times the limit in fp32: the slope of an activation, and its exponential's own error
TYPES = {None: 0, "bf16": 0, "fp16": 1, "fp32": 2}
MODES = {"dense": 0, "grouped": 1, "masked": 2}
TARGET = parse("sm_90a")
GATES = {
    "swiglu": (1.0, 0.0, float("inf"), 0.0),
    "swiglu_oai": (1.702, 0.0, 7.0, 1.0),
    "geglu_tanh": (1.5957691, 0.071354816, float("inf"), 0.0),
}
"""Of each activation with a gate: slope, cube, limit, offset."""
_BITS = {2: (torch.int16, 0x7BCD), 4: (torch.int32, 0x7BCDEF01)}


@cache
def load(variant: str, folder: Path | None) -> Any:
    """A variant ready to launch."""
    data = cubin(variant, TARGET, folder)
    name = CubinId(KERNEL.name, VARIANTS[variant][0].name, TARGET)
    return load_kernel(default_driver(), 0, Capability(9, 0), KERNEL, name, data, "the tests")


def tensor_map(x: Any, box_rows: int, gated: bool = False) -> bytes:
    """The tensor map of [batches, rows, K], or of a matrix's halves' rows by turns, eight of each."""
    driver = default_driver()
    api = driver.api
    batches, rows, k = x.shape
    size = x.element_size()
    pitch = x.stride(1) * size
    long, word = api.cuuint64_t, api.cuuint32_t
    sizes, strides, box = [k * size, rows, batches], [pitch, x.stride(0) * size], [128, box_rows, 1]
    if gated:
        sizes, box = [pitch, 8, 2, rows // 16, batches], [128, 8, 2, box_rows // 16, 1]
        strides = [pitch, pitch * rows // 2, pitch * 8, pitch * rows]
    encoded = driver.call(
        "cuTensorMapEncodeTiled",
        api.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_UINT8,
        len(sizes),
        x.data_ptr(),
        [long(size) for size in sizes],
        [long(stride) for stride in strides],
        [word(size) for size in box],
        [word(1)] * len(sizes),
        api.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        api.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        api.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
        api.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        tried=f"make a tensor map of {tuple(x.shape)}",
    )
    return ctypes.string_at(encoded.getPtr(), 128)


def tiles_of(variant: str, case: Case, rows: int, matrices: int) -> int:
    """Tiles of the problem; grouped, an upper bound."""
    shape = tile(variant)
    high, columns = shape.m * shape.cluster, -(-case.product_n // shape.n)
    if case.mode == "grouped":
        return (rows // high + matrices) * columns * shape.cluster
    return -(-rows // high) * columns * matrices * shape.cluster


def units_of(case: Case, tiles: int) -> int:
    """What blocks take one after the other: tiles, or parts of them."""
    whole, parts = case.splits >> 8, max(1, case.splits & 255)
    return min(whole, tiles) + max(0, tiles - whole) * parts


def grid_of(tile: Tile, most: int, units: int) -> int:
    """Blocks for so many units of work, whole clusters of them, `most` at most."""
    blocks = tile.cluster * tile.parts
    return max(1, min(most, units * tile.parts) // blocks) * blocks


def arguments(
    variant: str, case: Case, a: Any, b: Any, scales: tuple[Any, Any], d: Any, more: dict[str, Any]
) -> tuple[Argument, ...]:
    """The kernel's arguments; `d` is [batches, rows, pitch], `more` has what is not always there."""
    size, matrices = d.element_size(), b.shape[0]
    factors = more.get("factors", (None, None, None))
    bias, index = more.get("bias"), more.get("index")
    workspace, arrivals = more.get("workspace"), more.get("arrivals")
    flags = MODES[case.mode] | TYPES[case.out] << 2 | case.int64 << 6 | case.constant_b << 7 | case.rows_b << 8
    flags |= (TYPES[case.bias] + 1 if case.bias else 0) << 4
    flags |= {"": 0, "relu2": 2, "swiglu": 3}.get(case.activation, 1) << 12
    for bit, values in enumerate(factors, 9):
        flags |= (values is not None and values.numel() > 1) << bit
    stores = (
        not tile(variant).swap
        and size == 2
        and not any(x % 16 for x in (d.data_ptr(), *(size * s for s in d.stride()[:2])))
    )
    d_map = bytes(128)
    if stores:
        flags |= 1 << 16
        d_map = tensor_map(d[:, : a.shape[1], : case.n], 16)
    pointers = (*scales, d, bias, *factors, index, workspace, arrivals)
    strides = (0 if x is None else x.stride(0) * x.element_size() for x in (*scales, bias))
    return (
        tensor_map(a, min(tile(variant).box_rows[0], a.shape[1])),
        tensor_map(b, min(tile(variant).box_rows[1], b.shape[1]), case.gated),
        *(0 if x is None else x.data_ptr() for x in pointers),
        d.stride(1) * size,
        d.stride(0) * size,
        *strides,
        *(a.shape[1], case.product_n, case.k, matrices, case.splits),
        more.get("alpha", 1.0),
        flags,
        *GATES.get(case.activation, (0.0,) * 4),
        d_map,
    )


class Launch:
    """A problem on the device: D among poison, and the kernel's arguments."""

    def __init__(self, variant: str, problem: Problem) -> None:
        case, a, b = problem.case, problem.a, problem.b
        self.case, self.rows = case, problem.rows
        dtype = DTYPES[case.out]
        step = 8 // dtype.itemsize if dtype.itemsize == 2 else 4
        pitch = -(-case.n // 8) * 8 + (step if case.odd else 16)
        self._bits, self.poison = _BITS[dtype.itemsize]
        self.raw = torch.empty((a.data.shape[0], problem.rows + 1, pitch), dtype=self._bits, device="cuda")
        shape = tile(variant)
        self.tiles = tiles_of(variant, case, problem.rows, b.data.shape[0])
        self.arrivals = torch.zeros(self.tiles, dtype=torch.int32, device="cuda")
        words = self.tiles * (case.splits & 255) * shape.m * shape.n if case.splits > 1 else 4
        self._kept = (torch.full((words,), float("nan"), device="cuda"), problem)
        more = {name: getattr(problem, name) for name in ("factors", "bias", "index", "alpha")}
        more |= {"workspace": self._kept[0], "arrivals": self.arrivals}
        scales = (a.scales, b.scales)
        self.arguments = arguments(variant, case, a.data, b.data, scales, self.raw.view(dtype), more)
        self.grid = grid_of(shape, case.blocks, units_of(case, self.tiles))

    def run(self, kernel: Any) -> Any:
        """Poison D and launch; D with its surroundings, as bits."""
        self.raw.fill_(self.poison)
        kernel.launch((self.grid, 1, 1), self.arguments, torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        return self.raw.clone()


def problems(variant: str, case: Case, folder: Path | None, seed: int) -> tuple[list[str], float]:
    """What is wrong with D after running a case, and its error as a part of what is allowed."""
    kernel, format = load(variant, folder), variant.partition("_")[0]
    problem = make_problem(format, case, seed)
    launch = Launch(variant, problem)
    raw = launch.run(kernel)
    found = ["arrivals are not 0"] if launch.arrivals.any() else []
    if (raw[:, :, case.n :] != launch.poison).any() or (raw[:, problem.rows :] != launch.poison).any():
        found.append("wrote outside D")
    if case.raw_index:
        return found, 0.0
    inside = raw[:, : problem.rows, : case.n]
    if (inside[~problem.valid] != launch.poison).any():
        found.append("wrote rows that are not to be written")
    launch.grid = grid_of(tile(variant), launch.grid // 2, launch.tiles * 255)
    if not torch.equal(raw, launch.run(kernel)):
        found.append("half as many blocks give other bits")
    got = inside[problem.valid].contiguous().view(DTYPES[case.out]).double()
    want, size = problem.want[problem.valid], problem.size[problem.valid]
    limit = max(LIMITS[case.out], 3e-9 * case.k) if case.out == "fp32" else LIMITS[case.out]
    if want.numel() < 512:
        limit = max(limit, ONE_ROUNDING[case.out])
    limit *= ACTIVATED if case.activation and case.out == "fp32" else 1
    limit += FP8_LIMIT if format == "fp8" else 0
    norm = float(size.norm())
    error = float((got - want).norm()) / norm if norm else float(got.abs().sum())
    if not error <= limit:
        found.append(f"error {error:.2e}, at most {limit:.1e} is allowed")
    return found, error / limit
