# SPDX-License-Identifier: Apache-2.0
"""What dispatch needs to know of the devices at hand."""

from __future__ import annotations

from functools import lru_cache

from warpsmith.arch import CAPABILITIES, Capability
from warpsmith.catalog.resolve import DeviceFacts
from warpsmith.errors import UnsupportedError
from warpsmith.runtime.driver import Driver, default_driver


def device_facts(index: int, driver: Driver | None = None) -> DeviceFacts:
    """The facts of one device, read once.

    Parameters
    ----------
    index
        The device's number, as torch counts it.
    driver
        The driver to ask; by default the one of this process.

    Raises
    ------
    DriverError
        If there is no driver, or no device.
    InvalidArgumentError
        If there is no device of that number.
    UnsupportedError
        If the device's compute capability is not one that Warpsmith knows.
    """
    return _read(index, driver or default_driver())


@lru_cache(maxsize=64)
def _read(index: int, driver: Driver) -> DeviceFacts:
    device = driver.device(index)
    attributes = driver.api.CUdevice_attribute

    def attribute(name: str) -> int:
        wanted = getattr(attributes, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(driver.call("cuDeviceGetAttribute", wanted, device, tried=f"read {name} of device {index}"))

    text = driver.call("cuDeviceGetName", 256, device, tried=f"read the name of device {index}")
    name = bytes(text).split(b"\0")[0].decode(errors="replace")
    capability = Capability(attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR"))
    if capability not in CAPABILITIES:
        known = ", ".join(map(str, CAPABILITIES))
        raise UnsupportedError(
            f"device {index}, {name}, has compute capability {capability}, for which Warpsmith has no kernels; "
            f"it has them for {known}"
        )
    return DeviceFacts(capability, attribute("MULTIPROCESSOR_COUNT"), driver.version(), name)
