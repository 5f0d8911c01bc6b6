# SPDX-License-Identifier: Apache-2.0
"""Tests that run on a GPU, with kernels from WARPSMITH_BUNDLE_PATH, from installed bundles, or compiled on demand."""

from __future__ import annotations

from pathlib import Path

import pytest

from warpsmith.errors import DriverError
from warpsmith.runtime.driver import default_driver


def need_gpu() -> None:
    """Skip the calling module where there is no GPU; one that is there and does not work is left to fail."""
    try:
        count = default_driver().device_count()
    except DriverError as error:
        if not list(Path("/dev").glob("nvidia[0-9]*")) or "NO_DEVICE" in str(error):
            pytest.skip(f"no GPU was detected: {error}", allow_module_level=True)
    else:
        if not count:
            pytest.skip("no GPU was detected: the driver lists none", allow_module_level=True)
