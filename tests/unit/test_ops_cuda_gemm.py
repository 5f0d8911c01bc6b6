# SPDX-License-Identifier: Apache-2.0
"""What the CUDA half of `gemm` plans and launches, with torch's CPU tensors and a runtime that only notes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gemm_notes import PORTABLE, Notes, without_device

import warpsmith as ws
from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.gemm import PAIRS, k_multiple
from warpsmith.catalog.spec import Problem
from warpsmith.errors import InvalidArgumentError
from warpsmith.ops import gemm_args as args

torch = pytest.importorskip("torch")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    return without_device(monkeypatch, PORTABLE)


@pytest.fixture
def notes(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> Notes:
    made = Notes(PORTABLE)
    monkeypatch.setattr(cuda, "runtime", lambda: made)
    return made


def plain(*shape: int) -> Any:
    return torch.zeros(*shape, dtype=torch.bfloat16)


def quantized(format: str, *shape: int, **options: Any) -> ws.QTensor:
    return ws.quantize(torch.ones(*shape), format, **options)


def dense(cuda: Any, a: Any, b: Any, bias: Any = None, out_dtype: Any = None, out: Any = None) -> Any:
    return cuda.dense(a, b, bias, out_dtype, out)


def test_pointers_and_strides_are_those_of_the_tensors(cuda: Any, notes: Notes) -> None:
    a, b = plain(300, 4096), quantized("nvfp4", 512, 4096, scale_layout="128x4", global_scale=2.0)
    bias = torch.zeros(512)
    d = dense(cuda, a, b, bias)
    assert (tuple(d.shape), d.dtype) == ((300, 512), torch.bfloat16)
    variant, grid, given = notes.launches[-1]
    assert variant == "bf16_x_nvfp4_large"
    pointers = {"a": a, "b": b.data, "d": d, "b_scales": b.scales, "bias": bias, "b_global_scale": b.global_scale}
    assert {name: given[name] for name in pointers} == {name: t.data_ptr() for name, t in pointers.items()}
    assert [given[name] for name in ("a_scales", "a_global_scale", "index", "alphas")] == [0] * 4
    assert [given[name] for name in ("a_row", "b_row", "d_row", "bias_batch")] == [8192, 2048, 1024, 0]
    assert [given[name] for name in ("m", "n", "k", "batches", "alpha")] == [300, 512, 4096, 1, 1.0]
    assert given["flags"] == 3 << 4 | args.TILED_SCALES_B
    assert grid[1] > 1
    assert given["workspace"]
    assert given["arrivals"]


def test_a_plan_is_made_once_for_what_makes_it(cuda: Any, notes: Notes) -> None:
    a, b = plain(4, 256), quantized("mxfp8", 16, 256)
    for _ in range(3):
        dense(cuda, a, b)
        dense(cuda, plain(4, 256), quantized("mxfp8", 16, 256))
    assert len(notes.problems) == 1
    changes = [
        lambda: dense(cuda, plain(5, 256), b),
        lambda: dense(cuda, plain(4, 512)[:, :256], b),
        lambda: dense(cuda, a.half(), b),
        lambda: dense(cuda, a, quantized("mxfp8", 24, 256)),
        lambda: dense(cuda, a, quantized("mxfp8", 16, 256, scale_layout="128x4")),
        lambda: dense(cuda, a, quantized("mxfp4", 16, 256)),
        lambda: dense(cuda, a, b, torch.zeros(16)),
        lambda: dense(cuda, a, b, None, "float32"),
        lambda: dense(cuda, a, b, None, None, torch.empty(4, 16)),
    ]
    for number, change in enumerate(changes, 2):
        change()
        change()
        assert len(notes.problems) == number


def test_batches_of_a_with_one_b_are_one_matrix_where_they_lie_like_one(cuda: Any, notes: Notes) -> None:
    b = plain(64, 256)
    for a in (plain(6, 5, 256), plain(2, 3, 1, 256), plain(6, 5, 512)[..., :256], plain(6, 2, 256)[:, :1]):
        d = dense(cuda, a, b)
        assert (notes.last["m"], notes.last["batches"]) == (a.numel() // 256, 1)
        assert tuple(d.shape) == (*a.shape[:-1], 64)
    assert notes.last["a_row"] == 2 * 512
    dense(cuda, plain(6, 9, 256)[:, :5], b)
    assert [notes.last[n] for n in ("m", "batches", "a_batch", "b_batch")] == [5, 6, 9 * 512, 0]
    dense(cuda, plain(6, 5, 256), b, None, None, plain(6, 9, 64)[:, :5])
    assert [notes.last[n] for n in ("m", "batches", "d_batch")] == [5, 6, 9 * 128]
    dense(cuda, plain(6, 5, 256), b, plain(6, 64))
    assert [notes.last[n] for n in ("m", "batches", "bias_batch")] == [5, 6, 128]
    dense(cuda, plain(6, 5, 256), plain(6, 64, 256))
    assert [notes.last[n] for n in ("m", "batches", "b_batch")] == [5, 6, 64 * 512]
    dense(cuda, plain(5, 256), plain(6, 64, 256))
    assert [notes.last[n] for n in ("m", "batches", "a_batch")] == [5, 6, 0]


@pytest.mark.parametrize(("m", "layout", "folded"), [(5, "linear", True), (5, "128x4", False), (128, "128x4", True)])
def test_quantized_batches_are_one_matrix_where_their_scales_are(
    cuda: Any, notes: Notes, m: int, layout: str, folded: bool
) -> None:
    dense(cuda, quantized("mxfp8", 2, m, 256, scale_layout=layout), quantized("mxfp8", 64, 256))
    assert (notes.last["m"], notes.last["batches"]) == ((2 * m, 1) if folded else (m, 2))
    if not folded:
        assert notes.last["a_scale_batch"] == 128 * 8


def test_what_the_kernels_cannot_read_is_copied(cuda: Any, notes: Notes) -> None:
    b = plain(64, 256)
    odd = torch.zeros(4 * 256 + 1, dtype=torch.bfloat16)[1:].view(4, 256)
    for a in (odd, plain(256, 4).t(), plain(4, 260)[:, :256]):
        dense(cuda, a, b)
        assert notes.last["a"] != a.data_ptr()
        assert notes.last["a"] % 16 == 0
        assert notes.last["a_row"] == 512
    q = quantized("mxfp8", 64, 256)
    shifted = torch.zeros(64 * 256 + 1, dtype=torch.uint8)[1:].view(torch.float8_e4m3fn).view(64, 256)
    dense(cuda, plain(4, 256), ws.QTensor(shifted, q.scales, "mxfp8", (64, 256)))
    assert notes.last["b"] % 16 == 0


def test_groups_and_masks(cuda: Any, notes: Notes) -> None:
    experts = quantized("mxfp8", 3, 64, 256)
    offsets = torch.tensor([0, 5, 5, 20])
    a = quantized("mxfp8", 20, 256, scale_layout="128x4", offsets=offsets)
    d = cuda.grouped(a, experts, offsets, None, None, None, None)
    assert tuple(d.shape) == (20, 64)
    assert notes.problems[-1] == Problem.of(
        "gemm",
        {"format": "mxfp8_x_mxfp8", "mode": "grouped", "layout": "linear", "path": "default"},
        {"m": 7, "n": 64, "k": 256, "batches": 3},
    )
    assert [notes.last[n] for n in ("m", "batches", "index")] == [20, 3, offsets.data_ptr()]
    assert notes.last["flags"] == 1 | args.INDEX_64 | args.TILED_SCALES_A
    counts = torch.tensor([1, 0, 9], dtype=torch.int32)
    d = cuda.grouped(plain(3, 9, 256), experts, None, counts, None, "float32", None)
    assert tuple(d.shape) == (3, 9, 64)
    assert [notes.last[n] for n in ("m", "batches", "index")] == [9, 3, counts.data_ptr()]
    assert notes.last["flags"] & 0xFFFF == 2 | 2 << 2  # above them the warps along K
    with pytest.raises(InvalidArgumentError, match="leave them out"):
        cuda.grouped(a, experts, offsets.clone(), None, None, None, None)


def test_nothing_is_launched_for_nothing(cuda: Any, notes: Notes) -> None:
    assert dense(cuda, plain(0, 256), plain(64, 256)).shape == (0, 64)
    assert dense(cuda, plain(2, 0, 256), plain(64, 256)).shape == (2, 0, 64)
    assert dense(cuda, plain(0, 4, 256), plain(0, 64, 256)).shape == (0, 4, 64)
    assert notes.launches == []


def split_call(cuda: Any, notes: Notes) -> int:
    """Where the counters of a product that is split along K are."""
    dense(cuda, plain(16, 8192), plain(64, 8192))
    assert notes.launches[-1][1][1] > 1
    return int(notes.last["arrivals"])


def test_each_stream_has_counters_of_its_own(cuda: Any, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    first = split_call(cuda, notes)
    assert split_call(cuda, notes) == first
    monkeypatch.setattr(cuda, "_current_stream", lambda _: 8)
    assert split_call(cuda, notes) != first
    assert set(cuda._arrivals) == {(-1, 7), (-1, 8)}
    assert all((words == 0).all() for words in cuda._arrivals.values())


def test_counters_grow(cuda: Any) -> None:
    where = torch.device("cpu")
    small = cuda._counters(-1, 7, 10, where)
    assert cuda._counters(-1, 7, 1024, where) is small
    large = cuda._counters(-1, 7, 1025, where)
    assert large.shape[0] >= 1025
    assert cuda._counters(-1, 7, 10, where) is large


@pytest.mark.parametrize("why", ["capture", "per-thread stream"])
def test_launches_that_may_run_beside_each_other_share_no_counters(
    cuda: Any, notes: Notes, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "capture":
        monkeypatch.setattr(cuda.torch.cuda, "is_current_stream_capturing", lambda: True)
    else:
        monkeypatch.setattr(cuda, "_current_stream", lambda _: 2)
    made = []
    zeros = torch.zeros
    monkeypatch.setattr(cuda.torch, "zeros", lambda *a, **k: made.append(zeros(*a, **k)) or made[-1])
    split_call(cuda, notes)
    split_call(cuda, notes)
    assert cuda._arrivals == {}
    assert len([t for t in made if t.dtype == torch.int32]) == 2


def bad_outs() -> dict[str, tuple[Any, str]]:
    """An `out` for [4, 256] by [64, 256] that cannot be written, and what the error says."""
    return {
        "columns": (plain(64, 4).t(), "columns that are not contiguous"),
        "pitch": (torch.empty(4, 66)[:, :64], "multiples of 16 bytes"),
        "address": (torch.empty(4 * 64 + 1)[1:].view(4, 64), "multiples of 16 bytes"),
        "rows": (torch.empty(64).expand(4, 64), "rows that overlap"),
        "shape": (torch.empty(64, 4), "out has shape [64, 4]; expected [4, 64]"),
        "dtype": (torch.empty(4, 64, dtype=torch.float64), "'float64' is unknown"),
        "kind": (np.empty((4, 64), np.float32), "out is a ndarray; expected a Tensor"),
    }


@pytest.mark.parametrize("name", bad_outs())
def test_an_out_that_cannot_be_written_is_refused(cuda: Any, notes: Notes, name: str) -> None:
    out, says = bad_outs()[name]
    with pytest.raises(InvalidArgumentError) as caught:
        dense(cuda, plain(4, 256), plain(64, 256), None, None, out)
    assert says in str(caught.value)
    assert notes.launches == []


def test_an_out_in_the_memory_of_an_operand_is_refused_each_time(cuda: Any, notes: Notes) -> None:
    memory = plain(4 * 256 + 4 * 64)
    a, apart, within = memory[: 4 * 256].view(4, 256), memory[4 * 256 :].view(4, 64), memory[: 4 * 64].view(4, 64)
    b = plain(64, 256)
    assert dense(cuda, a, b, None, None, apart) is apart
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match="out shares memory with a:"):
            dense(cuda, a, b, None, None, within)
    weights = plain(64, 64)
    with pytest.raises(InvalidArgumentError, match="out shares memory with b:"):
        dense(cuda, plain(4, 64), weights, None, None, weights[:4])
    assert len(notes.launches) == 1


# Values: the launches computed by the emulator, beside the same call on the host.


def values(format: str, *shape: int, seed: int, **options: Any) -> Any:
    """A random operand of a format."""
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))
    if format in ("bf16", "fp16"):
        return x.bfloat16() if format == "bf16" else x.half()
    return ws.quantize(x, format, **options)


def layout_of(format: str) -> dict[str, str]:
    """The last scale layout of a format, as an option."""
    return {"scale_layout": FORMATS[format].layouts[-1]} if format in FORMATS else {}


def near(got: Any, want: Any) -> bool:
    return bool((got.double() - want.double()).norm() <= 1e-6 * want.double().norm())


@pytest.fixture
def computing(notes: Notes) -> Notes:
    notes.computes = True
    return notes


@pytest.mark.parametrize(("a_format", "b_format"), PAIRS)
@pytest.mark.usefixtures("computing")
def test_a_dense_product_is_that_of_the_host(cuda: Any, a_format: str, b_format: str) -> None:
    k = 2 * k_multiple(a_format, b_format)
    a = values(a_format, 2, 5, k, seed=1, **layout_of(a_format))
    b = values(b_format, 24, k, seed=2, **layout_of(b_format))
    bias = torch.arange(24.0)
    assert near(dense(cuda, a, b, bias, "float32"), ws.gemm(a, b, bias=bias, out_dtype="float32"))
    own = values(b_format, 2, 24, k, seed=3, **layout_of(b_format))
    out = torch.zeros(2, 9, 28)[:, :5, :24]
    dense(cuda, a, own, None, None, out)
    assert near(out, ws.gemm(a, own, out_dtype="float32"))


@pytest.mark.parametrize("layout", ["linear", "128x4"])
@pytest.mark.usefixtures("computing")
def test_groups_are_those_of_the_host(cuda: Any, layout: str) -> None:
    offsets = torch.tensor([0, 3, 3, 10], dtype=torch.int32)
    scales = torch.tensor([1.0, 2.0, 5.0])
    a = values("nvfp4", 12, 64, seed=1, scale_layout=layout, offsets=offsets, global_scale=scales)
    experts = [values("nvfp4", 16, 64, seed=s, scale_layout=layout, global_scale=float(s)) for s in (2, 3, 4)]
    data, tables = (torch.stack([getattr(q, part) for q in experts]) for part in ("data", "scales"))
    each = torch.tensor([2.0, 3.0, 4.0])
    b = ws.QTensor(data, tables, "nvfp4", (3, 16, 64), scale_layout=layout, global_scale=each)
    bias = torch.randn(3, 16)
    got = cuda.grouped(a, b, offsets, None, bias, "float32", None)
    want = ws.grouped_gemm(a, b, bias=bias, out_dtype="float32")
    assert near(got[:10], want[:10])
    masked, counts = values("bf16", 3, 7, 64, seed=5), torch.tensor([7, 0, 2])
    got = cuda.grouped(masked, b, None, counts, None, "float32", torch.zeros(3, 7, 16))
    assert near(got, ws.grouped_gemm(masked, b, counts=counts, out_dtype="float32"))
