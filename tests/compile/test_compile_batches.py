# SPDX-License-Identifier: Apache-2.0
"""Reading many cubins' code in one go finds what reading each cubin by itself finds."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import toy_catalog as toys

from warpsmith.arch import parse
from warpsmith.bundle.elf import read_cubin
from warpsmith.catalog.plan import plan
from warpsmith.catalog.source import OPTIONS
from warpsmith.compiler.cache import Cache
from warpsmith.compiler.compilation import compile_cubins
from warpsmith.compiler.pool import LocalWorkers, compile_job, inspect_job
from warpsmith.compiler.sass import Census, spills
from warpsmith.compiler.toolchain import find_toolchain
from warpsmith.compiler.unit import CompileJob, InspectJob

# Loops, divergence, calls that are not inlined, shared and local memory, atomics, shuffles, barriers.
MIXED = """
__device__ __noinline__ float twist(float x, int n) {
  float a[32];
  for (int i = 0; i < n; i++) a[i & 31] = x * i;
  return a[n & 31] + sinf(x);
}
extern "C" __global__ void ws_mixed(float *out, const float *in, int n) {
  __shared__ float tile[256];
  for (int i = threadIdx.x; i < n; i += 256) {
    tile[threadIdx.x] = in[i];
    __syncthreads();
    float x = tile[255 - threadIdx.x];
    if (x > 0) x = twist(x, n); else if (x < -1) atomicAdd(out, x);
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    switch (i % 5) { case 0: x *= 2; break; case 1: x = sqrtf(x); break; case 2: x = x / n; break; default: x += 1; }
    out[i] = x;
  }
}
"""


def read_alone(cubin: bytes, folder: Path) -> Census:
    """The census that nvdisasm's own JSON of the whole ELF file gives."""
    path = folder / "one.cubin"
    path.write_bytes(cubin)
    command = [str(find_toolchain().nvdisasm), "--emit-json", str(path)]
    listing = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    opcodes = [i["opcode"] for function in listing[1:][0] for i in function["sass-instructions"]]
    while opcodes[-1] == "NOP":
        opcodes.pop()
    return tuple(sorted(Counter(opcodes).items()))


@pytest.mark.parametrize("target", ["sm_80", "sm_90a", "sm_100f", "sm_121a"])
def test_a_batch_reads_as_its_parts(target: str, tmp_path: Path) -> None:
    toolchain = find_toolchain()
    with toys.installed():
        cubins = plan(toys.CATALOG, [parse(target)]).cubins
        made = compile_cubins(toys.CATALOG, cubins, toolchain=toolchain, cache=Cache(None)).cubins
    with LocalWorkers(1, toolchain) as workers:
        job = CompileJob("mixed", MIXED, (), OPTIONS, target)
        mixed = workers.submit(compile_job, job).result().cubin
        cubins_bytes = [mixed, *(data for _, data in made.values()), mixed]
        codes = tuple(b"".join(k.code for k in read_cubin(data).kernels) for data in cubins_bytes)
        found = workers.submit(inspect_job, InspectJob(parse(target), ("x",) * len(codes), codes)).result()
    assert found[0] == found[-1] == read_alone(mixed, tmp_path)
    assert spills(found[0]) > 0
    for (entry, data), census in zip(made.values(), found[1:-1], strict=True):
        assert census == entry.instructions == read_alone(data, tmp_path)
