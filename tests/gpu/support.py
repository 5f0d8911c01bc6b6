# SPDX-License-Identifier: Apache-2.0
"""What the GPU tests share. Importing it skips a module where there is no GPU, or no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import warpsmith as ws
from warpsmith import reference
from warpsmith.catalog.formats import FORMATS

from . import need_gpu

need_gpu()
torch = pytest.importorskip("torch")

DEVICE = "cuda:0"
DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
FORMAT_LAYOUTS = [(f.name, layout) for f in FORMATS.values() for layout in f.layouts]
ROW_FORMAT_LAYOUTS = [
    (name, layout) for name, layout in FORMAT_LAYOUTS if FORMATS[name].block[0] == 1 and not FORMATS[name].whole
]
"""Those with scales of blocks of a row: what can be grouped, or made of SwiGLU."""
QUANTIZE_CASES = [
    *((format, layout, False) for format, layout in FORMAT_LAYOUTS),
    *((format, layout, True) for format, layout in ROW_FORMAT_LAYOUTS),
]
"""(format, layout, whether it is silu_and_mul_quantize)."""
_GUARD, _POISON = 256, 0xA5


def random(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Rows of many magnitudes, with zeros of both signs among the values."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 7, (*shape[:-1], 1))
    values[rng.random(shape) < 1 / 64] = 0.0
    values[rng.random(shape) < 1 / 64] = -0.0
    return values.astype(DTYPES[dtype])


def upload(array: np.ndarray, device: str = DEVICE) -> Any:
    """A copy on the GPU."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).to(device).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def download(tensor: Any) -> np.ndarray:
    """A copy in NumPy; one-byte types as their bits. Waits for the current stream."""
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16)
    return (tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor).cpu().numpy()


def assert_same(what: str, got: Any, want: np.ndarray, *, any_nan: bool = False) -> None:
    """Bit equality, NaN payloads aside if `any_nan`; the message says where the first difference is."""
    got = got if isinstance(got, np.ndarray) else download(got)
    assert (got.shape, got.dtype) == (want.shape, want.dtype), what
    bits = np.dtype(f"u{got.dtype.itemsize}")
    wrong = np.ascontiguousarray(got).view(bits) != np.ascontiguousarray(want).view(bits)
    if any_nan:
        wrong &= ~(np.isnan(got) & np.isnan(want))
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(f"{what}: {wrong.sum()} of {wrong.size} differ, first at {at}: {got[at]} for {want[at]}")


def scaled(format: str, value: float = 3.25) -> dict[str, Any]:
    """A global scale as an argument, for the format that has one."""
    return {"global_scale": np.float32(value)} if format == "nvfp4" else {}


def on_gpu(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the reference as those of the operations: arrays and NumPy scalars go to the GPU."""
    return {
        name: upload(np.atleast_1d(np.asarray(value))) if isinstance(value, (np.ndarray, np.generic)) else value
        for name, value in options.items()
    }


def check_quantize(x: np.ndarray, format: str, *, view: Any = None, silu: bool = False, **options: Any) -> ws.QTensor:
    """Quantize an array on the GPU (or `view`, a tensor with its values) and compare with the reference."""
    run, right = (
        (ws.silu_and_mul_quantize, reference.silu_and_mul_quantize) if silu else (ws.quantize, reference.quantize)
    )
    tensor = upload(x) if view is None else view
    codes, scales = right(x, format, **{name: value for name, value in options.items() if name != "out"})
    q = run(tensor, format, **on_gpu(options))
    assert_same("codes", q.data, codes)
    assert_same("scales", q.scales, scales)
    assert str(q.data.device) == str(tensor.device)
    return q


def guarded(shape: tuple[int, ...], dtype: Any, offset: int = 0) -> tuple[Any, Callable[[], None]]:
    """A poisoned tensor between guard bytes, `offset` bytes off its alignment, and a check that they are intact."""
    nbytes = int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
    start = _GUARD + offset
    memory = torch.full((start + nbytes + _GUARD,), _POISON, dtype=torch.uint8, device=DEVICE)

    def check() -> None:
        outside = torch.cat([memory[:start], memory[start + nbytes :]])
        assert (outside == _POISON).all(), "wrote outside of an output"

    return memory[start : start + nbytes].view(dtype).view(shape), check


def guarded_out(
    format: str, shape: tuple[int, ...], layout: str, *, offsets: Any = None, misaligned: bool = False
) -> tuple[ws.QTensor, Callable[[], None]]:
    """An `out` whose parts stand between guard bytes, and a check that these are intact."""
    spec = FORMATS[format]
    *batch, m, k = shape
    groups = 0 if offsets is None else len(offsets) - 1
    types = {"ue4m3": torch.float8_e4m3fn, "ue8m0": torch.float8_e8m0fnu, "fp32": torch.float32}
    data_type = torch.uint8 if spec.element_bits == 4 else torch.float8_e4m3fn
    data, check_data = guarded((*batch, m, spec.data_columns(k)), data_type, int(misaligned))
    scales, check_scales = guarded(
        spec.scale_shape(layout, tuple(batch), m, k, groups), types[spec.scale], spec.scale_bytes * misaligned
    )

    def check() -> None:
        check_data()
        check_scales()

    return ws.QTensor(data, scales, format, shape, scale_layout=layout, offsets=offsets), check


def kernels_used() -> set[str]:
    """The variants that quantizing has planned with so far."""
    from warpsmith.ops import cuda

    return {plan.kernel.cubin.variant for plan in cuda._plans.values() if plan.kernel is not None}
