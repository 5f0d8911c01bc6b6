# SPDX-License-Identifier: Apache-2.0
"""What does not fit is refused before anything runs, with what was given and what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ops_samples import FRAMEWORKS, give, needs_torch, random, same, take

import warpsmith as ws
from warpsmith.catalog.formats import FORMATS
from warpsmith.errors import FormatError, InvalidArgumentError

Call = Callable[[], object]
X = random(6, 128)
WIDE = random(6, 256)
NV = {"global_scale": 1.0}
OPERATIONS = [
    pytest.param(lambda x, *a, **k: ws.quantize(x, *a, **k), X, id="quantize"),
    pytest.param(lambda x, *a, **k: ws.silu_and_mul_quantize(x, *a, **k), WIDE, id="silu_and_mul_quantize"),
]
Quantize = Callable[..., ws.QTensor]


def refuses(call: Call, error: type[Exception], *parts: str) -> None:
    """The call fails with exactly this class, and the message holds each part."""
    with pytest.raises(InvalidArgumentError) as caught:
        call()
    assert type(caught.value) is error
    assert isinstance(caught.value, ValueError)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(("quantize", "x"), OPERATIONS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint8, np.bool_, np.complex64])
def test_wrong_dtype(quantize: Quantize, x: np.ndarray, framework: str, dtype: type) -> None:
    given = give(x.astype(dtype), framework)
    name = str(given.dtype).removeprefix("torch.")
    refuses(lambda: quantize(given, "mxfp4"), FormatError, f"x is {name}", "expected bfloat16, float16 or float32")


def test_wrong_byte_order() -> None:
    refuses(lambda: ws.quantize(X.astype(">f4"), "mxfp4"), FormatError, "x is >f4", "expected bfloat16, float16")


@pytest.mark.parametrize(("quantize", "x"), OPERATIONS)
@pytest.mark.parametrize("x_kind", ["a list", "None", "a number"])
def test_no_array_at_all(quantize: Quantize, x: np.ndarray, x_kind: str) -> None:
    given = {"a list": x.tolist(), "None": None, "a number": 1.0}[x_kind]
    expected = f"x is a {type(given).__name__}; expected a torch tensor or a NumPy array"
    refuses(lambda: quantize(given, "mxfp4"), InvalidArgumentError, expected)
    refuses(lambda: ws.global_scale(given), InvalidArgumentError, expected)


@needs_torch
def test_a_tensor_that_is_nowhere() -> None:
    import torch

    x = torch.empty(4, 32, device="meta")
    for call in (lambda: ws.quantize(x, "mxfp4"), lambda: ws.global_scale(x)):
        refuses(call, InvalidArgumentError, "x is on meta; expected a CUDA or CPU tensor")


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("k", [0, 1, 8, 24, 136])
def test_k_is_no_multiple_of_the_block(framework: str, format: str, k: int) -> None:
    block = FORMATS[format].block[1]
    text = f"K = {k} must be a positive multiple of {block}, the block of {format}"
    refuses(lambda: ws.quantize(give(np.ones((3, k), np.float32), framework), format), FormatError, text)
    if format != "fp8_block_128x128":
        wide = give(np.ones((3, 2 * k), np.float32), framework)
        refuses(lambda: ws.silu_and_mul_quantize(wide, format, **(NV if format == "nvfp4" else {})), FormatError, text)


def test_an_odd_number_of_columns_has_no_halves() -> None:
    refuses(lambda: ws.silu_and_mul_quantize(random(3, 65), "mxfp4"), FormatError, "65 columns", "2·K, the gate half")


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("shape", [(), (128,)])
def test_too_few_dimensions(framework: str, shape: tuple[int, ...]) -> None:
    x = give(np.ones(shape, np.float32), framework)
    text = f"x has shape {list(shape)}; expected [*batch, M, K] (use x[None] for one row)"
    refuses(lambda: ws.quantize(x, "mxfp4"), FormatError, text)
    refuses(lambda: ws.silu_and_mul_quantize(x, "mxfp4"), FormatError, text)


@pytest.mark.parametrize(("quantize", "x"), OPERATIONS)
@pytest.mark.parametrize("format", ["int4", "NVFP4", "", None, 4, ["nvfp4"]])
def test_unknown_format(quantize: Quantize, x: np.ndarray, format: Any) -> None:
    text = f"unknown format {format!r}; expected one of nvfp4, mxfp4, mxfp8, fp8_block, fp8_block_128x128"
    refuses(lambda: quantize(x, format), FormatError, text)


@pytest.mark.parametrize(("quantize", "x"), OPERATIONS)
@pytest.mark.parametrize(
    ("format", "layout", "expected"),
    [
        ("nvfp4", "m_major", "'linear' or '128x4'"),
        ("fp8_block", "128x4", "'linear' or 'm_major'"),
        ("mxfp8", "swizzled", "'linear' or '128x4'"),
        ("mxfp8", None, "'linear' or '128x4'"),
    ],
)
def test_unknown_scale_layout(quantize: Quantize, x: np.ndarray, format: str, layout: Any, expected: str) -> None:
    text = f"{format} has no scale layout {layout!r}; expected {expected}"
    refuses(lambda: quantize(x, format, scale_layout=layout), FormatError, text)


@pytest.mark.parametrize(("quantize", "x"), OPERATIONS)
@pytest.mark.parametrize(
    ("format", "rounding", "expected"),
    [
        ("mxfp4", "nearest", "'ceil' or 'floor'"),
        ("mxfp8", None, "'ceil' or 'floor'"),
        ("nvfp4", "floor", "'ceil': its scales are not powers of two"),
        ("fp8_block", "floor", "'ceil': its scales are not powers of two"),
    ],
)
def test_unknown_rounding(quantize: Quantize, x: np.ndarray, format: str, rounding: Any, expected: str) -> None:
    text = f"rounding {rounding!r} does not fit {format}; expected {expected}"
    refuses(lambda: quantize(x, format, rounding=rounding), FormatError, text)


@pytest.mark.parametrize(("quantize", "x"), OPERATIONS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("value", [0.0, -0.0, -1.5, float("nan"), float("inf"), 1e39, 1e-60, 10**400, 0, -3])
def test_a_host_global_scale_that_is_not_positive_and_finite(
    quantize: Quantize, x: np.ndarray, framework: str, value: float
) -> None:
    text = f"global_scale = {value!r} is not positive and finite in float32"
    refuses(lambda: quantize(give(x, framework), "nvfp4", global_scale=value), InvalidArgumentError, text)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("value", [0.0, -1.5, float("nan"), float("inf")])
def test_a_host_global_scale_array_that_is_not_positive_and_finite(framework: str, value: float) -> None:
    offsets = np.array([0, 3, 6], np.int32)
    one, two = (give(np.array(v, np.float32), framework) for v in ([value], [1.0, value]))
    x = give(X, framework)
    refuses(lambda: ws.quantize(x, "nvfp4", global_scale=one), InvalidArgumentError, f"[{value}] is not positive")
    refuses(
        lambda: ws.quantize(x, "nvfp4", global_scale=two, offsets=give(offsets, framework)),
        InvalidArgumentError,
        f"[1.0, {value}] is not positive and finite",
    )


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "int32"])
def test_a_global_scale_of_the_wrong_dtype(framework: str, dtype: str) -> None:
    import ml_dtypes

    scale = give(np.ones(1, np.dtype(getattr(ml_dtypes, dtype, dtype))), framework)
    text = f"global_scale is {dtype}; expected float32"
    refuses(lambda: ws.quantize(give(X, framework), "nvfp4", global_scale=scale), FormatError, text)


@pytest.mark.parametrize("value", ["1.0", True, [1.0], {}])
def test_a_global_scale_that_is_neither_number_nor_array(value: Any) -> None:
    text = f"global_scale is a {type(value).__name__}; expected a float32 tensor or a number"
    refuses(lambda: ws.quantize(X, "nvfp4", global_scale=value), InvalidArgumentError, text)


@pytest.mark.parametrize(
    ("count", "groups", "expected"), [(2, 0, "1"), (0, 0, "1"), (3, 2, "1 or 2"), (0, 2, "1 or 2")]
)
def test_a_global_scale_of_the_wrong_length(count: int, groups: int, expected: str) -> None:
    offsets = np.array([0, 3, 6], np.int32) if groups else None
    scale = np.ones(count, np.float32)
    text = f"global_scale has {count} elements; expected {expected}"
    refuses(lambda: ws.quantize(X, "nvfp4", global_scale=scale, offsets=offsets), FormatError, text)


@pytest.mark.parametrize(("quantize", "x"), OPERATIONS)
@pytest.mark.parametrize("format", ["mxfp4", "mxfp8", "fp8_block"])
def test_a_global_scale_where_there_is_none(quantize: Quantize, x: np.ndarray, format: str) -> None:
    text = f"{format} has no global scale; leave global_scale out"
    refuses(lambda: quantize(x, format, global_scale=1.0), FormatError, text)


def test_silu_and_mul_does_not_guess_a_global_scale() -> None:
    refuses(lambda: ws.silu_and_mul_quantize(WIDE, "nvfp4"), FormatError, "needs global_scale", "pass a calibrated one")


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("x", [np.ones((4, 32)), np.ones((4, 32), np.int8), np.ones(32, np.float32)], ids=str)
def test_the_global_scale_of_what_cannot_be_quantized(framework: str, x: np.ndarray) -> None:
    refuses(lambda: ws.global_scale(give(x, framework)), FormatError, "expected")


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("offsets", "text"),
    [
        (np.array([0, 6], np.uint32), "offsets is uint32 of shape [2]; expected int32 or int64 [groups + 1]"),
        (np.array([0.0, 6.0]), "offsets is float64 of shape [2]; expected int32 or int64 [groups + 1]"),
        (np.array([0]), "offsets is int64 of shape [1]; expected int32 or int64 [groups + 1]"),
        (np.array(0), "offsets is int64 of shape []; expected int32 or int64 [groups + 1]"),
        (np.array([[0, 6]]), "offsets is int64 of shape [1, 2]; expected int32 or int64 [groups + 1]"),
        (np.array([1, 6]), "offsets [1, 6] do not divide 6 rows: they must start at 0, never fall and end at 6"),
        (np.array([0, 4, 2, 6]), "offsets [0, 4, 2, 6] do not divide 6 rows"),
        (np.array([0, 7]), "offsets [0, 7] do not divide 6 rows"),
        (np.array([0, -1, 6]), "offsets [0, -1, 6] do not divide 6 rows"),
    ],
    ids=str,
)
def test_offsets_that_do_not_fit(framework: str, offsets: np.ndarray, text: str) -> None:
    refuses(lambda: ws.quantize(give(X, framework), "mxfp4", offsets=give(offsets, framework)), FormatError, text)


def test_offsets_that_are_no_array() -> None:
    text = "offsets is a list; expected an int32 or int64 tensor [groups + 1]"
    refuses(lambda: ws.quantize(X, "mxfp4", offsets=[0, 6]), FormatError, text)


def test_what_cannot_be_grouped() -> None:
    offsets = np.array([0, 6])
    text = "fp8_block_128x128 has blocks of 128 rows and cannot be grouped by offsets"
    refuses(lambda: ws.quantize(X, "fp8_block_128x128", offsets=offsets), FormatError, text)
    text = "a grouped x is [M, K]; this one has shape [1, 6, 128]"
    refuses(lambda: ws.quantize(X[None], "mxfp4", offsets=offsets), FormatError, text)


@needs_torch
def test_frameworks_are_not_mixed() -> None:
    import torch

    x, offsets = torch.ones(6, 128), torch.tensor([0, 6])
    text = "offsets is on cpu and x on numpy; expected the same device"
    refuses(lambda: ws.quantize(X, "mxfp4", offsets=offsets), FormatError, text)
    text = "offsets is on numpy and x on cpu; expected the same device"
    refuses(lambda: ws.quantize(x, "mxfp4", offsets=np.array([0, 6])), FormatError, text)
    text = "out is on numpy and x on cpu; expected the same device"
    refuses(lambda: ws.quantize(x, "mxfp4", out=ws.quantize(X, "mxfp4")), FormatError, text)
    parts = ws.quantize(X, "mxfp4"), ws.quantize(x, "mxfp4")
    text = "QTensor: its parts live on cpu, numpy; expected one device"
    refuses(lambda: ws.QTensor(parts[0].data, parts[1].scales, "mxfp4", (6, 128)), FormatError, text)
    text = "out is Tensor float32 [6, 128]; expected a NumPy array, float32 [6, 128]"
    refuses(lambda: ws.dequantize(parts[0], out=torch.empty(6, 128)), InvalidArgumentError, text)
    text = "out is ndarray float32 [6, 128]; expected a torch tensor, float32 [6, 128]"
    refuses(lambda: ws.dequantize(parts[1], out=np.empty((6, 128), np.float32)), InvalidArgumentError, text)


def outs() -> dict[str, tuple[Any, str]]:
    offsets = np.array([0, 6])
    plain = ws.quantize(X, "mxfp4")
    wide = np.empty((6, 128), np.uint8)
    return {
        "an array": (np.empty((6, 64), np.uint8), "out is a ndarray; expected a QTensor"),
        "its parts": ((plain.data, plain.scales), "out is a tuple; expected a QTensor"),
        "another format": (ws.quantize(X, "mxfp8"), "out has format 'mxfp8'; expected 'mxfp4'"),
        "another shape": (ws.quantize(X[:5], "mxfp4"), "out has shape (5, 128); expected (6, 128)"),
        "another layout": (
            ws.quantize(X, "mxfp4", scale_layout="128x4"),
            "out has scale_layout '128x4'; expected 'linear'",
        ),
        "groups": (ws.quantize(X, "mxfp4", offsets=offsets), "out has groups 1; expected 0"),
        "strided data": (
            ws.QTensor(wide[:, :64], plain.scales, "mxfp4", (6, 128)),
            "out.data is not contiguous; expected a contiguous tensor",
        ),
        "strided scales": (
            ws.QTensor(plain.data, wide[:, :4], "mxfp4", (6, 128)),
            "out.scales is not contiguous; expected a contiguous tensor",
        ),
    }


@pytest.mark.parametrize("name", outs())
def test_an_out_that_is_not_the_result(name: str) -> None:
    out, text = outs()[name]
    refuses(lambda: ws.quantize(X, "mxfp4", out=out), FormatError, text)


def test_nothing_is_written_to_a_refused_out() -> None:
    out = ws.quantize(X, "mxfp8")
    before = take(out.data).copy(), take(out.scales).copy()
    refuses(lambda: ws.quantize(X + 1, "mxfp4", out=out), FormatError)
    assert same(out.data, before[0])
    assert same(out.scales, before[1])


def test_dequantize_takes_a_qtensor() -> None:
    text = "q is a ndarray; expected a QTensor, as quantize returns it"
    refuses(lambda: ws.dequantize(X), InvalidArgumentError, text)  # type: ignore[arg-type]


@pytest.mark.parametrize(("dtype", "name"), [("bf16", "bf16"), (np.float64, "float64"), (float, "float"), (7, "7")])
def test_dequantize_to_an_unknown_type(dtype: Any, name: str) -> None:
    text = f"dtype {name!r} is unknown; expected one of bfloat16, float16, float32"
    refuses(lambda: ws.dequantize(ws.quantize(X, "mxfp4"), dtype), InvalidArgumentError, text)


@pytest.mark.parametrize(
    ("out", "dtype", "text"),
    [
        (
            np.empty((6, 127), np.float32),
            None,
            "out is ndarray float32 [6, 127]; expected a NumPy array, float32 [6, 128]",
        ),
        (np.empty((6, 128), np.float16), "float32", "out is ndarray float16 [6, 128]; expected a NumPy array, float32"),
        (np.empty((6, 128)), None, "dtype 'float64' is unknown; expected one of bfloat16, float16, float32"),
        ([[0.0] * 128] * 6, None, "out is list; expected a NumPy array, float32 [6, 128]"),
        (np.empty((128, 6), np.float32).T, None, "out is not contiguous; expected a contiguous tensor"),
    ],
    ids=["shape", "dtype", "unknown dtype", "a list", "strided"],
)
def test_an_out_of_dequantize_that_does_not_fit(out: Any, dtype: str | None, text: str) -> None:
    refuses(lambda: ws.dequantize(ws.quantize(X, "mxfp4"), dtype, out=out), InvalidArgumentError, text)


U8, F32 = np.uint8, np.float32


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "fp4"}, "unknown format 'fp4'; expected one of nvfp4"),
        ({"shape": (64,)}, "shape [64] has 1 dimensions; expected [*batch, M, K]"),
        ({"shape": (6, 100)}, "K = 100 must be a positive multiple of 16 for nvfp4"),
        ({"shape": (6, 0)}, "K = 0 must be a positive multiple of 16 for nvfp4"),
        ({"scale_layout": "m_major"}, "nvfp4 has no scale layout 'm_major'; expected linear or 128x4"),
        ({"data": np.zeros((6, 128), U8)}, "data has shape [6, 128]; expected [6, 64]"),
        ({"data": np.zeros((6, 64), F32)}, "data is float32; expected uint8 or float4_e2m1fn_x2"),
        ({"data": [0]}, "data is a list; expected a torch tensor or NumPy array"),
        ({"scales": np.zeros((6, 4), U8)}, "scales has shape [6, 4]; expected [6, 8]"),
        ({"scales": np.zeros((6, 8), F32)}, "scales is float32; expected float8_e4m3fn or uint8"),
        ({"scales": None}, "scales is a NoneType; expected a torch tensor or NumPy array"),
        ({"scale_layout": "128x4"}, "scales has shape [6, 8]; expected [128, 8]"),
        ({"global_scale": np.ones(1)}, "global_scale is float64; expected float32"),
        ({"global_scale": 1.0}, "global_scale is a float; expected a torch tensor or NumPy array"),
        ({"global_scale": np.ones(2, F32)}, "global_scale has 2 elements; expected 1"),
        ({"offsets": np.array([0, 3, 6]), "global_scale": np.ones(3, F32)}, "has 3 elements; expected 1 or 2"),
        ({"offsets": np.array([0.0, 6.0])}, "offsets is float64; expected int32 or int64"),
        ({"offsets": [0, 6]}, "offsets is a list; expected a torch tensor or NumPy array"),
        ({"offsets": np.array(6)}, "offsets has shape []; expected [groups + 1]"),
        ({"offsets": np.array([0])}, "offsets has shape [1]; expected [groups + 1]"),
        ({"shape": (1, 6, 128), "offsets": np.array([0, 6])}, "a grouped tensor is [M, K]; shape is [1, 6, 128]"),
        (
            {"offsets": np.array([0, 3, 6]), "scale_layout": "128x4", "scales": np.zeros((128, 8), U8)},
            "scales has shape [128, 8]; expected [256, 8]",
        ),
        ({"format": "mxfp4"}, "scales has shape [6, 8]; expected [6, 4]"),
        (
            {"format": "mxfp4", "scales": np.zeros((6, 4), U8), "global_scale": np.ones(1, F32)},
            "mxfp4 has no global scale, but one was given",
        ),
        (
            {
                "format": "fp8_block_128x128", "data": np.zeros((6, 128), U8), "scales": np.ones((1, 1), F32),
                "offsets": np.array([0, 6]),
            },
            "fp8_block_128x128 has blocks of 128 rows and cannot be grouped",
        ),
        (
            {"format": "fp8_block", "data": np.zeros((6, 128), U8), "scales": np.ones((6, 1), U8)},
            "scales is uint8; expected float32",
        ),
    ],
    ids=lambda value: re.sub(r"\W+", " ", value)[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_parts_of_a_qtensor_that_do_not_fit(change: dict[str, Any], text: str) -> None:
    parts: dict[str, Any] = {
        "data": np.zeros((6, 64), U8), "scales": np.zeros((6, 8), U8), "format": "nvfp4", "shape": (6, 128),
    }  # fmt: skip
    ws.QTensor(**parts)
    refuses(lambda: ws.QTensor(**{**parts, **change}), FormatError, text)
