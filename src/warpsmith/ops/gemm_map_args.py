# SPDX-License-Identifier: Apache-2.0
"""Grids, tensor maps and arguments of GEMM kernels that read their operands through tensor maps.

All of them have the parameters of `catalog.fp4_gemm.PARAMS`, and say their tile by macros: ``WS_TILE_M``,
``WS_TILE_N``, ``WS_TILE_K``, ``WS_CLUSTER`` if blocks of a cluster, one below the other, share the rows of B,
``WS_PARTS`` if they divide the K of a tile instead, and ``WS_BLOCKS`` if several share a multiprocessor. What the
parameters mean is in ``docs/kernels/sm12x_blockscaled_gemm.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from warpsmith.catalog.formats import FORMATS, TILED
from warpsmith.catalog.gemm import MODES, PLAIN
from warpsmith.catalog.spec import Catalog, CubinId, Kernel
from warpsmith.errors import InvalidArgumentError
from warpsmith.ops.gemm_activation import Activation
from warpsmith.ops.gemm_args import (
    BIAS_SHIFT,
    GLOBAL_A_PER_BATCH,
    GLOBAL_B_PER_BATCH,
    INDEX_64,
    OUT_SHIFT,
    TILED_SCALES_B,
    TYPES,
    Operand,
    Output,
    Size,
    row_bytes,
    whole_flags,
)
from warpsmith.runtime.tensor_map import NO_MAP, MapSpec

STORES_BY_MAP = 1 << 16
GLOBAL_D_PER_BATCH = 1 << 7  # in sm12x_gated_epilogue.cuh
_SWIZZLED = 128  # bytes of a row, and 16 rows, that a warp's stores have
_SPLIT_STEP = 128  # a split has whole steps of K of at least this
_MAX_WORK = 1 << 32
_MAX_BOX = 128  # bytes of a row: a stage may have several boxes of a plain operand


class MapTile(NamedTuple):
    """What one block computes, and K of a pipeline stage; `cluster` blocks along M share the copies of B.

    `blocks` of them share a multiprocessor; `parts` of a cluster divide the K of a tile. `gates` says whether the
    kernel has the parameters of an activation, `stores` whether it takes a tensor map of D for its stores, `fits`
    whether its boxes have no more rows than a matrix, `packed` whether it copies B without a map, from the pointer and
    by the stride that scales of A would have, `fits_a` whether its boxes of A have no more rows.
    """

    m: int
    n: int
    k: int
    cluster: int = 1
    blocks: int = 1
    parts: int = 1
    gates: bool = False
    stores: bool = False
    fits: bool = False
    packed: bool = False
    fits_a: bool = False


class MapLaunch(NamedTuple):
    """One launch but for its pointers, and the scratch it needs.

    Attributes
    ----------
    grid
        Persistent blocks, 1, 1.
    tail
        The arguments behind the pointers.
    workspace, arrivals
        As those of `gemm_args.Launch`.
    a, b
        The operands' tensor maps.
    d
        D's, if the tile stores by one; it is the last argument, behind `tail`, for D at a multiple of 16.
    """

    grid: tuple[int, int, int]
    tail: tuple[int | float | bytes, ...]
    workspace: int
    arrivals: int
    a: MapSpec
    b: MapSpec
    d: MapSpec | None = None


@lru_cache(maxsize=512)
def tile_of(kernel: Kernel, variant: str) -> MapTile:
    """The tile of a variant.

    Raises
    ------
    CatalogError
        If there is no such variant.
    """
    macros = dict(kernel.variant(variant).macros)
    m, n, k = (int(macros[f"WS_TILE_{axis}"]) for axis in "MNK")
    gates = any(p.name == "gate_slope" for p in kernel.params)
    cluster, blocks, parts = (int(macros.get(f"WS_{name}", "1")) for name in ("CLUSTER", "BLOCKS", "PARTS"))
    same = macros["WS_A_FORMAT"] == macros["WS_B_FORMAT"]
    fits_a = gates and (same or macros.get("WS_FITS") == "1")
    stores, packed = gates and macros.get("WS_SWAP") == "0", macros.get("WS_PACKED") == "1"
    return MapTile(m, n, k, cluster, blocks, parts, gates, stores, gates and same, packed, fits_a)


def map_tiles(tile: MapTile, size: Size) -> int:
    """Tiles of D: for a grouped problem as many as any division of its rows could need."""
    columns, height = -(-size.n // tile.n), tile.m * tile.cluster
    if size.mode == "grouped":
        return (size.m // height + size.batches) * columns * tile.cluster
    return size.batches * -(-size.m // height) * columns * tile.cluster


def max_splits(tile: MapTile, size: Size) -> int:
    """How often K can be split; not for groups and masked batches, nor where the blocks of a cluster divide it."""
    return -(-size.k // max(tile.k, _SPLIT_STEP)) if size.mode == "dense" and tile.parts == 1 else 1


def choose_map_splits(
    catalog: Catalog, cubin: CubinId, fields: Mapping[str, str], size: Size, sm_count: int
) -> tuple[int, int]:
    """Parts of K, and how many tiles in front are not split, by the catalog's rule or estimate; (1, 0) without one."""
    kernel = catalog.kernel(cubin.kernel)
    name, tile = kernel.variant(cubin.variant).tile, tile_of(kernel, cubin.variant)
    most, rule = max_splits(tile, size), catalog.split_rule(cubin.kernel, name, fields.get("format", ""))
    if most == 1:
        return 1, 0
    if rule is not None:
        tiles = map_tiles(tile, size)
        whole = rule.whole(tiles, size.k, sm_count)
        return (rule.tail, whole) if whole else (min(rule.parts(tiles, size.k, sm_count), most), 0)
    estimate = catalog.estimate(cubin.kernel)
    dims = {"m": size.rows, "n": size.n, "k": size.k, "batches": size.batches}
    found = None if estimate is None else estimate.best(fields, (name,), dims, sm_count)
    return (1, 0) if found is None else (min(found[1], most), 0)


def _spec(
    operand: Operand, rows: int, batches: int, k: int, box_k: int, box_rows: int, halves: bool = False
) -> MapSpec:
    bits = 16 if operand.format in PLAIN else FORMATS[operand.format].element_bits
    row = row_bytes(operand.format, k)
    stride = operand.row if rows > 1 or batches > 1 else row
    return MapSpec(
        row,
        rows,
        batches,
        stride,
        operand.batch if batches > 1 else rows * stride,
        min(box_k * bits // 8, _MAX_BOX),
        box_rows,
        halves,
    )


def _stores(tile: MapTile, size: Size, d: Output, columns: int) -> MapSpec | None:
    """The map that D of a tile is stored by: 16-bit elements in rows aligned to 16 bytes."""
    if not tile.stores or d.dtype == TYPES[2] or d.row % 16 or d.batch % 16:
        return None
    batches = 1 if size.mode == "grouped" else size.batches
    row = columns * 2
    stride = d.row if size.m > 1 or batches > 1 else row
    return MapSpec(row, size.m, batches, stride, d.batch if batches > 1 else size.m * stride, _SWIZZLED, 16)


def map_launch(
    tile: MapTile,
    size: Size,
    a: Operand,
    b: Operand,
    d: Output,
    *,
    sm_count: int,
    splits: int = 1,
    whole: int = 0,
    wide: bool = False,
    activation: Activation | None = None,
) -> MapLaunch:
    """Plan a kernel that takes tensor maps.

    Parameters
    ----------
    tile
        The variant's.
    size
        What is multiplied; m, n, k and batches at least 1.
    a, b, d
        How the operands and the result lie in memory; all strides are multiples of 16 bytes.
    sm_count
        The device's multiprocessors.
    splits
        Of K, from 1 to `max_splits`.
    whole
        Tiles in front that are not split; for kernels that have such splits (`sm90_gemm`).
    wide
        Whether offsets or counts are int64.
    activation
        Of the product, for a tile that has `gates`. With a gate, n is twice the columns of D.

    Returns
    -------
    MapLaunch
        Pointers are ``a_scales, b_scales, d, bias, alphas, a_global_scale, b_global_scale, index, workspace,
        arrivals``, behind both maps.

    Raises
    ------
    InvalidArgumentError
        If a size is beyond the kernel's 32-bit numbers.
    """
    tiles = map_tiles(tile, size)
    split = tiles - whole if splits > 1 else 0
    units = tiles - split + split * splits
    cluster = tile.cluster * tile.parts
    blocks = cluster * max(1, min(sm_count * tile.blocks, units * tile.parts) // cluster)
    if tiles * splits + blocks >= _MAX_WORK or size.m + 127 * size.batches >= 1 << 31 or size.k >= 1 << 30:
        raise InvalidArgumentError(
            f"a product of {size.batches} × {size.m} × {size.n} × {size.k} is too large: it has {tiles} tiles; "
            "expected fewer than 2^32 tiles and splits, fewer than 2^31 rows (with 127 more a group), and K below 2^30"
        )
    grouped = size.mode == "grouped"
    flags = MODES.index(size.mode) | TYPES.index(d.dtype) << OUT_SHIFT | whole_flags(a.format, b.format)
    flags |= (TYPES.index(d.bias) + 1) << BIAS_SHIFT if d.bias else 0
    flags |= INDEX_64 if wide else 0
    flags |= GLOBAL_A_PER_BATCH if a.global_per_batch else 0
    flags |= GLOBAL_B_PER_BATCH if b.global_per_batch else 0
    flags |= TILED_SCALES_B if a.format in PLAIN and b.layout == TILED else 0
    gate: tuple[float | bytes, ...] = ()
    halves = False
    if activation is not None:
        flags |= activation.flags
        halves = activation.gates == 2
    stores = _stores(tile, size, d, size.n // 2 if halves else size.n)
    flags |= STORES_BY_MAP if stores else 0
    if tile.gates:
        gate = (0.0,) * 4 if activation is None else activation.gate
        gate = gate if stores else (*gate, NO_MAP)
    box_a, box_b = tile.m, tile.n // tile.cluster
    box_a = min(box_a, size.m) if tile.fits_a else box_a
    box_b = min(box_b, size.n) if tile.fits and tile.cluster == 1 else box_b
    return MapLaunch(
        (blocks, 1, 1),
        (
            d.row, d.batch, b.batch if tile.packed else a.scale_batch, b.scale_batch, d.bias_batch,
            size.m, size.n, size.k, size.batches, whole << 8 | splits, 1.0, flags, *gate,
        ),
        split * splits * tile.m * tile.n * 4,
        split,
        _spec(a, size.m, 1 if grouped else size.batches, size.k, tile.k, box_a),
        _spec(b, size.n, size.batches, size.k, tile.k, box_b, halves),
        stores,
    )  # fmt: skip


def gated_launch(
    tile: MapTile,
    size: Size,
    a: Operand,
    b: Operand,
    d: Output,
    *,
    sm_count: int,
    scale_per_group: bool,
    wide: bool = False,
) -> MapLaunch:
    """Plan ``ws_sm12x_gated_gemm``: a grouped product whose n is a multiple of 64.

    `d` is the codes' rows, and the type that sums are rounded to; `scale_per_group` says whether D has a global scale
    for each group. Arguments are those of `map_launch`; behind its tail are ``d_scales, d_global_scale, activation,
    activation_alpha, limit``.
    """
    launch = map_launch(tile, size, a, b, d, sm_count=sm_count, wide=wide)
    *rest, flags = launch.tail
    return launch._replace(tail=(*rest, int(flags) | (GLOBAL_D_PER_BATCH if scale_per_group else 0)))
