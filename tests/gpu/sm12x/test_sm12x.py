# SPDX-License-Identifier: Apache-2.0
"""The MMA layer and the block-scaled GEMM of 12.x on a GPU that can run them: quick cases of every variant."""

from __future__ import annotations

import numpy as np
import pytest

from gpu import need_gpu
from warpsmith.arch import default_target

from .cases import Case, Suite
from .device import Gpu, gpu_capability
from .gemm import Gemm, Launch, make_problem
from .kernels import CAPABILITIES, GEMM, PROBE
from .probe import Probe

need_gpu()
if gpu_capability() not in CAPABILITIES:
    pytest.skip(f"the kernels are for {', '.join(map(str, CAPABILITIES))}", allow_module_level=True)
VARIANTS = [v.name for v in GEMM.variants]


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    return Gpu(default_target(gpu_capability()), None)


@pytest.mark.parametrize("kind", [v.name for v in PROBE.variants])
def test_every_mma_is_right(gpu: Gpu, kind: str) -> None:
    probe = Probe(gpu, kind, seed=1)
    wrong = {name: probe.wrong(inputs, exact) for name, inputs, exact in probe.checks()}
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_case_of_the_gemm_is_right(gpu: Gpu, variant: str) -> None:
    gemm = Gemm(gpu, variant, seed=1)
    for cases in Suite(gemm.pair, gemm.tile[0], quick=True, seed=1).kinds().values():
        for case in cases:
            assert gemm.problems(case) == [], case


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.endswith(("_t128", "_s16"))])
def test_a_graph_replays_to_the_same_bits(gpu: Gpu, variant: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    program = gpu.load(GEMM, GEMM.variant(variant))
    problem = make_problem(rng, variant.rpartition("_")[0], Case(m=200, n=264, k=640, splits=2))
    launch = Launch(gpu, program.tile, problem, rng)
    want = launch.run(program, 7)
    launch.poison_d()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            program.launch(7, launch.arguments, stream=torch.cuda.current_stream().cuda_stream)
    assert (launch.d() == launch.poison).all()
    graph.replay()
    np.testing.assert_array_equal(launch.d(), want)
