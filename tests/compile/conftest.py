# SPDX-License-Identifier: Apache-2.0
"""Options of the tests that compile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROUNDS = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kill-rounds", type=int, default=ROUNDS, help="how often builders and workers are killed; scripts/soak: 50"
    )


@pytest.fixture(scope="session")
def kill_rounds(pytestconfig: pytest.Config) -> int:
    """How often to kill; the option is not parsed where this file is found too late for it."""
    return int(pytestconfig.getoption("--kill-rounds", default=ROUNDS))


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One compile cache for all processes of a test run: what the shipped catalog holds is compiled once.

    Tests of compiling, killing and caching themselves have their own.
    """
    base = tmp_path_factory.getbasetemp()
    return (base.parent if os.getenv("PYTEST_XDIST_WORKER") else base) / "shared-cache"
