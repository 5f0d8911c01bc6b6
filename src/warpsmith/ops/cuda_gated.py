# SPDX-License-Identifier: Apache-2.0
"""The first product of a MoE layer, activated and quantized where it is made.

For weights that `prepare_weight` has put in the order of `gated_order`, where the catalog has a kernel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from warpsmith.catalog import CATALOG
from warpsmith.catalog.formats import TILED
from warpsmith.catalog.fp4_gemm_gated import OPERATION
from warpsmith.catalog.fused_moe import ACTIVATIONS
from warpsmith.catalog.resolve import resolve
from warpsmith.catalog.spec import Problem, pair
from warpsmith.ops import cuda_gemm
from warpsmith.ops import gemm_args as products
from warpsmith.ops.gemm_checks import OUT_NAMES
from warpsmith.ops.gemm_map_args import MapLaunch, gated_launch, tile_of
from warpsmith.ops.moe_args import Layer
from warpsmith.ops.moe_types import Experts
from warpsmith.ops.qtensor import dtype_name
from warpsmith.ops.state import runtime
from warpsmith.runtime.launch import PreparedKernel
from warpsmith.runtime.tensor_map import TensorMaps


class GatedProduct(NamedTuple):
    """A planned product; `tail` is what the kernel takes behind the pointers of D's scales and global scale."""

    kernel: PreparedKernel
    launch: MapLaunch
    maps: tuple[TensorMaps, TensorMaps]
    tail: tuple[int | float, ...]

    def run(self, pointers: tuple[int, ...], made: tuple[int, int], stream: int) -> None:
        """Launch it; pointers as those of `cuda_gemm.launch_planned`, and D's scales and global scale."""
        a, b, d, a_scales, b_scales, bias, a_factor, b_factor, index = pointers
        left, right = self.maps
        args = (left[a], right[b], a_scales, b_scales, d, bias, 0, a_factor, b_factor, index, 0, 0)
        self.kernel.launch(self.launch.grid, (*args, *self.launch.tail, *made, *self.tail), stream)


def gated_product(layer: Layer, experts: Experts, w13: Any, bias13: Any, name: str, device: int) -> GatedProduct | None:
    """Plan the first product of a layer with a gated w13, or None where it is composed of a product and `moe_quantize`.

    `w13` and `bias13` are as kernels read them; sums are rounded to x's type, `name`, before they are activated.
    """
    format, n, k = str(experts.format), 2 * layer.inner, layer.hidden
    size = products.Size("grouped", layer.pairs, n, k, layer.experts)
    fields = {"format": pair(format, w13.format), "path": cuda_gemm.path_of_products()}
    dims = {"m": size.rows, "n": n, "k": k, "batches": layer.experts}
    problem, facts = Problem.of(OPERATION, fields, dims), cuda_gemm._facts(device)
    if resolve(CATALOG, problem, facts).choice is None:
        return None
    kernel = runtime().prepare(problem, device)
    several = [scale is not None and scale.numel() > 1 for scale in (experts.a1, experts.a2)]
    left = products.Operand(format, products.row_bytes(format, k), 0, TILED, 0, several[0])
    right, _ = cuda_gemm.operand_of(w13, w13.format, n, k, w13)
    kind = "" if bias13 is None else OUT_NAMES[dtype_name(bias13)]
    row = products.row_bytes(format, layer.inner)
    output = products.Output(name, row, 0, kind, 0 if bias13 is None else n * bias13.element_size())
    tile = tile_of(CATALOG.kernel(kernel.cubin.kernel), kernel.cubin.variant)
    launch = gated_launch(tile, size, left, right, output, sm_count=facts.sm_count, scale_per_group=several[1])
    driver = runtime().driver
    maps = TensorMaps(driver, device, launch.a), TensorMaps(driver, device, launch.b)
    tail = ACTIVATIONS[experts.activation], experts.alpha, experts.limit
    return GatedProduct(kernel, launch, maps, tail)
