# SPDX-License-Identifier: Apache-2.0
"""What ``warpsmith doctor`` looks at: each probe returns facts and findings, whatever is broken."""

from __future__ import annotations

import filecmp
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import warpsmith
from warpsmith.arch import CUDA13_DRIVER
from warpsmith.bundle.store import examine
from warpsmith.catalog import CATALOG
from warpsmith.catalog.plan import probe_problems
from warpsmith.catalog.resolve import DeviceFacts
from warpsmith.catalog.spec import Finding, Problem
from warpsmith.cli.diagnoses import found
from warpsmith.errors import (
    BundleError,
    DriverError,
    InvalidArgumentError,
    SignatureError,
    ToolchainError,
    UnsupportedError,
    WarpsmithError,
)
from warpsmith.settings import Settings, library_path

if TYPE_CHECKING:
    from warpsmith.runtime.search import Place

PACKAGES = ("numpy", "ml_dtypes", "cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-nvdisasm", "torch")
_DAMAGED_ENTRIES = 10  # more are not counted
NOWHERE = Path(os.devnull)
"""A cache folder for when even the settings cannot be read: nothing can be written there."""


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
        finding = found("probe-failed", name, name=name, error=f"{type(error).__name__}: {error}")
        return Result(None, [finding.message], [finding])


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
        result.findings.append(found("copies", str(own), count=len(copies), own=own, others=others))
    installed = sorted({d.version for d in metadata.distributions(name="warpsmith")})
    if installed and installed != [warpsmith.__version__]:
        versions_text = ", ".join(installed)
        result.findings.append(
            found("version-mixed", "warpsmith", version=warpsmith.__version__, installed=versions_text)
        )
    return result


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def settings() -> Result:
    """The environment variables; `facts` is a `Settings`, of the defaults where they cannot be read."""
    try:
        read = Settings.from_environment()
    except WarpsmithError as error:
        return Result(Settings(), [f"not readable: {error}"], [found("settings", "environment", error=error)])
    given = {
        "WARPSMITH_ARCH_LIST": read.arch_list,
        "WARPSMITH_BUNDLE_PATH": os.pathsep.join(map(str, read.bundle_path)),
        "WARPSMITH_CACHE_DIR": read.cache_dir,
        "WARPSMITH_JIT": "allow" if read.jit else "forbid",
        "WARPSMITH_TUNING_PATH": read.tuning_path or "",
        "WARPSMITH_REQUIRE_SIGNATURE": read.require_signature or "",
    }
    return Result(read, [f"{name}={value}" for name, value in given.items() if value != ""])


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
    unreadable = folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK)
    if unreadable and settings.jit:
        result.findings.append(found("cache-unreadable", str(folder), folder=folder, reason="permission denied"))
    elif not writable and settings.jit:
        result.findings.append(found("cache-readonly", str(folder), folder=folder, nearest=nearest))
    damaged = [] if unreadable else list(islice(examine(folder), _DAMAGED_ENTRIES))
    if damaged and settings.jit:
        key, reason = damaged[0]
        count = f"{len(damaged)}{' or more' if len(damaged) == _DAMAGED_ENTRIES else ''}"
        result.findings.append(found("cache-damaged", str(folder), folder=folder, count=count, first=f"{key} {reason}"))
    return result


def toolchain() -> Result:
    """NVRTC and nvdisasm; that they are not installed at all is no finding."""
    from warpsmith.compiler.toolchain import find_toolchain

    try:
        tools = find_toolchain()
    except ToolchainError as error:
        result = Result({"error": str(error)}, [str(error)])
        if _version("nvidia-cuda-nvrtc"):
            result.findings.append(found("toolchain", "NVRTC", error=error))
        return result
    facts = {
        "nvrtc": tools.nvrtc_version,
        "nvrtc_path": str(tools.nvrtc),
        "nvdisasm": tools.disasm_version,
        "nvdisasm_path": str(tools.nvdisasm),
    }
    result = Result(facts, [f"NVRTC {tools.nvrtc_version}, nvdisasm {tools.disasm_version}"])
    for own, other in shadows(tools.nvrtc, library_path()):
        result.findings.append(
            found("nvrtc-shadowed", str(other), own=own, other=other, version=tools.nvrtc_version, folder=other.parent)
        )
    return result


def shadows(nvrtc: Path, folders: Sequence[Path]) -> list[tuple[Path, Path]]:
    """(own, other) libraries of NVRTC's folder that another of the same name and other content comes before."""
    hidden = []
    for own in sorted(nvrtc.parent.glob("libnvrtc*.so*")):
        others = [folder / own.name for folder in folders if (folder / own.name).is_file()]
        if others and not filecmp.cmp(own, others[0], shallow=False):
            hidden.append((own, others[0]))
    return hidden


def driver() -> Result:
    """The CUDA driver; on a machine that shows no sign of a GPU its absence is no finding."""
    from warpsmith.runtime.driver import default_driver, version_text

    try:
        version = default_driver().version()
    except DriverError as error:
        result = Result({"version": 0, "error": str(error)}, [f"none: {error}"])
        if sys.platform != "darwin" and not _version("cuda-bindings"):
            result.findings.append(found("cuda-bindings", "cuda-bindings"))
        elif gpu_nodes():
            result.findings.append(found("driver", "libcuda", nodes=", ".join(gpu_nodes()), error=error))
        return result
    result = Result({"version": version}, [f"for {version_text(version)}"])
    if version < CUDA13_DRIVER:
        texts = {"version": version_text(version), "needed": version_text(CUDA13_DRIVER)}
        result.findings.append(found("driver-too-old", "driver", **texts))
    return result


def gpu_nodes(root: Path = Path("/dev")) -> list[str]:
    """Signs of a GPU that do not need a working driver: the kernel module's device files, or WSL's."""
    numbered = [p for p in root.glob("nvidia*") if p.name.removeprefix("nvidia").isdigit()]
    return [str(p) for p in (*sorted(numbered), root / "dxg") if p.exists()]


def devices() -> Result:
    """The devices that the driver sees; `facts` is a list of (index, `DeviceFacts`)."""
    from warpsmith.runtime.device import device_facts
    from warpsmith.runtime.driver import default_driver

    try:
        count = default_driver().device_count()
    except DriverError as error:
        result = Result([], ["none"])
        if gpu_nodes() and _version("cuda-bindings"):
            result.findings.append(found("devices", "CUDA", nodes=", ".join(gpu_nodes()), error=error))
        return result
    result = Result([])
    for index in range(count):
        try:
            facts = device_facts(index)
        except (UnsupportedError, DriverError) as error:
            code = "device-unsupported" if isinstance(error, UnsupportedError) else "device-failing"
            result.lines.append(f"{index}: {error}")
            result.findings.append(found(code, f"device {index}", error=error))
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
    try:
        key = read_public_key(required) if required else None
    except WarpsmithError as error:
        named = f"WARPSMITH_REQUIRE_SIGNATURE: {error}"
        return Result((), [named], [found("settings", "environment", error=named)])
    places = find_places(settings.bundle_path, installed_bundles, key)
    result = Result(places)
    for place in places:
        for reason in place.damaged:
            result.findings.append(found("bundle-unreadable", place.name, place=place.name, reason=reason))
        for bundle in place.bundles:
            result.lines.append(
                f"{bundle.path}: {bundle.manifest.target}, {len(bundle.manifest.cubins)} cubins, "
                f"warpsmith {bundle.manifest.package_version} ({place.name})"
            )
            wrong = audit([bundle], (), CATALOG)
            if wrong:
                texts = {"path": bundle.path, "count": len(wrong), "first": wrong[0].message}
                result.findings.append(found("bundle-damaged", str(bundle.path), **texts))
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
    except (InvalidArgumentError, SignatureError) as error:
        return Result({}, [str(error)], [found("settings", "environment", error=error)])
    result = Result({})
    for facts in dict.fromkeys(devices):
        counts = {"bundle": 0, "jit": 0, "missing": 0}
        lost: list[tuple[str, Problem]] = []
        for operation in CATALOG.operations:
            for format in operation.formats:
                promise = CATALOG.promise(operation.name, format, facts.capability)
                if promise is None or promise.kernel is None:
                    continue
                problem = next(probe_problems(operation, format))
                located = runtime.locate(problem, facts)
                missing = located.decision.choice is None
                counts["missing" if missing else "bundle" if located.bundle else "jit"] += 1
                if missing:
                    lost.append((promise.kernel, problem))
        result.facts[str(facts.capability)] = counts
        result.lines.append(
            f"{facts}: {counts['bundle']} operations and formats from bundles, {counts['jit']} by compiling on demand, "
            f"{counts['missing']} not at all"
        )
        if counts["missing"]:
            result.findings += _uncovered(facts, lost, places, compiles, settings)
    return result


def _uncovered(
    facts: DeviceFacts,
    lost: Sequence[tuple[str, Problem]],
    places: Sequence[Place],
    compiles: str | None,
    settings: Settings,
) -> Iterator[Finding]:
    """That kernels are missing on a device, and what may be the reason."""
    device = {"device": facts, "capability": facts.capability}
    subject = str(facts.capability)
    why = f"and {compiles}" if compiles else "although compiling is possible"
    yield found("kernels-missing", subject, missing=len(lost), why=why, **device)
    here = [b for place in places for b in place.bundles]
    running = [b for b in here if b.manifest.target.runs_on(facts.capability)]
    if here and not running:
        yield found("wrong-target", subject, targets=", ".join(str(b.manifest.target) for b in here), **device)
    for bundle in running:
        parts = [bundle.manifest.selection.lacks(CATALOG, kernel, problem) for kernel, problem in lost]
        lacks = next(filter(None, parts), "")
        if lacks:
            yield found("bundle-partial", str(bundle.path), path=bundle.path, lacks=lacks, **device)
    if settings.jit and compiles and not _version("nvidia-cuda-nvrtc"):
        yield found("nvrtc-missing", subject, error=compiles, capability=facts.capability)
