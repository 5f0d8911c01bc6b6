# SPDX-License-Identifier: Apache-2.0
"""bf16 by quantized weights on 9.0: which sizes go where, how they are launched, and the operand in registers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from warpsmith.arch import Capability, parse
from warpsmith.catalog import CATALOG
from warpsmith.catalog.fp4_gemm import PARAMS
from warpsmith.catalog.gemm_mixed import KERNEL, PAIRS, TILES
from warpsmith.catalog.plan import plan
from warpsmith.catalog.resolve import DeviceFacts, resolve
from warpsmith.catalog.spec import CubinId, pair
from warpsmith.ops import gemm_args as args
from warpsmith.ops.gemm_args import Operand, Output, Size
from warpsmith.ops.gemm_map_args import choose_map_splits, map_launch, tile_of
from warpsmith.runtime.tensor_map import MapSpec

TAIL = [p.name for p in PARAMS[12:]]
FORMATS = [pair(a, b) for a, b in PAIRS]
BF16 = ml_dtypes.bfloat16


def chosen(on: str = "9.0", **problem: str | int) -> CubinId:
    wanted = CATALOG.operation("gemm").problem(problem)
    choice = resolve(CATALOG, wanted, DeviceFacts(Capability.parse(on), 132)).choice
    assert choice is not None
    return choice


FOUR_BITS = FORMATS[:2]
LAYOUTS = [(f, layout) for f in FORMATS for layout in ("linear", "tiled") if (f, layout) != (FORMATS[3], "linear")]


@pytest.mark.parametrize(("format", "layout"), LAYOUTS)
@pytest.mark.parametrize("mode", ["dense", "grouped", "masked"])
def test_more_than_eight_rows_are_its_own(format: str, layout: str, mode: str) -> None:
    for m in (9, 16, 17, 64, 65, 300, 5000):
        for n in (8, 2880, 65536):
            assert chosen(format=format, layout=layout, mode=mode, m=m, n=n).kernel == KERNEL.name
    few = {FORMATS[2]: 8, FORMATS[3]: 4}.get(format, 8)
    streams = format in FOUR_BITS or mode == "dense"
    assert chosen(format=format, layout=layout, mode=mode, m=few).kernel == (
        "sm90_stream_gemm" if streams else KERNEL.name
    )
    assert chosen(format=format, layout=layout, mode=mode, m=8, k=32768).kernel == KERNEL.name
    assert chosen("8.0", format=format, layout=layout, mode=mode, m=64).kernel == "sm80_gemm"


@pytest.mark.parametrize("format", FORMATS)
def test_tiles_have_the_rows_that_there_are(format: str) -> None:
    for m in (9, 16, 17, 32, 33, 64, 65, 128, 129):
        tile = tile_of(KERNEL, chosen(format=format, m=m, n=16384, mode="masked").variant)
        assert m <= tile.m <= max(16, 2 * m)
    groups = [chosen(format=format, m=m, mode="grouped", batches=32).variant for m in (9, 16, 32, 64, 256)]
    assert groups == [f"{format}_{name}" for name in ("m16w", "m32w", "m64w", "m128", "m256")]
    assert chosen(format=format, m=100, n=512).variant == f"{format}_m32"
    wide = [chosen(format=format, m=256, n=n).variant.rpartition("_")[2] for n in (4096, 8192, 14336)]
    assert wide == ["m128n", "m128", "m256"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_hundred_rows_have_the_tiles_that_are_whole_waves(format: str) -> None:
    columns = {2048: "m32", 2880: "m64", 5760: "m128n", 7168: "m128n", 14336: "m128", 24576: "m128n", 32768: "m128"}
    assert {n: chosen(format=format, m=100, n=n, k=2048).variant.rpartition("_")[2] for n in columns} == columns
    assert chosen(format=format, m=100, n=4096, k=7168).variant.endswith("m128n")
    assert chosen(format=format, m=100, n=7168, k=2048, mode="masked").variant.endswith("m128")


def test_the_portable_kernel_is_not_built_for_what_it_does_not_serve() -> None:
    names = [(c.kernel, c.variant) for c in plan(CATALOG, [parse("sm_90a")]).cubins]
    assert sum(kernel == KERNEL.name for kernel, _ in names) == len(PAIRS) * len(TILES)
    assert not [v for k, v in names if k == "sm80_gemm" and v.startswith(tuple(FORMATS))]


@pytest.mark.parametrize("name", list(TILES))
@pytest.mark.parametrize(("weights", "bits"), [("mxfp4", 4), ("mxfp8", 8), ("fp8_block_128x128", 8)])
def test_a_launch_reads_boxes_of_what_a_stage_has(weights: str, bits: int, name: str) -> None:
    shape, tile = TILES[name], tile_of(KERNEL, f"bf16_x_{weights}_{name}")
    assert tile == (shape.m, shape.n, shape.k, 1, shape.blocks, 1, True, False, False, False, shape.fits)
    size, row = Size("dense", 100, 512, 2944, 2), 2944 * bits // 8
    a, d = Operand("bf16", 5888, 100 * 5888), Output("bf16", 1024, 102400)
    for layout, flag in (("linear", 0), ("128x4", args.TILED_SCALES_B)):
        launch = map_launch(tile, size, a, Operand(weights, row, 512 * row, layout, 512 * 92), d, sm_count=132)
        assert launch.a == MapSpec(5888, 100, 2, 5888, 100 * 5888, 128, 100 if shape.fits else shape.m)
        assert launch.b == MapSpec(row, 512, 2, row, 512 * row, shape.k * bits // 8, shape.n)
        assert dict(zip(TAIL, launch.tail, strict=False))["flags"] == flag


def test_splits_are_for_dense_problems_of_few_tiles() -> None:
    for m in (16, 100, 256, 4096):
        cubin = chosen(format="bf16_x_mxfp4", m=m, n=4096, k=7168)
        fields = {"format": "bf16_x_mxfp4", "mode": "dense", "layout": "tiled", "path": "default"}
        splits, whole = choose_map_splits(CATALOG, cubin, fields, Size("dense", m, 4096, 7168), 132)
        tile = tile_of(KERNEL, cubin.variant)
        assert whole == 0
        tiles = -(-m // tile.m) * -(-4096 // tile.n)
        assert splits * tiles <= max(132 * tile.blocks, tiles)


def splits_of(format: str, m: int, n: int, k: int) -> int:
    fields = {"format": format, "mode": "dense", "layout": "tiled", "path": "default"}
    cubin = chosen(format=format, m=m, n=n, k=k)
    return choose_map_splits(CATALOG, cubin, fields, Size("dense", m, n, k), 132)[0]


def test_bytes_have_rules_of_their_own() -> None:
    nibbles, mxfp8, squares = FORMATS[1:]
    assert [splits_of(f, 16, 4096, 7168) for f in (nibbles, mxfp8, squares)] == [2, 4, 4]
    assert [splits_of(f, 12, 4096, 4096) for f in (mxfp8, squares)] == [4, 2]
    tiles = [chosen(format=f, m=400, n=4096).variant.rpartition("_")[2] for f in (nibbles, mxfp8, squares)]
    assert tiles == ["m256", "m256", "m128"]
    assert chosen(format=squares, m=400, n=8192).variant.endswith("m256")


# ---- the arithmetic of sm90_mixed_fragments.cuh ---------------------------------------------------------------------


def permute(a: int, b: int, selector: int) -> int:
    """The instruction: bytes of {b, a}, or copies of their top bits."""
    bytes_ = [(x >> 8 * i) & 255 for x in (a, b) for i in range(4)]
    result = 0
    for i in range(4):
        pick = selector >> 4 * i & 15
        byte = bytes_[pick & 7]
        result |= ((255 if byte & 128 else 0) if pick & 8 else byte) << 8 * i
    return result


VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def bf16(bits: int) -> float:
    return float(np.array([bits], np.uint16).view(BF16)[0])


def rounded(value: float) -> float:
    with np.errstate(all="ignore"):
        return float(np.array([value]).astype(BF16)[0])


def test_a_lane_looks_its_columns_up() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        codes = rng.integers(0, 16, 16)
        words = [sum(int(codes[8 * j + i]) << 4 * i for i in range(8)) for j in range(2)]
        for t in range(4):
            four = permute(words[0], words[1], 0x40 + t * 0x11) & 0xFFFF
            found = permute(0x26242220, 0x38302C28, four) | permute(0x1A1C1E20, 0x08101418, four ^ 0x8888)
            for j, select in enumerate((0x4140, 0x4342)):
                pair = permute(found, 0x42424242, select)
                for half in range(2):
                    code = int(codes[8 * j + 2 * t + half])
                    assert bf16(pair >> 16 * half & 0xFFFF) == 40 + VALUES[code]


def by_scale(scale: float) -> list[float]:
    """What the multiply-add makes of each code."""
    offset = rounded(-40 * scale)
    with np.errstate(all="ignore"):
        return [rounded((40 + value) * scale + offset) for value in VALUES]


def test_every_code_by_every_scale_is_exact() -> None:
    for code in range(127):
        scale = float(np.array([code], np.uint8).view(ml_dtypes.float8_e4m3fn)[0])
        assert by_scale(scale) == [value * scale for value in VALUES], code
    for code in range(250):
        assert by_scale(bf16(max(code << 7, 0x40))) == [value * 2.0 ** (code - 127) for value in VALUES], code
    assert np.isnan(by_scale(bf16(255 << 7))).all()
    assert not np.isfinite(by_scale(bf16(250 << 7))).any()  # beyond 2^122


# ---- e4m3 ----------------------------------------------------------------------------------------------------------


def test_a_lane_widens_its_bytes() -> None:
    """Codes of both signs at every place, NaN's but as 480: bf16 of value · 2^-120, subnormals too."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        codes = rng.integers(0, 256, 16)
        words = [sum(int(codes[4 * j + i]) << 8 * i for i in range(4)) for j in range(4)]
        for t, j in ((t, j) for t in range(4) for j in range(2)):
            pair = permute(words[2 * j], words[2 * j + 1], 0x9180 + t * 0x2222) << 4 & 0x87F087F0
            for half in range(2):
                code = int(codes[8 * j + 2 * t + half])
                value = float(np.array([code], np.uint8).view(ml_dtypes.float8_e4m3fn)[0])
                value = value if value == value else np.copysign(480.0, 127.5 - code)
                found = bf16(pair >> 16 * half & 0xFFFF)
                assert found == value * 2.0**-120
                assert np.signbit(found) == (code > 127)


def test_every_e4m3_code_by_a_power_of_two_is_exact() -> None:
    codes = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    for scale in (2.0**e for e in range(-124, 120)):
        assert (((codes * scale).astype(BF16)).astype(np.float64) == codes * scale).all()


def square(scale: float) -> tuple[float, float]:
    """What SquareScale::of makes of a scale: the factor without its 2^120, and the unit."""
    bits = int(np.array([scale], np.float32).view(np.uint32)[0])
    if scale == 0 or not np.isfinite(scale):
        return (float("nan") if scale != scale else bf16(bits >> 16)), 1.0
    power = max(-60, min((bits >> 23 & 255) - 127, 7))
    assert (power + 127 + 120) < 255
    return 2.0**power, float(np.float32(scale) * np.float32(2.0**-power))


def test_a_square_scale_is_a_power_of_two_and_a_unit() -> None:
    scales = [1.0, 0.0123, 3e-5, 255.9, 1e13, 3e38, 1e-18, 1e-30, 1e-38, 1e-45, -0.7]
    for scale in (float(np.float32(s)) for s in scales):
        factor, unit = square(scale)
        assert factor * unit == scale
        assert np.isfinite(np.float32(1) / np.float32(unit))
        if 2.0**-60 <= scale < 256:
            assert 1 <= unit < 2
    assert square(0.0) == (0.0, 1.0)
    assert square(float("inf")) == (float("inf"), 1.0)
    assert np.isnan(square(float("nan"))[0])
