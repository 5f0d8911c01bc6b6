# SPDX-License-Identifier: Apache-2.0
"""The whole way by the command line, with the shipped catalog and the real compiler: plan, build, audit, resolve."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from warpsmith.bundle.packing import pack, unpack
from warpsmith.cli.app import app

BOTH = "12.0 12.1"


def run(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    return result.exit_code, json.loads(result.stdout)


def subjects(found: dict[str, Any]) -> set[str]:
    return {f["subject"] for f in found["findings"]}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, shared_cache: Path) -> None:
    for name in [n for n in os.environ if n.startswith("WARPSMITH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WARPSMITH_CACHE_DIR", str(shared_cache))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """Bundles for both SM12x capabilities."""
    out = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARPSMITH_CACHE_DIR", str(shared_cache))
        code, found = run("build", "--arch", BOTH, "--out", out)
    assert (code, found["findings"]) == (0, [])
    assert sorted(p.name for p in out.iterdir()) == ["sm_120f", "sm_121a"]
    return out


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(built, tmp_path / "copy"))


def test_the_plan_has_the_module_for_both_and_nothing_missing() -> None:
    code, found = run("plan", "--arch", BOTH)
    assert (code, found["findings"]) == (0, [])
    assert [t["target"] for t in found["targets"]] == ["sm_120f", "sm_121a"]
    for target in found["targets"]:
        assert target["missing"] == []
        modules = {m["name"]: m["cubins"] for m in target["modules"]}
        assert modules["fp4_quantization"]
        assert all(c["target"] == target["target"] for c in modules["fp4_quantization"])


def test_the_build_is_the_plan(built: Path) -> None:
    planned = run("plan", "--arch", BOTH)[1]["targets"]
    inspected = run("inspect", built)[1]["targets"]

    def names(targets: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
        return {(c["kernel"], c["variant"], c["target"]) for t in targets for m in t["modules"] for c in m["cubins"]}

    assert names(inspected) == names(planned)
    assert all(c["spills"] == c["stack"] == 0 for t in inspected for m in t["modules"] for c in m["cubins"])


@pytest.mark.parametrize("arch", ["", "12.0", "12.1", BOTH])
def test_what_is_built_is_whole(built: Path, arch: str) -> None:
    code, found = run("audit", built, "--arch", arch)
    assert (code, found["findings"]) == (0, [])


def entry(copy: Path, target: str, kernel: str = "quantize") -> dict[str, Any]:
    manifest = json.loads((copy / target / "manifest.json").read_text())
    found: dict[str, Any] = next(c for c in manifest["cubins"] if c["kernel"] == kernel)
    return found


def cubin(copy: Path, target: str) -> Path:
    return copy / target / "cubins" / f"{entry(copy, target)['sha256']}.cubin.z"


def name(copy: Path, target: str) -> str:
    chosen = entry(copy, target)
    return f"{chosen['kernel']}/{chosen['variant']}@{target}"


def delete(copy: Path) -> str:
    cubin(copy, "sm_121a").unlink()
    return name(copy, "sm_121a")


def flip(copy: Path) -> str:
    path = cubin(copy, "sm_121a")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(bytes(data))
    return name(copy, "sm_121a")


def rewrite(copy: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the chosen entry of the manifest, which stays well-formed."""
    path = copy / "sm_121a" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(next(c for c in manifest["cubins"] if c["kernel"] == "quantize"))
    manifest["cubins"].sort(key=lambda c: (c["kernel"], c["variant"]))
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def rename(copy: Path) -> str:
    gone = name(copy, "sm_121a")
    rewrite(copy, lambda e: e.update(variant="renamed"))
    return gone


def exchange(copy: Path) -> str:
    shutil.copy(cubin(copy, "sm_120f"), cubin(copy, "sm_121a"))
    return name(copy, "sm_121a")


def exchange_with_its_digest(copy: Path) -> str:
    """The other target's cubin, filed so that every digest is right."""
    chosen = entry(copy, "sm_120f")
    data = unpack(cubin(copy, "sm_120f").read_bytes(), chosen["size"])
    digest = hashlib.sha256(data).hexdigest()
    cubin(copy, "sm_121a").unlink()
    rewrite(copy, lambda e: e.update(sha256=digest, size=len(data)))
    (copy / "sm_121a" / "cubins" / f"{digest}.cubin.z").write_bytes(pack(data))
    return name(copy, "sm_121a")


@pytest.mark.parametrize("harm", [delete, flip, rename, exchange, exchange_with_its_digest], ids=lambda h: h.__name__)
def test_each_harm_is_named(copy: Path, harm: Callable[[Path], str]) -> None:
    harmed = harm(copy)
    code, found = run("audit", copy)
    assert code == 1
    assert harmed in subjects(found)
    assert run("audit", copy, "--arch", "12.1")[0] == 1
    text = CliRunner().invoke(app, ["audit", str(copy)])
    assert text.exit_code == 1
    assert harmed in text.stdout


def test_harm_to_one_bundle_leaves_the_other_whole(copy: Path) -> None:
    delete(copy)
    assert run("audit", copy / "sm_120f")[0] == 0
    assert run("audit", copy / "sm_121a")[0] == 1


def test_one_family_bundle_serves_both(tmp_path: Path) -> None:
    code, found = run("build", "--arch", "12x 12.0", "--out", tmp_path)
    assert (code, found["findings"]) == (0, [])
    assert [Path(p).name for p in found["build"]["bundles"]] == ["sm_120f"]
    (target,) = found["targets"]
    digests = {c["sha256"] for m in target["modules"] for c in m["cubins"]}
    assert found["build"]["compiled"] + found["build"]["cached"] == len(digests)
    assert [run("audit", tmp_path, "--arch", arch)[0] for arch in ("12.0", "12.1", "12x", "9.0")] == [0, 0, 0, 1]


def test_a_second_build_compiles_nothing_and_writes_the_same_bytes(built: Path, tmp_path: Path) -> None:
    code, found = run("build", "--arch", BOTH, "--out", tmp_path)
    assert (code, found["build"]["compiled"]) == (0, 0)
    files = sorted(p.relative_to(built) for p in built.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert all((built / f).read_bytes() == (tmp_path / f).read_bytes() for f in files)


def test_a_wheel_holds_the_same_cubins(built: Path, tmp_path: Path) -> None:
    code, found = run("build", "--arch", "12.1", "--out", tmp_path, "--wheel")
    assert code == 0
    (wheel,) = tmp_path.glob("*.whl")
    assert found["build"]["bundles"] == [str(wheel)]
    assert run("audit", wheel, "--arch", "12.1")[0] == 0

    def digests(path: Path) -> set[str]:
        return {c["sha256"] for t in run("inspect", path)[1]["targets"] for m in t["modules"] for c in m["cubins"]}

    assert digests(wheel) == digests(built / "sm_121a")


@pytest.mark.parametrize(("arch", "target"), [("12.1", "sm_121a"), ("12.0", "sm_120f")])
def test_resolve_names_the_cubin_that_would_run(built: Path, arch: str, target: str) -> None:
    code, found = run("resolve", "quantize", "--arch", arch, "--bundle", built)
    assert code == 0
    choice = found["decisions"][0]["choice"]
    assert choice["target"] == target
    file = built / target / choice["file"]
    assert file.name == f"{choice['sha256']}.cubin.z"
    assert hashlib.sha256(unpack(file.read_bytes(), choice["bytes"])).hexdigest() == choice["sha256"]
    assert choice["from"] == str(built / target)


def test_resolve_with_a_bundle_compiles_nothing(built: Path) -> None:
    code, found = run("resolve", "quantize", "--arch", "9.0", "--bundle", built)
    assert code == 1
    assert found["decisions"][0]["choice"] is None
    assert "nothing is compiled with --bundle" in {r["reason"] for r in found["decisions"][0]["rejections"]}


def test_a_part_for_models_is_whole_and_says_what_it_is(tmp_path: Path) -> None:
    models = Path(__file__).parents[2] / "examples" / "models.json"
    code, found = run("build", "--arch", "12.1", "--models", models, "--wheel", "--out", tmp_path)
    assert (code, found["findings"]) == (0, [])
    (wheel,) = tmp_path.glob("*.whl")
    assert "+" in wheel.name
    assert json.loads((tmp_path / "index.json").read_text())["wheels"][0]["file"] == wheel.name
    assert run("audit", wheel)[1]["findings"] == []
    cubins = [c["variant"] for c in run("inspect", wheel)[1]["targets"][0]["modules"][0]["cubins"]]
    assert len(cubins) == 8
    options = ("--arch", "12.1", "--bundle", wheel, "--input", "bf16", "--m", "4096", "--k", "7168")
    assert run("resolve", "quantize", "--format", "fp8_block", *options)[0] == 0
    code, found = run("resolve", "quantize", "--format", "nvfp4", *options)
    assert code == 1
    reasons = [r["reason"] for r in found["decisions"][0]["rejections"]]
    assert any("was built without quantize(format=nvfp4" in reason for reason in reasons)
