# SPDX-License-Identifier: Apache-2.0
"""The catalog: which kernels exist, for what, and what is promised. Data, and the pure functions over it."""

from __future__ import annotations

from warpsmith.catalog import fp4_quantization, fused_moe, gemm
from warpsmith.catalog.promises import PROMISES
from warpsmith.catalog.spec import Catalog

CATALOG = Catalog(
    operations=(*fp4_quantization.OPERATIONS, *gemm.OPERATIONS, *fused_moe.OPERATIONS),
    kernels=(*fp4_quantization.KERNELS, *gemm.KERNELS, *fused_moe.KERNELS),
    promises=PROMISES,
    tuning=(*fp4_quantization.TUNING, *gemm.TUNING),
)
"""The one catalog."""

__all__ = ["CATALOG"]
