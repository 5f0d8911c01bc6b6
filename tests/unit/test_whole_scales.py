# SPDX-License-Identifier: Apache-2.0
"""fp8_row and fp8_tensor: one scale a row or a matrix, through the reference, the operations and their plans."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import warpsmith as ws
from warpsmith import reference
from warpsmith.arch import Capability, parse
from warpsmith.catalog import CATALOG
from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.gemm import WHOLE_SCALED
from warpsmith.catalog.gemm_sm90 import KERNEL
from warpsmith.catalog.resolve import DeviceFacts, resolve
from warpsmith.catalog.spec import Problem, pair
from warpsmith.errors import FormatError, InvalidArgumentError
from warpsmith.ops import quantization_args as arguments
from warpsmith.ops.gemm_args import ONE_SCALE_A, ONE_SCALE_B, Operand, Output, Size, scale_bytes, sm80_launch
from warpsmith.ops.gemm_map_args import map_launch, tile_of

WHOLE = ("fp8_row", "fp8_tensor")
BOTH = pytest.mark.parametrize("format", WHOLE)


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@BOTH
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
@pytest.mark.parametrize("m", [0, 1, 5])
def test_scales_have_the_shape_that_checkpoints_give_them(format: str, batch: tuple[int, ...], m: int) -> None:
    q = ws.quantize(values(*batch, m, 48), format)
    wanted = (*batch, m) if format == "fp8_row" else batch or (1,)
    assert q.scales.shape == wanted == FORMATS[format].scale_shape("linear", batch, m, 48)
    assert wanted == reference.scale_shape(format, (*batch, m, 48))
    assert ws.dequantize(q).shape == (*batch, m, 48)
    if m == 0 and format == "fp8_tensor":
        assert (q.scales == 1).all()


@given(st.integers(1, 6), st.integers(1, 5), st.integers(-30, 30), st.integers(0, 1 << 32), st.sampled_from(WHOLE))
def test_a_round_trip_keeps_what_three_bits_keep(m: int, blocks: int, power: int, seed: int, format: str) -> None:
    x = values(m, 16 * blocks, seed=seed) * np.float32(2.0**power)
    q = ws.quantize(x, format)
    amax = np.abs(x).max(axis=1 if format == "fp8_row" else None, keepdims=True)
    assert (np.abs(ws.dequantize(q) - x) <= amax / 27).all()
    np.testing.assert_array_equal(q.scales, (amax / np.float32(448)).reshape(q.scales.shape))


@pytest.mark.parametrize("m", [1, 7])
def test_a_row_is_quantized_as_a_block_of_128_would_be(m: int) -> None:
    x = values(m, 128, seed=4)
    x[0] = 0
    blocks, rows = ws.quantize(x, "fp8_block"), ws.quantize(x, "fp8_row")
    assert rows.data.tobytes() == blocks.data.tobytes()
    assert rows.scales.tobytes() == blocks.scales.tobytes()
    assert rows.scales[0] == 1
    one = ws.quantize(x[:1].repeat(3, 0) + 2, "fp8_tensor")
    assert one.scales == ws.quantize(x[:1] + 2, "fp8_row").scales


@BOTH
def test_nan_spoils_its_own_row_or_matrix_alone(format: str) -> None:
    x = values(2, 3, 32)
    x[1, 2, 5] = np.inf
    q = ws.quantize(x, format)
    bad = np.zeros((2, 3), bool)
    bad[1, 2 if format == "fp8_row" else slice(None)] = True
    assert (np.isnan(ws.dequantize(q)).all(axis=-1) == bad).all()
    assert not q.data[bad].view(np.uint8).any()


@pytest.mark.parametrize(("a", "b"), WHOLE_SCALED)
def test_products_are_those_of_the_values(a: str, b: str) -> None:
    x, w, bias = ws.quantize(values(2, 5, 64), a), ws.quantize(values(2, 16, 64, seed=1), b), values(16)
    want = ws.dequantize(x).astype(np.float64) @ ws.dequantize(w).astype(np.float64).swapaxes(1, 2) + bias
    np.testing.assert_allclose(ws.gemm(x, w, bias=bias), want, rtol=1e-5, atol=1e-5)
    rows = ws.quantize(values(6, 64), a)
    grouped = ws.grouped_gemm(rows, w, offsets=np.array([0, 2, 6]))
    left = ws.dequantize(rows).astype(np.float64)
    right = ws.dequantize(w).astype(np.float64)
    np.testing.assert_allclose(grouped[:2], left[:2] @ right[0].T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grouped[2:], left[2:] @ right[1].T, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused_with_what_to_do() -> None:
    x = values(4, 48)
    q = ws.quantize(x, "fp8_row")
    with pytest.raises(FormatError, match="K = 40 must be a positive multiple of 16"):
        ws.quantize(values(4, 40), "fp8_row")
    with pytest.raises(FormatError, match="needs no offsets: leave them out"):
        ws.quantize(x, "fp8_row", offsets=np.array([0, 4]))
    with pytest.raises(FormatError, match="needs no offsets: pass them to grouped_gemm"):
        ws.QTensor(q.data, q.scales, "fp8_row", q.shape, offsets=np.array([0, 4]))
    with pytest.raises(FormatError, match=r"scales has shape \[4, 1\]; expected \[4\]"):
        ws.QTensor(q.data, q.scales[:, None], "fp8_row", q.shape)
    with pytest.raises(FormatError, match=r"go with each other alone, not with fp16"):
        ws.gemm(x.astype(np.float16), q)
    with pytest.raises((FormatError, InvalidArgumentError)):
        ws.quantize(x, "fp8_row", global_scale=2.0)


def test_prepared_weights_keep_their_scales_beside_their_rows() -> None:
    w = values(8, 32)
    for format in WHOLE:
        prepared = ws.prepare_weight(ws.quantize(w, format), "fp8_row", interleaved=True)
        want = np.concatenate([w[0::2], w[1::2]])
        assert np.abs(ws.dequantize(prepared) - want).max() <= np.abs(w).max() / 27


@pytest.mark.parametrize(("a", "b"), WHOLE_SCALED)
def test_one_kernel_serves_all_four_pairs_and_every_gpu_has_one(a: str, b: str) -> None:
    fields = {"format": pair(a, b), "mode": "dense", "layout": "tiled", "path": "default"}
    problem = Problem.of("gemm", fields, {"m": 512, "n": 4096, "k": 4096, "batches": 1})
    for capability, kernel in (
        ("9.0", "sm90_gemm"),
        ("8.0", "sm80_gemm"),
        ("12.1", "sm80_gemm"),
        ("10.0", "sm80_gemm"),
    ):
        decision = resolve(CATALOG, problem, DeviceFacts(Capability.parse(capability), 132))
        assert decision.choice is not None
        assert decision.choice.kernel == kernel
        assert decision.choice.variant.startswith("fp8_row_x_fp8_row_")


def test_launches_say_which_scales_are_one_for_all() -> None:
    tile = tile_of(KERNEL, "fp8_row_x_fp8_row_t128x128")
    size, either = Size("dense", 300, 512, 4096), ONE_SCALE_A | ONE_SCALE_B
    flags = [
        map_launch(tile, size, Operand(a, 4096), Operand(b, 4096), Output("bf16", 1024), sm_count=132).tail[11]
        for a, b in WHOLE_SCALED
    ]
    assert [f & either for f in flags] == [0, ONE_SCALE_B, ONE_SCALE_A, either]
    small = next(t for name, t in _portable_tiles().items() if name.endswith("rows64"))
    launch = sm80_launch(small, size, Operand("fp8_tensor", 4096), Operand("fp8_row", 4096), Output("bf16", 1024))
    assert launch.tail[-1] & either == ONE_SCALE_A
    assert (scale_bytes("fp8_row", "linear", 300, 4096), scale_bytes("fp8_tensor", "linear", 300, 4096)) == (1200, 4)


def _portable_tiles() -> dict[str, object]:
    from warpsmith.catalog.gemm import sm80_tile

    return {name: sm80_tile(name) for name in ("fp8_row_x_fp8_row_rows16", "fp8_row_x_fp8_row_rows64")}


def test_quantizing_takes_one_launch_a_row_and_two_a_matrix() -> None:
    (row,) = arguments.whole_launches("fp8_row", "bf16", m=5000, k=4096, row_stride=4096, batches=2)
    assert (row.grid, row.tail) == ((5000, 2, 1), (4096, 0, 5000, 512, 2, 1024, 3))
    second, first = arguments.whole_launches("fp8_tensor", "fp32", m=5000, k=32, row_stride=33, x_address=4)
    assert (first.grid, second.grid) == ((1024, 1, 1), (2048, 1, 1))
    assert first.tail == second.tail == (33, 0, 5000, 4, 1, 1024, arguments.VECTOR_CODES)


def test_every_target_has_the_kernels_that_quantize() -> None:
    for target in ("sm_80", "sm_90a", "sm_121a"):
        facts = DeviceFacts(parse(target).capability, 100)
        for format in WHOLE:
            fields = {"format": format, "input": "bf16", "layout": "linear"}
            decision = resolve(CATALOG, Problem.of("quantize", fields, {"m": 64, "k": 4096}), facts)
            assert decision.choice is not None
            assert decision.choice.kernel == "quantize_whole"
        before = resolve(CATALOG, Problem.of("matrix_amax", {"input": "bf16"}, {"m": 64, "k": 4096}), facts)
        assert before.choice is not None
