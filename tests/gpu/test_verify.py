# SPDX-License-Identifier: Apache-2.0
"""`warpsmith verify`, as the command runs it: raw kernels on raw memory, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from warpsmith import reference
from warpsmith.catalog import CATALOG
from warpsmith.evidence.cases import Case
from warpsmith.evidence.verify import all_cases, verify
from warpsmith.runtime.driver import default_driver
from warpsmith.settings import Settings

from . import need_gpu

need_gpu()


def run(cases: list[Any], seed: int = 0) -> list[str]:
    """What differs."""
    outcomes = verify(CATALOG, Settings.from_environment(), 0, default_driver(), seed=seed, cases=cases)
    assert sum(outcome.cases for outcome in outcomes) >= len(cases)
    return [f"{outcome.cubin}: {mismatch}" for outcome in outcomes for mismatch in outcome.mismatches]


def test_a_handful_of_all_cases_has_no_mismatch() -> None:
    assert run(list(all_cases(CATALOG))[::23]) == []


def test_a_wrong_byte_is_a_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        c
        for c in all_cases(CATALOG)
        if isinstance(c, Case) and (c.operation, c.format, c.m) == ("quantize", "mxfp8", 129)
    ][:1]
    right = reference.quantize

    def wrong(*args: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        codes, scales = right(*args, **options)
        codes[..., -1, -1] ^= 1
        return codes, scales

    assert run(cases) == []
    monkeypatch.setattr(reference, "quantize", wrong)
    mismatches = run(cases)
    assert len(mismatches) == 2  # one a tile
    assert all("codes: 1 of" in text for text in mismatches)


def test_the_sanitizers_cases_pass_without_torch() -> None:
    script = Path(__file__).with_name("sanitizer_cases.py")
    code = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path(sys.argv.pop(), run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 problems" in done.stdout
