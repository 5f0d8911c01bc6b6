# SPDX-License-Identifier: Apache-2.0
"""Tensor maps: what the hardware's tiled copies are told of a matrix; made once for each address and kept."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from warpsmith.errors import InvalidArgumentError
from warpsmith.runtime.driver import Driver

NBYTES = 128
NO_MAP = bytes(NBYTES)
"""For a parameter that a launch does not use."""
_MAX_ADDRESSES = 1024
_TURN = 8
_SWIZZLED = (32, 64, 128)


class MapSpec(NamedTuple):
    """All of a tensor map but its address; sizes and strides in bytes.

    Attributes
    ----------
    row, rows, batches
        Bytes of a row, rows of a matrix, matrices.
    row_stride, batch_stride
        From row to row and from matrix to matrix, multiples of 16.
    box_row, box_rows
        What one copy brings: 32, 64 or 128 bytes of each of 1 to 256 rows. Shared memory is swizzled as wide as a row
        of it.
    halves
        Whether rows of a matrix's two halves come by turns, eight of the first, eight of the second; `rows` and
        `box_rows` are multiples of 16 then.
    """

    row: int
    rows: int
    batches: int
    row_stride: int
    batch_stride: int
    box_row: int
    box_rows: int
    halves: bool = False

    @property
    def dims(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Sizes, strides from the second dimension on, and the box, innermost first."""
        if not self.halves:
            sizes = self.row, self.rows, self.batches
            return sizes, (self.row_stride, self.batch_stride), (self.box_row, self.box_rows, 1)
        half, turns = self.rows // 2 * self.row_stride, 2 * _TURN
        return (
            (self.row, _TURN, 2, self.rows // turns, self.batches),
            (self.row_stride, half, _TURN * self.row_stride, self.batch_stride),
            (self.box_row, _TURN, 2, self.box_rows // turns, 1),
        )


class TensorMaps(dict[int, bytes]):
    """The tensor maps of one operand of a plan, by address; a full table starts anew.

    The key is the address alone, since everything else that makes a map is the plan's and does not change.

    Parameters
    ----------
    driver, device
        Whose encoder to use, and the number of the device that the matrices are on.
    spec
        What the maps have in common.

    Raises
    ------
    InvalidArgumentError
        If the box cannot be swizzled.
    """

    __slots__ = ("_device", "_driver", "spec")

    def __init__(self, driver: Driver, device: int, spec: MapSpec) -> None:
        if spec.box_row not in _SWIZZLED:
            raise InvalidArgumentError(f"a box of {spec.box_row} bytes a row cannot be swizzled; expected {_SWIZZLED}")
        self.spec = spec
        self._driver = driver
        self._device = device

    def __missing__(self, address: int) -> bytes:
        made = encode(self._driver, self._device, address, self.spec)
        if len(self) >= _MAX_ADDRESSES:
            self.clear()
        self[address] = made
        return made


def encode(driver: Driver, device: int, address: int, spec: MapSpec) -> bytes:
    """Make a tensor map of bytes: zeros beyond the matrix, lines of 128 bytes brought to the L2.

    The driver's encoder needs a current context, which a thread need not have.

    Raises
    ------
    DriverError
        If the driver refuses it.
    """
    api = driver.api
    long, word = api.cuuint64_t, api.cuuint32_t
    sizes, strides, box = spec.dims
    with driver.current(device):
        encoded = driver.call(
            "cuTensorMapEncodeTiled",
            api.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_UINT8,
            len(sizes),
            address,
            [long(size) for size in sizes],
            [long(stride) for stride in strides],
            [word(size) for size in box],
            [word(1)] * len(sizes),
            api.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            getattr(api.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{spec.box_row}B"),
            api.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            api.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            tried=f"make a tensor map at {address:#x} of {spec}",
        )
    return ctypes.string_at(int(encoded.getPtr()), NBYTES)
