# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the GPU tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operations as in a new process: no kernel is loaded, nothing is planned."""
    from warpsmith.ops import cuda, state

    monkeypatch.setattr(state, "_runtime", None)
    for table in ("_plans", "_dequantize_plans", "_scalars"):
        monkeypatch.setattr(cuda, table, {})
