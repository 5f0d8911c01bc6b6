# SPDX-License-Identifier: Apache-2.0
"""What the CUDA half of `gemm` plans and launches for kernels that take tensor maps, with no device behind it."""

from __future__ import annotations

from typing import Any

import gemm_emulator
import gemm_notes
import numpy as np
import pytest
from gemm_notes import Notes, without_device

import warpsmith as ws
from warpsmith.arch import Capability
from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.fp4_gemm import PAIRS
from warpsmith.catalog.gemm import EMULATED_PATH
from warpsmith.catalog.resolve import DeviceFacts
from warpsmith.errors import FormatError

torch = pytest.importorskip("torch")
EVERY_PAIR = pytest.mark.parametrize(("a_format", "b_format"), PAIRS)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = without_device(monkeypatch)
    monkeypatch.setattr(module, "DEFAULT_PATH", EMULATED_PATH)
    return module


@pytest.fixture
def notes(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> Notes:
    made = Notes()
    made.computes = True
    monkeypatch.setattr(cuda, "runtime", lambda: made)
    return made


def values(format: str, *shape: int, seed: int, **options: Any) -> ws.QTensor:
    """A random operand with tiled scales."""
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))
    return ws.quantize(x, format, scale_layout=FORMATS[format].layouts[-1], **options)


def weights(a_format: str, b_format: str, *shape: int, seed: int) -> ws.QTensor:
    return ws.prepare_weight(values(b_format, *shape, seed=seed), a_format)


def near(got: Any, want: Any) -> bool:
    return bool((got.double() - want.double()).norm() <= 1e-6 * want.double().norm())


def maps_of(notes: Notes) -> list[tuple[int, ...]]:
    """Address and specification of both maps of the last launch."""
    import struct

    return [struct.unpack_from("8q", notes.last[name]) for name in ("a_map", "b_map")]


@EVERY_PAIR
def test_a_product_is_that_of_the_host(cuda: Any, notes: Notes, a_format: str, b_format: str) -> None:
    a, b = values(a_format, 2, 5, 384, seed=1), weights(a_format, b_format, 24, 384, seed=2)
    bias = torch.arange(48.0).reshape(2, 24)
    assert near(cuda.dense(a, b, bias, "float32", None), ws.gemm(a, b, bias=bias, out_dtype="float32"))
    own, one = weights(a_format, b_format, 2, 24, 384, seed=3), values(a_format, 5, 384, seed=4)
    out = torch.zeros(2, 9, 28)[:, :5, :24]
    cuda.dense(a, own, None, None, out)
    assert near(out, ws.gemm(a, own, out_dtype="float32"))
    assert near(cuda.dense(one, own, None, "float32", None), ws.gemm(one, own, out_dtype="float32"))
    assert {p.rpartition("_")[0] for p, _, _ in notes.launches} == {f"{a_format}_x_{b_format}"}
    assert all("a_map" in given for _, _, given in notes.launches)


@EVERY_PAIR
@pytest.mark.usefixtures("notes")
def test_groups_and_masks_are_those_of_the_host(cuda: Any, a_format: str, b_format: str) -> None:
    b, bias = weights(a_format, b_format, 3, 16, 128, seed=2), torch.randn(3, 16)
    offsets = torch.tensor([0, 3, 3, 10], dtype=torch.int32)
    a = values(a_format, 12, 128, seed=1, offsets=offsets)
    got = cuda.grouped(a, b, offsets, None, bias, "float32", None)
    assert near(got[:10], ws.grouped_gemm(a, b, bias=bias, out_dtype="float32")[:10])
    masked, counts = values(a_format, 3, 7, 128, seed=5), torch.tensor([7, 0, 2])
    got = cuda.grouped(masked, b, None, counts, None, "float32", torch.zeros(3, 7, 16))
    assert near(got, ws.grouped_gemm(masked, b, counts=counts, out_dtype="float32"))


def test_the_arguments_are_what_the_contract_says(cuda: Any, notes: Notes) -> None:
    notes.computes = False
    a, b = values("nvfp4", 300, 4096, seed=1, global_scale=2.0), values("nvfp4", 512, 4096, seed=2, global_scale=4.0)
    bias = torch.zeros(512)
    d = cuda.dense(a, b, bias, None, None)
    variant, grid, given = notes.launches[-1]
    assert variant == "nvfp4_x_nvfp4_t128"
    tensors = {"a_scales": a.scales, "b_scales": b.scales, "d": d, "bias": bias, "b_global_scale": b.global_scale}
    assert {name: given[name] for name in tensors} == {name: t.data_ptr() for name, t in tensors.items()}
    assert [given[n] for n in ("alphas", "index", "a_scale_batch", "b_scale_batch")] == [0] * 4
    assert [given[n] for n in ("m", "n", "k", "batches", "alpha", "d_row")] == [300, 512, 4096, 1, 1.0, 1024]
    assert given["flags"] == 3 << 4
    assert maps_of(notes) == [
        (a.data.data_ptr(), 2048, 300, 1, 2048, 300 * 2048, 64, 128),
        (b.data.data_ptr(), 2048, 512, 1, 2048, 512 * 2048, 64, 128),
    ]
    assert grid == (min(132, 12 * given["splits"]), 1, 1)
    assert given["splits"] > 1
    assert given["workspace"]
    assert given["arrivals"]


def test_maps_are_made_once_for_each_address(cuda: Any, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    from warpsmith.runtime import tensor_map

    made: list[int] = []
    monkeypatch.setattr(tensor_map, "encode", lambda *x: made.append(x[2]) or gemm_emulator.encode(*x))
    notes.computes = False
    b = values("mxfp8", 64, 256, seed=1)
    inputs = [values("mxfp8", 4, 256, seed=s) for s in (2, 3, 2)]
    for _ in range(3):
        for a in inputs:
            cuda.dense(a, b, None, None, None)
    assert sorted(made) == sorted([b.data.data_ptr(), *(a.data.data_ptr() for a in inputs)])
    assert len(notes.problems) == 1


def test_batches_fold_where_their_scales_lie_as_one(cuda: Any, notes: Notes) -> None:
    notes.computes = False
    b = values("nvfp4", 64, 256, seed=1)
    for m, folded in ((5, False), (128, True)):
        cuda.dense(values("nvfp4", 2, m, 256, seed=2), b, None, None, None)
        assert (notes.last["m"], notes.last["batches"]) == ((2 * m, 1) if folded else (m, 2))
    cuda.dense(values("nvfp4", 2, 5, 256, seed=2), b, None, None, None)
    (_, _, _, batches, _, a_stride, _, _), (_, _, _, repeated, _, b_stride, _, _) = maps_of(notes)
    assert (batches, a_stride, repeated, b_stride) == (2, 5 * 128, 2, 0)
    assert (notes.last["a_scale_batch"], notes.last["b_scale_batch"]) == (128 * 16, 0)


def test_linear_scales_and_other_layouts_go_to_the_portable_kernel(cuda: Any, notes: Notes) -> None:
    tiled, linear = values("mxfp8", 16, 256, seed=1), ws.quantize(torch.ones(16, 256), "mxfp8")
    for a, b in ((linear, tiled), (tiled, linear)):
        cuda.dense(a, b, None, None, None)
        assert "a_map" not in notes.last
        assert dict(notes.problems[-1].fields)["layout"] == "linear"
    cuda.dense(tiled, tiled, None, None, None)
    assert "a_map" in notes.last
    plain = values("mxfp4", 16, 256, seed=2)
    cuda.dense(tiled, plain, None, None, None)
    assert "a_map" not in notes.last
    cuda.dense(tiled, ws.prepare_weight(plain, "mxfp8"), None, None, None)
    assert "a_map" in notes.last


def test_dispatch_leaves_tiled_operands_to_the_portable_kernel_on_9_0(
    cuda: Any, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "DEFAULT_PATH", "default")
    tiled = values("nvfp4", 16, 256, seed=1)
    cuda.dense(tiled, tiled, None, None, None)
    assert "a_map" not in notes.last


def test_prepared_weights_are_refused_where_they_would_be_misread(cuda: Any, notes: Notes) -> None:
    b = weights("mxfp8", "mxfp4", 16, 256, seed=1)
    for a, says in (
        (torch.ones(4, 256).bfloat16(), "b is prepared for mxfp8 activations, and a is bf16"),
        (values("mxfp4", 4, 256, seed=2), "b is prepared for mxfp8 activations, and a is mxfp4"),
        (ws.quantize(torch.ones(4, 256), "mxfp8"), "a has linear scales; beside prepared weights"),
        (b, "a is prepared as weights are"),
    ):
        for run in (lambda a=a: cuda.dense(a, b, None, None, None), lambda a=a: ws.gemm(a, b)):
            with pytest.raises(FormatError, match=says):
                run()
    assert notes.launches == []


def test_nothing_is_launched_for_nothing(cuda: Any, notes: Notes) -> None:
    b = values("nvfp4", 64, 256, seed=1)
    assert cuda.dense(values("nvfp4", 0, 256, seed=2), b, None, None, None).shape == (0, 64)
    assert notes.launches == []


@EVERY_PAIR
def test_on_12_1_no_path_has_to_be_asked_for(
    cuda: Any, notes: Notes, monkeypatch: pytest.MonkeyPatch, a_format: str, b_format: str
) -> None:
    monkeypatch.setattr(cuda, "DEFAULT_PATH", "default")
    monkeypatch.setattr(gemm_notes, "FACTS", DeviceFacts(Capability(12, 1), 48))
    notes.computes = False
    a, b = values(a_format, 8, 8192, seed=1), weights(a_format, b_format, 512, 8192, seed=2)
    cuda.dense(a, b, None, None, None)
    variant, grid, given = notes.launches[-1]
    assert variant == f"{a_format}_x_{b_format}_s8"
    assert given["splits"] > 1
    assert grid == (min(48, 4 * given["splits"]), 1, 1)


@pytest.fixture
def hopper(cuda: Any, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(cuda, "DEFAULT_PATH", "default")
    notes.computes = False
    return cuda


def plain(*shape: int) -> Any:
    return torch.zeros(*shape, dtype=torch.bfloat16)


def test_on_9_0_products_of_16_bits_take_wgmma_with_a_split_last_wave(hopper: Any, notes: Notes) -> None:
    hopper.dense(plain(900, 4096), plain(9216, 4096), None, None, None)
    variant, grid, given = notes.launches[-1]
    assert (variant, grid, given["splits"]) == ("bf16_x_bf16_t128x256", (132, 1, 1), 264 << 8 | 3)
    boxes = [numbers[6:] for numbers in maps_of(notes)]
    assert boxes == [(128, 128), (128, 256)]


def test_on_9_0_the_blocks_of_a_cluster_divide_k(hopper: Any, notes: Notes) -> None:
    hopper.dense(plain(8, 2048), plain(1024, 2048), None, None, None)
    variant, grid, given = notes.launches[-1]
    assert (variant, grid, given["splits"]) == ("bf16_x_bf16_s8k2", (32, 1, 1), 1)  # 16 tiles in two parts
    assert [numbers[6:] for numbers in maps_of(notes)] == [(128, 8), (128, 64)]


def test_on_9_0_fp8_blocks_take_wgmma_where_scales_are_m_major(hopper: Any, notes: Notes) -> None:
    b = values("fp8_block_128x128", 256, 512, seed=1)
    hopper.dense(values("fp8_block", 300, 512, seed=2), b, None, None, None)
    assert notes.launches[-1][0] == "fp8_block_x_fp8_block_128x128_t128x128"
    linear = ws.quantize(torch.ones(300, 512), "fp8_block", scale_layout="linear")
    hopper.dense(linear, b, None, None, None)
    assert notes.launches[-1][0] == "fp8_block_x_fp8_block_128x128_rows64"


def test_on_9_0_groups_are_counted_on_the_device(hopper: Any, notes: Notes) -> None:
    offsets = torch.tensor([0, 200, 200, 512], dtype=torch.int32)
    hopper.grouped(plain(512, 256), plain(3, 64, 256), offsets, None, None, None, None)
    variant, grid, given = notes.launches[-1]
    assert (variant, grid) == ("bf16_x_bf16_t128x128", (4 + 3, 1, 1))
    assert (given["m"], given["batches"], given["index"]) == (512, 3, offsets.data_ptr())
