# SPDX-License-Identifier: Apache-2.0
"""What is promised: (operation, format, capability) → the kernel that serves it, or why nothing does.

Written down independently of the kernels' own rows. Dropping a capability from a row would shrink plan and dispatch
alike; it is this table that still names the gap.
"""

from __future__ import annotations

from collections.abc import Iterable

from warpsmith.arch import Capability
from warpsmith.catalog.spec import NO_FORMAT, Promise

_EVERYWHERE = ("8.0", "8.6", "8.7", "8.8", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")


def _rows(operation: str, formats: Iterable[str], capabilities: Iterable[str], kernel: str) -> tuple[Promise, ...]:
    return tuple(
        Promise(operation, format, Capability.parse(capability), kernel)
        for format in formats
        for capability in capabilities
    )


PROMISES = (
    *_rows("quantize", ("nvfp4", "mxfp4", "mxfp8", "fp8_block"), _EVERYWHERE, "quantize"),
    *_rows("quantize", ("fp8_block_128x128",), _EVERYWHERE, "quantize_128x128"),
    *_rows("silu_and_mul_quantize", ("nvfp4", "mxfp4", "mxfp8", "fp8_block"), _EVERYWHERE, "silu_and_mul_quantize"),
    *_rows("dequantize", ("nvfp4", "mxfp4", "mxfp8", "fp8_block", "fp8_block_128x128"), _EVERYWHERE, "dequantize"),
    *_rows("amax_partial", (NO_FORMAT,), _EVERYWHERE, "amax_partial"),
    *_rows("global_scale", (NO_FORMAT,), _EVERYWHERE, "global_scale"),
)
