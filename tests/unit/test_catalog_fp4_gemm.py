# SPDX-License-Identifier: Apache-2.0
"""The module `fp4_gemm`: what dispatch sends to it, and what is asked of its machine code."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from warpsmith.arch import CAPABILITIES, Capability, all_targets, parse, parse_list
from warpsmith.catalog import CATALOG
from warpsmith.catalog.formats import FORMATS
from warpsmith.catalog.fp4_gemm import CAPABILITIES as NATIVE
from warpsmith.catalog.fp4_gemm import EMULATED_ON, KERNELS, PAIRS, PARAMS
from warpsmith.catalog.gemm import BLOCK_SCALED, PREPARED
from warpsmith.catalog.plan import Selection, plan
from warpsmith.catalog.resolve import DeviceFacts, resolve
from warpsmith.catalog.shapes import read_models
from warpsmith.catalog.source import source_digest
from warpsmith.catalog.spec import pair

SM12X, EMULATED, PORTABLE = "sm12x_blockscaled_gemm", "sm12x_blockscaled_gemm_emulated", "sm80_gemm"


def served(on: str, sm_count: int = 48, **problem: str | int) -> str:
    """The kernel of a problem, or ``unsupported``."""
    decision = resolve(CATALOG, CATALOG.operation("gemm").problem(problem), DeviceFacts(Capability.parse(on), sm_count))
    return "unsupported" if decision.unsupported else decision.choice.kernel if decision.choice else "nothing"


@pytest.mark.parametrize("format", BLOCK_SCALED)
def test_tiled_scales_go_to_the_tensor_cores_and_linear_ones_to_the_portable_kernel(format: str) -> None:
    for capability in map(str, CAPABILITIES):
        native = capability in ("12.0", "12.1")
        hopper = "sm90_gemm" if capability == "9.0" and format.startswith("fp8_block") else PORTABLE
        assert served(capability, format=format) == (SM12X if native else hopper)
        assert served(capability, format=format, layout="linear") == PORTABLE
        emulated = EMULATED if capability == "9.0" else SM12X if native else PORTABLE
        assert served(capability, format=format, path="emulated") == emulated


def test_prepared_weights_are_read_where_a_kernel_reads_them() -> None:
    for capability in map(str, CAPABILITIES):
        expected = {"9.0": EMULATED, "12.0": SM12X, "12.1": SM12X}.get(capability, "unsupported")
        for format in PREPARED:
            assert served(capability, format=format, layout="prepared") == expected
            assert served(capability, format=format) == PORTABLE


def test_there_are_29_variants_of_each_kernel_in_every_plan_that_serves_them() -> None:
    for target in all_targets():
        names = [c.kernel for c in plan(CATALOG, [target]).cubins]
        feature = target.suffix in ("a", "f")
        assert names.count(SM12X) == (29 if feature and target.capability in NATIVE else 0)
        assert names.count(EMULATED) == (29 if target == parse("9.0a") else 0)


def test_the_emulated_kernel_is_the_same_program() -> None:
    native, emulated = KERNELS
    assert emulated.emulates == native.name
    assert not native.may_spill
    assert native.params == emulated.params == PARAMS
    assert native.takes_maps
    for one, other in zip(native.variants, emulated.variants, strict=True):
        assert one.macros == other.macros
        assert source_digest(CATALOG, native.name, one.name) == source_digest(CATALOG, emulated.name, other.name)


def test_each_pair_asks_for_its_own_instruction() -> None:
    expected = {
        "nvfp4_x_nvfp4": "OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X",
        "mxfp4_x_mxfp4": "OMMA.SF.16864.F32.E2M1.E2M1.E8",
        "mxfp8_x_mxfp8": "QMMA.SF.16832.F32.E4M3.E4M3.E8",
        "fp8_block_x_fp8_block_128x128": "QMMA.SF.16832.F32.E4M3.E4M3.E8",
    }
    for variant in KERNELS[0].variants:
        format, _, tile = variant.name.rpartition("_")
        mixed = "E4M3.E2M1" if tile.startswith("t") else "E2M1.E4M3"
        wanted = expected.get(format, f"QMMA.SF.16832.F32.{mixed}.E8")
        native = [i.patterns for i in variant.instructions if i.applies_to(parse("sm_121a"))]
        assert len(native) == 1
        assert re.search(native[0][0], wanted)
        emulated = [i.patterns for i in variant.instructions if i.applies_to(parse("sm_90a"))]
        assert [p[0] for p in emulated] == [r"HMMA\.16816\.F32"]


def test_pairs_are_those_of_two_quantized_operands() -> None:
    assert {pair(a, b) for a, b in PAIRS} == {*BLOCK_SCALED, *PREPARED}
    assert all(f in FORMATS for pair_of in PAIRS for f in pair_of)
    assert set(NATIVE).isdisjoint(EMULATED_ON)


@pytest.mark.parametrize(
    ("arch", "fields", "kernels"),
    [
        ("12.1", {}, {SM12X, PORTABLE}),
        ("12.1", {"layout": "tiled"}, {SM12X}),
        ("12.1", {"layout": "linear"}, {PORTABLE}),
        ("9.0", {}, {PORTABLE}),
        ("9.0", {"path": "emulated"}, {EMULATED}),
    ],
)
def test_a_model_gets_the_kernels_of_what_it_names(arch: str, fields: dict[str, str], kernels: set[str]) -> None:
    dims = {"m": {"from": 1, "to": 8192}, "n": 4096, "k": 4096, "batches": 1}
    asked = {"operation": "gemm", "fields": {"format": "nvfp4_x_nvfp4", "mode": "dense", **fields}, "dims": dims}
    document = {"schema": 1, "models": [{"name": "some", "operations": [asked]}]}
    models = read_models(json.dumps(document).encode(), CATALOG)
    found = plan(CATALOG, parse_list(arch), Selection(models=models))
    assert found.missing == ()
    assert {c.kernel for c in found.cubins} == kernels


def test_a_model_whose_kernel_is_gone_is_named() -> None:
    dims = {"m": 16, "n": 4096, "k": 4096, "batches": 1}
    asked = {"operation": "gemm", "fields": {"format": "nvfp4_x_nvfp4"}, "dims": dims}
    models = read_models(json.dumps({"schema": 1, "models": [{"name": "x", "operations": [asked]}]}).encode(), CATALOG)
    broken = replace(CATALOG, kernels=tuple(k for k in CATALOG.kernels if k.name != SM12X))
    found = plan(broken, parse_list("12.1"), Selection(models=models)).missing
    assert [f.subject for f in found] == ["gemm/nvfp4_x_nvfp4@12.1"]
    assert "sm80_gemm instead" in found[0].message
