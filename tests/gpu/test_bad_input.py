# SPDX-License-Identifier: Apache-2.0
"""On the GPU too, what does not fit is refused before anything runs; above all a mix of CPU and GPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import warpsmith as ws
from warpsmith.errors import FormatError, InvalidArgumentError

from .support import DEVICE, random, torch, upload

X = upload(random(6, 128))
HOST = torch.from_numpy(random(6, 128))
OFFSETS = torch.tensor([0, 6], device=DEVICE)
Call = Callable[[], object]

MIXES: dict[str, tuple[Call, str]] = {
    "a scale on the host": (
        lambda: ws.quantize(X, "nvfp4", global_scale=torch.ones(1)),
        f"global_scale is on cpu and x on {DEVICE}; expected the same device",
    ),
    "a scale on the GPU": (
        lambda: ws.quantize(HOST, "nvfp4", global_scale=torch.ones(1, device=DEVICE)),
        f"global_scale is on {DEVICE}, but x is on the host; expected the same device",
    ),
    "a scale on the GPU for NumPy": (
        lambda: ws.quantize(HOST.numpy(), "nvfp4", global_scale=torch.ones(1, device=DEVICE)),
        f"global_scale is on {DEVICE}, but x is on the host; expected the same device",
    ),
    "offsets on the host": (
        lambda: ws.quantize(X, "mxfp4", offsets=OFFSETS.cpu()),
        f"offsets is on cpu and x on {DEVICE}; expected the same device",
    ),
    "NumPy offsets": (
        lambda: ws.quantize(X, "mxfp4", offsets=np.array([0, 6])),
        f"offsets is on numpy and x on {DEVICE}; expected the same device",
    ),
    "offsets on the GPU": (
        lambda: ws.quantize(HOST, "mxfp4", offsets=OFFSETS),
        f"offsets is on {DEVICE} and x on cpu; expected the same device",
    ),
    "out on the host": (
        lambda: ws.quantize(X, "mxfp4", out=ws.quantize(HOST, "mxfp4")),
        f"out is on cpu and x on {DEVICE}; expected the same device",
    ),
    "out in NumPy": (
        lambda: ws.quantize(X, "mxfp4", out=ws.quantize(HOST.numpy(), "mxfp4")),
        f"out is on numpy and x on {DEVICE}; expected the same device",
    ),
    "out on the GPU": (
        lambda: ws.quantize(HOST, "mxfp4", out=ws.quantize(X, "mxfp4")),
        f"out is on {DEVICE} and x on cpu; expected the same device",
    ),
    "parts on both": (
        lambda: ws.QTensor(ws.quantize(X, "mxfp4").data, ws.quantize(HOST, "mxfp4").scales, "mxfp4", (6, 128)),
        f"its parts live on cpu, {DEVICE}; expected one device",
    ),
    "values on the host": (
        lambda: ws.dequantize(ws.quantize(X, "mxfp4"), out=torch.empty(6, 128)),
        f"out is on cpu and q on {DEVICE}; expected the same device",
    ),
    "values on the GPU": (
        lambda: ws.dequantize(ws.quantize(HOST, "mxfp4"), out=torch.empty(6, 128, device=DEVICE)),
        f"out is on {DEVICE} and q on cpu; expected the same device",
    ),
}


@pytest.mark.parametrize("name", MIXES)
def test_cpu_and_gpu_are_not_mixed(name: str) -> None:
    call, text = MIXES[name]
    with pytest.raises(InvalidArgumentError) as caught:
        call()
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: ws.quantize(X.double(), "mxfp4"), FormatError, "x is float64; expected bfloat16, float16 or float32"),
        (lambda: ws.quantize(X[:, :100], "mxfp4"), FormatError, "K = 100 must be a positive multiple of 32"),
        (lambda: ws.quantize(X[:, :0], "mxfp4"), FormatError, "K = 0 must be a positive multiple of 32"),
        (lambda: ws.quantize(X[0], "mxfp4"), FormatError, "x has shape [128]; expected [*batch, M, K]"),
        (lambda: ws.quantize(X, "int4"), FormatError, "unknown format 'int4'; expected one of nvfp4"),
        (lambda: ws.quantize(X, ["nvfp4"]), FormatError, "unknown format ['nvfp4']; expected one of nvfp4"),
        (lambda: ws.quantize(X, "nvfp4", scale_layout="m_major"), FormatError, "no scale layout 'm_major'"),
        (lambda: ws.quantize(X, "nvfp4", rounding="floor"), FormatError, "rounding 'floor' does not fit nvfp4"),
        (lambda: ws.quantize(X, "mxfp4", global_scale=1.0), FormatError, "mxfp4 has no global scale"),
        (lambda: ws.silu_and_mul_quantize(X, "nvfp4"), FormatError, "needs global_scale"),
        (
            lambda: ws.quantize(X, "nvfp4", global_scale=torch.ones(1, device=DEVICE).half()),
            FormatError,
            "global_scale is float16; expected float32",
        ),
        (
            lambda: ws.quantize(X, "nvfp4", global_scale=torch.ones(0, device=DEVICE)),
            FormatError,
            "global_scale has 0 elements; expected 1",
        ),
        (
            lambda: ws.quantize(X, "nvfp4", global_scale=-1.0),
            InvalidArgumentError,
            "global_scale = -1.0 is not positive and finite",
        ),
        (lambda: ws.quantize(X, "nvfp4", global_scale=True), InvalidArgumentError, "global_scale is a bool"),
        (lambda: ws.quantize(X, "mxfp4", offsets=OFFSETS.short()), FormatError, "offsets is int16 of shape [2]"),
        (lambda: ws.quantize(X[None], "mxfp4", offsets=OFFSETS), FormatError, "a grouped x is [M, K]"),
        (lambda: ws.quantize(X, "mxfp4", out=X), FormatError, "out is a Tensor; expected a QTensor"),
        (lambda: ws.quantize(X, "mxfp4", out=ws.quantize(X, "mxfp8")), FormatError, "out has format 'mxfp8'"),
        (lambda: ws.global_scale(X.int()), FormatError, "x is int32; expected bfloat16, float16 or float32"),
        (lambda: ws.global_scale(X[0]), FormatError, "x has shape [128]; expected [*batch, M, K]"),
        (lambda: ws.load("quantize", device="cuda:99"), InvalidArgumentError, "there is no CUDA device 99"),
    ],
)
def test_what_does_not_fit(call: Call, error: type[Exception], text: str) -> None:
    for _ in range(2):
        with pytest.raises(InvalidArgumentError) as caught:
            call()
        assert type(caught.value) is error
        assert text in str(caught.value)
