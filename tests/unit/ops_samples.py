# SPDX-License-Identifier: Apache-2.0
"""Arrays of both frameworks that the operations take on the host, and how to look at them bit by bit."""

from __future__ import annotations

import importlib.util
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from warpsmith.catalog.formats import FORMATS

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
FRAMEWORKS = ("numpy", pytest.param("torch", marks=needs_torch))

DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
FORMAT_LAYOUTS = [(f.name, layout) for f in FORMATS.values() if not f.whole for layout in f.layouts]
ROW_FORMAT_LAYOUTS = [(name, layout) for name, layout in FORMAT_LAYOUTS if FORMATS[name].block[0] == 1]
SCALE_DTYPES = {"ue4m3": "float8_e4m3fn", "ue8m0": "float8_e8m0fnu", "fp32": "float32"}


def random(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Values of many magnitudes, rows of their own."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 7, (*shape[:-1], 1))
    return values.astype(DTYPES[dtype])


def give(array: np.ndarray, framework: str) -> Any:
    """The array in a framework; torch shares its memory and strides."""
    if framework == "numpy":
        return array
    import torch

    name = array.dtype.name
    if name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if name.startswith("float8"):
        return torch.from_numpy(array.view(np.uint8)).view(getattr(torch, name))
    return torch.from_numpy(array)


def take(array: Any) -> np.ndarray:
    """The array in NumPy; one-byte types as their bits."""
    if not isinstance(array, np.ndarray):
        import torch

        if array.dtype is torch.bfloat16:
            return array.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        array = (array.view(torch.uint8) if array.element_size() == 1 else array).numpy()
    return array.view(np.uint8) if array.dtype.itemsize == 1 else array


def same(got: Any, want: np.ndarray) -> bool:
    """Whether two arrays have the same shape, width and bits."""
    got = take(got)
    return (got.shape, got.dtype) == (want.shape, want.dtype) and got.tobytes() == want.tobytes()


def dtype_name(array: Any) -> str:
    """``float8_e4m3fn``, whichever the framework."""
    return str(array.dtype).removeprefix("torch.")
