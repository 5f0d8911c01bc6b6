# SPDX-License-Identifier: Apache-2.0
"""Tests of the GEMM of few rows on compute capability 9.0."""
