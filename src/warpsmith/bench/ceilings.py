# SPDX-License-Identifier: Apache-2.0
"""What the GPU at hand can do at most, measured in the same run: bytes and operations a second."""

from __future__ import annotations

from functools import partial

from warpsmith.bench.timing import copy_bandwidth, gpu_time

COPY, BF16, FP8 = "copy_bytes_per_second", "bf16_operations_per_second", "fp8_operations_per_second"


def measure(size: int = 8192) -> dict[str, float]:
    """A copy's bandwidth, and the rates of cuBLASLt's square products in bf16 and, from 8.9 on, FP8 (one scale)."""
    import torch

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    work = 2e6 * size**3
    found = {COPY: copy_bandwidth(), BF16: work / gpu_time([partial(torch.mm, a, b.t(), out=out)])}
    if torch.cuda.get_device_capability() >= (8, 9):
        one = torch.ones((), device="cuda")
        call = partial(
            torch._scaled_mm, a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t(), scale_a=one, scale_b=one,
            out_dtype=torch.bfloat16, use_fast_accum=True, out=out,
        )  # fmt: skip
        found[FP8] = work / gpu_time([call])
    return found


def floors(ceilings: dict[str, float], moved: int, operations: float, rate: str = BF16) -> dict[str, float]:
    """The least time in microseconds that bytes take, and operations; without an FP8 rate, bf16's counts."""
    return {
        "floor of bytes": moved / ceilings[COPY] * 1e6,
        "floor of operations": operations / ceilings.get(rate, ceilings[BF16]) * 1e6,
    }
