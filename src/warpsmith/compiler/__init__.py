# SPDX-License-Identifier: Apache-2.0
"""Compiling the catalog's kernels to cubins: toolchain, worker processes, checks, and the build of bundles."""
