# SPDX-License-Identifier: Apache-2.0
"""The ELF reader on cubins that NVRTC makes, held against what ptxas itself says of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpsmith.arch import Target, all_targets, parse
from warpsmith.bundle.elf import RECORD_MAGIC, UNBOUNDED_STACK, KernelInfo, read_cubin
from warpsmith.bundle.manifest import layout
from warpsmith.catalog.spec import Param
from warpsmith.errors import ElfError

nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
if nvrtc.nvrtcVersion()[1] < 13:
    pytest.skip("needs NVRTC 13 or newer", allow_module_level=True)

HEAD = """
extern "C" __constant__ unsigned ws_record[8] = {0x57530001u, 2048u, 128u, 2u, 1u, 0u, 0u, 0u};
struct alignas(64) TensorMap { unsigned long long words[16]; };
"""
KERNEL = (
    HEAD
    + """
extern "C" __global__ void __launch_bounds__(128) ws_k(const float* x, float* y, int flag, long long n, float s) {
    __shared__ float tile[128];
    const long long i = blockIdx.x * 128ll + threadIdx.x;
    tile[threadIdx.x] = i < n ? x[i] : 0.f;
    __syncthreads();
#ifdef LOCAL
    volatile float local[24];
    for (int j = 0; j < 24; ++j) local[j] = tile[j];
    s += local[flag & 15];
#endif
    if (i < n) y[i] = tile[127 - threadIdx.x] / s + flag;
}
"""
)
CTYPES = {"ptr": "float*", "i64": "long long", "i32": "int", "u32": "unsigned", "f32": "float"}


@lru_cache(maxsize=256)
def compiled(target: str, source: str = KERNEL, *options: str) -> tuple[bytes, str]:
    """A cubin, and what ptxas says of it."""
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"warpsmith.cu", 0, [], [])
    flags = [f"--gpu-architecture={target}", "-std=c++17", "--no-source-include", "--ptxas-options=-v", *options]
    (code,) = nvrtc.nvrtcCompileProgram(program, len(flags), [f.encode() for f in flags])
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    assert int(code) == 0, log.decode()
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    cubin = b" " * size
    nvrtc.nvrtcGetCUBIN(program, cubin)
    nvrtc.nvrtcDestroyProgram(program)
    return cubin, log.decode(errors="replace")


def kernel_of(cubin: bytes) -> KernelInfo:
    (kernel,) = read_cubin(cubin).kernels
    return kernel


@pytest.mark.parametrize("target", all_targets(), ids=str)
def test_every_target_is_read_as_ptxas_made_it(target: Target) -> None:
    cubin, log = compiled(str(target))
    info, kernel = read_cubin(cubin), kernel_of(cubin)
    assert info.target == target
    assert info.record == (RECORD_MAGIC, 2048, 128, 2, 1, 0, 0, 0)
    assert kernel.entry == "ws_k"
    assert kernel.params == ((0, 8), (8, 8), (16, 4), (24, 8), (32, 4))
    registers = re.search(r"Used (\d+) registers", log)
    shared = re.search(r"(\d+) bytes smem", log)
    assert registers is not None
    assert shared is not None
    assert kernel.registers == int(registers[1])
    assert kernel.static_shared == int(shared[1]) == 512
    assert kernel.stack == 0
    assert kernel.code_bytes == len(kernel.code) > 0
    assert kernel.code_bytes % 128 == 0


@pytest.mark.parametrize("target", ["sm_80", "sm_90a", "sm_121a"])
def test_stack_and_shared_memory_are_ptxas_own(target: str) -> None:
    cubin, log = compiled(target, KERNEL, "-DLOCAL")
    stack = re.search(r"(\d+) bytes stack frame", log)
    assert stack is not None
    assert kernel_of(cubin).stack == int(stack[1]) > 0
    dynamic = HEAD + (
        'extern __shared__ float d[]; extern "C" __global__ void ws_k(float* x, int i)'
        "{ d[threadIdx.x] = x[0]; __syncthreads(); x[0] = d[i]; }"
    )
    assert kernel_of(compiled(target, dynamic)[0]).static_shared == 0
    recursive = HEAD + (
        "__device__ __noinline__ float f(float x, int n) { volatile float z[8]; z[n & 7] = x;"
        ' return n <= 0 ? z[n & 7] : f(z[3], n - 1) + 1; } extern "C" __global__ void ws_k(float* x, int i)'
        "{ x[i] = f(x[0], i); }"
    )
    assert kernel_of(compiled(target, recursive)[0]).stack == UNBOUNDED_STACK


def test_a_kernel_without_record_or_parameters() -> None:
    info = read_cubin(compiled("sm_121a", 'extern "C" __global__ void ws_k() {}')[0])
    assert (info.record, info.kernels[0].params, info.kernels[0].param_bytes) == (None, (), 0)


@pytest.mark.parametrize("target", ["sm_80", "sm_90a", "sm_103a", "sm_120f"])
@pytest.mark.parametrize(
    "ctypes",
    [
        ("i32", "ptr", "f32", "i64", "u32"),
        ("ptr", "tensormap", "i32", "tensormap", "i64"),
        ("tensormap",),
        ("i32", "i32", "tensormap", "f32", "ptr"),
    ],
)
def test_the_layout_of_parameters_is_what_ptxas_does(target: str, ctypes: tuple[str, ...]) -> None:
    params = tuple(Param(f"p{i}", ctype) for i, ctype in enumerate(ctypes))
    declared = ", ".join(
        f"const __grid_constant__ TensorMap {p.name}" if p.ctype == "tensormap" else f"{CTYPES[p.ctype]} {p.name}"
        for p in params
    )
    kernel = kernel_of(compiled(target, HEAD + f'extern "C" __global__ void ws_k({declared}) {{}}')[0])
    expected = tuple(
        (offset, p.size) for p, (_, _, offset) in zip(params, layout(params, kernel.param_base), strict=True)
    )
    assert kernel.params == expected
    assert kernel.param_bytes == sum(expected[-1])


def test_the_parameter_block_is_where_the_generation_has_it() -> None:
    assert [kernel_of(compiled(t)[0]).param_base for t in ("sm_80", "sm_90a", "sm_121a")] == [0x160, 0x210, 0x380]


def test_cuobjdump_agrees(tmp_path: Path) -> None:
    tool = shutil.which("cuobjdump") or next(
        (str(p) for p in Path(nvrtc.__file__).parents[2].glob("nvidia/cu*/bin/cuobjdump")), None
    )
    if tool is None:
        pytest.skip("cuobjdump is not installed")
    for target in ("sm_89", "sm_90a", "sm_120f", "sm_121a"):
        cubin = compiled(target, KERNEL, "-DLOCAL")[0]
        file = tmp_path / f"{target}.cubin"
        file.write_bytes(cubin)
        usage = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
        found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
        assert found is not None
        kernel = kernel_of(cubin)
        reserved = 1024 if parse(target).capability.major >= 9 else 0
        assert (kernel.registers, kernel.stack, kernel.static_shared + reserved) == tuple(map(int, found.groups()))


def test_every_truncation_of_a_real_cubin_is_refused() -> None:
    cubin = compiled("sm_80")[0]
    for length in range(len(cubin)):
        with pytest.raises(ElfError):
            read_cubin(cubin[:length])


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(["sm_80", "sm_90a", "sm_121a"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4),
)
def test_a_changed_real_cubin_raises_nothing_else(target: str, changes: list[tuple[float, bytes]]) -> None:
    data = bytearray(compiled(target)[0])
    for place, value in changes:
        start = int(place * len(data))
        data[start : start + len(value)] = value
    with suppress(ElfError):
        read_cubin(bytes(data))
