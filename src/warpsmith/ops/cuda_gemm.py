# SPDX-License-Identifier: Apache-2.0
"""`gemm` and `grouped_gemm` of torch CUDA tensors: check once, plan once, launch many.

A call looks its plan up by what makes it, fills in pointers and launches. Scratch comes from torch's allocator on the
current stream. With splits of K the kernel also counts, a word a tile, the blocks that have arrived; the words are 0
before and after each launch. Who owns them:

- *A stream has one array of them*, made when it first needs one, and made anew when it needs a longer one. Launches of
  one stream follow each other, so that each finds what the last has left: zeros. Two streams never share an array.
- *A captured launch* may be replayed on any stream and beside others, so it gets words of its own from the graph's
  memory, and the graph sets them to 0 before each replay's launch: one memset node.
- *The per-thread default stream* is another stream in each thread under one handle: its launches are treated like
  captured ones.

An array that is replaced goes back to torch's allocator, which gives it to later work of the same stream alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from warpsmith.arch import default_target
from warpsmith.catalog import CATALOG
from warpsmith.catalog.formats import LINEAR
from warpsmith.catalog.gemm import DEFAULT_PATH, sm80_tile
from warpsmith.catalog.gemm_packed import TILES as PACKED_TILES
from warpsmith.catalog.gemm_stream import TILES
from warpsmith.catalog.resolve import DeviceFacts
from warpsmith.catalog.spec import Problem, pair
from warpsmith.errors import InvalidArgumentError
from warpsmith.ops import gemm_args as arguments
from warpsmith.ops.cuda import _remember as remember
from warpsmith.ops.cuda import _rows as matrices
from warpsmith.ops.cuda_activation import activate_product
from warpsmith.ops.cuda_strides import extent, out_strides
from warpsmith.ops.gemm_activation import Activation
from warpsmith.ops.gemm_checks import (
    OUT_NAMES,
    Shape,
    check_bias,
    check_dense,
    check_grouped,
    check_out,
    data_of,
    folds,
    layout_of,
    out_name,
    overlap,
)
from warpsmith.ops.gemm_map_args import MapLaunch, choose_map_splits, map_launch, tile_of
from warpsmith.ops.gemm_packed_args import packed_launch
from warpsmith.ops.gemm_stream_args import stream_launch
from warpsmith.ops.qtensor import QTensor, remember_lies, trusted
from warpsmith.ops.state import runtime
from warpsmith.runtime.device import device_facts
from warpsmith.runtime.launch import PreparedKernel
from warpsmith.runtime.tensor_map import NO_MAP, TensorMaps

_PER_THREAD_STREAM = 2
_current_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # a CPU build of torch has none
_NO_SCRATCH = (0, 0)
_OPERANDS = (
    "a",
    "b",
    "d",
    "a's scales",
    "b's scales",
    "bias",
    "a's global scale",
    "b's global scale",
    "offsets or counts",
)


class Planned(NamedTuple):
    """A product that is not empty, ready for `launch_planned`; `maps` make its tensor maps, A's and B's first."""

    kernel: PreparedKernel
    launch: arguments.Launch | MapLaunch
    maps: tuple[TensorMaps, ...] | None


class _Plan(NamedTuple):
    """What a call needs besides pointers; `planned` is None when there is nothing to do.

    `reaches` are the operands that are there: position in `_OPERANDS`, and bytes from the pointer to the end of what is
    read; `extent` those of D. `activated_later`: the kernel of the product has no such activation, and a launch of
    another follows.
    """

    planned: Planned | None
    workspace: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    reaches: tuple[tuple[int, int], ...]
    extent: int
    activated_later: bool = False


_plans: dict[tuple[Any, ...], _Plan] = {}
_arrivals: dict[tuple[int, int], torch.Tensor] = {}


def forget_plans() -> None:
    """Have the next calls plan anew, since what they are planned with has changed."""
    _plans.clear()


def _facts(device: int) -> DeviceFacts:
    return device_facts(device, runtime().driver)


def _key(x: Any) -> tuple[Any, ...]:
    """What a plan depends on of an operand, or of another tensor."""
    if type(x) is QTensor:
        try:
            return x._lies  # type: ignore[no-any-return]
        except AttributeError:
            pass
        data, scales, scale = x.data, x.scales, x.global_scale
        factors = None if scale is None else (scale.shape, scale.stride())
        aligned = (data.data_ptr() | scales.data_ptr()) & 15
        lies = data.stride(), scales.stride(), aligned, data.get_device()
        return remember_lies(x, (x.format, x.shape, x.scale_layout, x.packing, lies, factors))  # type: ignore[no-any-return]
    if isinstance(x, torch.Tensor):
        return x.dtype, x.shape, x.stride(), x.data_ptr() & 15, x.get_device()
    return (type(x),)


def dense(a: Any, b: Any, bias: Any, out_dtype: Any, out: Any, activation: Activation | None = None) -> torch.Tensor:
    """Multiply on the GPU; arguments as in `warpsmith.gemm`."""
    return _run(a, b, None, "dense", bias, out_dtype, out, activation)


def grouped(
    a: Any,
    b: Any,
    offsets: Any,
    counts: Any,
    bias: Any,
    out_dtype: Any,
    out: Any,
    activation: Activation | None = None,
) -> torch.Tensor:
    """Multiply groups on the GPU; arguments as in `warpsmith.grouped_gemm`."""
    if (offsets is None) == (counts is None):
        check_grouped(a, b, offsets, counts)
    mode, index = ("grouped", offsets) if counts is None else ("masked", counts)
    if isinstance(index, torch.Tensor) and not index.is_contiguous():
        raise InvalidArgumentError(f"{'offsets' if mode == 'grouped' else 'counts'} is not contiguous")
    return _run(a, b, index, mode, bias, out_dtype, out, activation)


def _run(
    a: Any, b: Any, index: Any, mode: str, bias: Any, out_dtype: Any, out: Any, activation: Activation | None
) -> torch.Tensor:
    data = data_of(a)
    device = data.get_device()
    quantized_a, quantized_b = type(a) is QTensor, type(b) is QTensor
    own = quantized_a and a.offsets is not None
    if own and a.offsets is not index:  # other than those that a's scales were laid out for, perhaps
        _check(a, b, index, mode)
    key = (
        device, mode, own, _key(a), _key(b), out_dtype, activation,
        None if index is None else _key(index),
        None if bias is None else _key(bias),
        None if out is None else _key(out),
    )  # fmt: skip
    try:
        plan = _plans.get(key)
    except TypeError:  # an out_dtype that cannot be hashed is none
        plan = None
    if plan is None:
        shape = _check(a, b, index, mode)
        check_bias(bias, a, shape)
        dtype = out_name(a, out_dtype, out, "bfloat16")
        if activation is not None:
            shape = shape._replace(out=(*shape.out[:-1], activation.columns(shape.size.n)))
        if out is not None:
            check_out(out, a, shape.out)
        fit = _aligned(a), _aligned(b), None if bias is None else _packed(bias)
        if fit[0] is not a or fit[1] is not b or fit[2] is not bias:
            return _run(fit[0], fit[1], index, mode, fit[2], out_dtype, out, activation)
        plan = remember(_plans, key, _make_plan(a, b, index, shape, bias, dtype, out, device, activation))
    if plan.activated_later and activation is not None:
        product = _run(a, b, index, mode, bias, plan.dtype, None, None)
        return activate_product(product, activation, plan.shape, out, index, mode)
    made = torch.empty(plan.shape, dtype=plan.dtype, device=data.device) if out is None else out
    pointers = (
        data.data_ptr(),
        data_of(b).data_ptr(),
        made.data_ptr(),
        a.scales.data_ptr() if quantized_a else 0,
        b.scales.data_ptr() if quantized_b else 0,
        0 if bias is None else bias.data_ptr(),
        _scale_pointer(a) if quantized_a else 0,
        _scale_pointer(b) if quantized_b else 0,
        0 if index is None else index.data_ptr(),
    )
    if out is not None:
        _refuse_overlap(pointers, plan)
    planned = plan.planned
    if planned is None:
        return made
    stream = _current_stream(device)
    held = _NO_SCRATCH
    if plan.workspace:
        scratch = torch.empty(plan.workspace, dtype=torch.uint8, device=data.device)
        words = _counters(device, stream, planned.launch.arrivals, data.device)
        held = scratch.data_ptr(), words.data_ptr()
    launch_planned(planned, pointers, held, stream)
    return made


def _scale_pointer(x: QTensor) -> int:
    scale = x.global_scale
    return 0 if scale is None else scale.data_ptr()


def _check(a: Any, b: Any, index: Any, mode: str) -> Shape:
    if mode == "dense":
        return check_dense(a, b)
    return check_grouped(a, b, index if mode == "grouped" else None, index if mode == "masked" else None)


def _counters(device: int, stream: int, words: int, where: torch.device) -> torch.Tensor:
    """Words that are 0 when the stream comes to its next launch; see the top of this file."""
    if stream == _PER_THREAD_STREAM or _is_capturing(device):
        return torch.zeros(words, dtype=torch.int32, device=where)
    found = _arrivals.get((device, stream))
    if found is None or found.shape[0] < words:
        size = max(1024, 1 << (words - 1).bit_length())
        found = remember(_arrivals, (device, stream), torch.zeros(size, dtype=torch.int32, device=where))
    return found


def _is_capturing(device: int) -> bool:
    """Whether the device's current stream records a graph."""
    if torch.cuda.current_device() == device:
        return bool(torch.cuda.is_current_stream_capturing())
    with torch.cuda.device(device):
        return bool(torch.cuda.is_current_stream_capturing())


def _aligned(x: Any) -> Any:
    """The operand itself if the kernels can read it, or a copy that they can."""
    if isinstance(x, QTensor):
        scale = None if x.global_scale is None else x.global_scale.contiguous()
        data, scales = _packed(x.data), _packed(x.scales)
        if data is x.data and scales is x.scales and scale is x.global_scale:
            return x
        return trusted(data, scales, x.format, x.shape, x.scale_layout, scale, x.offsets, x.packing)
    if x.numel() == 0:
        return x
    rows, batches, row_stride, batch_stride = matrices(x)
    odd = rows.data_ptr() | 2 * row_stride | (2 * batch_stride if batches > 1 else 0)
    return rows.clone(memory_format=torch.contiguous_format) if odd & 15 else rows


def _packed(part: torch.Tensor) -> torch.Tensor:
    part = part.contiguous()
    return part.clone() if part.data_ptr() & 15 else part


def _make_plan(
    a: Any,
    b: Any,
    index: Any,
    shape: Shape,
    bias: Any,
    dtype: str,
    out: Any,
    device: int,
    activation: Activation | None,
) -> _Plan:
    size, m = shape.size, shape.size.m
    columns = shape.out[-1] * arguments.ELEMENT_BYTES[OUT_NAMES[dtype]]
    d_row, d_batch = (columns, m * columns) if out is None else out_strides(out, columns)
    left, lies_folded = operand_of(a, shape.a, m, size.k, b)
    right, _ = operand_of(b, shape.b, size.n, size.k, b)
    if size.mode == "dense":
        several_bias = bias is not None and bias.dim() > 1
        if lies_folded and size.batches > 1 and d_batch == m * d_row and not several_bias and len(b.shape) == 2:
            size = arguments.Size("dense", m * size.batches, size.n, size.k)
        if len(a.shape) == 2:
            left = left._replace(batch=0, scale_batch=0)
        if len(b.shape) == 2:
            right = right._replace(batch=0, scale_batch=0)
    bias_type = "" if bias is None else OUT_NAMES[str(bias.dtype).removeprefix("torch.")]
    bias_batch = bias.shape[-1] * bias.element_size() if bias is not None and bias.dim() > 1 else 0
    output = arguments.Output(OUT_NAMES[dtype], d_row, d_batch, bias_type, bias_batch)
    quantized = [x if isinstance(x, QTensor) else None for x in (a, b)]
    scales = [None if x is None else x.scales for x in quantized]
    factors = [None if x is None else x.global_scale for x in quantized]
    read = (data_of(a), data_of(b), None, *scales, bias, *factors, index)
    reaches = tuple((place, extent(x)) for place, x in enumerate(read) if x is not None)
    torch_dtype: torch.dtype = getattr(torch, dtype)
    rest = shape.out, torch_dtype, reaches, 0 if out is None else extent(out)
    if 0 in shape.out:
        return _Plan(None, 0, *rest)
    wide = index is not None and index.dtype is torch.int64
    layout = layout_of(a, b)
    if activation is not None and not activates(size, (left, right), layout, device, activation):
        return _Plan(None, 0, *rest, True)
    planned = plan_launch(size, left, right, output, device, layout=layout, wide=wide, activation=activation)
    return _Plan(planned, planned.launch.workspace, *rest)


def path_of_products() -> str:
    """What products ask for."""
    return DEFAULT_PATH


def _problem(size: arguments.Size, a: arguments.Operand, b: arguments.Operand, layout: str) -> Problem:
    dims = {"m": size.rows, "n": size.n, "k": size.k, "batches": size.batches}
    fields = {"format": pair(a.format, b.format), "mode": size.mode, "layout": layout, "path": path_of_products()}
    return Problem.of("gemm", fields, dims)


def activates(
    size: arguments.Size,
    operands: tuple[arguments.Operand, arguments.Operand],
    layout: str,
    device: int,
    activation: Activation,
) -> bool:
    """Whether the kernel of a product that has been checked has an activation in its epilogue."""
    found = runtime().prepare(_problem(size, *operands, layout), device).cubin
    return activation.name in CATALOG.kernel(found.kernel).variant(found.variant).activations


def plan_launch(
    size: arguments.Size,
    a: arguments.Operand,
    b: arguments.Operand,
    d: arguments.Output,
    device: int,
    *,
    layout: str,
    wide: bool = False,
    activation: Activation | None = None,
) -> Planned:
    """Choose the kernel of a product that has been checked, and how it is launched.

    `layout` is how the scales lie (`gemm_checks.layout_of`), `wide` is for int64 offsets. An activation is one that
    `activates`; then `d` is what becomes of the product.
    """
    problem = _problem(size, a, b, layout)
    kernel, fields = runtime().prepare(problem, device), dict(problem.fields)
    row, facts = CATALOG.kernel(kernel.cubin.kernel), _facts(device)
    if row.takes_maps:
        map_tile = tile_of(row, kernel.cubin.variant)
        splits, whole = choose_map_splits(CATALOG, kernel.cubin, fields, size, facts.sm_count)
        mapped = map_launch(
            map_tile, size, a, b, d,
            sm_count=facts.sm_count, splits=splits, whole=whole, wide=wide, activation=activation,
        )  # fmt: skip
        driver = runtime().driver
        specs = (mapped.a, mapped.b) if mapped.d is None else (mapped.a, mapped.b, mapped.d)
        return Planned(kernel, mapped, tuple(TensorMaps(driver, device, spec) for spec in specs))
    stream = TILES.get(row.name)
    if stream is not None:
        return Planned(kernel, stream_launch(stream, size, a, b, d, sm_count=facts.sm_count, wide=wide), None)
    packed = PACKED_TILES.get(row.name)
    if packed is not None:
        tile_name = row.variant(kernel.cubin.variant).tile
        launch = packed_launch(packed[tile_name], size, a, b, d, sm_count=facts.sm_count, wide=wide)
        return Planned(kernel, launch, None)
    tile = sm80_tile(kernel.cubin.variant)
    held = arguments.resident(tile, kernel.shared_memory, default_target(facts.capability).shared_memory)
    splits = arguments.choose_splits(tile, size, facts.sm_count, held)
    return Planned(kernel, arguments.sm80_launch(tile, size, a, b, d, splits=splits, wide=wide), None)


def launch_planned(planned: Planned, pointers: tuple[int, ...], scratch: tuple[int, int], stream: int) -> None:
    """Launch a planned product.

    Parameters
    ----------
    pointers
        Of a, b, d, a's scales, b's scales, bias, a's global scale, b's global scale, offsets or counts; 0 for none.
    scratch
        Pointers to `planned.launch.workspace` bytes, and to `planned.launch.arrivals` words that are 0.
    """
    kernel, launch, maps = planned
    a, b, d, a_scales, b_scales, bias, a_factor, b_factor, index = pointers
    args: tuple[int | float | bytes, ...]
    if maps is None:
        args = (a, b, d, a_scales, b_scales, bias, 0, a_factor, b_factor, index, *scratch, *launch.tail)
    else:
        left, right = maps[0], maps[1]
        args = (
            left[a], right[b], a_scales, b_scales, d, bias, 0, a_factor, b_factor, index, *scratch, *launch.tail,
        )  # fmt: skip
        if len(maps) == 3:  # the kernel does without where D is not aligned
            args = (*args, maps[2][d] if d % 16 == 0 else NO_MAP)
    kernel.launch(launch.grid, args, stream)


def operand_of(x: Any, format: str, rows: int, k: int, b: Any) -> tuple[arguments.Operand, bool]:
    """How an operand lies in memory, and whether its batches lie like the rows of one matrix."""
    if isinstance(x, QTensor):
        several = x.global_scale is not None and x.global_scale.numel() > 1
        row = arguments.row_bytes(format, k)
        batch_scales = arguments.scale_bytes(format, x.scale_layout, rows, k)
        return arguments.Operand(format, row, rows * row, x.scale_layout, batch_scales, several), folds(x, b, rows)
    if x.numel() == 0:
        return arguments.Operand(format, 0), False
    _, batches, row_stride, batch_stride = matrices(x)
    if rows == 1 and batches > 1:
        row_stride = batch_stride
    operand = arguments.Operand(format, 2 * row_stride, 2 * batch_stride, LINEAR)
    return operand, batches > 1 and batch_stride == rows * row_stride


def _refuse_overlap(pointers: tuple[int, ...], plan: _Plan) -> None:
    target = pointers[2]
    end = target + plan.extent
    for place, reach in plan.reaches:
        if pointers[place] < end and target < pointers[place] + reach:
            raise overlap(_OPERANDS[place])
