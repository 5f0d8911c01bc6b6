# SPDX-License-Identifier: Apache-2.0
"""Which tile of the portable GEMM serves what: large products take the widest that a block's shared memory holds."""

from __future__ import annotations

import pytest

from warpsmith.arch import Capability
from warpsmith.catalog import CATALOG
from warpsmith.catalog.gemm import sm80_tile, witness
from warpsmith.catalog.resolve import DeviceFacts, resolve


@pytest.mark.parametrize("format", ["bf16_x_bf16", "fp16_x_fp16"])
@pytest.mark.parametrize(
    ("capability", "sms", "m", "tile"),
    [
        ((8, 0), 108, 4096, "wide_k32"),
        ((10, 0), 148, 4096, "wide"),
        ((8, 9), 128, 4096, "wide_k32"),
        ((12, 1), 48, 4096, "wide_k32"),
        ((12, 1), 48, 512, "large"),
        ((8, 0), 108, 512, "large"),
        ((8, 0), 108, 64, "rows64"),
    ],
)
def test_tiles_grow_with_the_product(format: str, capability: tuple[int, int], sms: int, m: int, tile: str) -> None:
    choice = resolve(CATALOG, witness(format, m), DeviceFacts(Capability(*capability), sms)).choice
    assert choice is not None
    assert (choice.kernel, choice.variant) == ("sm80_gemm", f"{format}_{tile}")
    chosen = sm80_tile(choice.variant)
    assert (chosen.m + chosen.n) * chosen.k * 2 * chosen.stages <= (164 if tile == "wide" else 99) << 10


def test_quantized_weights_have_no_wide_tile() -> None:
    choice = resolve(CATALOG, witness("bf16_x_nvfp4", 8192), DeviceFacts(Capability(8, 0), 108)).choice
    assert choice is not None
    assert choice.variant == "bf16_x_nvfp4_large"
