# SPDX-License-Identifier: Apache-2.0
"""Other people's products of the same operands. A peer counts only if its output is right; see `SAME`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

from warpsmith.bench.timing import gpu_time

Call = Callable[[], Any]

SAME, SAME_FAST, SAME_SCALE = 8e-3, 2e-2, 8e-2
"""‖theirs − ours‖ / ‖ours‖ up to which a peer does the same: of the same values, of the same with sums in the tensor
cores' fewer bits, and of ones quantized once more."""
FP8_BLOCKS = "fp8_block_x_fp8_block_128x128"
FP8_WHOLE = ("fp8_row_x_fp8_row", "fp8_tensor_x_fp8_tensor")
"""Scales of whole rows, and of whole matrices, on both sides: what `torch._scaled_mm` computes too."""
FP8 = (FP8_BLOCKS, *FP8_WHOLE)
"""The pairs whose products are the FP8 tensor cores'."""


class Operands(NamedTuple):
    """One set: the values in bfloat16, the operands of `ws.gemm` that hold them, and where the results go."""

    x: Any
    w: Any
    a: Any
    b: Any
    out: Any
    other: Any


class Peer(NamedTuple):
    """A peer over some sets: one call a set, in their order; each returns its result."""

    calls: Sequence[Call]
    same: float


def _torch(_: str, sets: Sequence[Operands]) -> Peer | None:
    import torch

    return Peer([partial(torch.mm, s.x, s.w.t(), out=s.other) for s in sets], SAME)


def _tensor_wise(format: str, sets: Sequence[Operands]) -> Peer | None:
    """FP8 by cuBLASLt with one scale a tensor: fewer scales than ours, the ceiling of what FP8 does."""
    if format != FP8_BLOCKS:
        return None
    import torch

    def quantized(t: Any) -> tuple[Any, Any]:
        scale = t.abs().amax().float() / 448
        return (t.float() / scale).to(torch.float8_e4m3fn), scale

    calls = []
    for s in sets:
        (a, scale_a), (b, scale_b) = quantized(s.x), quantized(s.w)
        calls.append(partial(
            torch._scaled_mm, a, b.t(), scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16,
            use_fast_accum=True, out=s.other,
        ))  # fmt: skip
    return Peer(calls, SAME_SCALE)


def _same_scales(fast: bool, format: str, sets: Sequence[Operands]) -> Peer | None:
    """`torch._scaled_mm` of the very operands, with their scales; `fast` leaves sums to the tensor cores."""
    if format not in FP8_WHOLE:
        return None
    import torch

    rows = format == FP8_WHOLE[0]
    calls = []
    for s in sets:
        scales = (s.a.scales.view(-1, 1), s.b.scales.view(1, -1)) if rows else (s.a.scales, s.b.scales)
        calls.append(partial(
            torch._scaled_mm, s.a.data, s.b.data.t(), scale_a=scales[0], scale_b=scales[1], out_dtype=torch.bfloat16,
            use_fast_accum=fast, out=s.other,
        ))  # fmt: skip
    return Peer(calls, SAME_FAST if fast else SAME)


def _triton(format: str, sets: Sequence[Operands]) -> Peer | None:
    blocks = format == FP8_BLOCKS
    if (format != "bf16_x_bf16" and not blocks) or find_spec("triton") is None:
        return None
    from warpsmith.bench import triton_products

    def calls(tile: Any) -> list[Call]:
        return [
            triton_products.call(s.a.data, s.b.data, s.other, tile, (s.a.scales, s.b.scales))
            if blocks
            else triton_products.call(s.a, s.b, s.other, tile)
            for s in sets
        ]

    every = [calls(tile) for tile in triton_products.tiles(len(sets[0].x), blocks)]
    return Peer(min(every, key=lambda one: gpu_time(one, replays=5)), SAME)


def _flashinfer(format: str, sets: Sequence[Operands]) -> Peer | None:
    if format != FP8_BLOCKS:
        return None
    try:
        from flashinfer.gemm import fp8_blockscale_gemm_sm90 as product
        from tvm_ffi import use_torch_stream
    except ImportError:
        return None

    def call(s: Operands) -> Any:
        m, k = s.x.shape
        scales = s.a.scales.view(-1)[: m * (k // 128)].view(m, k // 128)  # it reads [K/128, ⌈M/4⌉·4] there
        with use_torch_stream():  # it launches on tvm-ffi's stream, which a graph capture does not move by itself
            return product(s.a.data, s.b.data, scales, s.b.scales, out=s.other)

    return Peer([partial(call, s) for s in sets], SAME)


PEERS: dict[str, Callable[[str, Sequence[Operands]], Peer | None]] = {
    "torch.mm bf16": _torch,
    "cuBLASLt FP8, one scale a tensor": _tensor_wise,
    "torch._scaled_mm": partial(_same_scales, True),
    "torch._scaled_mm, fp32 sums": partial(_same_scales, False),
    "Triton": _triton,
    "FlashInfer": _flashinfer,
}
"""By name; None where it has no such product or is not installed."""


def right(what: str, format: str, sets: Sequence[Operands], notes: list[str]) -> dict[str, Sequence[Call]]:
    """The calls of peers whose output is ours (in `out` of `sets`); why others do not count goes to `notes`."""
    found: dict[str, Sequence[Call]] = {}
    mine = sets[0].out.float()
    for name, make in PEERS.items():
        try:
            peer = make(format, sets)
            if peer is None:
                continue
            sets[0].other.fill_(float("nan"))
            difference = float((peer.calls[0]().float() - mine).norm() / mine.norm())
            if not difference <= peer.same:
                notes.append(f"{name}, {what}: its result differs by {difference:.1e}; not counted")
            else:
                found[name] = peer.calls
        except Exception as error:
            notes.append(failure(name, what, error))
    return found


def failure(name: str, what: str, error: Exception) -> str:
    """A note on a peer that cannot run."""
    return f"{name}, {what}: {type(error).__name__}: {str(error)[:200]}"
