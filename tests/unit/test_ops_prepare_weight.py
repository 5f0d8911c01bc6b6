# SPDX-License-Identifier: Apache-2.0
"""`prepare_weight`: the same values in the order that kernels read, and nobody else misreads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ops_samples import FRAMEWORKS, give, take

import warpsmith as ws
from warpsmith.catalog.formats import FORMATS
from warpsmith.errors import FormatError
from warpsmith.reference import pack_codes
from warpsmith.reference.layouts import pack

X = np.random.default_rng(3).standard_normal((2, 136, 256)).astype(np.float32)
frameworks = pytest.mark.parametrize("framework", FRAMEWORKS)


def raw(x: Any) -> np.ndarray:
    found: np.ndarray = take(x)
    return found.view(np.uint8) if found.dtype.itemsize == 1 else found


@frameworks
@pytest.mark.parametrize("layout", ["linear", "128x4"])
def test_mxfp4_beside_mxfp8_is_packed_and_tiled(framework: str, layout: str) -> None:
    w = ws.quantize(give(X, framework), "mxfp4", scale_layout=layout)
    linear = ws.quantize(give(X, framework), "mxfp4")
    made = ws.prepare_weight(w, "mxfp8")
    assert (made.packing, made.scale_layout, made.shape, made.format) == ("mxfp8", "128x4", w.shape, "mxfp4")
    np.testing.assert_array_equal(raw(made.data), pack_codes(raw(w.data), "mxfp8"))
    np.testing.assert_array_equal(raw(made.scales), pack(raw(linear.scales), "128x4"))
    assert made.scales.dtype == w.scales.dtype
    np.testing.assert_array_equal(take(ws.dequantize(made, "float32")), take(ws.dequantize(w, "float32")))
    assert ws.prepare_weight(made, "mxfp8") is made
    assert "packing='mxfp8'" in repr(made)


@frameworks
@pytest.mark.parametrize("layout", ["linear", "128x4"])
@pytest.mark.parametrize(("format", "activations"), [("mxfp4", "mxfp8"), ("nvfp4", "nvfp4"), ("mxfp8", "bf16")])
def test_interleaved_rows_are_parted(framework: str, layout: str, format: str, activations: str) -> None:
    options = {"global_scale": 2.0} if format == "nvfp4" else {}
    w = ws.quantize(give(X, framework), format, scale_layout=layout, **options)
    made = ws.prepare_weight(w, activations, interleaved=True)
    rows = take(ws.dequantize(w, "float32"))
    np.testing.assert_array_equal(
        take(ws.dequantize(made, "float32")), np.concatenate([rows[:, 0::2], rows[:, 1::2]], 1)
    )
    assert made.scale_layout == (layout if activations == "bf16" else "128x4")
    assert made.global_scale is w.global_scale


@frameworks
def test_what_is_right_already_is_returned_as_it_is(framework: str) -> None:
    for format, activations in (("nvfp4", "bf16"), ("fp8_block_128x128", "fp8_block"), ("mxfp8", "fp16")):
        w = ws.quantize(give(X, framework), format)
        assert ws.prepare_weight(w, activations) is w
    tiled = ws.quantize(give(X, framework), "nvfp4", scale_layout="128x4")
    assert ws.prepare_weight(tiled, "nvfp4") is tiled
    plain = give(X.astype(np.float16), framework)
    assert ws.prepare_weight(plain, "fp16") is plain
    parted = take(ws.prepare_weight(plain, "fp16", interleaved=True))
    np.testing.assert_array_equal(parted[:, 68:], X.astype(np.float16)[:, 1::2])


@frameworks
def test_products_with_prepared_weights_are_those_without(framework: str) -> None:
    a = ws.quantize(give(X[0, :5], framework), "mxfp8", scale_layout="128x4")
    w = ws.quantize(give(X[1], framework), "mxfp4")
    got, want = (ws.gemm(a, b, out_dtype="float32") for b in (ws.prepare_weight(w, "mxfp8"), w))
    np.testing.assert_array_equal(take(got), take(want))


def refused() -> dict[str, tuple[Any, str, dict[str, Any], str]]:
    """Weights, activations, options and what the error says."""
    w = ws.quantize(X, "mxfp4")
    grouped = ws.quantize(X[0], "mxfp4", offsets=np.array([0, 100], np.int32))
    return {
        "activations": (w, "int8", {}, "activations 'int8' are unknown; expected one of bf16, fp16"),
        "pair": (w, "nvfp4", {}, "activations are nvfp4 and w is mxfp4: no kernel multiplies"),
        "dtype": (X, "bf16", {}, "w is float32; expected bfloat16, float16 or a QTensor"),
        "packed": (ws.prepare_weight(w, "mxfp8"), "mxfp4", {}, "w is packed for mxfp8, not for mxfp4"),
        "odd": (ws.quantize(X[:, :7], "mxfp4"), "mxfp8", {"interleaved": True}, "w has N = 7 rows"),
        "blocks": (
            ws.quantize(X, "fp8_block_128x128"), "fp8_block", {"interleaved": True}, "rows that share a scale",
        ),
        "groups": (grouped, "mxfp8", {}, "w is a grouped QTensor"),
        "vector": (np.ones(8, np.float16), "fp16", {}, r"w has shape \[8\]"),
    }  # fmt: skip


@pytest.mark.parametrize("name", refused())
def test_what_cannot_be_prepared_is_refused(name: str) -> None:
    w, activations, options, says = refused()[name]
    with pytest.raises(FormatError, match=says):
        ws.prepare_weight(w, activations, **options)


def test_a_marker_that_cannot_be_is_refused() -> None:
    w = ws.quantize(X, "mxfp4")
    tiled = ws.quantize(X, "mxfp4", scale_layout="128x4")
    for q, packing, says in (
        (w, "mxfp8", "weights packed for mxfp8 have 128x4 scales and no groups; these have linear"),
        (tiled, "fp8", "mxfp4 has no packing 'fp8'; expected '' or 'mxfp8' or 'bf16'"),
    ):
        with pytest.raises(FormatError, match=says):
            ws.QTensor(q.data, q.scales, "mxfp4", q.shape, scale_layout=q.scale_layout, packing=packing)
    assert FORMATS["nvfp4"].packings == ("bf16", "gated")
    with pytest.raises(FormatError, match="out has packing 'mxfp8'; expected ''"):
        ws.quantize(X, "mxfp4", scale_layout="128x4", out=ws.prepare_weight(w, "mxfp8"))
