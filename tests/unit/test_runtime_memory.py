# SPDX-License-Identifier: Apache-2.0
"""Device memory, streams and events: values arrive, sizes are checked, everything is released once."""

from __future__ import annotations

import array

import pytest
from driver_fake import CUresult, FakeApi, FakeDevice

from warpsmith.errors import DriverError, InvalidArgumentError
from warpsmith.runtime.driver import Driver
from warpsmith.runtime.memory import DeviceBuffer, Event, Stream, synchronize


@pytest.fixture
def api() -> FakeApi:
    return FakeApi((FakeDevice(), FakeDevice()))


def test_what_is_written_is_read(api: FakeApi) -> None:
    with DeviceBuffer(Driver(api), 1, 16) as buffer:
        assert buffer.pointer in api.live
        buffer.write(bytes(range(16)))
        assert buffer.read() == bytes(range(16))
        back = array.array("d", [0.0, 0.0])
        buffer.read_into(back)
        assert back.tobytes() == bytes(range(16))
        buffer.write(array.array("I", [1, 2, 3, 4]))
        assert buffer.read() == array.array("I", [1, 2, 3, 4]).tobytes()
        buffer.fill(0xA5)
        assert buffer.read() == b"\xa5" * 16
    assert not api.live
    assert {call[0] for call in api.called("cuMemcpyHtoD")} == {2}  # under device 1's context
    assert api.cuCtxGetCurrent()[1] == 0


def test_a_write_has_arrived_before_other_streams_may_work(api: FakeApi) -> None:
    with DeviceBuffer(Driver(api), 0, 4) as buffer:
        for write in (lambda: buffer.write(b"1234"), lambda: buffer.fill(1)):
            waits = len(api.called("cuStreamSynchronize"))
            write()
            assert len(api.called("cuStreamSynchronize")) == waits + 1


def test_it_is_released_once_and_after_an_error_too(api: FakeApi) -> None:
    buffer = DeviceBuffer(Driver(api), 0, 8)
    with pytest.raises(ValueError, match="in the block"), buffer:
        raise ValueError("in the block")
    buffer.close()
    assert len(api.called("cuMemFree")) == 1
    assert buffer.pointer == 0
    stream = Stream(Driver(api), 0)
    stream.close()
    stream.close()
    assert api.called("cuStreamDestroy") == [(stream.handle,)]


def test_an_empty_buffer_needs_no_memory(api: FakeApi) -> None:
    with DeviceBuffer(Driver(api), 0, 0) as buffer:
        buffer.write(b"")
        buffer.fill(1)
        assert buffer.read() == b""
    assert not api.called("cuMemAlloc")


def test_memory_that_does_not_fit_is_refused(api: FakeApi) -> None:
    with DeviceBuffer(Driver(api), 0, 8) as buffer:
        with pytest.raises(InvalidArgumentError, match="9 host bytes do not fit a device buffer of 8 bytes"):
            buffer.write(bytes(9))
        with pytest.raises(InvalidArgumentError, match="must be writable and contiguous"):
            buffer.read_into(bytes(8))
        with pytest.raises(InvalidArgumentError, match="must be contiguous"):
            buffer.write(memoryview(bytes(16))[::2])
    with pytest.raises(InvalidArgumentError, match="-1 bytes was asked for"):
        DeviceBuffer(Driver(api), 0, -1)


def test_running_out_of_memory_says_how_much_and_where(api: FakeApi) -> None:
    api.fail["cuMemAlloc"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(DriverError, match="allocate 64 bytes on device 1: CUDA_ERROR_OUT_OF_MEMORY"):
        DeviceBuffer(Driver(api), 1, 64)
    assert api.cuCtxGetCurrent()[1] == 0


def test_events_on_a_stream_give_the_time_between_them(api: FakeApi) -> None:
    driver = Driver(api)
    with Stream(driver, 1) as stream, Event(driver, 1) as start, Event(driver, 1) as end:
        start.record(stream)
        end.record(stream)
        assert end.elapsed_ms(start) == 1.0
        stream.synchronize()
        assert api.called("cuEventRecord") == [(start.handle, stream.handle), (end.handle, stream.handle)]
        assert api.called("cuEventSynchronize") == [(end.handle,)]
        assert api.called("cuStreamSynchronize") == [(stream.handle,)]
    synchronize(driver, 1)
    assert api.called("cuCtxSynchronize") == [(2,)]
    assert not api.live
