# SPDX-License-Identifier: Apache-2.0
"""Small bad sources, compiled for real: each way for a cubin to be wrong fails the build by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import toy_catalog as toys

from warpsmith.arch import CAPABILITIES, parse
from warpsmith.catalog.spec import CubinId, Instructions, Kernel, Param
from warpsmith.compiler.build import compile_one
from warpsmith.errors import CompileError, CubinCheckError

HEAD = '#include "toy/record.cuh"\nRECORD({record})\nextern "C" __global__ void __launch_bounds__(256) '
BODY = "ws_scale(float *out, const float *in, long long n, float factor)"
GOOD_BODY = " { out[threadIdx.x] = in[threadIdx.x + n] * factor; }\n"


def make(text: str, kernel: Kernel = toys.SCALE_ROW, target: str = "sm_120f") -> bytes:
    """Compile a source in the place of the toy kernel."""
    with toys.installed({**toys.SOURCES, "toy/scale.cuh": text}):
        cubin = CubinId(kernel.name, kernel.variants[0].name, parse(target))
        return compile_one(toys.one_kernel(kernel), cubin, None)[1]


def bad(text: str, kernel: Kernel = toys.SCALE_ROW, target: str = "sm_120f") -> str:
    with pytest.raises(CubinCheckError) as caught:
        make(text, kernel, target)
    assert f"scale/plain@{target}" in str(caught.value)
    return str(caught.value)


def head(record: str = "0, 256, 0") -> str:
    return HEAD.format(record=record)


UNCHECKED = replace(toys.SCALE_ROW, variants=(replace(toys.SCALE_ROW.variants[0], instructions=()),))


def test_a_good_source_compiles() -> None:
    assert make(head() + BODY + GOOD_BODY)[:4] == b"\x7fELF"


@pytest.mark.parametrize("body", ["{}", "{ if (n < 0 && n > 0) out[0] = in[0]; }"])
def test_an_empty_body_is_found(body: str) -> None:
    assert "writes no global memory: its body is empty" in bad(head() + BODY + body, UNCHECKED)


SPILLING = """{
  float values[120];
  #pragma unroll
  for (int i = 0; i < 120; i++) values[i] = in[threadIdx.x + i * n];
  #pragma unroll
  for (int r = 0; r < 3; r++) {
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < 120; i++) values[i] = values[i] * values[(i * 7 + 1) % 120] * factor;
  }
  #pragma unroll
  for (int i = 0; i < 120; i++) out[threadIdx.x + i * n] = values[i];
}
"""


def test_a_kernel_that_spills_is_found_unless_it_may() -> None:
    text = (head("0, 1024, 0") + BODY + SPILLING).replace("bounds__(256)", "bounds__(1024)")
    said = bad(text)
    assert "bytes of spill stores" in said
    assert " 0 bytes of spill stores" not in said
    assert make(text, replace(toys.SCALE_ROW, may_spill=True))


def test_an_array_in_local_memory_is_found() -> None:
    body = "{ int a[64]; for (int i = 0; i < 64; i++) a[(i * n) & 63] = i; out[0] = a[n & 63] * factor; }"
    assert "bytes of stack, 0 bytes of spill stores" in bad(head() + BODY + body)


@pytest.mark.parametrize(("target", "limit"), [("sm_120f", 101376), ("sm_90a", 232448)])
def test_too_much_shared_memory_is_found(target: str, limit: int) -> None:
    static = "{ __shared__ float t[256]; t[threadIdx.x] = in[n]; __syncthreads(); out[0] = t[n] * factor; }"
    fits, over = (head(f"{limit - 1024 + extra}, 256, 0") + BODY + static for extra in (0, 1))
    assert make(fits, target=target)
    assert f"{limit + 1} bytes of shared memory (1024 static, {limit - 1023} dynamic)" in bad(over, target=target)


def test_static_shared_memory_that_ptxas_refuses_is_a_compile_error_with_its_log() -> None:
    static = "{ __shared__ float t[99999]; t[threadIdx.x] = in[n]; __syncthreads(); out[0] = t[n]; }"
    with pytest.raises(CompileError, match=r"scale/plain@sm_120f(.|\n)*too much shared data"):
        make(head() + BODY + static)


def test_a_missing_instruction_is_found_where_it_is_asked_for() -> None:
    asks = Instructions((r"HMMA\.16816",), (parse("12.1").capability,))
    kernel = replace(toys.SCALE_ROW, variants=(replace(toys.SCALE_ROW.variants[0], instructions=(asks,)),))
    assert make(head() + BODY + GOOD_BODY, kernel, "sm_120f")
    assert r"no instruction HMMA\.16816, which the catalog asks for on sm_121a" in bad(
        head() + BODY + GOOD_BODY, kernel, "sm_121a"
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "exports no ws_record"),
        ('extern "C" __constant__ unsigned ws_record[8] = {0x57530002u, 0, 256, 1};\n', "starts with 0x57530002"),
        ('extern "C" __constant__ unsigned ws_record[4] = {0x57530001u, 0, 256, 1};\n', "not one array of eight words"),
        ('extern "C" __device__ unsigned ws_record[8] = {0x57530001u, 0, 256, 1};\n', "not one array of eight words"),
    ],
    ids=["none", "another schema", "too short", "not constant"],
)
def test_a_kernel_without_a_record_is_found(line: str, says: str) -> None:
    assert says in bad(head().replace("RECORD(0, 256, 0)\n", line) + BODY + GOOD_BODY)


def test_a_record_that_lies_about_waiting_is_found() -> None:
    assert "says that it waits for its predecessor, and there is no instr" in bad(head("0, 256, 1") + BODY + GOOD_BODY)
    waits = '{ asm volatile("griddepcontrol.wait;" ::: "memory"); out[threadIdx.x] = in[n] * factor; }'
    assert "does not wait for its predecessor, and there is an" in bad(head() + BODY + waits)


@pytest.mark.parametrize("target", ["sm_90a", "sm_100f", "sm_103a", "sm_110f", "sm_121a"])
def test_waiting_is_one_instruction_on_every_architecture_that_has_it(target: str) -> None:
    waits = '{ asm volatile("griddepcontrol.wait;" ::: "memory"); out[threadIdx.x] = in[n] * factor; }'
    assert make(head("0, 256, 1") + BODY + waits, target=target)


def test_more_threads_than_registers_allow_are_found() -> None:
    values = SPILLING.replace("__syncthreads();", "")
    text = (head("0, 1024, 0") + BODY + values).replace("bounds__(256)", "bounds__(256)")
    assert "cannot be launched; give it __launch_bounds__" in bad(text)


@pytest.mark.parametrize(
    "signature",
    [
        "ws_scale(float *out, const float *in, int n, float factor)",
        "ws_scale(float *out, const float *in, long long n)",
        "ws_scale(float *out, const float *in, long long n, float factor, int more)",
    ],
)
def test_parameters_that_the_catalog_does_not_have_are_found(signature: str) -> None:
    said = bad(head() + signature + "{ out[threadIdx.x] = in[threadIdx.x] * n; }")
    assert "its parameters (offset, size) are" in said
    assert "out: ptr, x: ptr, n: i64, factor: f32 make (0, 8) (8, 8) (16, 8) (24, 4)" in said


@pytest.mark.parametrize("target", ["sm_80", "sm_90a", "sm_120f"])
def test_a_tensor_map_lies_where_the_catalog_says_on_each_target(target: str) -> None:
    params = (Param("out", "ptr"), Param("map", "tensormap"), Param("n", "i32"), Param("other", "tensormap"))
    signature = "ws_scale(float *out, const __grid_constant__ Map map, int n, const __grid_constant__ Map other)"
    text = "struct alignas(64) Map { char bytes[128]; };\n" + head() + signature
    text += "{ out[threadIdx.x] = map.bytes[n] + other.bytes[n]; }"
    assert make(text, replace(UNCHECKED, params=params), target)


def test_another_entry_is_found() -> None:
    assert "its entries are ws_other; expected ws_scale alone" in bad(
        head() + BODY.replace("ws_scale", "ws_other") + GOOD_BODY
    )
    two = head() + BODY + GOOD_BODY + 'extern "C" __global__ void ws_more(float *out) { *out = 1; }\n'
    assert "its entries are ws_more, ws_scale; expected" in bad(two)
    mangled = (head() + BODY + GOOD_BODY).replace('extern "C" __global__', "__global__")
    assert "its entries are _Z8ws_scale" in bad(mangled)
    assert "its entries are none" in bad(head().split("extern")[0])


def test_all_that_is_wrong_is_said_at_once() -> None:
    said = bad(head("999999, 256, 0") + "ws_scale(float *out) {}")
    for part in ("its parameters", "bytes of shared memory", "writes no global memory", "no instruction FMUL"):
        assert part in said


def test_a_compile_error_carries_options_program_and_the_whole_log() -> None:
    text = head() + BODY + " {\n" + "".join(f"  out[{i}] = missing_{i};\n" for i in range(20)) + "}\n"
    with pytest.raises(CompileError) as caught:
        make(text, target="sm_121a")
    said = str(caught.value)
    for part in (
        "scale/plain@sm_121a: NVRTC refused the source (NVRTC_ERROR_COMPILATION)",
        "-std=c++17 --no-source-include --ptxas-options=-v",
        "--gpu-architecture=sm_121a",
        '#include "toy/scale.cuh"',
        'toy/scale.cuh(4): error: identifier "missing_0" is undefined',
        'identifier "missing_19" is undefined',
    ):
        assert part in said


def test_an_architecture_that_the_source_refuses_is_a_compile_error() -> None:
    capabilities = tuple(c for c in CAPABILITIES if c.major == 8)
    kernel = replace(toys.REVERSE_ROW, capabilities=capabilities)
    with toys.installed(), pytest.raises(CompileError, match=r"this kernel is for 9\.0 and newer"):
        compile_one(toys.one_kernel(kernel), CubinId("reverse", "plain", parse("sm_80")), None)
