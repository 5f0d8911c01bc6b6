# SPDX-License-Identifier: Apache-2.0
"""Quantize a tensor to every format and back, on the GPU if torch sees one, else with the reference on NumPy arrays.

Run it: ``python examples/quantize.py [rows columns]``.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import warpsmith as ws

CASES = (
    ("nvfp4", "128x4"),
    ("mxfp4", "128x4"),
    ("mxfp8", "linear"),
    ("fp8_block", "m_major"),
    ("fp8_block_128x128", "linear"),
)


def sample(rows: int, columns: int) -> tuple[Any, str]:
    """Random values where they can be quantized fastest, and what that is."""
    values = np.random.default_rng(0).standard_normal((rows, columns), np.float32)
    try:
        import torch
    except ImportError:
        return values, "NumPy, reference"
    if not torch.cuda.is_available():
        return torch.from_numpy(values).bfloat16(), "torch on the CPU, reference"
    return torch.from_numpy(values).bfloat16().cuda(), torch.cuda.get_device_name()


def to_numpy(array: Any) -> Any:
    """Any of the arrays as float32 on the host."""
    return array if isinstance(array, np.ndarray) else array.float().cpu().numpy()


def main(rows: int = 256, columns: int = 1024) -> None:
    """Quantize, dequantize, and print what the formats keep of the signal."""
    x, where = sample(rows, columns)
    print(f"{rows} x {columns}: {where}")
    exact = to_numpy(x)
    for format, layout in CASES:
        q = ws.quantize(x, format, scale_layout=layout)
        error = to_numpy(ws.dequantize(q)) - exact
        noise = 10 * np.log10(np.square(exact).mean() / np.square(error).mean())
        print(f"{format:18} data {list(q.data.shape)}, scales {layout} {list(q.scales.shape)}: {noise:5.1f} dB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
