# SPDX-License-Identifier: Apache-2.0
"""What a MoE call of torch CUDA tensors launches: kernels, grids and buffers, made once for what makes it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from warpsmith.catalog.formats import LINEAR, TILED, packing_of_elements
from warpsmith.catalog.fused_moe import ACTIVATIONS, RULES
from warpsmith.catalog.gemm import PREPARED_LAYOUT
from warpsmith.catalog.spec import Problem
from warpsmith.errors import FormatError
from warpsmith.ops import cuda, cuda_gemm
from warpsmith.ops import gemm_args as products
from warpsmith.ops import moe_args as arguments
from warpsmith.ops import quantization_args as quantizing
from warpsmith.ops.gated_order import mixed_bias
from warpsmith.ops.gemm_activation import Activation
from warpsmith.ops.gemm_checks import OUT_NAMES, PLAIN_NAMES, data_of, format_of, layout_of_operands
from warpsmith.ops.moe_types import Experts, Routing
from warpsmith.ops.qtensor import QTensor, dtype_name
from warpsmith.ops.state import runtime
from warpsmith.runtime.launch import PreparedKernel


class Step(NamedTuple):
    """A kernel with its grid and the arguments behind its pointers."""

    kernel: PreparedKernel
    grid: tuple[int, int, int]
    tail: tuple[int | float, ...]

    def run(self, pointers: tuple[int, ...], stream: int) -> None:
        """Launch it."""
        self.kernel.launch(self.grid, pointers + self.tail, stream)


class Weights(NamedTuple):
    """Experts as kernels read them: what plans depend on, pointers, and the tensors that they point into."""

    signature: tuple[Any, ...]
    w13: tuple[int, int, int, int]
    w2: tuple[int, int, int, int]
    a1: int
    a2: int
    kept: tuple[Any, ...]


class Plan(NamedTuple):
    """A layer's call. Steps that are None are not needed.

    Attributes
    ----------
    at
        Where its buffers start in the workspace.
    activate
        None also where the first product has the activation in its epilogue: `first_activates`.
    scratch, arrivals
        Where, in a separate piece of memory, split products have theirs; `extra` is its size, 0 if there is none.
    each_first
        Whether every expert has a global scale of its own for its inputs, so that rows are quantized after gathering.
    """

    layer: arguments.Layer
    at: arguments.Buffers
    route: Step | None
    quantize_x: Step | None
    counter: Step | None
    permute: Step
    quantize_a: Step | None
    first: cuda_gemm.Planned
    activate: Step | None
    quantize_act: Step | None
    second: cuda_gemm.Planned
    combine: Step
    arrivals: int
    extra: int
    scales_input: bool
    first_activates: bool


def weights_of(experts: Experts) -> Weights:
    """Experts as kernels read them, found out once.

    Raises
    ------
    FormatError
        If they are NumPy arrays.
    """
    found: Weights | None = experts._lies
    if found is None:
        if not isinstance(data_of(experts.w13), torch.Tensor):
            raise FormatError("the experts are NumPy arrays and x is on a GPU; expected the same device")
        parts = [cuda_gemm._aligned(w) for w in (experts.w13, experts.w2)]
        bias13 = experts.bias13
        if experts.gated and bias13 is not None:
            bias13 = mixed_bias(bias13)
        biases = [None if b is None else cuda_gemm._packed(b) for b in (bias13, experts.bias2)]
        scales = [None if a is None else a.contiguous() for a in (experts.a1, experts.a2)]
        settings = experts.activation, experts.alpha, experts.limit, experts.format, experts.number
        keys = tuple(None if x is None else cuda_gemm._key(x) for x in (*parts, *biases, *scales))
        pointers = [
            (
                data_of(w).data_ptr(),
                w.scales.data_ptr() if isinstance(w, QTensor) else 0,
                0 if b is None else b.data_ptr(),
                w.global_scale.data_ptr() if isinstance(w, QTensor) and w.global_scale is not None else 0,
            )
            for w, b in zip(parts, biases, strict=True)
        ]
        a1, a2 = (0 if a is None else a.data_ptr() for a in scales)
        found = Weights((*settings, keys), pointers[0], pointers[1], a1, a2, (*parts, *biases))
        experts._lies = found
    return found


def layer_of(tokens: int, top_k: int, experts: Experts) -> arguments.Layer:
    """The sizes of a call."""
    return arguments.Layer(
        *(tokens, top_k, experts.hidden, experts.inner, experts.number, experts.gates),
        *(experts.format or "", experts.tiled),
    )


def route_step(logits: torch.Tensor, routing: Routing, **sorting: Any) -> Step:
    """The launch that routes, and sorts too if it gets what `route_launch` takes for that."""
    tokens, experts = logits.shape
    name = OUT_NAMES[dtype_name(logits)]
    problem = Problem.of("moe_route", {"input": name}, {"m": tokens, "experts": experts})
    launch = arguments.route_launch(
        tokens,
        experts,
        row_bytes=logits.stride(0) * logits.element_size() if tokens > 1 else 0,
        top_k=routing.top_k,
        rule=RULES[routing.rule],
        n_group=routing.n_group,
        topk_group=routing.topk_group,
        scale=float(routing.scale),
        **sorting,
    )
    return Step(runtime().prepare(problem, logits.get_device()), *launch)


def permute_steps(pairs: int, device: int, **options: Any) -> tuple[Step | None, Step]:
    """The launches that sort and gather: one that counts, where there are many pairs, and the one that sorts."""
    problem = Problem.of("moe_permute", {}, {"pairs": pairs})
    sort = Step(runtime().prepare(problem, device), *arguments.permute_launch(pairs, **options))
    if -(-pairs // arguments.CHUNK) <= arguments.COUNTED_CHUNKS:
        return None, sort
    counter = runtime().prepare(Problem.of("moe_count", {}, {"pairs": pairs}), device)
    return Step(counter, *arguments.permute_launch(pairs, counts=True, **options)), sort


def combine_step(dtype: str, tokens: int, rows: int, top_k: int, hidden: int, device: int) -> Step:
    """The launch that adds the experts' rows."""
    problem = Problem.of("moe_combine", {"type": PLAIN_NAMES[dtype]}, {"m": tokens, "k": hidden})
    return Step(runtime().prepare(problem, device), *arguments.combine_launch(tokens, rows, top_k, hidden))


def _quantize_step(
    operation: str, format: str, input: str, m: int, k: int, row: int, groups: quantizing.Groups, device: int
) -> Step:
    """Quantize rows [m, k], or SwiGLU of rows [m, 2·k]; `row` is the stride in elements. Sorted rows are in groups."""
    layout = arguments.scale_layout(format) if groups.number else LINEAR
    fields = {"format": format, "input": input, "layout": layout}
    kernel = runtime().prepare(Problem.of(operation, fields, {"m": m, "k": k}), device)
    launch = quantizing.quantize_launch(
        format, input, layout=layout, passes=cuda.passes(kernel), m=m, k=k, row_stride=row, groups=groups, flat=False
    )
    return Step(kernel, launch.grid, launch.tail)


def _groups(layer: arguments.Layer, scale: Any) -> quantizing.Groups:
    return quantizing.Groups(layer.experts, False, scale is not None and scale.numel() > 1)


def grouped_product(
    layer: arguments.Layer,
    a: str,
    scale: Any,
    w: Any,
    n: int,
    k: int,
    bias: Any,
    out: str,
    device: int,
    activation: Activation | None = None,
) -> tuple[cuda_gemm.Planned, bool]:
    """A grouped product of `layer.pairs` rows at most, and whether it is activated, which the kernel decides."""
    fmt = format_of(w, "w")
    several = scale is not None and scale.numel() > 1
    scales = TILED if layer.tiled else arguments.scale_layout(a) if layer.format else LINEAR
    left = products.Operand(a, products.row_bytes(a, k), 0, scales, 0, several)
    right, _ = cuda_gemm.operand_of(w, fmt, n, k, w)
    kind = "" if bias is None else OUT_NAMES[dtype_name(bias)]
    size = products.Size("grouped", layer.pairs, n, k, layer.experts)
    prepared = isinstance(w, QTensor) and bool(packing_of_elements(w.packing))
    layout = PREPARED_LAYOUT if prepared else layout_of_operands(left, right)
    if activation is not None and not cuda_gemm.activates(size, (left, right), layout, device, activation):
        activation = None
    columns = n if activation is None else activation.columns(n)
    output = products.Output(out, 2 * columns, 0, kind, 0 if bias is None else n * bias.element_size())
    planned = cuda_gemm.plan_launch(size, left, right, output, device, layout=layout, activation=activation)
    return planned, activation is not None


def _activation_steps(
    layer: arguments.Layer, experts: Experts, name: str, device: int
) -> tuple[Step | None, Step | None]:
    """The launches between the products: the activation, and its quantization; SwiGLU is quantized in one."""
    swiglu = bool(layer.format) and experts.activation == "swiglu"
    activate, quantize = None, None
    if not swiglu:
        problem = Problem.of("moe_activation", {"type": name}, {"m": layer.pairs, "k": layer.inner})
        number = ACTIVATIONS[experts.activation]
        launch = arguments.activation_launch(layer.pairs, layer.inner, number, experts.alpha, experts.limit)
        activate = Step(runtime().prepare(problem, device), *launch)
    if layer.format:
        operation, gates = ("silu_and_mul_quantize", 2) if swiglu else ("quantize", 1)
        groups, row = _groups(layer, experts.a2), gates * layer.inner
        quantize = _quantize_step(operation, layer.format, name, layer.pairs, layer.inner, row, groups, device)
    return activate, quantize


def make_plan(
    x: torch.Tensor, logits: Any, experts: Experts, routing: Routing | None, top_k: int, expert_offset: int
) -> Plan:
    """Plan the call of a layer with at least one token; arguments are checked."""
    device, name = x.get_device(), PLAIN_NAMES[dtype_name(x)]
    layer = layer_of(x.shape[0], top_k, experts)
    at = arguments.buffers(layer)
    w13, w2, bias13, bias2 = weights_of(experts).kept
    quantized, each = layer.format, _groups(layer, experts.a1).scale_per_group
    scales_input = routing is not None and routing.scales_input
    late = bool(quantized) and (each or scales_input)  # x is quantized after it has been gathered, not before
    wanted = None if quantized else Activation(experts.activation, experts.alpha, experts.limit)
    rows = layer.gates * layer.inner
    first, activated = grouped_product(
        layer, quantized or name, experts.a1, w13, rows, layer.hidden, bias13, name, device, wanted
    )
    second, _ = grouped_product(
        layer, quantized or name, experts.a2, w2, layer.hidden, layer.inner, bias2, name, device
    )
    words = max(first.launch.arrivals, second.launch.arrivals)
    early = quantized if quantized and not late else ""
    row = arguments.row_bytes(early, layer.hidden)
    count, permute = permute_steps(
        layer.pairs,
        device,
        top_k=top_k,
        experts=layer.experts,
        expert_offset=expert_offset,
        x_row=row if early else 2 * x.stride(0),
        row=row,
        scales=arguments.scale_bytes(early, layer.hidden),
        pitch=arguments.scale_pitch(early, layer.pairs),
        zeros=words,
        fp16=name == "fp16",
    )
    activate, quantize_act = (None, None) if activated else _activation_steps(layer, experts, name, device)
    ungrouped = quantizing.Groups()
    tokens, hidden = layer.tokens, layer.hidden
    scratch = max(first.launch.workspace, second.launch.workspace)
    return Plan(
        layer,
        at,
        None if logits is None or routing is None else route_step(logits, routing),
        _quantize_step("quantize", quantized, name, tokens, hidden, x.stride(0), ungrouped, device) if early else None,
        count,
        permute,
        _quantize_step("quantize", quantized, name, layer.pairs, hidden, hidden, _groups(layer, experts.a1), device)
        if late
        else None,
        first,
        activate,
        quantize_act,
        second,
        combine_step(dtype_name(x), tokens, layer.pairs, top_k, hidden, device),
        scratch,
        scratch + 4 * words,
        scales_input,
        activated,
    )
