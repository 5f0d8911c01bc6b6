# SPDX-License-Identifier: Apache-2.0
"""Facts of devices: read once, and an unknown device is refused by name."""

from __future__ import annotations

import pytest
from driver_fake import FakeApi, FakeDevice

from warpsmith.arch import CAPABILITIES, Capability
from warpsmith.catalog.resolve import DeviceFacts
from warpsmith.errors import InvalidArgumentError, UnsupportedError
from warpsmith.runtime.device import device_facts
from warpsmith.runtime.driver import Driver


def test_each_devices_facts_are_its_own_and_read_once() -> None:
    api = FakeApi((FakeDevice(), FakeDevice((9, 0), 132, "NVIDIA H200")), driver=13050)
    driver = Driver(api)
    for _ in range(2):
        assert device_facts(0, driver) == DeviceFacts(Capability(12, 1), 48, 13050, "NVIDIA GB10")
        assert device_facts(1, driver) == DeviceFacts(Capability(9, 0), 132, 13050, "NVIDIA H200")
    assert len(api.called("cuDeviceGetName")) == 2


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_every_known_capability_is_taken(capability: Capability) -> None:
    driver = Driver(FakeApi((FakeDevice((capability.major, capability.minor)),)))
    assert device_facts(0, driver).capability == capability


@pytest.mark.parametrize("capability", [(7, 5), (13, 0), (12, 2)])
def test_an_unknown_capability_is_refused_with_what_is_supported(capability: tuple[int, int]) -> None:
    driver = Driver(FakeApi((FakeDevice(capability, name="Tesla T4"),)))
    number = f"{capability[0]}.{capability[1]}"
    with pytest.raises(UnsupportedError, match=f"device 0, Tesla T4, has compute capability {number}.*8.0, 8.6.*12.1"):
        device_facts(0, driver)


def test_a_device_number_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="there is no CUDA device 1; this process sees 1 device,"):
        device_facts(1, Driver(FakeApi()))
