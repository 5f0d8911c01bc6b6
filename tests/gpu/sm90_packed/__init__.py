# SPDX-License-Identifier: Apache-2.0
"""Tests of products by weights prepared for few rows, on compute capability 9.0."""
