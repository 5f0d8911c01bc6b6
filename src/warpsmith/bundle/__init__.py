# SPDX-License-Identifier: Apache-2.0
"""Bundles: prebuilt cubins with a manifest. Reading, writing, finding and auditing them; the compile cache."""
