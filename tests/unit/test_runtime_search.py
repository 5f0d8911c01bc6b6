# SPDX-License-Identifier: Apache-2.0
"""The search: its order, what is refused and why, and an error that says all of it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_samples import parts, sample_bundle, sources
from driver_fake import FakeApi, FakeDevice
from runtime_samples import FORBIDDEN, GB10, FakeJit, runtime
from synthetic import CATALOG, problem

from warpsmith import tuning
from warpsmith.arch import Capability, parse
from warpsmith.bundle.reader import Bundle
from warpsmith.bundle.writer import write_bundle
from warpsmith.catalog.plan import Selection
from warpsmith.catalog.resolve import DeviceFacts
from warpsmith.catalog.shapes import Model, Shapes
from warpsmith.catalog.spec import Problem
from warpsmith.compiler import toolchain
from warpsmith.errors import (
    BundleError,
    InvalidArgumentError,
    MissingKernelError,
    ToolchainError,
    UnsupportedError,
)
from warpsmith.runtime.driver import Driver
from warpsmith.runtime.jit import Jit
from warpsmith.runtime.kernels import Runtime
from warpsmith.settings import Settings


@pytest.fixture(autouse=True)
def _sources(monkeypatch: pytest.MonkeyPatch) -> None:
    sources(monkeypatch)


def test_making_a_runtime_looks_at_nothing() -> None:
    def never() -> Sequence[Bundle | BundleError]:
        raise AssertionError("installed bundles were looked for")

    api = FakeApi()
    Runtime(Settings(bundle_path=(Path("/nowhere"),)), CATALOG, Driver(api), installed=never)
    assert api.calls == []


def test_the_bundle_path_comes_before_installed_bundles_and_those_before_compiling(tmp_path: Path) -> None:
    family = sample_bundle(tmp_path / "family", parse("sm_120f"))
    own = sample_bundle(tmp_path / "own", parse("sm_121a"))
    jit = FakeJit()
    found = runtime(family.path, installed=[own], jit=jit).locate(problem(), GB10)
    assert (str(found.cubin.target), found.origin) == ("sm_120f", str(family.path))
    found = runtime(installed=[family], jit=jit).locate(problem(), GB10)
    assert (str(found.cubin.target), found.origin) == ("sm_120f", str(family.path))
    assert jit.asked == 0
    found = runtime(jit=jit).locate(problem(), GB10)
    assert (str(found.cubin.target), found.origin, found.bundle) == ("sm_121a", "JIT", None)


def test_in_one_place_the_most_specific_cubin_comes_first(tmp_path: Path) -> None:
    for target in ("sm_120f", "sm_121a"):
        sample_bundle(tmp_path / "fleet" / target, parse(target))
    decision = runtime(tmp_path / "fleet").decide(problem(), GB10)
    assert str(decision.choice) == "scale_native/f4_bf16_small@sm_121a"


def test_the_first_of_two_bundles_that_can_serves(tmp_path: Path) -> None:
    whole, empty = parts(parse("sm_121a")), parts(parse("sm_121a"))[0]
    write_bundle(tmp_path / "a", replace(empty, cubins=()), {})
    write_bundle(tmp_path / "b", *whole)
    write_bundle(tmp_path / "c", *whole)
    found = runtime(tmp_path / "a", tmp_path / "b", tmp_path / "c").locate(problem(), GB10)
    assert found.origin == str(tmp_path / "b")


def test_a_damaged_entry_is_warned_of_when_it_is_met_and_another_bundle_serves(tmp_path: Path) -> None:
    broken = sample_bundle(tmp_path / "a", parse("sm_121a")).path
    whole = sample_bundle(tmp_path / "b", parse("sm_121a")).path
    manifest = broken / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"threads":', '"threads":9'))
    run = runtime(broken, whole)
    assert [len(p.bundles) for p in run.places()] == [2, 0]
    with pytest.warns(RuntimeWarning, match=r"manifest.json: cubins\[\d+\].threads: given 9"):
        found = run.locate(problem(), GB10)
    assert found.origin == str(whole)


@pytest.mark.parametrize(("capability", "target"), [("12.0", "sm_120f"), ("12.1", "sm_121a"), ("9.0", "sm_90a")])
def test_what_is_compiled_on_demand_is_what_a_plain_build_makes(capability: str, target: str) -> None:
    facts = DeviceFacts(Capability.parse(capability), 48, 13000)
    decision = runtime(jit=FakeJit()).decide(problem(), facts)
    assert decision.choice is not None
    assert str(decision.choice.target) == target


def test_a_cubin_of_another_source_is_refused_by_name_and_compiled_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = sample_bundle(tmp_path / "old", parse("sm_121a"))
    sources(monkeypatch, "// changed\n")
    found = runtime(bundle.path, jit=FakeJit()).locate(problem(), GB10)
    assert found.origin == "JIT"
    (reason,) = [r.reason for r in found.decision.rejections if r.subject.endswith("small@sm_121a")]
    assert str(bundle.path) in reason
    assert "from another source (warpsmith 0.1.0, source digest" in reason


@pytest.mark.parametrize(
    ("driver", "usable"), [(12080, False), (12090, False), (13000, True), (13050, True), (0, True)]
)
def test_an_old_driver_is_told_which_one_is_needed(tmp_path: Path, driver: int, usable: bool) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("sm_121a"))
    run = runtime(bundle.path, jit=FakeJit(), api=FakeApi(driver=driver))
    assert (run.decide(problem(), GB10._replace(driver=driver)).choice is not None) == usable
    if not usable:
        with pytest.raises(MissingKernelError) as caught:
            run.prepare(problem(), 0)
        text = str(caught.value)
        own = f"CUDA {driver // 1000}.{driver % 1000 // 10}"
        needs = f"needs a driver for CUDA 13.0 (R580) or newer; this one is for {own}"
        assert f"{bundle.path} {needs}" in text
        assert f"compiled here, it {needs}" in text
        assert text.endswith("what helps:\n  - a driver of R580 or newer, for CUDA 13.0")


def test_without_a_known_driver_a_bundle_is_judged_by_its_contents(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("sm_121a"))
    assert runtime(bundle.path).decide(problem(), GB10._replace(driver=0)).choice is not None


def test_the_error_carries_the_problem_the_device_the_search_and_the_remedy(tmp_path: Path) -> None:
    other = sample_bundle(tmp_path / "hopper", parse("sm_90a"))
    run = runtime(other.path, jit=FakeJit(FORBIDDEN))
    with pytest.raises(MissingKernelError) as caught:
        run.prepare(problem(m=1), 0)
    cubins = [f"scale_native/f4_bf16_small@{t}" for t in ("sm_121a", "sm_121f", "sm_120f")]
    assert str(caught.value).splitlines() == [
        "no usable kernel on NVIDIA GB10 (compute capability 12.1)",
        "  scale(format=f4, input=bf16, layout=linear, k=1024, m=1)",
        *(f"    - {c}: WARPSMITH_BUNDLE_PATH: no bundle for {c.split('@')[1]}" for c in cubins),
        f"    - {cubins[0]}: {FORBIDDEN}",
        "searched, in this order:",
        f"  1. WARPSMITH_BUNDLE_PATH: {other.path} (sm_90a, 8 cubins)",
        "  2. installed bundles: none",
        "  3. JIT, with the compile cache",
        "what helps:",
        "  - a bundle: `warpsmith build --arch 12.1 --out DIR` on any machine, then WARPSMITH_BUNDLE_PATH=DIR here "
        "(with --wheel: `pip install DIR/*.whl`)",
        "  - or compiling on demand: `pip install 'warpsmith[build]'`, with WARPSMITH_JIT not set to forbid",
    ]


def test_the_error_says_what_the_bundle_was_built_without(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "part", parse("12.1"), Selection(formats=("f8",)))
    with pytest.raises(MissingKernelError) as caught:
        runtime(bundle.path, jit=FakeJit(FORBIDDEN)).prepare(problem(m=1), 0)
    assert f"f4_bf16_small@sm_121a: {bundle.path} was built without f4, for f8 alone\n" in str(caught.value)
    shapes = Shapes(
        "scale", (("format", ("f8",)), ("input", ("bf16",)), ("layout", ("linear",))), (("k", 32, 32), ("m", 1, 1))
    )
    bundle = sample_bundle(tmp_path / "models", parse("12.1"), Selection(models=(Model("tiny", (shapes,)),)))
    run = runtime(bundle.path, jit=FakeJit(FORBIDDEN))
    assert run.decide(problem(m=1, k=32, format="f8"), GB10).choice is not None
    with pytest.raises(
        MissingKernelError, match=r"was built without scale\(format=f8, input=fp32.*for the shapes of tiny"
    ):
        run.prepare(problem(m=1, k=32, format="f8", input="fp32"), 0)


def test_a_problem_that_no_kernel_computes_says_so() -> None:
    strange = Problem.of("scale", {"format": "f4", "input": "int8", "layout": "linear"}, {"m": 1, "k": 16})
    with pytest.raises(MissingKernelError) as caught:
        runtime(jit=FakeJit()).prepare(strange, 0)
    assert "    - no kernel of the catalog computes it on this device\n" in str(caught.value)
    assert "scale_native/f4_bf16_small serves input bf16, not int8" in str(caught.value)


def test_what_is_promised_to_be_unsupported_is_refused_with_the_reason() -> None:
    run = runtime(jit=FakeJit(), api=FakeApi((FakeDevice((8, 7), name="Orin"),)))
    with pytest.raises(UnsupportedError, match=r"on Orin .*: unsupported: no such device at hand"):
        run.prepare(problem(), 0)


def test_a_damaged_bundle_is_warned_of_once_and_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "manifest.json").write_text("{")
    run = runtime(
        tmp_path / "bad", tmp_path / "absent", installed=[BundleError("distribution x: broken")], jit=FakeJit(FORBIDDEN)
    )
    with pytest.warns(RuntimeWarning, match="a bundle cannot be used") as seen:
        run.decide(problem(), GB10)
    assert [str(tmp_path / name) in str(w.message) for w, name in zip(seen, ("bad", "absent"), strict=False)] == [
        True
    ] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MissingKernelError) as caught:
            run.prepare(problem(), 0)
    text = str(caught.value)
    assert f"1. WARPSMITH_BUNDLE_PATH: not usable: {tmp_path / 'bad' / 'manifest.json'}" in text
    assert f"{tmp_path / 'absent'} does not exist" in text
    assert "2. installed bundles: not usable: distribution x: broken" in text


def test_a_required_signature_is_never_ignored() -> None:
    with pytest.raises((InvalidArgumentError, BundleError), match=r"cannot read the key key\.pub|cryptography"):
        Runtime(Settings(require_signature=Path("key.pub")), CATALOG, Driver(FakeApi()))


def test_a_users_tuning_table_is_asked_first_and_must_name_planned_tiles(tmp_path: Path) -> None:
    def tuned(rule: tuning.Rule) -> Runtime:
        (tmp_path / "table.json").write_text(tuning.dump([rule]))
        settings = Settings(tuning_path=tmp_path / "table.json")
        return Runtime(settings, CATALOG, Driver(FakeApi()), installed=lambda: (), jit=FakeJit())

    decision = tuned(tuning.Rule("scale_native", "large")).decide(problem(m=1), GB10)
    assert decision.choice is not None
    assert decision.choice.variant == "f4_bf16_large"
    with pytest.raises(InvalidArgumentError, match=r"table\.json names tile 'huge' .* expected one of large, small"):
        tuned(tuning.Rule("scale_native", "huge"))
    with pytest.raises(InvalidArgumentError, match=r"kernel 'gemm', .* expected a kernel among scale_native, scale_po"):
        tuned(tuning.Rule("gemm", "large"))


def test_the_compiler_is_not_asked_where_it_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> toolchain.Toolchain:
        raise AssertionError("the toolchain was looked for")

    monkeypatch.setattr(toolchain, "find_toolchain", never)
    assert Jit(Settings(jit=False), CATALOG).refusal() == FORBIDDEN


def test_what_is_compiled_does_not_pass_for_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> toolchain.Toolchain:
        raise AssertionError("the toolchain was looked for")

    monkeypatch.setattr(toolchain, "find_toolchain", never)
    jit = Jit(Settings.from_environment({"WARPSMITH_REQUIRE_SIGNATURE": "/release.pub"}), CATALOG)
    with pytest.raises(MissingKernelError, match=r"WARPSMITH_REQUIRE_SIGNATURE asks for signed .* WARPSMITH_JIT"):
        runtime(jit=jit).prepare(problem(), 0)


def test_a_missing_compiler_is_a_reason_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> toolchain.Toolchain:
        raise ToolchainError("NVRTC is not installed; pip install 'warpsmith[build]'")

    monkeypatch.setattr(toolchain, "find_toolchain", missing)
    jit = Jit(Settings(), CATALOG)
    with pytest.raises(MissingKernelError, match="compiling is not possible: NVRTC is not installed; pip install"):
        runtime(jit=jit).prepare(problem(), 0)
