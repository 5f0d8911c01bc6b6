# SPDX-License-Identifier: Apache-2.0
"""Tensor maps: encoded as the kernels expect them, made once an address, and never more than a few of them kept."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest
from driver_fake import CUresult, FakeApi

from warpsmith.errors import DriverError, InvalidArgumentError
from warpsmith.runtime import tensor_map
from warpsmith.runtime.driver import Driver
from warpsmith.runtime.tensor_map import NBYTES, MapSpec, TensorMaps, encode

SPEC = MapSpec(2048, 300, 3, 2048, 4096 * 2048, 64, 128)


def numbered(*names: str) -> Any:
    """An enumeration as the bindings have it."""
    return IntEnum("Names", {name: number for number, name in enumerate(names)})


class MapApi(FakeApi):
    """The fake driver with an encoder that notes what it was given."""

    CUtensorMapDataType = numbered("CU_TENSOR_MAP_DATA_TYPE_UINT8")
    CUtensorMapInterleave = numbered("CU_TENSOR_MAP_INTERLEAVE_NONE")
    CUtensorMapSwizzle = numbered(*(f"CU_TENSOR_MAP_SWIZZLE_{n}B" for n in (0, 32, 64, 128)))
    CUtensorMapL2promotion = numbered("CU_TENSOR_MAP_L2_PROMOTION_L2_128B")
    CUtensorMapFloatOOBfill = numbered("CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE")
    cuuint64_t = staticmethod(int)
    cuuint32_t = staticmethod(int)

    def cuTensorMapEncodeTiled(self, *given: Any) -> tuple[CUresult, Any]:
        code = self._note("cuTensorMapEncodeTiled", *given)
        code = code if self._here() else CUresult.CUDA_ERROR_INVALID_CONTEXT
        memory = ctypes.create_string_buffer(int(given[2]).to_bytes(8, "little"), NBYTES)
        return code, SimpleNamespace(getPtr=lambda: ctypes.addressof(memory), kept=memory)


@pytest.fixture
def api() -> MapApi:
    return MapApi()


def test_a_map_is_of_bytes_swizzled_as_wide_as_its_box(api: MapApi) -> None:
    made = encode(Driver(api), 0, 4096, SPEC)
    assert (len(made), int.from_bytes(made[:8], "little")) == (NBYTES, 4096)
    (given,) = api.called("cuTensorMapEncodeTiled")
    kind, rank, address, sizes, strides, box, steps, interleave, swizzle, promotion, fill = given
    assert (rank, address, sizes, strides) == (3, 4096, [2048, 300, 3], [2048, 4096 * 2048])
    assert (box, steps) == ([64, 128, 1], [1, 1, 1])
    assert swizzle.name == "CU_TENSOR_MAP_SWIZZLE_64B"
    assert [x.name.rpartition("MAP_")[2] for x in (kind, interleave, promotion, fill)] == [
        "DATA_TYPE_UINT8", "INTERLEAVE_NONE", "L2_PROMOTION_L2_128B", "FLOAT_OOB_FILL_NONE",
    ]  # fmt: skip


def test_a_map_is_made_once_for_each_address(api: MapApi) -> None:
    maps = TensorMaps(Driver(api), 0, SPEC)
    assert maps[256] == maps[256] != maps[512]
    assert [call[2] for call in api.called("cuTensorMapEncodeTiled")] == [256, 512]


def test_the_table_is_bounded(api: MapApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_map, "_MAX_ADDRESSES", 4)
    maps = TensorMaps(Driver(api), 0, SPEC)
    for address in range(0, 16 * 100, 16):
        assert int.from_bytes(maps[address][:8], "little") == address
        assert len(maps) <= 4


def test_a_map_that_the_driver_refuses_says_what_it_was_of(api: MapApi) -> None:
    api.fail["cuTensorMapEncodeTiled"] = CUresult.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(DriverError, match=r"make a tensor map at 0x100 of MapSpec\(row=2048, rows=300"):
        TensorMaps(Driver(api), 0, SPEC)[256]


def test_a_box_that_cannot_be_swizzled_is_refused(api: MapApi) -> None:
    with pytest.raises(InvalidArgumentError, match="a box of 48 bytes a row cannot be swizzled"):
        TensorMaps(Driver(api), 0, SPEC._replace(box_row=48))
