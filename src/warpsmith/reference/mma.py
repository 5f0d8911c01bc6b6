# SPDX-License-Identifier: Apache-2.0
"""Block-scaled ``mma.sync``: which lane holds what, and the same product out of fp16 MMAs.

A fragment is an array [32, elements a lane]. With g = lane // 4 and t = lane % 4, an A fragment of an m16n8kK
MMA has four 32-bit registers, for (row g, low half of K), (g + 8, low), (g, high) and (g + 8, high); a B fragment
has two, for column g and the low and high half of K. A register holds K/8 elements, which start at K/8·t in their
half. That one rule gives m16n8k16 (fp16), m16n8k32 (8-bit) and m16n8k64 (4-bit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from warpsmith.errors import InvalidArgumentError
from warpsmith.reference.formats import UE8M0_NAN, decode_e4m3, decode_ue8m0

IndexArray = npt.NDArray[np.int64]
WordArray = npt.NDArray[np.uint32]

_KINDS: Final = ((32, 1, "ue8m0"), (64, 2, "ue8m0"), (64, 4, "ue4m3"))
_LANE: Final = np.arange(32)[:, None]
_GROUP: Final = _LANE // 4
_THREAD: Final = _LANE % 4


def a_map(k: int) -> tuple[IndexArray, IndexArray]:
    """Return row and k of each element of an A fragment of m16n8k`k`, each [32, k / 2]."""
    width = k // 8
    i = np.arange(4 * width)
    register = i // width
    return _GROUP + 8 * (register % 2), width * _THREAD + i % width + k // 2 * (register // 2)


def b_map(k: int) -> tuple[IndexArray, IndexArray]:
    """Return k and column of each element of a B fragment of m16n8k`k`, each [32, k / 4]."""
    width = k // 8
    i = np.arange(2 * width)
    row = width * _THREAD + i % width + k // 2 * (i // width)
    return row, np.broadcast_to(_GROUP, row.shape)


def c_map() -> tuple[IndexArray, IndexArray]:
    """Return row and column of each element of a C or D fragment, each [32, 4]."""
    i = np.arange(4)
    return _GROUP + 8 * (i // 2), 2 * _THREAD + i % 2


@dataclass(frozen=True)
class ScaleSelector:
    """Which scale bytes of which lanes an MMA reads.

    Attributes
    ----------
    vector : int
        Scales along K for one MMA: 1, 2 or 4 (``scale_vec::1X``, ``2X``, ``4X``).
    thread_a, byte_a : int
        The pair {byte-id, thread-id} of A's scale operand; thread-id 0 or 1.
    thread_b, byte_b : int
        The same for B; thread-id 0 to 3.
    """

    vector: int
    thread_a: int = 0
    byte_a: int = 0
    thread_b: int = 0
    byte_b: int = 0

    def __post_init__(self) -> None:
        if self.vector not in (1, 2, 4):
            raise InvalidArgumentError(f"scale vector {self.vector}X: expected 1X, 2X or 4X")
        allowed = range(0, 4, self.vector)
        if self.byte_a not in allowed or self.byte_b not in allowed:
            raise InvalidArgumentError(
                f"byte-ids {self.byte_a} and {self.byte_b}: {self.vector}X takes {list(allowed)}"
            )
        if self.thread_a not in range(2) or self.thread_b not in range(4):
            raise InvalidArgumentError(
                f"thread-ids {self.thread_a} and {self.thread_b}: expected 0..1 for A and 0..3 for B"
            )


def scale_lane_a(row: npt.ArrayLike, thread: int) -> IndexArray:
    """Return the lane that holds the scales of A's `row` (0..15)."""
    m = np.asarray(row)
    return np.asarray(4 * (m % 8) + 2 * thread + m // 8)


def scale_lane_b(column: npt.ArrayLike, thread: int) -> IndexArray:
    """Return the lane that holds the scales of B's `column` (0..7)."""
    return np.asarray(4 * np.asarray(column) + thread)


def scale_byte(index: npt.ArrayLike, k: int, vector: int, byte: int) -> IndexArray:
    """Return the byte, in its lane's word, of the scale for position `index` of the `k` along K."""
    return np.asarray(byte + np.asarray(index) // (k // vector))


def _check_kind(k: int, selector: ScaleSelector, scale_type: str) -> None:
    if (k, selector.vector, scale_type) not in _KINDS:
        raise InvalidArgumentError(
            f"no MMA with K = {k}, {selector.vector}X scales of {scale_type}: expected one of "
            + ", ".join(f"K = {k} {vector}X {kind}" for k, vector, kind in _KINDS)
        )


def _bytes(words: WordArray) -> npt.NDArray[np.uint8]:
    """Split [32] words into [32, 4] bytes, the lowest first."""
    return (words[:, None] >> np.arange(0, 32, 8, dtype=np.uint32) & np.uint32(255)).astype(np.uint8)


def block_scaled_mma(
    a: npt.NDArray[Any],
    b: npt.NDArray[Any],
    c: npt.NDArray[Any],
    scale_a: WordArray,
    scale_b: WordArray,
    selector: ScaleSelector,
    scale_type: str,
) -> npt.NDArray[np.float64]:
    """Return D = (A·scaleA)(B·scaleB) + C as the instruction defines it, in float64.

    Parameters
    ----------
    a, b, c : ndarray
        Fragments of element values: [32, K/2], [32, K/4] and [32, 4].
    scale_a, scale_b : ndarray of uint32
        [32], the scale word of each lane.
    selector : ScaleSelector
        Which of them are read.
    scale_type : str
        ``"ue4m3"`` or ``"ue8m0"``.

    Returns
    -------
    ndarray of float64
        The D fragment, [32, 4].
    """
    k = 2 * a.shape[1]
    _check_kind(k, selector, scale_type)
    decode = decode_e4m3 if scale_type == "ue4m3" else decode_ue8m0
    left, right, total = np.zeros((16, k)), np.zeros((k, 8)), np.zeros((16, 8))
    left[a_map(k)], right[b_map(k)], total[c_map()] = a, b, c
    rows, inner, columns = np.arange(16), np.arange(k), np.arange(8)
    byte_a = scale_byte(inner, k, selector.vector, selector.byte_a)
    byte_b = scale_byte(inner, k, selector.vector, selector.byte_b)
    scales_a = decode(_bytes(scale_a)[scale_lane_a(rows, selector.thread_a)[:, None], byte_a])
    scales_b = decode(_bytes(scale_b)[scale_lane_b(columns, selector.thread_b), byte_b[:, None]])
    product: npt.NDArray[np.float64] = (left * scales_a) @ (right * scales_b) + total
    return product[c_map()]


def _fp16_mma(a: npt.NDArray[Any], b: npt.NDArray[Any], c: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return A·B + C for m16n8k16 fragments of fp16 values."""
    left, right = np.zeros((16, 16)), np.zeros((16, 8))
    left[a_map(16)], right[b_map(16)] = a.astype(np.float16), b.astype(np.float16)
    product: npt.NDArray[np.float64] = (left @ right)[c_map()]
    return product + c


def _chunk(a: npt.NDArray[Any], b: npt.NDArray[Any], start: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the m16n8k16 fragments made of four own elements a row and lane, from k-element `start` on.

    A lane's elements of one row, in order of k, are chunked by four: the first two go to slots {2t, 2t + 1}, the
    others to {2t + 8, 2t + 9}. A and B permute K alike, so no value changes lanes.
    """
    width = a.shape[1] // 4
    # [lane, half of K, row g or g + 8, element] → [lane, row, elements along K]
    rows = a.reshape(32, 2, 2, width).swapaxes(1, 2).reshape(32, 2, 2 * width)[:, :, start : start + 4]
    registers = rows.reshape(32, 2, 2, 2).swapaxes(1, 2)
    return registers.reshape(32, 8), b[:, start : start + 4]


def _two_step_scale(product: npt.NDArray[np.float64], exponent: IndexArray) -> npt.NDArray[np.float64]:
    """Multiply fp32 values by 2^exponent, −254..254, in two fp32 steps that each stay in range."""
    first = exponent >> 1
    scaled = product.astype(np.float32)
    for step in (first, exponent - first):
        scaled = scaled * np.ldexp(np.float32(1), step.astype(np.int32))
    return scaled.astype(np.float64)


def _exponent_scaled(
    a: npt.NDArray[Any],
    b: npt.NDArray[Any],
    bytes_a: npt.NDArray[np.uint8],
    bytes_b: npt.NDArray[np.uint8],
    selector: ScaleSelector,
) -> npt.NDArray[np.float64]:
    """Sum the unscaled products of each scale's stretch of K, then scale by 2^(sa + sb − 254)."""
    lane_a = 4 * _GROUP + 2 * selector.thread_a + np.array([0, 0, 1, 1])
    lane_b = 4 * (2 * _THREAD + np.array([0, 1, 0, 1])) + selector.thread_b
    chunks = a.shape[1] // 8
    chunks_a_scale = chunks // selector.vector
    total = np.zeros((32, 4))
    for vector in range(selector.vector):
        product = np.zeros((32, 4))
        for chunk in range(vector * chunks_a_scale, (vector + 1) * chunks_a_scale):
            product = _fp16_mma(*_chunk(a, b, 4 * chunk), product)
        code_a, code_b = bytes_a[lane_a, selector.byte_a + vector], bytes_b[lane_b, selector.byte_b + vector]
        scaled = _two_step_scale(product, code_a.astype(np.int64) + code_b - 254)
        total += np.where((code_a == UE8M0_NAN) | (code_b == UE8M0_NAN), np.nan, scaled)
    return total


def software_mma(
    a: npt.NDArray[Any],
    b: npt.NDArray[Any],
    c: npt.NDArray[Any],
    scale_a: WordArray,
    scale_b: WordArray,
    selector: ScaleSelector,
    scale_type: str,
) -> npt.NDArray[np.float64]:
    """Return what `block_scaled_mma` returns, with the same parameters, out of m16n8k16 fp16 MMAs.

    ue4m3 scales multiply the elements before they become fp16, which is exact for e2m1; ue8m0 scales are applied to
    the accumulators. This is the mapping that the SM12x kernels use where the instruction is missing.
    """
    _check_kind(2 * a.shape[1], selector, scale_type)
    bytes_a, bytes_b = _bytes(scale_a), _bytes(scale_b)
    accumulator = c.astype(np.float64)
    if scale_type == "ue8m0":
        return accumulator + _exponent_scaled(a, b, bytes_a, bytes_b, selector)
    scales_a = decode_e4m3(bytes_a[4 * _GROUP + 2 * selector.thread_a + np.arange(2)])
    scales_b = decode_e4m3(bytes_b[4 * _GROUP + selector.thread_b])
    thread = _THREAD[:, 0]
    for chunk in range(4):
        byte = thread // 2 + 2 * (chunk // 2)
        part_a, part_b = _chunk(a, b, 4 * chunk)
        # [lane, row g or g + 8, scale byte] → a factor a register: rows alternate
        row_scales = scales_a[np.arange(32)[:, None], np.arange(2), byte[:, None]]
        factor_a = np.repeat(np.tile(row_scales, 2), 2, axis=1)
        factor_b = scales_b[np.arange(32), 0, byte][:, None]
        accumulator = _fp16_mma(part_a * factor_a, part_b * factor_b, accumulator)
    return accumulator
