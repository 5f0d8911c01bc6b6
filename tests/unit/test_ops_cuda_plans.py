# SPDX-License-Identifier: Apache-2.0
"""What the CUDA half plans and launches, with torch's CPU tensors and a runtime that only notes what it is asked."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_samples import FORMAT_LAYOUTS

from warpsmith import QTensor, reference
from warpsmith.arch import parse
from warpsmith.catalog import CATALOG
from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.resolve import DeviceFacts, resolve
from warpsmith.catalog.spec import CubinId, Problem
from warpsmith.errors import FormatError, InvalidArgumentError
from warpsmith.ops import quantization_args as arguments

torch = pytest.importorskip("torch")
NOWHERE = -1  # the device number of a CPU tensor


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`warpsmith.ops.cuda` with empty tables and no device behind it."""
    from warpsmith.ops import cuda

    monkeypatch.setattr(cuda, "_plans", {})
    monkeypatch.setattr(cuda, "_dequantize_plans", {})
    monkeypatch.setattr(cuda, "_current_stream", lambda _: 0)
    return cuda


class Notes:
    """A runtime whose kernels note their launches."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.launches: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
        self.peek: dict[str, int] = {}  # parameter → how many bytes there to note
        self.seen: dict[str, bytes] = {}

    def prepare(self, problem: Problem, device: int) -> Any:
        assert device == NOWHERE
        self.problems.append(problem)
        decision = resolve(CATALOG, problem, DeviceFacts(parse("sm_90a").capability, 132))
        assert decision.choice is not None
        return NotingKernel(decision.choice, self)


class NotingKernel:
    def __init__(self, cubin: CubinId, notes: Notes) -> None:
        self.cubin = cubin
        self.notes = notes

    def launch(self, grid: tuple[int, ...], args: tuple[int, ...], stream: int) -> None:
        assert stream == 0
        assert len(args) == len(CATALOG.kernel(self.cubin.kernel).params)
        assert all(isinstance(a, int) for a in args)
        self.notes.launches.append((self.cubin.kernel, grid, args))
        by_name = named(self.cubin.kernel, args)
        self.notes.seen = {name: ctypes.string_at(by_name[name], size) for name, size in self.notes.peek.items()}


@pytest.fixture
def notes(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> Notes:
    made = Notes()
    monkeypatch.setattr(cuda, "runtime", lambda: made)
    return made


def named(kernel: str, args: tuple[int, ...]) -> dict[str, int]:
    """The arguments of a launch by the kernel's parameter names."""
    return dict(zip((p.name for p in CATALOG.kernel(kernel).params), args, strict=True))


def quantize(cuda: Any, x: Any, format: str = "mxfp4", **options: Any) -> Any:
    names = "scale_layout", "global_scale", "rounding", "offsets", "out", "silu"
    defaults = dict(zip(names, ("linear", None, "ceil", None, None, False), strict=True))
    return cuda.quantize(x, format, *(defaults | options).values())


@st.composite
def strided(draw: st.DrawFn) -> Any:
    """A view of some storage: permuted, sliced, expanded, perhaps empty."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    x = torch.arange(int(np.prod(sizes)), dtype=torch.float32).reshape(sizes)
    x = x.permute(draw(st.permutations(range(x.dim()))))
    for dim in range(x.dim()):
        start, step = draw(st.integers(0, x.shape[dim])), draw(st.integers(1, 3))
        if draw(st.integers(0, 3)) == 0:
            x = x[(slice(None),) * dim + (slice(start, None, step),)]
        if x.shape[dim] == 1 and draw(st.booleans()):
            x = x.expand(*x.shape[:dim], draw(st.integers(1, 3)), *x.shape[dim + 1 :])
    return x


@given(x=strided())
@settings(max_examples=300, deadline=None)
def test_rows_are_where_the_strides_say(x: Any) -> None:
    from warpsmith.ops.cuda import _rows

    rows, batches, row_stride, batch_stride = _rows(x)
    assert rows.shape == x.shape
    assert rows.equal(x)
    if x.numel():
        m, k = x.shape[-2:]
        assert batches * m * k == x.numel()
        seen = rows.as_strided((batches, m, k), (batch_stride, row_stride, 1), rows.storage_offset())
        assert seen.equal(x.reshape(batches, m, k))


def test_only_what_has_to_be_is_copied(cuda: Any) -> None:
    x = torch.zeros(4, 6, 20, 256)
    for view in (x, x[:, :, ::3, 64:128], x[:2], x[1:3, 2], x[:1, :, :5], x[:, 3:4], x.expand(4, 6, 20, 256)):
        assert cuda._rows(view)[0] is view
    assert cuda._rows(x)[1:] == (24, 256, 20 * 256)
    assert cuda._rows(x[:, :1])[1:] == (4, 256, 6 * 20 * 256)
    assert cuda._rows(x[0, 0, :1].expand(7, 256))[1:] == (1, 0, 0)
    for view in (x[..., ::2], x.transpose(-1, -2), x.transpose(0, 1), x[:, :3]):
        assert cuda._rows(view)[0].is_contiguous()


def test_tables_are_bounded(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_MAX_PLANS", 3)
    plans: dict[int, int] = {}
    for number in range(10):
        assert cuda._remember(plans, number, -number) == -number
        assert len(plans) <= 3
        assert plans[number] == -number


def test_a_plan_is_made_once_for_what_makes_it(cuda: Any, notes: Notes) -> None:
    x = torch.zeros(2, 8, 256)
    for _ in range(3):
        quantize(cuda, x)
        quantize(cuda, torch.ones(2, 8, 256))
    assert len(notes.problems) == 1
    changes: list[Callable[[], object]] = [
        lambda: quantize(cuda, x[:, :4]),
        lambda: quantize(cuda, torch.zeros(2, 8, 512)[..., :256]),
        lambda: quantize(cuda, x[..., :128]),
        lambda: quantize(cuda, x.half()),
        lambda: quantize(cuda, x, "mxfp8"),
        lambda: quantize(cuda, x, scale_layout="128x4"),
        lambda: quantize(cuda, x, rounding="floor"),
        lambda: quantize(cuda, x, silu=True),
        lambda: quantize(cuda, x[0], offsets=torch.tensor([0, 8])),
        lambda: quantize(cuda, x[0], offsets=torch.tensor([0, 8], dtype=torch.int32)),
        lambda: quantize(cuda, x[0], offsets=torch.tensor([0, 4, 8])),
        lambda: quantize(cuda, torch.zeros(2 * 8 * 256 + 1)[1:].reshape(2, 8, 256)),
    ]
    for number, change in enumerate(changes, 2):
        change()
        change()
        assert len(notes.problems) == number


@pytest.mark.parametrize(("format", "layout"), FORMAT_LAYOUTS)
def test_outputs_are_of_the_references_shapes(cuda: Any, notes: Notes, format: str, layout: str) -> None:
    scale = torch.ones(1) if format == "nvfp4" else None
    x = torch.zeros(3, 130, 256)
    q = quantize(cuda, x, format, scale_layout=layout, global_scale=scale)
    assert tuple(q.scales.shape) == reference.scale_shape(format, (3, 130, 256), scale_layout=layout)
    again = QTensor(q.data, q.scales, format, (3, 130, 256), scale_layout=layout, global_scale=q.global_scale)
    ((kernel, _, args),) = notes.launches
    by_name = named(kernel, args)
    assert (by_name["x"], by_name["codes"], by_name["scales"]) == (x.data_ptr(), q.data.data_ptr(), q.scales.data_ptr())
    assert by_name.get("global_scale", 0) == (0 if scale is None else scale.data_ptr())
    out = cuda.dequantize(again, "float32", None)
    assert (tuple(out.shape), out.dtype) == ((3, 130, 256), torch.float32)
    by_name = named("dequantize", notes.launches[-1][2])
    assert (by_name["codes"], by_name["out"]) == (q.data.data_ptr(), out.data_ptr())


def test_a_strided_input_is_copied_once_and_its_result_is_whole(cuda: Any, notes: Notes) -> None:
    x = torch.zeros(64, 8, 2).transpose(0, 1)[..., 0]
    q = quantize(cuda, x)
    assert q.shape == (8, 64)
    ((_, _, args),) = notes.launches
    assert named("quantize", args)["x"] != x.data_ptr()
    assert named("quantize", args)["row_stride"] == 64


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_launched_for_nothing(cuda: Any, notes: Notes, format: str) -> None:
    swapped = torch.zeros(2, 3, 5, 256).transpose(0, 1)[:, :, :0]  # no rows, and no common stride
    for x in (torch.zeros(0, 128), torch.zeros(0, 5, 128), torch.zeros(3, 0, 128), swapped):
        q = quantize(cuda, x, format, global_scale=torch.ones(1) if format == "nvfp4" else None)
        assert q.shape == tuple(x.shape)
        assert cuda.dequantize(q, "float16", None).shape == x.shape
    assert cuda.default_scale(swapped).tolist() == [1.0]
    assert notes.launches == []


def test_the_tiles_of_groups_without_rows_are_zero(cuda: Any, notes: Notes) -> None:
    offsets = torch.zeros(4, dtype=torch.int32)
    out = QTensor(
        torch.empty(0, 64, dtype=torch.uint8), torch.full((256, 4), 7, dtype=torch.uint8), "mxfp4", (0, 128),
        scale_layout="128x4", offsets=offsets,
    )  # fmt: skip
    q = quantize(cuda, torch.zeros(0, 128), scale_layout="128x4", offsets=offsets, out=out)
    assert q.scales is out.scales
    assert not q.scales.any()
    assert not quantize(cuda, torch.zeros(0, 128), scale_layout="128x4", offsets=offsets).scales.view(torch.uint8).any()
    assert notes.launches == []


@pytest.mark.parametrize("offset", range(9))
def test_vector_stores_need_outputs_aligned_to_8_bytes(cuda: Any, notes: Notes, offset: int) -> None:
    memory = torch.zeros(8 * 64 + 16, dtype=torch.uint8)
    start = -memory.data_ptr() % 16 + offset
    for part in ("data", "scales"):
        fresh = quantize(cuda, torch.zeros(8, 128))
        parts = {"data": fresh.data, "scales": fresh.scales}
        shape = parts[part].shape
        parts[part] = memory[start : start + shape.numel()].view(shape)
        quantize(cuda, torch.zeros(8, 128), out=QTensor(**parts, format="mxfp4", shape=(8, 128)))
        flags = named("quantize", notes.launches[-1][2])["flags"]
        both = arguments.VECTOR_CODES | arguments.VECTOR_SCALES
        assert flags & both == (both if offset % 8 == 0 else 0)


@pytest.mark.parametrize(("codes_at", "out_at", "vector"), [(0, 0, True), (8, 16, True), (4, 0, False), (0, 8, False)])
def test_vector_loads_need_codes_and_an_output_that_are_aligned(
    cuda: Any, notes: Notes, codes_at: int, out_at: int, vector: bool
) -> None:
    memory = torch.zeros(4096, dtype=torch.uint8)
    base = -memory.data_ptr() % 16
    codes = memory[base + codes_at :][: 8 * 64].view(8, 64)
    out = memory[base + 1024 + out_at :][: 8 * 128 * 2].view(torch.bfloat16).view(8, 128)
    q = QTensor(codes, torch.zeros(8, 4, dtype=torch.uint8), "mxfp4", (8, 128))
    assert cuda.dequantize(q, "bfloat16", out) is out
    flags = named("dequantize", notes.launches[-1][2])["flags"]
    both = arguments.VECTOR_CODES | arguments.VECTOR_ROWS
    assert flags & both == (both if vector else 0)


def test_the_default_scale_takes_two_kernels(cuda: Any, notes: Notes) -> None:
    q = quantize(cuda, torch.zeros(8, 128), "nvfp4")
    assert [kernel for kernel, _, _ in notes.launches] == ["amax_partial", "global_scale", "quantize"]
    first, second, third = (named(kernel, args) for kernel, _, args in notes.launches)
    assert first["partials"] == second["partials"]
    assert second["global_scale"] == third["global_scale"] == q.global_scale.data_ptr()


def test_a_strided_global_scale_and_strided_parts_are_read_from_copies(cuda: Any, notes: Notes) -> None:
    offsets = torch.tensor([0, 4, 8], dtype=torch.int32)
    each = torch.arange(1.0, 5.0)[::2]
    q = quantize(cuda, torch.zeros(8, 128), "nvfp4", offsets=offsets, global_scale=each)
    by_name = named("quantize", notes.launches[-1][2])
    assert by_name["global_scale"] == q.global_scale.data_ptr() != each.data_ptr()
    assert by_name["offsets"] == offsets.data_ptr()
    wide = QTensor(
        torch.zeros(8, 128, dtype=torch.uint8)[:, ::2], torch.zeros(8, 8, dtype=torch.uint8), "nvfp4", (8, 128),
        global_scale=each, offsets=torch.tensor([0, 0, 4, 4, 8, 8], dtype=torch.int32)[::2],
    )  # fmt: skip
    notes.peek = {"global_scale": 8, "offsets": 12}
    cuda.dequantize(wide, "float32", None)
    assert np.frombuffer(notes.seen["global_scale"], np.float32).tolist() == [1, 3]  # the copies are still alive
    assert np.frombuffer(notes.seen["offsets"], np.int32).tolist() == [0, 4, 8]


@pytest.mark.parametrize(
    ("scale", "groups", "error", "text"),
    [
        ("np.ones", 0, InvalidArgumentError, "global_scale is a ndarray; expected a float32 tensor or a number"),
        ("double", 0, FormatError, "global_scale is float64; expected float32"),
        ("empty", 0, FormatError, "global_scale has 0 elements; expected 1"),
        ("two", 3, FormatError, "global_scale has 2 elements; expected 1 or 3"),
        (True, 0, InvalidArgumentError, "global_scale is a bool; expected a float32 tensor or a number"),
        (10**400, 0, InvalidArgumentError, "is not positive and finite in float32"),
        (np.float32("nan"), 0, InvalidArgumentError, "is not positive and finite in float32"),
    ],
)
def test_a_global_scale_that_does_not_fit(
    cuda: Any, scale: Any, groups: int, error: type[Exception], text: str
) -> None:
    made = {
        "np.ones": np.ones(1, np.float32),
        "double": torch.ones(1, dtype=torch.float64),
        "empty": torch.ones(0),
        "two": torch.ones(2),
    }
    given_scale = made[scale] if isinstance(scale, str) else scale
    with pytest.raises(InvalidArgumentError) as caught:
        cuda._device_scale(given_scale, NOWHERE, groups)
    assert type(caught.value) is error
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("offsets", "text"),
    [
        ([0, 8], "offsets is a list; expected an int32 or int64 tensor"),
        (np.array([0, 8]), "offsets is on numpy and x on cpu; expected the same device"),
        ("short", "offsets is int16 of shape [2]; expected int32 or int64 [groups + 1]"),
        ("one", "offsets is int32 of shape [1]; expected int32 or int64 [groups + 1]"),
        ("matrix", "offsets is int64 of shape [1, 2]; expected int32 or int64 [groups + 1]"),
        ("strided", "offsets is not contiguous; expected a contiguous tensor"),
    ],
    ids=str,
)
def test_offsets_that_do_not_fit(cuda: Any, notes: Notes, offsets: Any, text: str) -> None:
    made = {
        "short": torch.tensor([0, 8], dtype=torch.int16),
        "one": torch.tensor([0], dtype=torch.int32),
        "matrix": torch.tensor([[0, 8]]),
        "strided": torch.tensor([0, 0, 8, 8])[::2],
    }
    given_offsets = made[offsets] if isinstance(offsets, str) else offsets
    for good in (None, torch.tensor([0, 8]), torch.tensor([0, 8], dtype=torch.int32)):  # plans are at hand
        quantize(cuda, torch.zeros(8, 128), offsets=good)
    notes.launches.clear()
    with pytest.raises(FormatError) as caught:
        quantize(cuda, torch.zeros(8, 128), offsets=given_offsets)
    assert text in str(caught.value)
    assert notes.launches == []


@pytest.mark.parametrize(
    ("x", "options", "text"),
    [
        ((8, 128), {"format": "fp8_block_128x128", "offsets": True}, "has blocks of 128 rows and cannot be grouped"),
        ((1, 8, 128), {"offsets": True}, "a grouped x is [M, K]; this one has shape [1, 8, 128]"),
        ((8, 128), {"format": ["mxfp4"]}, "unknown format ['mxfp4']"),
        ((8, 128), {"scale_layout": ["linear"]}, "mxfp4 has no scale layout ['linear']"),
        ((8, 128), {"rounding": {}}, "rounding {} does not fit mxfp4"),
        ((8, 100), {}, "K = 100 must be a positive multiple of 32"),
        ((128,), {}, "x has shape [128]; expected [*batch, M, K]"),
        ((8, 128), {"global_scale": 1.0}, "mxfp4 has no global scale; leave global_scale out"),
        ((8, 128), {"format": "nvfp4", "silu": True}, "silu_and_mul_quantize to nvfp4 needs global_scale"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_not_launched(
    cuda: Any, notes: Notes, x: tuple[int, ...], options: dict[str, Any], text: str
) -> None:
    if options.get("offsets"):
        options = options | {"offsets": torch.tensor([0, 8])}
    for _ in range(2):  # with a plan at hand, too
        with pytest.raises(FormatError) as caught:
            quantize(cuda, torch.zeros(x), **options)
        assert text in str(caught.value)
    assert notes.launches == []


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("tensor", "out is a Tensor; expected a QTensor"),
        ("numpy", "out is on numpy and x on cpu; expected the same device"),
        ("format", "out has format 'mxfp8'; expected 'mxfp4'"),
        ("shape", "out has shape (7, 128); expected (8, 128)"),
        ("layout", "out has scale_layout '128x4'; expected 'linear'"),
        ("groups", "out has groups 1; expected 0"),
        ("strided", "out.data is not contiguous"),
    ],
)
def test_an_out_that_is_not_the_result(cuda: Any, notes: Notes, kind: str, text: str) -> None:
    x = torch.zeros(8, 128)
    plain = quantize(cuda, x)
    outs = {
        "tensor": plain.data,
        "numpy": QTensor(np.zeros((8, 64), np.uint8), np.zeros((8, 4), np.uint8), "mxfp4", (8, 128)),
        "format": quantize(cuda, x, "mxfp8"),
        "shape": quantize(cuda, x[:7]),
        "layout": quantize(cuda, x, scale_layout="128x4"),
        "groups": quantize(cuda, x, offsets=torch.tensor([0, 8])),
        "strided": QTensor(torch.zeros(8, 128, dtype=torch.uint8)[:, ::2], plain.scales, "mxfp4", (8, 128)),
    }
    before = len(notes.launches)
    with pytest.raises(FormatError) as caught:
        quantize(cuda, x, out=outs[kind])
    assert text in str(caught.value)
    assert len(notes.launches) == before


@pytest.mark.usefixtures("notes")
def test_an_out_without_groups_is_not_that_of_one_group(cuda: Any) -> None:
    x = torch.zeros(8, 128)
    with pytest.raises(FormatError, match="out has groups 0; expected 1"):
        quantize(cuda, x, offsets=torch.tensor([0, 8]), out=quantize(cuda, x))


def test_out_is_taken_as_it_is(cuda: Any, notes: Notes) -> None:
    x, offsets = torch.zeros(8, 128), torch.tensor([0, 8])
    for options in ({}, {"offsets": offsets}):
        out = quantize(cuda, x, **options)
        q = quantize(cuda, x, out=out, **options)
        assert q.data is out.data
        assert q.scales is out.scales
        by_name = named("quantize", notes.launches[-1][2])
        assert (by_name["codes"], by_name["scales"]) == (out.data.data_ptr(), out.scales.data_ptr())
