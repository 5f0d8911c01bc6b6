# SPDX-License-Identifier: Apache-2.0
"""``warpsmith doctor``: says what is here and what is wrong, whatever is broken, and never falls over itself."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import synthetic
from bundle_samples import sample_bundle, sources
from driver_fake import CUresult, FakeApi, FakeDevice
from typer.testing import CliRunner

from warpsmith import __version__
from warpsmith.arch import parse
from warpsmith.bundle.store import Store
from warpsmith.catalog.plan import Selection
from warpsmith.cli import probes, troubleshooting
from warpsmith.cli.app import app
from warpsmith.cli.diagnoses import DIAGNOSES
from warpsmith.compiler.toolchain import Toolchain
from warpsmith.errors import BundleError, ToolchainError
from warpsmith.runtime.driver import Driver

Patch = pytest.MonkeyPatch
ROOT = Path(__file__).parents[2]
TOOLCHAIN = Toolchain(Path("/lib/libnvrtc.so.13"), Path("/bin/nvdisasm"), "13.5.37", "13.5.37")


@pytest.fixture(autouse=True)
def alone(monkeypatch: Patch, tmp_path: Path) -> None:
    """A healthy machine without a GPU: a toolchain, an empty cache, no bundles, the small catalog."""
    for name in [n for n in os.environ if n.startswith("WARPSMITH_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.setenv("WARPSMITH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("warpsmith.bundle.find.installed_bundles", list)
    monkeypatch.setattr("warpsmith.compiler.toolchain.find_toolchain", lambda: TOOLCHAIN)
    monkeypatch.setattr("warpsmith.cli.probes.CATALOG", synthetic.CATALOG)
    monkeypatch.setattr("warpsmith.cli.probes.gpu_nodes", list)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.setattr(metadata, "version", lambda _: "1.0")
    monkeypatch.setattr(metadata, "distributions", lambda name: [SimpleNamespace(name=name, version=__version__)])
    sources(monkeypatch)
    gpus(monkeypatch, FakeApi((), fail={"cuInit": CUresult.CUDA_ERROR_NO_DEVICE}))


def gpus(monkeypatch: Patch, api: FakeApi | None) -> None:
    """Have this process see the driver and devices of `api`; without one, those of the bindings."""
    driver = Driver(api)
    monkeypatch.setattr("warpsmith.runtime.driver.default_driver", lambda: driver)
    monkeypatch.setattr("warpsmith.runtime.device.default_driver", lambda: driver)


def doctor() -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    return result.exit_code, json.loads(result.stdout)


def codes(found: dict[str, Any]) -> list[str]:
    assert all(f["fix"] for f in found["findings"])
    return [f["code"] for f in found["findings"]]


def test_no_gpu_is_no_finding(tmp_path: Path) -> None:
    code, found = doctor()
    assert (code, found["findings"], found["devices"], found["bundles"]) == (0, [], [], [])
    assert found["nvrtc"]["nvrtc"] == "13.5.37"
    assert found["cache"] == {"path": str(tmp_path / "cache"), "writable": True, "entries": 0, "bytes": 0}
    assert not (tmp_path / "cache").exists()
    text = CliRunner().invoke(app, ["doctor"])
    assert text.exit_code == 0
    assert "nothing is wrong" in text.stdout


def test_devices_bundles_and_coverage_are_listed(monkeypatch: Patch, tmp_path: Path) -> None:
    gpus(monkeypatch, FakeApi((FakeDevice(), FakeDevice((9, 0), 132, "NVIDIA H200"))))
    bundle = sample_bundle(tmp_path / "b", parse("12x"))
    monkeypatch.setenv("WARPSMITH_BUNDLE_PATH", str(bundle.path))
    code, found = doctor()
    assert code == 0
    assert found["devices"] == [
        {"index": 0, "name": "NVIDIA GB10", "capability": "12.1", "multiprocessors": 48},
        {"index": 1, "name": "NVIDIA H200", "capability": "9.0", "multiprocessors": 132},
    ]
    assert found["driver"] == {"version": 13000}
    assert [(b["target"], b["path"], b["cubins"]) for b in found["bundles"]] == [("sm_120f", str(bundle.path), 8)]
    assert found["kernels"] == {
        "12.1": {"bundle": 2, "jit": 0, "missing": 0},
        "9.0": {"bundle": 0, "jit": 2, "missing": 0},
    }


def no_toolchain() -> Toolchain:
    raise ToolchainError("NVRTC is not installed; pip install 'warpsmith[build]'")


def break_jit_setting(monkeypatch: Patch, _: Path) -> None:
    monkeypatch.setenv("WARPSMITH_JIT", "never")


def break_tuning_path(monkeypatch: Patch, _: Path) -> None:
    monkeypatch.setenv("WARPSMITH_TUNING_PATH", "/nothing.json")


def break_bundle_path(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setenv("WARPSMITH_BUNDLE_PATH", str(tmp_path / "gone"))


def break_manifest(monkeypatch: Patch, tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("12.1"))
    (bundle.path / "manifest.json").write_text("{")
    monkeypatch.setenv("WARPSMITH_BUNDLE_PATH", str(bundle.path))


def break_cubin(monkeypatch: Patch, tmp_path: Path) -> None:
    bundle = sample_bundle(tmp_path / "b", parse("12.1"))
    next((bundle.path / "cubins").iterdir()).write_bytes(b"")
    monkeypatch.setenv("WARPSMITH_BUNDLE_PATH", str(bundle.path))


def break_installed_bundle(monkeypatch: Patch, _: Path) -> None:
    monkeypatch.setattr("warpsmith.bundle.find.installed_bundles", lambda: [BundleError("not whole")])


def break_cache(monkeypatch: Patch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WARPSMITH_CACHE_DIR", str(tmp_path / "file" / "cache"))


def break_bindings(monkeypatch: Patch, _: Path) -> None:
    def version(name: str) -> str:
        if name == "cuda-bindings":
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    gpus(monkeypatch, None)


def break_driver(monkeypatch: Patch, _: Path) -> None:
    gpus(monkeypatch, FakeApi(fail={"cuDriverGetVersion": CUresult.CUDA_ERROR_INVALID_VALUE}))
    monkeypatch.setattr("warpsmith.cli.probes.gpu_nodes", lambda: ["/dev/nvidia0"])


def break_initialising(monkeypatch: Patch, _: Path) -> None:
    gpus(monkeypatch, FakeApi(fail={"cuInit": CUresult.CUDA_ERROR_NO_DEVICE}))
    monkeypatch.setattr("warpsmith.cli.probes.gpu_nodes", lambda: ["/dev/nvidia0"])


def break_old_driver(monkeypatch: Patch, _: Path) -> None:
    gpus(monkeypatch, FakeApi((), driver=12080))


def break_device(monkeypatch: Patch, _: Path) -> None:
    gpus(monkeypatch, FakeApi((FakeDevice((7, 5), 40, "Tesla T4"), FakeDevice())))


def break_reading_a_device(monkeypatch: Patch, _: Path) -> None:
    gpus(monkeypatch, FakeApi(fail={"cuDeviceGetAttribute": CUresult.CUDA_ERROR_INVALID_VALUE}))


def break_all_ways_to_a_kernel(monkeypatch: Patch, _: Path) -> None:
    gpus(monkeypatch, FakeApi())
    monkeypatch.setenv("WARPSMITH_JIT", "forbid")


def break_toolchain_on_a_gpu(monkeypatch: Patch, _: Path) -> None:
    gpus(monkeypatch, FakeApi())
    monkeypatch.setattr("warpsmith.compiler.toolchain.find_toolchain", no_toolchain)


def break_compiler_missing(monkeypatch: Patch, tmp_path: Path) -> None:
    break_toolchain_on_a_gpu(monkeypatch, tmp_path)
    monkeypatch.setattr(probes, "_version", lambda name: "" if "nvrtc" in name else "1.0")


def break_toolchain(monkeypatch: Patch, _: Path) -> None:
    monkeypatch.setattr("warpsmith.compiler.toolchain.find_toolchain", no_toolchain)


def break_by_another_nvrtc(monkeypatch: Patch, tmp_path: Path) -> None:
    for folder, text in (("wheel", "its own"), ("cuda", "another")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "libnvrtc-builtins.so.13.5").write_text(text)
    found = replace(TOOLCHAIN, nvrtc=tmp_path / "wheel" / "libnvrtc.so.13")
    monkeypatch.setattr("warpsmith.compiler.toolchain.find_toolchain", lambda: found)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path / 'absent'}{os.pathsep}{tmp_path / 'cuda'}")


def break_by_another_target(monkeypatch: Patch, tmp_path: Path) -> None:
    break_all_ways_to_a_kernel(monkeypatch, tmp_path)
    monkeypatch.setenv("WARPSMITH_BUNDLE_PATH", str(sample_bundle(tmp_path / "b", parse("9.0")).path))


def break_by_a_part(monkeypatch: Patch, tmp_path: Path) -> None:
    break_all_ways_to_a_kernel(monkeypatch, tmp_path)
    part = sample_bundle(tmp_path / "b", parse("12.1"), Selection(formats=("f4",)))
    monkeypatch.setenv("WARPSMITH_BUNDLE_PATH", str(part.path))


def break_cache_rights(monkeypatch: Patch, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path / "cache")


def break_cache_entry(_: Patch, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    store.put("ab" * 32, b"sound")
    store.put("cd" * 32, b"damaged")
    path = tmp_path / "cache" / f"{'cd' * 32}.entry"
    path.write_bytes(path.read_bytes()[:-1])


def break_key(monkeypatch: Patch, _: Path) -> None:
    monkeypatch.setenv("WARPSMITH_REQUIRE_SIGNATURE", "/no/key.pub")


def break_by_a_second_copy(monkeypatch: Patch, tmp_path: Path) -> None:
    (tmp_path / "other" / "warpsmith").mkdir(parents=True)
    (tmp_path / "other" / "warpsmith" / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "other")])


def break_version(monkeypatch: Patch, _: Path) -> None:
    monkeypatch.setattr("warpsmith.__version__", "0.0.9")


def break_a_probe(monkeypatch: Patch, _: Path) -> None:
    monkeypatch.setattr("warpsmith.bundle.find.installed_bundles", lambda: 1 // 0)


HARMS = [
    (break_compiler_missing, "nvrtc-missing", "--out DIR"),
    (break_toolchain, "toolchain", "installed, but unusable"),
    (break_by_another_nvrtc, "nvrtc-shadowed", "cuda/libnvrtc-builtins.so.13.5, on LD_LIBRARY_PATH, hides"),
    (break_by_another_target, "wrong-target", "runs none of the bundles that are here: they are for sm_90a"),
    (break_by_a_part, "bundle-partial", "was built without f8, for f4 alone"),
    (break_cache_rights, "cache-unreadable", "permission denied"),
    (break_cache_entry, "cache-damaged", f"the first: {'cd' * 32} should hold 7 bytes, but holds 6"),
    (break_key, "settings", "WARPSMITH_REQUIRE_SIGNATURE"),
    (break_jit_setting, "settings", "WARPSMITH_JIT='never'"),
    (break_tuning_path, "settings", "/nothing.json"),
    (break_bundle_path, "bundle-unreadable", "gone"),
    (break_manifest, "bundle-unreadable", "manifest"),
    (break_cubin, "bundle-damaged", "findings, the first"),
    (break_installed_bundle, "bundle-unreadable", "not whole"),
    (break_cache, "cache-readonly", "cannot be written"),
    (break_bindings, "cuda-bindings", "not installed"),
    (break_driver, "driver", "/dev/nvidia0"),
    (break_initialising, "devices", "CUDA_VISIBLE_DEVICES"),
    (break_old_driver, "driver-too-old", "CUDA 12.8"),
    (break_device, "device-unsupported", "Tesla T4"),
    (break_reading_a_device, "device-failing", "CUDA_ERROR_INVALID_VALUE"),
    (break_all_ways_to_a_kernel, "kernels-missing", "WARPSMITH_JIT=forbid"),
    (break_toolchain_on_a_gpu, "kernels-missing", "NVRTC is not installed"),
    (break_by_a_second_copy, "copies", "other/warpsmith"),
    (break_version, "version-mixed", "0.0.9"),
    (break_a_probe, "probe-failed", "ZeroDivisionError"),
]


@pytest.mark.parametrize(("harm", "code", "words"), HARMS, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_broken_is_named_with_a_fix(
    monkeypatch: Patch, tmp_path: Path, harm: Callable[[Patch, Path], None], code: str, words: str
) -> None:
    harm(monkeypatch, tmp_path)
    status, found = doctor()
    assert status == 1
    assert code in codes(found)
    assert ("probe-failed" in codes(found)) == (code == "probe-failed")
    texts = [f["message"] + f["fix"] for f in found["findings"] if f["code"] == code]
    assert any(words in text for text in texts), texts
    assert {"warpsmith", "settings", "driver", "devices", "nvrtc", "bundles", "cache"} <= set(found)
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1


def test_every_diagnosis_is_provoked_and_in_the_documentation() -> None:
    assert {code for _, code, _ in HARMS} == set(DIAGNOSES)
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert text == troubleshooting.render(), "python -m warpsmith.cli.troubleshooting > docs/troubleshooting.md"
    assert all(f"### {code}\n" in text for code in DIAGNOSES)


def test_every_finding_is_one_of_the_diagnoses(monkeypatch: Patch, tmp_path: Path) -> None:
    break_by_a_part(monkeypatch, tmp_path)
    assert sorted(codes(doctor()[1])) == ["bundle-partial", "kernels-missing"]
    tree = ast.parse(Path(probes.__file__).read_text(encoding="utf-8"))
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "Finding"]


def test_doctor_leaves_a_damaged_entry_where_it_is(tmp_path: Path, monkeypatch: Patch) -> None:
    break_cache_entry(monkeypatch, tmp_path)
    before = {p.name: p.read_bytes() for p in (tmp_path / "cache").iterdir()}
    doctor()
    assert {p.name: p.read_bytes() for p in (tmp_path / "cache").iterdir()} == before


def test_a_copy_of_the_same_library_hides_nothing(tmp_path: Path) -> None:
    for folder in ("wheel", "cuda"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "libnvrtc.so.13").write_text("the same")
    own, folders = tmp_path / "wheel" / "libnvrtc.so.13", [tmp_path / "cuda", tmp_path / "wheel"]
    assert probes.shadows(own, folders) == []
    (tmp_path / "cuda" / "libnvrtc.so.13").write_text("another")
    assert probes.shadows(own, folders) == [(own, tmp_path / "cuda" / "libnvrtc.so.13")]
    assert probes.shadows(own, folders[1:] + folders[:1]) == []  # its own folder comes first


def test_one_device_that_is_not_supported_hides_no_other(monkeypatch: Patch, tmp_path: Path) -> None:
    break_device(monkeypatch, tmp_path)
    assert [d["index"] for d in doctor()[1]["devices"]] == [1]


def test_a_toolchain_that_is_not_installed_is_no_finding_where_nothing_needs_it(monkeypatch: Patch) -> None:
    monkeypatch.setattr("warpsmith.compiler.toolchain.find_toolchain", no_toolchain)
    monkeypatch.setattr(probes, "_version", lambda _: "")
    code, found = doctor()
    assert code == 0
    assert "pip install" in found["nvrtc"]["error"]


def test_a_toolchain_that_is_installed_but_unusable_is_a_finding(monkeypatch: Patch) -> None:
    monkeypatch.setattr("warpsmith.compiler.toolchain.find_toolchain", no_toolchain)
    assert codes(doctor()[1]) == ["toolchain"]


@pytest.mark.parametrize(
    "name", ["installation", "settings", "driver", "devices", "toolchain", "bundles", "cache", "coverage"]
)
def test_any_probe_may_fail(monkeypatch: Patch, name: str) -> None:
    def fail(*_: object) -> probes.Result:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(probes, name, fail)
    status, found = doctor()
    assert status == 1
    assert "probe-failed" in codes(found)
    assert "unforeseen" in json.dumps(found["findings"])


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ((), []),
        (("nvidiactl", "nvidia-uvm", "tty"), []),
        (("nvidiactl", "nvidia0", "nvidia11"), ["nvidia0", "nvidia11"]),
        (("dxg",), ["dxg"]),
    ],
)
def test_signs_of_a_gpu(tmp_path: Path, files: tuple[str, ...], found: list[str], monkeypatch: Patch) -> None:
    monkeypatch.undo()
    for name in files:
        (tmp_path / name).write_text("")
    assert probes.gpu_nodes(tmp_path) == [str(tmp_path / name) for name in found]
