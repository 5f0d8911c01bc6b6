# SPDX-License-Identifier: Apache-2.0
"""Matrix products against a triple loop, and grouped ones against dense ones."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from warpsmith.errors import FormatError
from warpsmith.reference import decode_float64, gemm, grouped_gemm, masked_gemm, quantize

RNG = np.random.default_rng(0)


def whole(*shape: int) -> np.ndarray:
    """Small integers, so that any order of summation is exact."""
    return RNG.integers(-9, 10, shape).astype(np.float64)


def loop(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    result = np.zeros((a.shape[0], b.shape[0]))
    for m in range(a.shape[0]):
        for n in range(b.shape[0]):
            for k in range(a.shape[1]):
                result[m, n] += a[m, k] * b[n, k]
    return result


def test_gemm_is_the_triple_loop() -> None:
    a, b, bias = whole(5, 7), whole(6, 7), whole(6)
    np.testing.assert_array_equal(gemm(a, b), loop(a, b))
    np.testing.assert_array_equal(gemm(a, b, alpha=0.5, bias=bias), 0.5 * loop(a, b) + bias)


def test_batched_gemm_has_its_own_alpha_and_bias() -> None:
    a, b, bias, alpha = whole(3, 4, 8), whole(3, 5, 8), whole(3, 5), np.array([1.0, 2.0, -4.0])
    got = gemm(a, b, bias=bias, alpha=alpha)
    for batch in range(3):
        np.testing.assert_array_equal(got[batch], alpha[batch] * loop(a[batch], b[batch]) + bias[batch])


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", ml_dtypes.bfloat16), ("fp16", np.float16), ("fp32", np.float32), (None, np.float64)]
)
def test_output_is_rounded_once_to_the_type_asked_for(name: str | None, dtype: type) -> None:
    a, b = np.array([[1.0, 2.0**-8, 2.0**-40]]), np.ones((1, 3))
    got = gemm(a, b, out_dtype=name)
    assert got.dtype == dtype
    assert float(got[0, 0]) == {"bf16": 1 + 2.0**-7, "fp16": 1 + 2.0**-8, "fp32": 1 + 2.0**-8, None: a.sum()}[name]


def test_gemm_of_quantized_operands() -> None:
    x = RNG.standard_normal((4, 64)).astype(np.float32)
    w = RNG.standard_normal((3, 64)).astype(np.float32)
    gs = 20.0
    a = decode_float64(*quantize(x, "nvfp4", global_scale=gs), "nvfp4", shape=x.shape)
    b = decode_float64(*quantize(w, "nvfp4", global_scale=gs), "nvfp4", shape=w.shape)
    got = gemm(a, b, alpha=1 / gs**2)
    np.testing.assert_allclose(got, loop(a, b) / gs**2, rtol=1e-12)
    np.testing.assert_allclose(got, x.astype(np.float64) @ w.T, atol=2.5)


@pytest.mark.parametrize("alpha", [2.0, [1.0, 0.5, -2.0]])
def test_grouped_gemm_is_one_gemm_a_group(alpha: object) -> None:
    a, b, bias = whole(12, 8), whole(3, 5, 8), whole(3, 5)
    offsets = np.array([0, 4, 4, 9], np.int32)
    a[9:] = np.nan
    got = grouped_gemm(a, b, offsets, bias=bias, alpha=alpha)
    factors = np.broadcast_to(alpha, 3)
    for group, (start, stop) in enumerate(((0, 4), (4, 4), (4, 9))):
        np.testing.assert_array_equal(got[start:stop], factors[group] * loop(a[start:stop], b[group]) + bias[group])
    np.testing.assert_array_equal(got[9:], np.zeros((3, 5)))
    assert grouped_gemm(a, b, offsets, out_dtype="bf16").dtype == ml_dtypes.bfloat16


def test_masked_gemm_reads_only_the_rows_that_count() -> None:
    a, b, bias = whole(3, 6, 8), whole(3, 5, 8), whole(3, 5)
    counts = np.array([6, 0, 2])
    for group, count in enumerate(counts):
        a[group, count:] = np.nan
    got = masked_gemm(a, b, counts, bias=bias, alpha=[1.0, 2.0, 3.0])
    for group, count in enumerate(counts):
        want = (group + 1) * loop(a[group, :count], b[group]) + bias[group]
        np.testing.assert_array_equal(got[group, :count], want)
        np.testing.assert_array_equal(got[group, count:], np.zeros((6 - count, 5)))
    assert masked_gemm(a, b, counts, out_dtype="fp16").dtype == np.float16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gemm(whole(2, 3), whole(2, 4)), r"shapes \(2, 3\) and \(2, 4\)"),
        (lambda: gemm(whole(3), whole(2, 3)), r"expected \[..., M, K\]"),
        (lambda: gemm(whole(2, 3), whole(2, 3), out_dtype="int8"), "output dtype 'int8'"),
        (lambda: grouped_gemm(whole(4, 3), whole(2, 5, 3), [0, 4]), "with 2 offsets"),
        (lambda: grouped_gemm(whole(4, 3), whole(2, 5, 4), [0, 2, 4]), r"shapes \(4, 3\) and \(2, 5, 4\)"),
        (lambda: grouped_gemm(whole(4, 3), whole(1, 5, 3), [0, 5]), "do not divide 4 rows"),
        (lambda: masked_gemm(whole(2, 4, 3), whole(3, 5, 3), [1, 1]), r"expected \[G, C, K\]"),
        (lambda: masked_gemm(whole(2, 4, 3), whole(2, 5, 3), [1, 5]), "expected 2 integers from 0 to 4"),
        (lambda: masked_gemm(whole(2, 4, 3), whole(2, 5, 3), [1.0, 2.0]), "expected 2 integers"),
    ],
)
def test_operands_that_do_not_go_together_are_errors(call: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        call()
