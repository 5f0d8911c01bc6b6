# SPDX-License-Identifier: Apache-2.0
"""Options of the tests that compile."""

from __future__ import annotations

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
