# SPDX-License-Identifier: Apache-2.0
"""The order of 4-bit weights that `prepare_weight` makes for bf16 activations; of either framework.

Codes: 16 rows by 64 of K are 512 bytes, and such tiles follow each other along K, then along N. The 16 bytes of lane
4g+t of a warp are four words, one for each 16 of K; a word has the eight codes that the lane's registers of the left
operand of an m16n8k16 MMA hold: k = 2t and 2t+1, then 2t+8 and 2t+9, each of row g, then of g+8. A code in its half of
a register has its sign in bit 15 and its magnitude in bits 8 to 6, as a bf16 number 2^126 times too small. A word w
gives the four registers, masked with 0x81C081C0, as w ^ w<<8, v, w<<4 and v<<4, with v = w rotated left by 10: a linear
map of 32 bits, and one to one.

Scales: 32 rows by 64 of K are a word for each of 8 rows g and each block of K. Masked, it has the scales of rows g and
g+8 in its halves, and rotated left by 8 those of g+16 and g+24. nvfp4: bits 11 to 4 of a half are the exponent (5 bits)
and the mantissa (3) of bf16, whose upper bits are ones: 2^119 times too large, without subnormals. mxfp4: bits 14 to 7
are the exponent of bf16, relative to the largest scale of the matrix, which is 2^127; the global scale of a prepared
mxfp4 weight is 2^(127 - largest), with the largest as its byte.

A zero or NaN scale has zero codes, and the sign of a negative scale moves to its codes: values are the same.
``kernels/common/prepared_weights.cuh`` reads this order.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from warpsmith.catalog.formats import STREAMED, STREAMED_MULTIPLES
from warpsmith.ops.qtensor import QTensor, is_torch

_PLACES = 0x81C081C0 - (1 << 32)
_PIECE = 1 << 23  # codes that are worked on at a time
_LARGEST = 254  # the byte of a prepared mxfp4 matrix's largest scale
_NAN = 255
_FIXED = (
    (7, 7, None),
    (15, 15, 7),
    (6, 6, None),
    (0, 8, None),
    (23, 23, 15),
    (31, 31, 23),
    (22, 22, None),
    (16, 24, None),
)
"""Bits of a word that its first register gives: (bit, where the register has it, the bit that it is added to)."""


def as_bytes(x: Any) -> Any:
    """One-byte elements as uint8; others as they are."""
    if is_torch(x):
        return x.view(sys.modules["torch"].uint8) if x.element_size() == 1 else x
    return x.view(np.uint8) if x.dtype.itemsize == 1 else x


def _contiguous(x: Any) -> Any:
    return x.contiguous() if is_torch(x) else np.ascontiguousarray(x)


def like_typed(x: Any, like: Any) -> Any:
    """An array, contiguous, of the dtype of another of as wide elements."""
    return _contiguous(x).view(like.dtype)


def _int32(x: Any) -> Any:
    return x.to(sys.modules["torch"].int32) if is_torch(x) else x.astype(np.int32)


def _uint8(x: Any) -> Any:
    return x.to(sys.modules["torch"].uint8) if is_torch(x) else x.astype(np.uint8)


def _permuted(x: Any, axes: tuple[int, ...]) -> Any:
    return x.permute(axes).contiguous() if is_torch(x) else np.ascontiguousarray(x.transpose(axes))


def _where(condition: Any, x: Any, y: Any) -> Any:
    return sys.modules["torch"].where(condition, x, y) if is_torch(condition) else np.where(condition, x, y)


def _stack(parts: list[Any], dim: int) -> Any:
    return sys.modules["torch"].stack(parts, dim) if is_torch(parts[0]) else np.stack(parts, dim)


def _bytes_of(words: Any) -> Any:
    return words.view(sys.modules["torch"].uint8 if is_torch(words) else np.uint8)


def _words_of(data: Any) -> Any:
    return data.view(sys.modules["torch"].int32 if is_torch(data) else np.int32)


def _looked_up(table: list[int], x: Any) -> Any:
    if is_torch(x):
        torch = sys.modules["torch"]
        return torch.tensor(table, dtype=torch.int32, device=x.device)[x.long()]
    return np.asarray(table, np.int32)[x]


def _left(x: Any, by: int) -> Any:
    """Words rotated left."""
    return (x << by) | ((x >> (32 - by)) & ((1 << by) - 1))


def _word(registers: list[Any]) -> Any:
    """The word that gives four registers; the inverse of `_registers`."""
    second, third, fourth = registers[1:]
    word = _left(second, 22) | ((third >> 4) & 0x0FFFFFFF) | _left((fourth >> 4) & 0x0FFFFFFF, 22)
    first = registers[0] ^ ((word ^ (word << 8)) & _PLACES)
    bits: dict[int, Any] = {}
    for bit, place, added in _FIXED:
        bits[bit] = (first >> place) & 1
        if added is not None:
            bits[bit] = bits[bit] ^ bits[added]
        word = word | (bits[bit] << bit)
    return word


def _registers(word: Any) -> list[Any]:
    turned = _left(word, 10)
    return [(word ^ (word << 8)) & _PLACES, turned & _PLACES, (word << 4) & _PLACES, (turned << 4) & _PLACES]


def _pack_codes(data: Any) -> Any:
    """Codes [rows, K/2] in the prepared order: of tile, half of its rows, g, tile of K, 16 of it, half of them, t."""
    rows, width = data.shape
    pairs = _int32(data).reshape(rows // 16, 2, 8, width // 32, 4, 2, 4)
    low, high = pairs & 15, pairs >> 4
    placed = ((low & 8) << 12) | ((low & 7) << 6) | ((high & 8) << 28) | ((high & 7) << 22)
    word = _word([placed[:, half, :, :, :, k] for k in (0, 1) for half in (0, 1)])
    return _bytes_of(_permuted(word, (0, 2, 1, 4, 3))).reshape(rows, width)


def _unpack_codes(data: Any) -> Any:
    rows, width = data.shape
    words = _permuted(_words_of(data).reshape(rows // 16, width // 32, 8, 4, 4), (0, 2, 1, 4, 3))
    placed = _stack(_registers(words), 1).reshape(rows // 16, 2, 2, 8, width // 32, 4, 4)
    low, high = ((placed >> 12) & 8) | ((placed >> 6) & 7), ((placed >> 28) & 8) | ((placed >> 22) & 7)
    return _uint8(_permuted(low | (high << 4), (0, 2, 3, 4, 5, 1, 6))).reshape(rows, width)


def _pack_scales(scales: Any, shift: int) -> Any:
    """Scales [rows, K/block], a byte each as a word has them from bit `shift` on, in the prepared order."""
    rows, width = scales.shape
    each = _int32(scales).reshape(rows // 32, 2, 2, 8, -1, 4 if shift == 4 else 2)
    halves = (each[:, :, 0] << shift) | (each[:, :, 1] << (16 + shift))
    word = _permuted(halves[:, 0] | _left(halves[:, 1], 24), (0, 2, 1, 3))
    return _bytes_of(word.reshape(rows // 32, -1)).reshape(rows, width)


def _unpack_scales(scales: Any, shift: int) -> Any:
    rows, width = scales.shape
    blocks = 4 if shift == 4 else 2
    word = _permuted(_words_of(scales.reshape(rows // 32, -1)).reshape(rows // 32, -1, 8, blocks), (0, 2, 1, 3))
    turned = _left(word, 8)
    each = [(x >> (16 * half + shift)) & 255 for x in (word, turned) for half in (0, 1)]
    return _uint8(_stack(each, 1)).reshape(rows, width)


def _in_pieces(function: Callable[..., tuple[Any, Any]], data: Any, scales: Any, offsets: Any) -> tuple[Any, Any]:
    """Codes and scales [rows, …] that a function makes, some rows at a time."""
    rows = data.shape[0]
    multiple = STREAMED_MULTIPLES[0]
    step = max(_PIECE // (2 * data.shape[1]) // multiple, 1) * multiple
    made = data.new_empty(data.shape) if is_torch(data) else np.empty_like(data)
    made_scales = scales.new_empty(scales.shape) if is_torch(scales) else np.empty_like(scales)
    for first in range(0, rows, step):
        part = slice(first, first + step)
        made[part], made_scales[part] = function(data[part], scales[part], None if offsets is None else offsets[part])
    return made, made_scales


# ---- scales of one format as those of the other, and what they make of codes ---------------------------------------


def _nvfp4_code(byte: int) -> int:
    """ue4m3 without its sign as an exponent of 5 bits and a mantissa of 3."""
    exponent, mantissa = byte >> 3, byte & 7
    if byte == 127:
        return _NAN
    if exponent:
        return (exponent + 15) << 3 | mantissa
    top = mantissa.bit_length() - 1
    return (13 + top) << 3 | (mantissa << (3 - top)) & 7 if mantissa else 0


_NVFP4 = [_nvfp4_code(byte) for byte in range(128)]
_FROM_NVFP4 = [_NVFP4.index(code) if code in _NVFP4 else 127 for code in range(256)]


def _signed(data: Any, flip: Any, keep: Any) -> Any:
    """Codes [rows, K/2], two a byte, with signs flipped and blocks set to zero as [rows, K/block] says."""
    blocks = data.reshape(*flip.shape, -1)
    return (_where(keep[..., None], blocks ^ _uint8(flip * 0x88)[..., None], _uint8(0 * blocks))).reshape(data.shape)


def _prepare_nvfp4(data: Any, scales: Any, _: Any) -> tuple[Any, Any]:
    size = scales & 127
    codes = _signed(data, _int32(scales >> 7), (size > 0) & (size < 127))
    return _pack_codes(codes), _pack_scales(_looked_up(_NVFP4, size), 4)


def _prepare_mxfp4(data: Any, scales: Any, peaks: Any) -> tuple[Any, Any]:
    wide = _int32(scales)
    whole = wide != _NAN
    relative = _where(whole, wide + (_LARGEST - peaks), wide)
    return _pack_codes(_signed(data, 0 * wide, whole)), _pack_scales(relative, 7)


def _restore_nvfp4(data: Any, scales: Any, _: Any) -> tuple[Any, Any]:
    return _unpack_codes(data), _uint8(_looked_up(_FROM_NVFP4, _unpack_scales(scales, 4)))


def _restore_mxfp4(data: Any, scales: Any, peaks: Any) -> tuple[Any, Any]:
    relative = _int32(_unpack_scales(scales, 7))
    return _unpack_codes(data), _uint8(_where(relative != _NAN, relative - (_LARGEST - peaks), relative))


def _run(function: Any, data: Any, scales: Any, peaks: Any) -> tuple[Any, Any]:
    """A function of codes and scales of [*batch, N, …], with a peak for each row."""
    rows = data.reshape(-1, data.shape[-1])
    every = None
    if peaks is not None:
        ones = 0 * _int32(rows[:, :1]).reshape(peaks.shape[0], -1)
        every = (ones + peaks[:, None]).reshape(-1, 1)
    made, made_scales = _in_pieces(function, rows, scales.reshape(-1, scales.shape[-1]), every)
    return made.reshape(data.shape), made_scales.reshape(scales.shape)


def _peaks(scales: Any) -> Any:
    """The largest byte of a matrix's ue8m0 scales that is a number."""
    wide = _int32(scales).reshape(-1, scales.shape[-2] * scales.shape[-1])
    finite = _where(wide == _NAN, 0 * wide, wide)
    return finite.amax(1) if is_torch(wide) else finite.max(1)


def _power(peaks: Any) -> Any:
    """2^(127 - peak) in fp32; the last one is subnormal."""
    bits = _where(peaks < _LARGEST, (_LARGEST - peaks) << 23, 0 * peaks + (1 << 22))
    return bits.view(sys.modules["torch"].float32) if is_torch(bits) else bits.astype(np.int32).view(np.float32)


def few_rows_weight(w: QTensor, data: Any, scales: Any) -> QTensor:
    """nvfp4 or mxfp4 weights in this order: `w`, with its codes and linear scales as bytes."""
    peaks = _peaks(scales) if w.format == "mxfp4" and 0 not in scales.shape else None
    prepare = _prepare_nvfp4 if w.format == "nvfp4" else _prepare_mxfp4
    scale = w.global_scale
    if 0 not in data.shape:
        data, scales = _run(prepare, _contiguous(data), _contiguous(scales), peaks)
    if w.format == "mxfp4":
        scale = _power(_int32(data).reshape(-1)[:0] if peaks is None else peaks)
    data, scales = like_typed(data, w.data), like_typed(scales, w.scales)
    return QTensor(data, scales, w.format, w.shape, global_scale=scale, packing=STREAMED)


def restored(w: QTensor) -> QTensor:
    """Weights in this order as they were quantized, with linear scales; others as they are."""
    if w.packing != STREAMED:
        return w
    data, scales, peaks = _contiguous(as_bytes(w.data)), _contiguous(as_bytes(w.scales)), None
    if w.format == "mxfp4":
        peaks = _LARGEST - (_words_of(_contiguous(w.global_scale.reshape(-1))) >> 23)
    if 0 not in data.shape:
        data, scales = _run(_restore_nvfp4 if w.format == "nvfp4" else _restore_mxfp4, data, scales, peaks)
    scale = w.global_scale if w.format == "nvfp4" else None
    data, scales = like_typed(data, w.data), like_typed(scales, w.scales)
    return QTensor(data, scales, w.format, w.shape, global_scale=scale)
