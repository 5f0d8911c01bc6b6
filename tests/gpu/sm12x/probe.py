# SPDX-License-Identifier: Apache-2.0
"""The MMA layer against float64: every position, selector, pair of codes and pair of scales."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from warpsmith.reference.formats import decode_e2m1, decode_e4m3, decode_ue8m0
from warpsmith.reference.mma import a_map, b_map, c_map, scale_byte, scale_lane_a, scale_lane_b

from .device import Device
from .kernels import PROBE

Array = npt.NDArray[Any]
KINDS = {
    "nvfp4": ("e2m1", "e2m1", 4),
    "mxfp4": ("e2m1", "e2m1", 2),
    "e4m3_e4m3": ("e4m3", "e4m3", 1),
    "e4m3_e2m1": ("e4m3", "e2m1", 1),
    "e2m1_e4m3": ("e2m1", "e4m3", 1),
}
"""Types of A and B, and scales along K of one MMA."""
VALUES = {
    "e2m1": decode_e2m1(np.arange(16, dtype=np.uint8)).astype(np.float64),
    "e4m3": decode_e4m3(np.arange(256, dtype=np.uint8)).astype(np.float64),
}
_POISON = 0x5EADBEEF
_BYTES = 8 * np.arange(4, dtype=np.uint32)


class Inputs(NamedTuple):
    """Many single MMAs. `selectors` is [n, 4]: byte-id and thread-id of A, byte-id and thread-id of B."""

    a: Array  # codes [n, 16, K]
    b: Array  # codes [n, K, 8]
    scales_a: Array  # words [n, 32]
    scales_b: Array
    c: Array  # [n, 16, 8]
    selectors: Array


class Probe:
    """One form of the MMA: matrices of codes in, D out, on the device and in float64."""

    def __init__(self, device: Device, kind: str, seed: int) -> None:
        self.type_a, self.type_b, self.vector = KINDS[kind]
        self.k = 64 if kind in ("nvfp4", "mxfp4") else 32
        self.e4m3_scales = kind == "nvfp4"
        decode = decode_e4m3 if self.e4m3_scales else decode_ue8m0
        self.scale_values = decode(np.arange(256, dtype=np.uint8)).astype(np.float64)
        self._device, self._program = device, device.load(PROBE, PROBE.variant(kind))
        self._rng = np.random.default_rng(seed)

    def words(self, codes: Array, kind: str) -> Array:
        """Registers [n, 32, registers] of codes [n, 32, elements]."""
        width = 8 if self.k == 64 else 4
        if self.k == 32 and kind == "e2m1":
            codes = codes << 2  # e2m1 in bytes: 00ABCD00
        shifts = 32 // width * np.arange(width, dtype=np.uint64)
        words = codes.reshape(*codes.shape[:2], -1, width).astype(np.uint64) << shifts
        return np.asarray(words.sum(-1), np.uint32)

    def run(self, x: Inputs) -> Array:
        """D of the device, [n, 16, 8]."""
        n = len(x.a)
        row_a, k_a = a_map(self.k)
        k_b, column_b = b_map(self.k)
        selector = x.selectors @ np.array([1, 4, 8, 32])
        parts = (
            self.words(x.a[:, row_a, k_a], self.type_a),
            self.words(x.b[:, k_b, column_b], self.type_b),
            np.stack([x.scales_a, x.scales_b], -1).astype(np.uint32),
            x.c[(slice(None), *c_map())].astype(np.float32),
            selector.astype(np.int32),
            np.full((n, 32, 4), _POISON, np.uint32),
        )
        offset, pointers = 0, []
        for part in parts:
            self._device.write(offset, part)
            pointers.append(self._device.base + offset)
            offset += -(-part.nbytes // 256) * 256
        self._program.launch(-(-n // 4), (*pointers, n))
        raw = self._device.read(pointers[-1] - self._device.base, parts[-1].nbytes)
        d = np.zeros((n, 16, 8), np.float32)
        d[(slice(None), *c_map())] = raw.view(np.float32).reshape(n, 32, 4)
        return d

    def reference(self, x: Inputs) -> tuple[Array, Array]:
        """D in float64, and the sum of its terms' magnitudes."""
        case, inner = np.arange(len(x.a))[:, None, None], np.arange(self.k)
        byte_a, thread_a, byte_b, thread_b = x.selectors.T[:, :, None]
        lanes_a, lanes_b = scale_lane_a(np.arange(16), thread_a), scale_lane_b(np.arange(8), thread_b)
        bytes_a = scale_byte(inner, self.k, self.vector, byte_a)
        bytes_b = scale_byte(inner, self.k, self.vector, byte_b)
        split_a, split_b = ((w[..., None] >> _BYTES) & np.uint32(255) for w in (x.scales_a, x.scales_b))
        factor_a = self.scale_values[split_a[case, lanes_a[:, :, None], bytes_a[:, None, :]]]
        factor_b = self.scale_values[split_b[case, lanes_b[:, None, :], bytes_b[:, :, None]]]
        left, right = VALUES[self.type_a][x.a] * factor_a, VALUES[self.type_b][x.b] * factor_b
        return left @ right + x.c, np.abs(left) @ np.abs(right) + np.abs(x.c)

    def wrong(self, x: Inputs, exact: bool) -> list[str]:
        """The first elements of D that are wrong; unless `exact`, sums may differ by 2e-6 of their terms' magnitude."""
        got = self.run(x)
        with np.errstate(all="ignore"):
            want, size = self.reference(x)
            same = (got == want.astype(np.float32)) | (np.isnan(got) & np.isnan(want))
            if not exact:
                same |= np.abs(got - want) <= 2e-6 * size
        return [
            f"case {i}, row {row}, column {column}: {got[i, row, column]} but {want[i, row, column]} was expected, "
            f"selectors {x.selectors[i].tolist()}"
            for i, row, column in np.argwhere(~same)[:4]
        ]

    # ---- inputs -----------------------------------------------------------------------------------------------------

    def checks(self) -> Iterator[tuple[str, Inputs, bool]]:
        """(name, inputs, whether D must be exact) of every check."""
        yield "each element of A alone", self._alone(left=True), True
        yield "each element of B alone", self._alone(left=False), True
        yield "every selector", self._every_selector(), False
        yield "every pair of codes", self._code_pairs(), True
        for byte in range(4):
            yield f"every pair of scales, byte {byte}", self._scale_pairs(byte), True
        yield "sums that cancel, large C", self._cancelling(), False

    def _codes(self, kind: str, shape: tuple[int, ...]) -> Array:
        if kind == "e2m1":
            return self._rng.integers(0, 16, shape)
        codes = self._rng.integers(0, 254, shape)
        return np.where(codes >= 127, codes + 1, codes)  # no NaN

    def _random(self, n: int, selectors: Array | None = None, c: Array | None = None) -> Inputs:
        """Random codes; words of four scales of moderate size, which differ from lane to lane; C of 0."""
        low, high = (40, 80) if self.e4m3_scales else (97, 158)
        words = (self._rng.integers(low, high, (2, n, 32, 4)).astype(np.uint32) << _BYTES).sum(-1).astype(np.uint32)
        if selectors is None:
            every = self._selectors()
            selectors = every[self._rng.integers(0, len(every), n)]
        c = np.zeros((n, 16, 8)) if c is None else c
        a, b = self._codes(self.type_a, (n, 16, self.k)), self._codes(self.type_b, (n, self.k, 8))
        return Inputs(a, b, words[0], words[1], c, selectors)

    def _selectors(self) -> Array:
        places = range(0, 4, self.vector)
        return np.array([(x, y, z, w) for x in places for y in range(2) for z in places for w in range(4)])

    def _alone(self, left: bool) -> Inputs:
        """Each element of one operand alone, against all of the other."""
        n = (16 if left else 8) * self.k
        x, at = self._random(n), np.arange(n)
        full = x.a if left else x.b
        single = np.zeros_like(full)
        position = (at, *np.unravel_index(at, full.shape[1:]))
        single[position] = full[position]
        return x._replace(a=single) if left else x._replace(b=single)

    def _every_selector(self) -> Inputs:
        selectors = np.repeat(self._selectors(), 64, 0)
        c = self._rng.standard_normal((len(selectors), 16, 8)).astype(np.float32)
        return self._random(len(selectors), selectors, c)

    def _code_pairs(self) -> Inputs:
        """Every pair of codes, NaN too, in 16 by 8 at one position of K; at all positions where pairs are few."""
        count_a, count_b = len(VALUES[self.type_a]), len(VALUES[self.type_b])
        blocks = [(x, y) for x in range(0, count_a, 16) for y in range(0, count_b, 8)]
        positions = range(self.k) if len(blocks) < 64 else self._rng.permutation(self.k)[:4]
        a, b = (np.zeros((len(blocks) * len(positions), *s), np.int64) for s in ((16, self.k), (self.k, 8)))
        for i, (position, (x, y)) in enumerate((p, block) for p in positions for block in blocks):
            a[i, :, position], b[i, position, :] = x + np.arange(16), y + np.arange(8)
        return self._random(len(a))._replace(a=a, b=b)

    def _scale_pairs(self, byte: int) -> Inputs:
        """Every pair of scales, NaN too, in one byte of the words; the other bytes are random."""
        limit = 128 if self.e4m3_scales else 256
        blocks = [(x, y) for x in range(0, limit, 16) for y in range(0, limit, 8)]
        first, vector_index = byte // self.vector * self.vector, byte % self.vector
        stretch = self.k // self.vector
        x, at = self._random(len(blocks)), np.arange(len(blocks))
        position = self._rng.integers(0, stretch, len(blocks)) + vector_index * stretch
        a, b = np.zeros_like(x.a), np.zeros_like(x.b)
        a[at, :, position] = 2 if self.type_a == "e2m1" else 0x38  # 1.0
        b[at, position, :] = 2 if self.type_b == "e2m1" else 0x38
        x.selectors[:, 0] = x.selectors[:, 2] = first
        clear = np.uint32(0xFFFFFFFF ^ (255 << 8 * byte))
        for i, (left, right) in enumerate(blocks):
            for words, start, lanes in (
                (x.scales_a, left, scale_lane_a(np.arange(16), x.selectors[i, 1])),
                (x.scales_b, right, scale_lane_b(np.arange(8), x.selectors[i, 3])),
            ):
                scales = (start + np.arange(len(lanes))).astype(np.uint32)
                words[i, lanes] = words[i, lanes] & clear | scales << np.uint32(8 * byte)
        return x._replace(a=a, b=b)

    def _cancelling(self) -> Inputs:
        """Half of the cases: K's second half is minus its first, up to scales. C of many magnitudes."""
        n, half = 512, self.k // 2
        c = self._rng.standard_normal((n, 16, 8)) * 2.0 ** self._rng.integers(-30, 60, (n, 1, 1))
        x = self._random(n, c=c.astype(np.float32))
        x.a[: n // 2, :, half:] = x.a[: n // 2, :, :half]
        x.b[: n // 2, half:] = x.b[: n // 2, :half] ^ (8 if self.type_b == "e2m1" else 128)
        return x
