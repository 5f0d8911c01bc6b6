# SPDX-License-Identifier: Apache-2.0
"""Estimated costs of the SM12x GEMM: sane and monotone for every size of GPU, and what dispatch follows."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpsmith.arch import Capability
from warpsmith.catalog import CATALOG
from warpsmith.catalog.fp4_gemm import ESTIMATES, KERNELS, SHAPES
from warpsmith.catalog.gemm import BLOCK_SCALED, PREPARED
from warpsmith.catalog.plan import check
from warpsmith.catalog.resolve import DeviceFacts, resolve
from warpsmith.tuning import Bound, Rule, choose, reachable
from warpsmith.tuning.estimate import MAX_SPLITS, Estimate

SM_COUNTS = (48, 84, 170, 188)
NATIVE = ESTIMATES[0]
FORMATS = (*BLOCK_SCALED, *PREPARED)
TILES = tuple(SHAPES)
DIMS = st.fixed_dictionaries(
    {
        "m": st.integers(1, 20000),
        "n": st.integers(1, 2048).map(lambda x: 8 * x),
        "k": st.integers(1, 512).map(lambda x: 32 * x),
    }
)


def best(
    m: int, n: int = 4096, k: int = 4096, sms: int = 170, format: str = "nvfp4_x_nvfp4", **dims: int
) -> tuple[str, int]:
    found = NATIVE.best({"format": format, "mode": "dense"}, TILES, {"m": m, "n": n, "k": k, **dims}, sms)
    assert found is not None
    return found


def cost(dims: dict[str, int], sms: int, format: str = "nvfp4_x_nvfp4", estimate: Estimate = NATIVE) -> float:
    """The clocks of what is chosen."""
    fields, known = {"format": format, "mode": "dense"}, estimate.of(format)
    found = estimate.best(fields, TILES, dims, sms)
    assert known is not None
    assert found is not None
    shape = next(s for s in known.tiles if s.tile == found[0])
    return estimate.clocks(known, shape, dims, found[1], sms)


@pytest.mark.parametrize("sms", SM_COUNTS)
@pytest.mark.parametrize("format", FORMATS)
def test_few_rows_get_the_smallest_tile_that_holds_them(format: str, sms: int) -> None:
    for m, tile in ((1, "s8"), (8, "s8"), (9, "s16"), (16, "s16")):
        assert best(m, sms=sms, format=format)[0] == tile
    assert all(best(m, sms=sms, format=format)[0] in ("s16", "s32") for m in (17, 32))


@pytest.mark.parametrize("sms", SM_COUNTS)
@pytest.mark.parametrize("format", FORMATS)
def test_many_rows_get_large_tiles_and_no_splits(format: str, sms: int) -> None:
    for n in (4096, 8192):
        tile, splits = best(65536, n, sms=sms, format=format)
        assert tile in ("t128", "t256")
        assert splits == 1
    assert best(16384, 16384, sms=sms)[0] == "t256"


@pytest.mark.parametrize("sms", SM_COUNTS)
def test_k_is_split_where_tiles_leave_multiprocessors_idle(sms: int) -> None:
    narrow, wide = best(1, 512, 16384, sms)[1], best(1, 65536, 4096, sms)[1]
    assert narrow >= sms // 16
    assert wide == 1
    assert best(1, 512, 128, sms)[1] == 1


def test_more_multiprocessors_split_no_less() -> None:
    found = [best(1, 1024, 16384, sms)[1] for sms in SM_COUNTS]
    assert found == sorted(found)
    assert found[-1] <= MAX_SPLITS


@settings(max_examples=60, deadline=None)
@given(DIMS, st.sampled_from(SM_COUNTS), st.sampled_from(FORMATS), st.integers(1, 8), st.sampled_from("mnk"))
def test_a_larger_product_never_costs_less(dims: dict[str, int], sms: int, format: str, factor: int, name: str) -> None:
    larger = {**dims, name: dims[name] * factor}
    assert cost(larger, sms, format) >= cost(dims, sms, format) * (1 - 1e-9)


@settings(max_examples=60, deadline=None)
@given(DIMS, st.sampled_from(FORMATS))
def test_more_multiprocessors_never_cost_more(dims: dict[str, int], format: str) -> None:
    costs = [cost(dims, sms, format) for sms in SM_COUNTS]
    assert costs == sorted(costs, reverse=True)


@settings(max_examples=60, deadline=None)
@given(DIMS, st.sampled_from(SM_COUNTS))
def test_what_is_chosen_is_not_far_from_what_operations_or_bytes_take(dims: dict[str, int], sms: int) -> None:
    m, n, k = dims["m"], dims["n"], dims["k"]
    floor = max(2 * m * n * k / 4096, (m + n) * k / 2 / NATIVE.memory) / sms
    got = cost(dims, sms)
    assert got >= floor * (1 - 1e-9)
    if m >= 4096 and n >= 4096 and k >= 4096:
        assert got <= 2 * floor


def test_groups_are_not_split_and_count_as_matrices() -> None:
    fields = {"format": "nvfp4_x_nvfp4", "mode": "grouped"}
    for rows, tile in ((4, "s8"), (30, "s32"), (2048, "t256")):
        assert NATIVE.best(fields, TILES, {"m": rows, "n": 4096, "k": 4096, "batches": 128}, 170) == (tile, 1)


def test_dispatch_follows_the_estimate_and_a_rule_goes_before_it() -> None:
    problem = CATALOG.operation("gemm").problem({"format": "nvfp4_x_nvfp4", "m": 512})
    for sms in SM_COUNTS:
        choice = resolve(CATALOG, problem, DeviceFacts(Capability(12, 0), sms)).choice
        assert choice is not None
        assert choice.variant == f"nvfp4_x_nvfp4_{best(512, sms=sms)[0]}"
    rule = Rule(NATIVE.kernel, "s8", bounds=(Bound(("m",), 512, 512),))
    tuned = dataclasses.replace(CATALOG, tuning=(rule, *CATALOG.tuning))
    choice = resolve(tuned, problem, DeviceFacts(Capability(12, 0), 48)).choice
    assert choice is not None
    assert choice.variant == "nvfp4_x_nvfp4_s8"


def test_reachable_holds_every_tile_that_is_chosen() -> None:
    fields = {"format": "nvfp4_x_nvfp4", "mode": "dense"}
    options = {"capability": Capability(12, 1), "fields": fields, "estimates": (NATIVE,)}
    point = {"m": 512, "n": 4096, "k": 4096, "batches": 1}
    exact = reachable(
        (),
        NATIVE.kernel,
        TILES,
        ranges={d: (v, v) for d, v in point.items()},
        sm_counts=(1, 256),
        **options,  # type: ignore[arg-type]
    )
    chosen = {choose((), NATIVE.kernel, TILES, sm_count=s, dims=point, **options) for s in range(1, 257)}  # type: ignore[arg-type]
    assert set(exact) == chosen
    assert len(exact) < len(TILES)
    wide = {"m": (1, 8192), "n": (4096, 4096), "k": (4096, 4096)}
    assert set(reachable((), NATIVE.kernel, TILES, ranges=wide, sm_counts=(1, 256), **options)) == set(TILES)  # type: ignore[arg-type]


def test_an_estimate_of_other_tiles_than_there_are_is_named() -> None:
    first = NATIVE.formats[0]
    for tiles in (first.tiles[1:], (*first.tiles, first.tiles[0]._replace(tile="ghost"))):
        formats = (first._replace(tiles=tiles), *NATIVE.formats[1:])
        wrong = (NATIVE._replace(formats=formats), *(e for e in CATALOG.estimates if e is not NATIVE))
        found = check(dataclasses.replace(CATALOG, estimates=wrong), ())
        expected = "ghost" if len(tiles) > len(first.tiles) else "s8"
        assert [f.subject for f in found] == [f"{KERNELS[0].name}/{expected}"]


def test_what_is_not_known_is_not_estimated() -> None:
    assert NATIVE.best({"format": "bf16_x_bf16"}, TILES, {"m": 1}, 48) is None
    assert NATIVE.best({"format": "nvfp4_x_nvfp4"}, ("other",), {"m": 1}, 48) is None
