# SPDX-License-Identifier: Apache-2.0
"""The catalog: which kernels exist, for what, and what is promised. Data, and the pure functions over it."""

from __future__ import annotations

from warpsmith.catalog import (
    fp4_gemm,
    fp4_gemm_gated,
    fp4_quantization,
    fused_moe,
    gemm,
    gemm_mixed,
    gemm_mixed_packed,
    gemm_packed,
    gemm_sm90,
    gemm_stream,
    moe_decode,
    moe_packed,
)
from warpsmith.catalog.promises import PROMISES
from warpsmith.catalog.spec import Catalog

CATALOG = Catalog(
    operations=(
        *(*fp4_quantization.OPERATIONS, *gemm.OPERATIONS, *fp4_gemm_gated.OPERATIONS),
        *(*fused_moe.OPERATIONS, *moe_decode.OPERATIONS, *moe_packed.OPERATIONS),
    ),
    kernels=(
        *(*fp4_quantization.KERNELS, *fp4_gemm.KERNELS, *fp4_gemm_gated.KERNELS),
        *(gemm_sm90.KERNEL, *gemm_stream.KERNELS, gemm_mixed.KERNEL),
        *(*gemm_packed.KERNELS, gemm_mixed_packed.KERNEL, *gemm.KERNELS, *fused_moe.KERNELS, *moe_decode.KERNELS),
        *moe_packed.KERNELS,
    ),
    promises=PROMISES,
    tuning=(
        *(*fp4_quantization.TUNING, *fp4_gemm.TUNING, *fp4_gemm_gated.TUNING, *gemm_sm90.TUNING, *gemm_mixed.TUNING),
        *(*gemm_packed.TUNING, *gemm_mixed_packed.TUNING, *gemm.TUNING, *moe_decode.TUNING, *moe_packed.TUNING),
    ),
    estimates=(*fp4_gemm.ESTIMATES, *fp4_gemm_gated.ESTIMATES),
    splits=(*gemm_sm90.SPLITS, *gemm_mixed.SPLITS, *gemm_mixed_packed.SPLITS),
)
"""The one catalog."""

__all__ = ["CATALOG"]
