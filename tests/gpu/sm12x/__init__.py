# SPDX-License-Identifier: Apache-2.0
"""Tests of the block-scaled GEMM of compute capability 12.x and of the MMA layer below it.

They need NumPy and a GPU; on 9.0 the same sources run with the software MMA. pytest runs a part of them; all of them::

    PYTHONPATH=src:tests/gpu python -m sm12x --target sm_90a [--folder CUBINS] [--only nvfp4_s] [--jobs 8]
"""
