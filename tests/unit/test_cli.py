# SPDX-License-Identifier: Apache-2.0
"""The command line: results on stdout, all else on stderr, one JSON object, and the exit status."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import synthetic
from bundle_samples import parts, sample_bundle, sources
from typer.testing import CliRunner, Result

import warpsmith.cli.plan
from warpsmith.arch import Capability, parse
from warpsmith.bundle.writer import write_bundle, write_wheel
from warpsmith.catalog.plan import Selection
from warpsmith.catalog.spec import Catalog
from warpsmith.cli.app import app
from warpsmith.compiler.build import BuildReport
from warpsmith.errors import (
    BundleError,
    CatalogError,
    CompileError,
    CubinCheckError,
    DriverError,
    InvalidArgumentError,
    MissingKernelError,
    StoreError,
    TargetError,
    ToolchainError,
    UnsupportedError,
)
from warpsmith.evidence import ledger

SPARK = Capability(12, 1)
USING_CATALOG = ("plan", "build", "audit", "resolve", "probes")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No environment, no cache and no installed bundle of whoever runs the tests; the small catalog."""
    for name in [n for n in os.environ if n.startswith("WARPSMITH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WARPSMITH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("warpsmith.bundle.find.installed_bundles", lambda **_: [])
    use(monkeypatch, synthetic.CATALOG)
    sources(monkeypatch)


def use(monkeypatch: pytest.MonkeyPatch, catalog: Catalog) -> None:
    for command in USING_CATALOG:
        monkeypatch.setattr(f"warpsmith.cli.{command}.CATALOG", catalog)


def runner() -> CliRunner:
    """One that keeps stdout and stderr apart; older versions have to be told to."""
    told = "mix_stderr" in inspect.signature(CliRunner).parameters
    return CliRunner(mix_stderr=False) if told else CliRunner()  # type: ignore[call-arg]


def run(*arguments: str | Path) -> Result:
    return runner().invoke(app, [str(a) for a in arguments])


def run_json(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """Exit status and the object, which has to be all there is on stdout."""
    result = run(*arguments, "--json")
    found = json.loads(result.stdout)
    assert found["schema"] == 1
    assert isinstance(found["targets"], list)
    assert all({"code", "subject", "message", "fix"} == set(f) for f in found["findings"])
    return result.exit_code, found


def subjects(found: dict[str, Any]) -> list[str]:
    return [f["subject"] for f in found["findings"]]


def without_spark() -> Catalog:
    """12.1 dropped from one row, as it happens."""
    native, portable = synthetic.CATALOG.kernels
    rest = tuple(c for c in native.capabilities if c != SPARK)
    return dataclasses.replace(synthetic.CATALOG, kernels=(dataclasses.replace(native, capabilities=rest), portable))


# What every command does


@pytest.mark.parametrize("command", ["doctor", "plan", "build", "audit", "resolve", "inspect"])
def test_help_lists_each_command_and_each_explains_itself(command: str) -> None:
    assert command in run("--help").stdout
    assert run(command, "--help").exit_code == 0


def test_version() -> None:
    assert run("--version").stdout == f"warpsmith {warpsmith.__version__}\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidArgumentError("why"), 2),
        (TargetError("why"), 2),
        (CompileError("why"), 3),
        (CubinCheckError("why"), 3),
        (ToolchainError("why"), 3),
        (StoreError("why"), 3),
        (DriverError("why"), 3),
        (BundleError("why"), 3),
        (CatalogError("why"), 3),
        (MissingKernelError("why"), 1),
        (UnsupportedError("why"), 1),
        (OSError(28, "No space left on device"), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_a_message_and_a_status(monkeypatch: pytest.MonkeyPatch, error: Exception, status: int) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(warpsmith.cli.plan, "order", fail)
    result = run("plan", "--arch", "12.1")
    assert (result.exit_code, result.stdout) == (status, "")
    assert result.stderr == f"error: {error}\n"
    code, found = run_json("plan", "--arch", "12.1")
    assert code == status
    assert found["error"] == {"type": type(error).__name__, "message": str(error)}


def test_an_unexpected_error_is_3_with_a_traceback_and_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warpsmith.cli.plan, "order", lambda *_: 1 // 0)
    result = run("plan", "--arch", "12.1")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError was not expected here" in result.stderr
    assert "warpsmith doctor" in result.stderr


def test_an_interrupt_is_neither_a_finding_nor_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(warpsmith.cli.plan, "order", interrupt)
    result = run("plan", "--arch", "12.1")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    "arguments",
    [("plan", "--nothing"), ("nothing",), ("audit",), ("build", "--arch", "12.1"), ("build", "--jobs", "0")],
)
def test_bad_usage_is_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("", "no architecture was given"),
        (" ; ", "no architecture was given"),
        ("12.1+PTX", "PTX is compiled on the user's machine"),
        ("sm_90f", "does not exist"),
        ("7.5", "unknown compute capability"),
    ],
)
@pytest.mark.parametrize("command", [("plan",), ("resolve", "scale"), ("build", "--out", "x")])
def test_a_bad_architecture_is_2(command: tuple[str, ...], arch: str, message: str) -> None:
    result = run(*command, "--arch", arch)
    assert result.exit_code == 2
    assert message in result.stderr


def test_messages_keep_their_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ToolchainError("pip install 'warpsmith[build]'")

    monkeypatch.setattr(warpsmith.cli.plan, "order", fail)
    assert "warpsmith[build]" in run("plan", "--arch", "12.1").stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-c", "from warpsmith.cli import main; main()", "plan", "--arch", "8x 9x 12x", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_the_command_line_starts_without_what_only_some_commands_need() -> None:
    program = "import sys, warpsmith.cli.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"numpy", "warpsmith.compiler", "warpsmith.runtime", "warpsmith.ops", "asyncio"}


# plan


def test_plan_lists_modules_and_cubins() -> None:
    code, found = run_json("plan", "--arch", "12.0 12.1")
    assert code == 0
    assert [t["target"] for t in found["targets"]] == ["sm_120f", "sm_121a"]
    for target in found["targets"]:
        assert target["missing"] == []
        (module,) = target["modules"]
        assert module["name"] == "scaling"
        assert len(module["cubins"]) == 8
        assert all(c["kernel"] == "scale_native" and c["target"] == target["target"] for c in module["cubins"])
    text = run("plan", "--arch", "12.0 12.1").stdout
    assert "sm_121a" in text
    assert "scaling" in text


@pytest.mark.parametrize("arch", ["12x 12.0", "12.0;12.0f", "120f,sm_120f"])
def test_plan_names_a_target_once(arch: str) -> None:
    assert [t["target"] for t in run_json("plan", "--arch", arch)[1]["targets"]] == ["sm_120f"]


def test_the_architecture_list_of_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARPSMITH_ARCH_LIST", "9.0;8.6")
    assert [t["target"] for t in run_json("plan")[1]["targets"]] == ["sm_90a", "sm_86"]
    assert [t["target"] for t in run_json("plan", "--arch", "8.0")[1]["targets"]] == ["sm_80"]


def test_plan_narrows_to_formats_and_modules() -> None:
    code, found = run_json("plan", "--arch", "12.1", "--formats", "f8", "--modules", "scaling")
    assert code == 0
    assert {c["variant"][:2] for c in found["targets"][0]["modules"][0]["cubins"]} == {"f8"}
    result = run("plan", "--arch", "12.1", "--formats", "f8,f2")
    assert result.exit_code == 2
    assert "unknown format 'f2'" in result.stderr


def test_plan_names_each_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, without_spark())
    for arch in ("12.1", "12x"):
        code, found = run_json("plan", "--arch", arch)
        assert code == 1
        assert subjects(found) == ["scale/f4@12.1", "scale/f8@12.1"]
        missing = found["targets"][0]["missing"]
        assert [m["promise"] for m in missing] == ["scale/f4@12.1", "scale/f8@12.1"]
        assert all("not 12.1" in m["reason"] for m in missing)
    result = run("plan", "--arch", "12.1")
    assert result.exit_code == 1
    assert "FINDING [promise-broken]" in result.stdout
    assert "fix: " in result.stdout


# build


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the compiler was asked to build; it writes sample bundles."""
    calls: list[dict[str, Any]] = []

    def fake(_: Catalog, targets: Any, out: Path, **options: Any) -> BuildReport:
        calls.append({"targets": list(map(str, targets)), **options})
        options["progress"](1, 1, "a cubin")
        write = write_wheel if options["wheel"] else None
        made = []
        for target in targets:
            content = parts(target, options["selection"])
            made.append(write(out, *content) if write else write_bundle(out / str(target), *content))
        return BuildReport(tuple(made), 8, 0, 1.5, ())

    monkeypatch.setattr("warpsmith.compiler.build.build", fake)
    return calls


def test_build_says_what_it_wrote(builds: list[dict[str, Any]], tmp_path: Path) -> None:
    code, found = run_json("build", "--arch", "12x 12.0", "--out", tmp_path, "--jobs", "2", "--formats", "f4")
    assert code == 0
    assert found["build"] == {"bundles": [str(tmp_path / "sm_120f")], "compiled": 8, "cached": 0, "seconds": 1.5}
    assert [t["target"] for t in found["targets"]] == ["sm_120f"]
    assert all(len(c["sha256"]) == 64 for c in found["targets"][0]["modules"][0]["cubins"])
    assert (builds[0]["targets"], builds[0]["jobs"]) == (["sm_120f"], 2)
    assert builds[0]["selection"] == Selection(formats=("f4",))
    assert builds[0]["store"].root == tmp_path / "cache"
    result = run("build", "--arch", "12.1", "--out", tmp_path)
    assert result.stdout == f"{tmp_path / 'sm_121a'}\n"
    assert "8 cubins compiled" in result.stderr


def test_build_writes_wheels(builds: list[dict[str, Any]], tmp_path: Path) -> None:
    code, found = run_json("build", "--arch", "12.1", "--out", tmp_path, "--wheel")
    assert (code, builds[0]["wheel"]) == (0, True)
    assert found["build"]["bundles"][0].endswith("-py3-none-any.whl")


def test_build_refuses_a_catalog_with_a_gap(
    monkeypatch: pytest.MonkeyPatch, builds: list[dict[str, Any]], tmp_path: Path
) -> None:
    use(monkeypatch, without_spark())
    code, found = run_json("build", "--arch", "12.1", "--out", tmp_path / "out")
    assert code == 1
    assert subjects(found) == ["scale/f4@12.1", "scale/f8@12.1"]
    assert builds == []
    assert not (tmp_path / "out").exists()


# audit

Sabotage = Callable[[Path], str]


def delete_a_cubin(bundle: Path) -> str:
    gone = sorted((bundle / "cubins").iterdir())[0]
    gone.unlink()
    return named(bundle, gone.name.partition(".")[0])


def flip_a_byte(bundle: Path) -> str:
    file = sorted((bundle / "cubins").iterdir())[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    return named(bundle, file.name.partition(".")[0])


def rename_an_entry(bundle: Path) -> str:
    manifest = json.loads((bundle / "manifest.json").read_text())
    entry = manifest["cubins"][0]
    name = f"{entry['kernel']}/{entry['variant']}@{manifest['target']}"
    entry["variant"] = "renamed"
    manifest["cubins"].sort(key=lambda c: (c["kernel"], c["variant"]))
    (bundle / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return name


def named(bundle: Path, sha256: str) -> str:
    manifest = json.loads((bundle / "manifest.json").read_text())
    entry = next(c for c in manifest["cubins"] if c["sha256"] == sha256)
    return f"{entry['kernel']}/{entry['variant']}@{manifest['target']}"


def test_a_sound_bundle_is_0(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "sm_121a", parse("12.1"))
    for path in (bundle.path, tmp_path):
        code, found = run_json("audit", path)
        assert (code, found["findings"]) == (0, [])
        assert found["audited"] == {"bundles": [str(bundle.path)], "capabilities": ["12.1"]}
    assert "8 cubins, for 12.1: complete and intact" in run("audit", bundle.path).stdout


def test_a_wheel_is_audited_in_place(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, *parts(parse("12.1")))
    assert run("audit", wheel).exit_code == 0
    assert run("audit", tmp_path).exit_code == 0


@pytest.mark.parametrize("sabotage", [delete_a_cubin, flip_a_byte, rename_an_entry], ids=lambda s: s.__name__)
def test_sabotage_is_named(tmp_path: Path, sabotage: Sabotage) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("12.1"))
    name = sabotage(bundle.path)
    code, found = run_json("audit", bundle.path)
    assert code == 1
    assert name in subjects(found)
    assert name in run("audit", bundle.path).stdout


@pytest.mark.parametrize(
    ("arch", "status"),
    [("12.0", 0), ("12.1", 0), ("12x", 0), ("120f", 0), ("12.0,12.1", 0), ("9.0", 1), ("12.1 9.0", 1), ("10.0", 1)],
)
def test_a_family_bundle_serves_its_family_alone(tmp_path: Path, arch: str, status: int) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("12x"))
    code, found = run_json("audit", bundle.path, "--arch", arch)
    assert code == status
    assert bool(found["findings"]) == bool(status)


def test_a_target_means_all_devices_it_runs_on(tmp_path: Path) -> None:
    specific = sample_bundle(tmp_path / "b", parse("12.0a"))
    assert run("audit", specific.path, "--arch", "12.0").exit_code == 0
    assert run("audit", specific.path, "--arch", "12.0f").exit_code == 1


def test_audit_looks_at_every_bundle_of_a_directory(tmp_path: Path) -> None:
    for arch in ("12.1", "12.0", "9.0"):
        sample_bundle(tmp_path / str(parse(arch)), parse(arch))
    assert run("audit", tmp_path, "--arch", "9.0 12.0 12.1").exit_code == 0
    (tmp_path / "sm_120f" / "manifest.json").unlink()
    code, found = run_json("audit", tmp_path)
    assert (code, subjects(found)) == (1, [str(tmp_path / "sm_120f")])
    (tmp_path / "sm_121a" / "manifest.json").write_text("{")
    code, found = run_json("audit", tmp_path)
    assert code == 1
    assert {str(tmp_path / "sm_120f"), str(tmp_path / "sm_121a")} <= set(subjects(found))
    assert {t["target"] for t in found["targets"]} == {"sm_90a"}


def test_audit_of_a_place_without_a_bundle(tmp_path: Path) -> None:
    result = run("audit", tmp_path / "nothing")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr
    (tmp_path / "empty").mkdir()
    code, found = run_json("audit", tmp_path / "empty")
    assert code == 1
    assert subjects(found) == [str(tmp_path / "empty")]


# resolve


def test_resolve_names_what_would_run_from_a_bundle(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("12x"))
    code, found = run_json("resolve", "scale", "--arch", "12.1", "--bundle", bundle.path, "--format", "f8", "-p", "m=3")
    assert code == 0
    (decision,) = found["decisions"]
    assert decision["problem"] == {"format": "f8", "input": "bf16", "layout": "linear", "k": 1024, "m": 3}
    choice = decision["choice"]
    assert (choice["kernel"], choice["variant"], choice["target"]) == ("scale_native", "f8_bf16_small", "sm_120f")
    assert choice["from"] == str(bundle.path)
    assert (bundle.path / choice["file"]).is_file()
    assert named(bundle.path, choice["sha256"]) == "scale_native/f8_bf16_small@sm_120f"
    assert {"subject": "scale_native/f4_bf16_small", "reason": "serves format f4, not f8"} in decision["rejections"]
    assert found["targets"][0]["modules"][0]["cubins"] == [choice]
    text = run("resolve", "scale", "--arch", "12.1", "--bundle", bundle.path).stdout
    assert "runs scale_native/f4_bf16_small@sm_120f" in text


def test_resolve_with_a_bundle_compiles_nothing(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("9.0"))
    code, found = run_json("resolve", "scale", "--arch", "12.1", "--bundle", bundle.path)
    assert code == 1
    assert found["decisions"][0]["choice"] is None
    assert subjects(found) == ["scale/f4@12.1"]
    reasons = [r["reason"] for r in found["decisions"][0]["rejections"]]
    assert "nothing is compiled with --bundle" in reasons
    assert any("no bundle for sm_121a" in r for r in reasons)


def test_resolve_does_not_name_a_damaged_cubin_in_silence(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("12.1"))
    for file in (bundle.path / "cubins").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    code, found = run_json("resolve", "scale", "--arch", "12.1", "--bundle", bundle.path)
    assert code == 1
    assert [f["code"] for f in found["findings"]] == ["digest-mismatch"]


def test_resolve_says_that_the_bundle_cannot_be_opened(tmp_path: Path) -> None:
    sound = sample_bundle(tmp_path / "sm_120f", parse("12.0"))
    damaged = sample_bundle(tmp_path / "sm_121a", parse("12.1"))
    (damaged.path / "manifest.json").write_text("{")
    code, found = run_json("resolve", "scale", "--arch", "12.1", "--bundle", tmp_path)
    assert (code, subjects(found)) == (1, [str(damaged.path)])
    assert found["decisions"][0]["choice"]["from"] == str(sound.path)


def test_resolve_answers_for_each_device_of_a_family(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("12x"))
    found = run_json("resolve", "scale", "--arch", "12x", "--bundle", bundle.path)[1]
    assert [d["capability"] for d in found["decisions"]] == ["12.0", "12.1"]


def test_resolve_says_that_something_is_not_supported() -> None:
    code, found = run_json("resolve", "scale", "--arch", "8.7")
    assert code == 1
    assert [f["code"] for f in found["findings"]] == ["unsupported"]
    assert found["decisions"][0]["unsupported"] == "unsupported: no such device at hand"


def test_resolve_follows_the_search_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("12.1"))
    monkeypatch.setenv("WARPSMITH_BUNDLE_PATH", str(tmp_path / "gone") + os.pathsep + str(bundle.path))
    result = run("resolve", "scale", "--arch", "12.1", "--json")
    assert json.loads(result.stdout)["decisions"][0]["choice"]["from"] == str(bundle.path)
    assert "warning: " in result.stderr
    assert str(tmp_path / "gone") in result.stderr


@pytest.mark.parametrize("tile", [("1", "large"), ("132", "small")])
def test_resolve_takes_the_number_of_multiprocessors(tmp_path: Path, tile: tuple[str, str]) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("12.1"))
    arguments = ("resolve", "scale", "--arch", "12.1", "--bundle", bundle.path, "--m", "1024", "--sm-count", tile[0])
    assert run_json(*arguments)[1]["decisions"][0]["choice"]["variant"] == f"f4_bf16_{tile[1]}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gemm",), "unknown operation 'gemm'; expected one of scale"),
        (("scale", "-p", "m"), "-p 'm' is not of the form KEY=VALUE"),
        (("scale", "-p", "=1"), "is not of the form KEY=VALUE"),
        (("scale", "-p", "n=1"), "scale has no option 'n'"),
        (("scale", "--k", "8"), "k=8 must be a multiple of 16"),
        (("scale", "--m", "1", "-p", "m=2"), "m is given twice, as '1' and as '2'"),
        (("scale", "--output", "bf16"), "scale has no option 'output'"),
        (("scale", "--bundle", "nothing"), "nothing does not exist"),
    ],
)
def test_resolve_refuses_a_problem_that_is_none(arguments: tuple[str, ...], message: str) -> None:
    result = run("resolve", *arguments, "--arch", "12.1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


# inspect


def test_inspect_shows_figures_and_census(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("12.1"))
    code, found = run_json("inspect", bundle.path)
    assert code == 0
    cubins = found["targets"][0]["modules"][0]["cubins"]
    assert len(cubins) == 8
    assert cubins[0]["registers"] == 40
    assert cubins[0]["spills"] == 0
    assert cubins[0]["instructions"] == {"EXIT": 1, "FADD": 3}
    assert found["targets"][0]["toolchain"] == "nvrtc 13.5.37"
    text = run("inspect", bundle.path, "scale_native/f4_bf16_small").stdout
    assert "FADD" in text
    assert "f8_bf16_small" not in text


def test_inspect_of_a_kernel_that_is_not_there(tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("12.1"))
    result = run("inspect", bundle.path, "gemm")
    assert result.exit_code == 2
    assert "has no kernel 'gemm'; it has scale_native" in result.stderr


def test_inspect_holds_the_ledger_against_the_cubins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("12.1"))
    first, second, *_ = bundle.manifest.cubins
    run_of = {"device": "NVIDIA GB10", "driver": "13000", "date": "2026-11-22", "cases": 3}
    entries = (
        ledger.Entry(first.variant, first.sha256, ledger.EXECUTED, **run_of),
        ledger.Entry(second.variant, "0" * 64, ledger.EXECUTED, **run_of),
    )
    ledger.write(tmp_path / "ledger", ledger.Record("scale_native", parse("12.1"), "nvrtc 13.5.37", entries))
    monkeypatch.setattr(ledger, "ledger_path", lambda: tmp_path / "ledger")
    cubins = run_json("inspect", bundle.path)[1]["targets"][0]["modules"][0]["cubins"]
    assert [c["evidence"] for c in cubins] == ["executed", "stale", *["compiled"] * 6]
