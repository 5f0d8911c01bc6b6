# SPDX-License-Identifier: Apache-2.0
"""The GEMM of 9.0 on a GPU of that capability: cases of every variant, and replays of a graph."""

from __future__ import annotations

import pytest

from gpu import need_gpu

need_gpu()
torch = pytest.importorskip("torch")
if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
    pytest.skip("the kernel is for compute capability 9.0", allow_module_level=True)

from .cases import Case, cases  # noqa: E402 - they need torch and a GPU
from .gemm import Launch, load, problems  # noqa: E402
from .kernels import VARIANTS, activates, tile  # noqa: E402
from .problem import make_problem  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_case_is_right(variant: str) -> None:
    for seed, case in enumerate(cases(variant.partition("_")[0], tile(variant).m, activates(variant))):
        found, _ = problems(variant, case, None, seed)
        assert found == [], case


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.endswith(("_t128x128", "_s32"))])
def test_a_graph_replays_to_the_same_bits(variant: str) -> None:
    kernel = load(variant, None)
    launch = Launch(variant, make_problem(variant.partition("_")[0], Case(m=200, n=264, k=640, splits=2), 1))
    want = launch.run(kernel)
    launch.raw.fill_(launch.poison)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            kernel.launch((launch.grid, 1, 1), launch.arguments, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert (launch.raw == launch.poison).all()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(launch.raw, want)
