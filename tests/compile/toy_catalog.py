# SPDX-License-Identifier: Apache-2.0
"""A small catalog of toy kernels with their sources, to build with the real compiler in a second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

from warpsmith.arch import CAPABILITIES, Capability
from warpsmith.catalog import source
from warpsmith.catalog.spec import Catalog, Instructions, Kernel, Operation, Param, Problem, Promise, Variant

RECORD = """#pragma once
#define RECORD(shared, threads, flags) \\
  extern "C" __constant__ unsigned ws_record[8] = {0x57530001u, shared, threads, 1, flags, 0, 0, 0};
"""
SCALE = """#include "toy/record.cuh"
RECORD(0, 256, 0)
extern "C" __global__ void __launch_bounds__(256) ws_scale(float *out, const float *in, long long n, float factor) {
  long long i = (long long)blockIdx.x * 256 + threadIdx.x;
  if (i < n) out[i] = ROUND(in[i] * factor);
}
"""
REVERSE = """#include "toy/record.cuh"
#if __CUDA_ARCH__ < 900
#error "this kernel is for 9.0 and newer"
#endif
RECORD(1024, 128, 1)
extern "C" __global__ void __launch_bounds__(128) ws_reverse(int *out, const int *in) {
  extern __shared__ int tile[];
  asm volatile("griddepcontrol.wait;" ::: "memory");
  tile[threadIdx.x] = in[blockIdx.x * 128 + threadIdx.x];
  __syncthreads();
  out[blockIdx.x * 128 + threadIdx.x] = tile[127 - threadIdx.x];
}
"""
SOURCES: Mapping[str, str] = {"toy/record.cuh": RECORD, "toy/scale.cuh": SCALE, "toy/reverse.cuh": REVERSE}
NEWER = tuple(c for c in CAPABILITIES if c >= Capability(9, 0))


def _problem(operation: str, format: str) -> Problem:
    return Problem.of(operation, {"format": format}, {"n": 1})


def _variant(operation: str, format: str, macro: str, *instructions: Instructions) -> Variant:
    return Variant(
        format,
        (("ROUND", macro),),
        (("format", (format,)),),
        (_problem(operation, format),),
        instructions=instructions,
    )


SCALE_ROW = Kernel(
    "scale",
    "toys",
    "scale",
    "toy/scale.cuh",
    "ws_scale",
    CAPABILITIES,
    (Param("out", "ptr"), Param("x", "ptr"), Param("n", "i64"), Param("factor", "f32")),
    (
        _variant("scale", "plain", "", Instructions(("FMUL",), CAPABILITIES)),
        _variant("scale", "rounded", "rintf", Instructions((r"FRND",), CAPABILITIES)),
    ),
)
REVERSE_ROW = Kernel(
    "reverse",
    "others",
    "reverse",
    "toy/reverse.cuh",
    "ws_reverse",
    NEWER,
    (Param("out", "ptr"), Param("x", "ptr")),
    (_variant("reverse", "plain", "", Instructions(("ACQBULK", "LDS"), NEWER)),),
)
OPERATIONS = (
    Operation("scale", (("format", ("plain", "rounded")),), (("n", 1),)),
    Operation("reverse", (("format", ("plain",)),), (("n", 1),)),
)


def _promises(kernel: Kernel) -> Iterator[Promise]:
    for variant in kernel.variants:
        for capability in CAPABILITIES:
            kept = capability in kernel.capabilities
            reason = "" if kept else "waits for its predecessor"
            yield Promise(kernel.operation, variant.name, capability, kernel.name if kept else None, reason)


CATALOG = Catalog(OPERATIONS, (SCALE_ROW, REVERSE_ROW), (*_promises(SCALE_ROW), *_promises(REVERSE_ROW)))


def one_kernel(kernel: Kernel) -> Catalog:
    """A catalog of one toy kernel."""
    operations = tuple(o for o in OPERATIONS if o.name == kernel.operation)
    return Catalog(operations, (kernel,), tuple(_promises(kernel)))


def many(count: int) -> Catalog:
    """A catalog with `count` variants of the toy kernel, each with a different factor in its source."""
    names = [f"v{i}" for i in range(count)]
    variants = tuple(_variant("scale", name, f"{i}.5f +") for i, name in enumerate(names))
    operation = replace(OPERATIONS[0], fields=(("format", tuple(names)),))
    kernel = replace(SCALE_ROW, variants=variants)
    return Catalog((operation,), (kernel,), tuple(_promises(kernel)))


@contextmanager
def installed(sources: Mapping[str, str] = SOURCES) -> Iterator[None]:
    """Have the catalog read `sources` in place of the package's own."""
    source._digest.cache_clear()
    with patch.object(source, "kernel_sources", lambda: sources):
        yield
    source._digest.cache_clear()
