# SPDX-License-Identifier: Apache-2.0
"""Tests and timings of the GEMM of compute capability 9.0. They need torch and such a GPU.

pytest runs a part of the tests; all of them, or timings beside cuBLASLt, as processes that are killed when they hang::

    PYTHONPATH=src:tests/gpu python -m sm90 check [--folder CUBINS] [--only fp8] [--jobs 4]
    PYTHONPATH=src:tests/gpu python -m sm90 time --plan plan.json [--folder CUBINS] [--out times.json]
"""
