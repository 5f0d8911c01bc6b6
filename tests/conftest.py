# SPDX-License-Identifier: Apache-2.0
"""What holds for all tests: a busy machine is no failure of a property test."""

from __future__ import annotations

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # on a machine with a GPU there may be nothing but pytest
    pass
else:
    settings.register_profile("warpsmith", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("warpsmith")
