# SPDX-License-Identifier: Apache-2.0
"""The cases for compute-sanitizer leave no kernel, layout or way of writing out. Needs no GPU."""

from __future__ import annotations

from warpsmith.catalog import CATALOG
from warpsmith.catalog.fp4_gemm import PAIRS as BLOCK_SCALED
from warpsmith.catalog.fp4_gemm_gated import PAIRS as GATED
from warpsmith.catalog.fp4_quantization import KERNELS
from warpsmith.catalog.gemm import MODES, PAIRS
from warpsmith.evidence.gated import GatedCase
from warpsmith.evidence.gemm import GemmCase
from warpsmith.ops.moe_args import CHUNK

from .sanitizer_cases import cases, fp4_gemm, fused_moe, gemm


def test_each_kernel_is_reached() -> None:
    seen = {(c.operation, c.format, c.dtype) for c in cases()}
    for kernel in KERNELS:
        for variant in kernel.variants:
            for witness in variant.witnesses:
                fields = dict(witness.fields)
                dtype = fields.get("input") or fields.get("output")
                alone = witness.operation not in ("global_scale", "matrix_amax")  # these run with another
                assert not alone or (witness.operation, witness.format, dtype) in seen


def test_each_layout_is_misaligned_and_grouped() -> None:
    for name in ("quantize", "silu_and_mul_quantize", "dequantize"):
        for fields in CATALOG.operation(name).combinations():
            assert any((c.operation, c.format, c.layout) == (name, fields["format"], fields["layout"]) for c in cases())
    for layout in ("linear", "128x4", "m_major"):
        some = [c for c in cases() if c.layout == layout]
        assert any(c.misaligned for c in some)
        assert any(c.offsets for c in some)
        assert any(c.batches > 1 for c in some)


def test_they_are_few_and_small() -> None:
    assert len(cases()) < 60
    assert max(c.batches * c.m * c.k for c in cases()) < 1 << 18


def test_products_are_of_each_pair_and_mode_with_splits_and_bias() -> None:
    for pair in PAIRS:
        some = [c for c in gemm() if (c.a, c.b) == pair]
        assert {c.mode for c in some} == set(MODES)
        assert any(c.splits > 1 for c in some)
        assert any(c.bias for c in some)


def test_block_scaled_products_are_of_each_pair_with_and_without_activations() -> None:
    found = fp4_gemm()
    assert {(c.a, c.b) for c in found if isinstance(c, GemmCase)} == set(BLOCK_SCALED)
    gated = {(c.product.a, c.product.b, c.activation) for c in found if isinstance(c, GatedCase)}
    assert {(a, b) for a, b, _ in gated} == set(GATED)
    assert len(found) < 100


def test_every_kernel_of_a_moe_layer_is_reached_with_several_chunks() -> None:
    operations = {"moe_route", "moe_permute", "moe_activation", "moe_quantize", "moe_combine"}
    operations |= {"moe_decode_up", "moe_packed_up"}
    assert {c.operation for c in fused_moe()} == operations
    assert any(c.tokens * c.top_k > 4 * CHUNK for c in fused_moe() if c.operation == "moe_permute")
