# SPDX-License-Identifier: Apache-2.0
"""Tests of the reference, against exact rational arithmetic and ml_dtypes."""
