# SPDX-License-Identifier: Apache-2.0
"""What ``warpsmith doctor`` looks at: each probe returns facts and findings, whatever is broken."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import warpsmith
from warpsmith.arch import CUDA13_DRIVER
from warpsmith.catalog import CATALOG
from warpsmith.catalog.plan import probe_problems
from warpsmith.catalog.resolve import DeviceFacts
from warpsmith.catalog.spec import Finding
from warpsmith.errors import (
    BundleError,
    DriverError,
    InvalidArgumentError,
    ToolchainError,
    UnsupportedError,
    WarpsmithError,
)
from warpsmith.settings import Settings

if TYPE_CHECKING:
    from warpsmith.runtime.search import Place

PACKAGES = ("numpy", "ml_dtypes", "cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-nvdisasm", "torch")
NOWHERE = Path(os.devnull)
"""A cache folder for when even the settings cannot be read: nothing can be written there."""

_DEVICE_FAILS = "device-failing", "look at nvidia-smi; the driver has to be installed and running"
_REINSTALL = "pip install --force-reinstall warpsmith, in a fresh virtual environment if that does not help"


@dataclass
class Result:
    """What a probe found.

    Attributes
    ----------
    facts
        For the JSON object.
    lines
        For people.
    findings
        What is wrong.
    """

    facts: Any = None
    lines: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def guarded(name: str, probe: Callable[[], Result]) -> Result:
    """Run a probe; one that fails itself is a finding, never the end."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is warned of elsewhere is a finding here
            return probe()
    except Exception as error:
        text = f"looking at {name} failed: {type(error).__name__}: {error}"
        return Result(None, [text], [Finding("probe-failed", name, text, _REINSTALL)])


def installation() -> Result:
    """The package itself, and other copies of it that Python could import."""
    own = Path(warpsmith.__file__).resolve().parent
    versions = {name: _version(name) for name in PACKAGES}
    result = Result(
        {
            "version": warpsmith.__version__,
            "path": str(own),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": versions,
        },
        [
            f"warpsmith {warpsmith.__version__} in {own}",
            f"Python {platform.python_version()} on {platform.platform()}",
            ", ".join(f"{name} {version or '-'}" for name, version in versions.items()),
        ],
    )
    copies = {own: None}
    for folder in sys.path:
        package = Path(folder or ".", "warpsmith")
        if (package / "__init__.py").is_file():
            copies[package.resolve()] = None
    if len(copies) > 1:
        others = ", ".join(str(c) for c in copies if c != own)
        message = f"there are {len(copies)} copies of warpsmith on sys.path: {own} is used, it hides {others}"
        result.findings.append(Finding("copies", str(own), message, f"remove the copies that are not wanted: {others}"))
    installed = sorted({d.version for d in metadata.distributions(name="warpsmith")})
    if installed and installed != [warpsmith.__version__]:
        message = f"the code is warpsmith {warpsmith.__version__}, but installed is {', '.join(installed)}"
        result.findings.append(Finding("version-mixed", "warpsmith", message, _REINSTALL))
    return result


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def settings() -> Result:
    """The environment variables; `facts` is a `Settings`, of the defaults where they cannot be read."""
    try:
        found = Settings.from_environment()
    except WarpsmithError as error:
        fix = "correct the variable, or unset it"
        return Result(Settings(), [f"not readable: {error}"], [Finding("settings", "environment", str(error), fix)])
    given = {
        "WARPSMITH_ARCH_LIST": found.arch_list,
        "WARPSMITH_BUNDLE_PATH": os.pathsep.join(map(str, found.bundle_path)),
        "WARPSMITH_CACHE_DIR": found.cache_dir,
        "WARPSMITH_JIT": "allow" if found.jit else "forbid",
        "WARPSMITH_TUNING_PATH": found.tuning_path or "",
        "WARPSMITH_REQUIRE_SIGNATURE": found.require_signature or "",
    }
    return Result(found, [f"{name}={value}" for name, value in given.items() if value != ""])


def cache(settings: Settings) -> Result:
    """The compile cache: whether it can be written, and what is in it. Nothing is written to find out."""
    folder = settings.cache_dir
    nearest = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    writable = nearest.is_dir() and os.access(nearest, os.R_OK | os.W_OK | os.X_OK)
    sizes: list[int] = []
    if folder.is_dir() and os.access(folder, os.R_OK | os.X_OK):
        sizes = [entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()]
    facts = {"path": str(folder), "writable": writable, "entries": len(sizes), "bytes": sum(sizes)}
    state = "can be written" if writable else "cannot be written"
    result = Result(facts, [f"{folder} {state}; {len(sizes)} entries, {sum(sizes)} bytes"])
    if not writable and settings.jit:
        message = f"the compile cache {folder} cannot be written, so kernels compiled on demand are not kept"
        fix = f"make {nearest} a folder that this user can write, or set WARPSMITH_CACHE_DIR to one"
        result.findings.append(Finding("cache-readonly", str(folder), message, fix))
    return result


def toolchain() -> Result:
    """NVRTC and nvdisasm; that they are not installed at all is no finding."""
    from warpsmith.compiler.toolchain import find_toolchain

    try:
        found = find_toolchain()
    except ToolchainError as error:
        result = Result({"error": str(error)}, [str(error)])
        if _version("nvidia-cuda-nvrtc"):
            fix = "pip install -U 'warpsmith[build]'"
            result.findings.append(Finding("toolchain", "NVRTC", f"NVRTC is installed, but unusable: {error}", fix))
        return result
    facts = {
        "nvrtc": found.nvrtc_version,
        "nvrtc_path": str(found.nvrtc),
        "nvdisasm": found.disasm_version,
        "nvdisasm_path": str(found.nvdisasm),
    }
    return Result(facts, [f"NVRTC {found.nvrtc_version}, nvdisasm {found.disasm_version}"])


def driver() -> Result:
    """The CUDA driver; on a machine that shows no sign of a GPU its absence is no finding."""
    from warpsmith.runtime.driver import default_driver, version_text

    try:
        version = default_driver().version()
    except DriverError as error:
        result = Result({"version": 0, "error": str(error)}, [f"none: {error}"])
        if sys.platform != "darwin" and not _version("cuda-bindings"):
            fix = "pip install 'cuda-bindings>=12.9.4,<14'"
            message = "the package cuda-bindings is not installed, so no GPU can be used"
            result.findings.append(Finding("cuda-bindings", "cuda-bindings", message, fix))
        elif gpu_nodes():
            message = f"there is a GPU ({', '.join(gpu_nodes())}), but its driver cannot be used: {error}"
            fix = "install the NVIDIA driver R580 or newer; in a container, run it with the GPU (--gpus all)"
            result.findings.append(Finding("driver", "libcuda", message, fix))
        return result
    result = Result({"version": version}, [f"for {version_text(version)}"])
    if version < CUDA13_DRIVER:
        message = f"the driver is for {version_text(version)}, but kernels need {version_text(CUDA13_DRIVER)} (R580)"
        result.findings.append(Finding("driver-too-old", "driver", message, "install the NVIDIA driver R580 or newer"))
    return result


def gpu_nodes(root: Path = Path("/dev")) -> list[str]:
    """Signs of a GPU that do not need a working driver: the kernel module's device files, or WSL's."""
    found = [p for p in root.glob("nvidia*") if p.name.removeprefix("nvidia").isdigit()]
    return [str(p) for p in (*sorted(found), root / "dxg") if p.exists()]


def devices() -> Result:
    """The devices that the driver sees; `facts` is a list of (index, `DeviceFacts`)."""
    from warpsmith.runtime.device import device_facts
    from warpsmith.runtime.driver import default_driver

    try:
        count = default_driver().device_count()
    except DriverError as error:
        result = Result([], ["none"])
        if gpu_nodes() and _version("cuda-bindings"):
            message = f"there is a GPU ({', '.join(gpu_nodes())}), but it cannot be used: {error}"
            fix = "look at nvidia-smi and CUDA_VISIBLE_DEVICES"
            result.findings.append(Finding("devices", "CUDA", message, fix))
        return result
    result = Result([])
    for index in range(count):
        try:
            facts = device_facts(index)
        except (UnsupportedError, DriverError) as error:
            known = isinstance(error, UnsupportedError)
            code, fix = ("device-unsupported", "use another device, or a newer warpsmith") if known else _DEVICE_FAILS
            result.lines.append(f"{index}: {error}")
            result.findings.append(Finding(code, f"device {index}", str(error), fix))
            continue
        result.facts.append((index, facts))
        result.lines.append(f"{index}: {facts}, {facts.sm_count} multiprocessors")
    return result


def bundles(settings: Settings) -> Result:
    """Bundles on the bundle path and installed ones, each read whole; `facts` is the places that dispatch searches."""
    from warpsmith.bundle.audit import audit
    from warpsmith.bundle.find import installed_bundles
    from warpsmith.bundle.signature import read_public_key
    from warpsmith.runtime.search import find_places

    required = settings.require_signature
    places = find_places(settings.bundle_path, installed_bundles, read_public_key(required) if required else None)
    result = Result(places)
    for place in places:
        for reason in place.damaged:
            fix = "build or install it again, or take it out of the search"
            result.findings.append(Finding("bundle-unreadable", place.name, f"{place.name}: {reason}", fix))
        for bundle in place.bundles:
            result.lines.append(
                f"{bundle.path}: {bundle.manifest.target}, {len(bundle.manifest.cubins)} cubins, "
                f"warpsmith {bundle.manifest.package_version} ({place.name})"
            )
            wrong = audit([bundle], (), CATALOG)
            if wrong:
                message = f"{bundle.path} has {len(wrong)} findings, the first: {wrong[0].message}"
                result.findings.append(
                    Finding(
                        "bundle-damaged", str(bundle.path), message, f"warpsmith audit {bundle.path} names them all"
                    )
                )
    if not result.lines:
        result.lines.append("none")
    return result


def coverage(
    settings: Settings, places: Sequence[Place], devices: Sequence[DeviceFacts], compiles: str | None
) -> Result:
    """Whether each device finds a kernel for each promise; `compiles` says why nothing can be compiled, if so."""
    from warpsmith.runtime.jit import Jit
    from warpsmith.runtime.kernels import Runtime

    class KnownJit(Jit):
        """The compiler, already asked: looking for a toolchain that is not there takes long."""

        def refusal(self) -> str | None:
            return compiles

    listed: list[Any] = [b for place in places for b in place.bundles]
    listed += [BundleError(text) for place in places for text in place.damaged]
    pathless = replace(settings, bundle_path=())
    try:
        runtime = Runtime(pathless, CATALOG, installed=lambda: listed, jit=KnownJit(pathless, CATALOG))
    except InvalidArgumentError as error:
        fix = "correct the variable that the message names, or unset it"
        return Result({}, [str(error)], [Finding("settings", "environment", str(error), fix)])
    result = Result({})
    for facts in dict.fromkeys(devices):
        counts = {"bundle": 0, "jit": 0, "missing": 0}
        for operation in CATALOG.operations:
            for format in operation.formats:
                promise = CATALOG.promise(operation.name, format, facts.capability)
                if promise is None or promise.kernel is None:
                    continue
                located = runtime.locate(next(probe_problems(operation, format)), facts)
                missing = located.decision.choice is None
                counts["missing" if missing else "bundle" if located.bundle else "jit"] += 1
        result.facts[str(facts.capability)] = counts
        result.lines.append(
            f"{facts}: {counts['bundle']} operations and formats from bundles, {counts['jit']} by compiling on demand, "
            f"{counts['missing']} not at all"
        )
        if counts["missing"]:
            result.findings.append(_uncovered(facts, counts["missing"], compiles))
    return result


def _uncovered(facts: DeviceFacts, missing: int, compiles: str | None) -> Finding:
    why = f"and {compiles}" if compiles else "although compiling is possible"
    return Finding(
        "kernels-missing",
        str(facts.capability),
        f"{facts} has no kernel for {missing} operations and formats: no bundle has them, {why}",
        f"warpsmith build --arch {facts.capability} --out DIR and WARPSMITH_BUNDLE_PATH=DIR; or pip install "
        "'warpsmith[build]' and WARPSMITH_JIT=allow",
    )
