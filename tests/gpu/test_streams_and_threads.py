# SPDX-License-Identifier: Apache-2.0
"""Streams and threads: work is queued on the caller's stream, and threads do not disturb each other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import warpsmith as ws
from warpsmith import reference
from warpsmith.catalog.formats import FORMATS

from .support import DEVICE, assert_same, download, random, scaled, torch, upload

_CYCLES = 50_000_000  # some 25 ms


@pytest.mark.parametrize("format", FORMATS)
def test_work_is_queued_on_the_current_stream(format: str) -> None:
    old, new = random(200, 256), random(200, 256, seed=1)
    x, before, source, stream = upload(old), upload(old), upload(new), torch.cuda.Stream()

    def call() -> tuple[ws.QTensor, torch.Tensor]:
        x.copy_(source)
        q = ws.quantize(x, format, **scaled(format))
        return q, ws.dequantize(q, "float32")

    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        call()  # everything is loaded and memory allocated
        x.copy_(before)
        stream.synchronize()
        torch.cuda._sleep(_CYCLES)
        q, back = call()
        assert not stream.query()  # nothing waited
    stream.synchronize()
    codes, scales = reference.quantize(new, format, **scaled(format))
    assert_same("codes", q.data, codes)
    assert_same("values", back, reference.dequantize(codes, scales, format, shape=(200, 256), **scaled(format)))


def test_the_default_global_scale_is_computed_on_the_current_stream() -> None:
    x, new, stream = upload(random(200, 256)), random(200, 256, seed=1), torch.cuda.Stream()
    source = upload(new)
    ws.global_scale(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(_CYCLES)
        x.copy_(source)
        scale = ws.global_scale(x)
    stream.synchronize()
    assert_same("scale", scale, np.array([reference.default_global_scale(new)]))


@pytest.mark.usefixtures("nothing_loaded")
def test_a_number_used_on_one_stream_is_ready_on_another() -> None:
    x = random(200, 256)
    tensor = upload(x)
    torch.cuda.synchronize()
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    for stream in (first, second):
        with torch.cuda.stream(stream):
            ws.quantize(tensor, "nvfp4", global_scale=1.0)  # the kernel is loaded and memory allocated
    with torch.cuda.stream(first):
        poison = torch.full((1,), float("nan"), device=DEVICE)
        torch.cuda.synchronize()
        del poison  # what `first` allocates next holds a NaN until it is filled
        torch.cuda._sleep(_CYCLES)
        ws.quantize(tensor, "nvfp4", global_scale=0.375)
    with torch.cuda.stream(second):
        q = ws.quantize(tensor, "nvfp4", global_scale=0.375)
    second.synchronize()
    assert not first.query()
    with torch.cuda.stream(second):
        codes, scales = download(q.data), download(q.scales)
    right = reference.quantize(x, "nvfp4", global_scale=0.375)
    assert_same("codes", codes, right[0])
    assert_same("scales", scales, right[1])


JOBS = [
    ("nvfp4", "128x4", "bfloat16", (130, 512)),
    ("nvfp4", "linear", "bfloat16", (64, 2048)),
    ("mxfp4", "128x4", "bfloat16", (1, 4096)),
    ("mxfp4", "linear", "float32", (257, 256)),
    ("mxfp8", "128x4", "float16", (2, 100, 256)),
    ("mxfp8", "linear", "bfloat16", (500, 128)),
    ("fp8_block", "m_major", "bfloat16", (131, 384)),
    ("fp8_block_128x128", "linear", "float32", (200, 384)),
]


@pytest.mark.usefixtures("nothing_loaded")
def test_eight_threads_quantize_at_once() -> None:
    barrier = threading.Barrier(len(JOBS))
    inputs = [random(*shape, dtype=dtype, seed=i) for i, (_, _, dtype, shape) in enumerate(JOBS)]
    tensors = [upload(x) for x in inputs]
    torch.cuda.synchronize()

    def work(number: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        format, layout = JOBS[number][:2]
        found, stream = [], torch.cuda.Stream()
        barrier.wait()
        with torch.cuda.stream(stream):
            made = []
            for _ in range(50):
                q = ws.quantize(tensors[number], format, scale_layout=layout, **scaled(format))
                made.append((q, ws.dequantize(q, "float32")))
            for q, back in made[::10]:
                found.append((download(q.data), download(q.scales), download(back)))
        return found

    with ThreadPoolExecutor(len(JOBS)) as pool:
        results = list(pool.map(work, range(len(JOBS))))
    for (format, layout, _, shape), x, found in zip(JOBS, inputs, results, strict=True):
        codes, scales = reference.quantize(x, format, scale_layout=layout, **scaled(format))
        want = reference.dequantize(codes, scales, format, shape=shape, scale_layout=layout, **scaled(format))
        for result in found:
            for what, got, right in zip(("codes", "scales", "values"), result, (codes, scales, want), strict=True):
                assert_same(f"{format} {what}", got, right)


def test_a_thread_that_never_used_cuda_can_quantize() -> None:
    x = random(40, 256)
    tensor = upload(x)
    torch.cuda.synchronize()
    with ThreadPoolExecutor(1) as pool:
        q = pool.submit(ws.quantize, tensor, "mxfp4").result()
    assert_same("codes", q.data, reference.quantize(x, "mxfp4")[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_the_device_is_the_tensors_and_the_current_one_is_left_alone() -> None:
    torch.cuda.set_device(0)
    x = random(130, 256)
    tensor = upload(x, "cuda:1")
    for format in FORMATS:
        q = check_quantize_there(x, tensor, format)
        assert torch.cuda.current_device() == 0
        back = ws.dequantize(q, "float32")
        assert str(back.device) == "cuda:1"
    q = ws.quantize(tensor, "nvfp4", global_scale=3.25)
    assert str(q.global_scale.device) == "cuda:1"
    assert_same("codes", q.data, reference.quantize(x, "nvfp4", global_scale=3.25)[0])
    here = ws.quantize(upload(x), "mxfp4")
    with pytest.raises(ws.InvalidArgumentError, match="out is on cuda:0 and x on cuda:1; expected the same device"):
        ws.quantize(tensor, "mxfp4", out=here)
    with pytest.raises(ws.InvalidArgumentError, match="global_scale is on cuda:0 and x on cuda:1"):
        ws.quantize(tensor, "nvfp4", global_scale=torch.ones(1, device="cuda:0"))
    with pytest.raises(ws.InvalidArgumentError, match="its parts live on cuda:0, cuda:1; expected one device"):
        ws.QTensor(here.data, ws.quantize(tensor, "mxfp4").scales, "mxfp4", (130, 256))


def check_quantize_there(x: np.ndarray, tensor: object, format: str) -> ws.QTensor:
    """Quantize on the tensor's device, with the default global scale."""
    q = ws.quantize(tensor, format)
    scale = {"global_scale": reference.default_global_scale(x)} if format == "nvfp4" else {}
    codes, scales = reference.quantize(x, format, **scale)
    assert_same("codes", q.data, codes)
    assert_same("scales", q.scales, scales)
    return q
