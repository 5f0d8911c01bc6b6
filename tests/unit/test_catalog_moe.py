# SPDX-License-Identifier: Apache-2.0
"""The module `fused_moe`: its numbers are the device sources', its formats have products everywhere."""

from __future__ import annotations

import re

from warpsmith.arch import parse
from warpsmith.catalog import CATALOG, moe_decode, moe_packed
from warpsmith.catalog import fused_moe as module
from warpsmith.catalog.gemm import DEFAULT_PATH, LINEAR_LAYOUT, TILED_LAYOUT
from warpsmith.catalog.plan import Selection, plan
from warpsmith.catalog.resolve import DeviceFacts, resolve
from warpsmith.catalog.source import kernel_sources
from warpsmith.catalog.spec import Problem
from warpsmith.reference import moe


def numbers(source: str, start: str) -> dict[str, int]:
    """An enumeration of a device source, from the line that has `start`."""
    text = kernel_sources()[source]
    body = text[text.index(start) :].partition("{")[2].partition("}")[0]
    return {name: int(value) for name, value in re.findall(r"k(\w+) = (\d+)", body)}


def test_names_are_those_of_the_reference_and_numbers_those_of_the_kernels() -> None:
    assert tuple(module.RULES) == moe.ROUTING_RULES
    assert tuple(module.ACTIVATIONS) == moe.ACTIVATIONS
    rules = numbers("fused_moe/routing.cuh", "enum : u32 { kSoftmaxTopk")
    assert rules == {"SoftmaxTopk": 0, "TopkSoftmax": 1, "SigmoidGrouped": 2, "SigmoidInput": 3}
    assert set(module.RULES.values()) == set(rules.values())
    kinds = numbers("fused_moe/activation.cuh", "enum : u32 { kSwiglu")
    assert kinds == {"Swiglu": 0, "SwigluOai": 1, "Geglu": 2, "GegluTanh": 3, "Relu2": 4}
    assert list(module.ACTIVATIONS.values()) == list(kinds.values())
    assert f"kMaxExperts = {module.MAX_EXPERTS};" in kernel_sources()["fused_moe/sorting.cuh"]
    assert f"kMaxTopK = {module.MAX_TOP_K};" in kernel_sources()["fused_moe/routing.cuh"]


def test_every_format_has_its_products_everywhere() -> None:
    for capability in module.CAPABILITIES:
        for activations, weights in module.FORMATS:
            format = module.gemm_format(activations, weights)
            layout = TILED_LAYOUT if format in ("bf16_x_bf16", "fp16_x_fp16") else LINEAR_LAYOUT
            fields = {"format": format, "mode": "grouped", "layout": layout, "path": DEFAULT_PATH}
            problem = Problem.of("gemm", fields, {"m": 4, "n": 4096, "k": 4096, "batches": 32})
            assert resolve(CATALOG, problem, DeviceFacts(capability)).choice is not None


def test_both_sm12x_capabilities_plan_the_module_alike() -> None:
    selection = Selection(modules=("fused_moe",))
    made = plan(CATALOG, [parse("sm_120f"), parse("sm_121a")], selection)
    by_target = {}
    for cubin in made.cubins:
        by_target.setdefault(str(cubin.target), set()).add((cubin.kernel, cubin.variant))
    assert by_target["sm_120f"] == by_target["sm_121a"]
    assert len(by_target["sm_121a"]) == sum(len(k.variants) for k in module.KERNELS)


def test_the_decode_kernels_have_the_numbers_of_their_catalog() -> None:
    sources = kernel_sources()
    shared = sources["fused_moe/decode.cuh"]
    assert f"kMaxExperts = {module.MAX_EXPERTS};" in shared
    assert "kLogitsMask = 3, kBiasShift = 2, kBiasMask = 3" in shared
    assert "kNoBias = 0, kBiasBf16 = 1, kBiasFp16 = 2, kBiasFp32 = 3" in shared
    assert (moe_decode.BIAS_SHIFT, moe_decode.BIAS_TYPES) == (2, ("", "bf16", "fp16", "fp32"))
    assert "#define WS_BF16 0\n#define WS_FP16 1\n#define WS_FP32 2" in sources["fused_moe/routing.cuh"]
    assert moe_decode.LOGIT_TYPES == ("bf16", "fp16", "fp32")
    assert f"kMaxHidden = {moe_decode.MAX_HIDDEN};" in sources["fused_moe/sm90_moe_decode_up.cuh"]
    assert f"kMostRows = {moe_decode.MOST_ROWS}," in sources["fused_moe/sm90_moe_decode_down.cuh"]


def test_the_decode_kernels_are_dispatched_by_tokens() -> None:
    for operation in (moe_decode.UP, moe_decode.DOWN):
        for tokens, tile in ((1, "t2"), (2, "t2"), (3, "t8"), (8, "t8")):
            problem = Problem.of(operation, {"type": "fp16"}, {"m": tokens, "n": 768, "k": 2048})
            choice = resolve(CATALOG, problem, DeviceFacts(parse("sm_90").capability)).choice
            assert choice is not None
            assert choice.variant == f"fp16_{tile}"
            assert "composed" in resolve(CATALOG, problem, DeviceFacts(parse("sm_80").capability)).unsupported


def test_the_packed_decode_kernels_have_the_numbers_of_their_catalog() -> None:
    sources = kernel_sources()
    shared = sources["fused_moe/packed_decode.cuh"]
    assert moe_packed.OWN_SCALES == (1 << 4, 1 << 5)
    assert "kOwnScales13 = 1u << 4, kOwnScales2 = 1u << 5" in shared
    assert moe_packed.TOO_SMALL == {"nvfp4": 128.0, "mxfp4": 0.5}
    assert "kTooSmall = kNvfp4 ? 128.0f : 0.5f;" in shared
    assert moe_packed.LIFT == {"nvfp4": 1.0, "mxfp4": 2.0**48}
    assert f"kLiftBits = {127 + 48}u << 23, kLowerBits = {127 - 48}u << 23" in shared
    assert f"kLifted = 0x{(127 + 48) << 7:04X}{(127 + 48) << 7:04X}u" in shared
    assert f"kMaxHidden = {moe_packed.MAX_HIDDEN}," in sources["fused_moe/sm90_moe_packed_up.cuh"]
    assert f"kMostTiles = {moe_packed.MOST_ROWS // 16} }}" in sources["fused_moe/sm90_moe_packed_down.cuh"]


def test_the_packed_decode_kernels_are_dispatched_by_tokens() -> None:
    for operation in (moe_packed.UP, moe_packed.DOWN):
        for tokens, tile in ((1, "t2"), (2, "t2"), (3, "t8"), (8, "t8")):
            problem = Problem.of(operation, {"format": "mxfp4"}, {"m": tokens, "n": 2880, "k": 2880})
            choice = resolve(CATALOG, problem, DeviceFacts(parse("sm_90").capability)).choice
            assert choice is not None
            assert choice.variant == f"mxfp4_{tile}"
