# SPDX-License-Identifier: Apache-2.0
"""Finding NVRTC and nvdisasm, and which version they are, without loading NVRTC into this process."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from warpsmith.bundle.elf import read_cubin
from warpsmith.compiler.process import Worker, WorkerDied
from warpsmith.compiler.unit import Compiled, CompileJob
from warpsmith.errors import ToolchainError

_INSTALL = "pip install 'warpsmith[build]'"
_NVRTC = re.compile(r"libnvrtc\.so\.\d+|nvrtc64_\d+_\d+\.dll")
_NVDISASM = re.compile(r"nvdisasm(\.exe)?")
_OLD_NVRTC = "nvidia-cuda-nvrtc-cu12"
_PROBE = 'extern "C" __global__ void ws_probe(int *out) { *out = 1; }\n'
_PATHFINDER = "from cuda.pathfinder import load_nvidia_dynamic_lib as load; print(load('nvrtc').abs_path)"


@dataclass(frozen=True)
class Toolchain:
    """The compiler and disassembler that builds use.

    Attributes
    ----------
    nvrtc, nvdisasm
        Paths of the library and of the program.
    nvrtc_version
        In full (``13.5.37``), as the cubins that it makes state it; `nvrtcVersion` gives only ``13.5``.
    disasm_version
        In full, as nvdisasm states it.
    """

    nvrtc: Path
    nvdisasm: Path
    nvrtc_version: str
    disasm_version: str

    @property
    def compiler(self) -> str:
        """The compiler with its version, as manifests name it."""
        return f"nvrtc {self.nvrtc_version}"

    @property
    def disassembler(self) -> str:
        """The disassembler with its version."""
        return f"nvdisasm {self.disasm_version}"


@lru_cache(maxsize=1)
def find_toolchain() -> Toolchain:
    """Find NVRTC and nvdisasm and ask both for their versions; about 0.2 s, once a process.

    The wheels ``nvidia-cuda-nvrtc`` and ``nvidia-cuda-nvdisasm`` come first, found through their own file lists; then
    whatever ``cuda.pathfinder`` finds, and nvdisasm on ``PATH``.

    Raises
    ------
    ToolchainError
        If one is missing or too old, or nvdisasm is older than the NVRTC whose code it is to read.
    """
    nvrtc, nvdisasm = _find_nvrtc(), _find_nvdisasm()
    toolchain = Toolchain(nvrtc, nvdisasm, _nvrtc_version(nvrtc, nvdisasm), _nvdisasm_version(nvdisasm))
    if _release(toolchain.disasm_version) < _release(toolchain.nvrtc_version):
        raise ToolchainError(
            f"{nvdisasm} is version {toolchain.disasm_version}, older than NVRTC {toolchain.nvrtc_version} whose code "
            "it has to read; pip install -U nvidia-cuda-nvdisasm"
        )
    return toolchain


def _from_wheel(distribution: str, name: re.Pattern[str]) -> Path | None:
    try:
        files = metadata.distribution(distribution).files or []
    except metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if name.fullmatch(file.name)]
    return next((path.resolve() for path in found if path.is_file()), None)


def _find_nvrtc() -> Path:
    found = _from_wheel("nvidia-cuda-nvrtc", _NVRTC) or _nvrtc_by_pathfinder() or _from_wheel(_OLD_NVRTC, _NVRTC)
    if found is None:
        raise ToolchainError(f"NVRTC is not installed, and nothing compiles without it; {_INSTALL}")
    return found


def _nvrtc_by_pathfinder() -> Path | None:
    """In a process of its own, since pathfinder finds a library by loading it."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PATHFINDER], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    path = Path(done.stdout.strip())
    return path if done.returncode == 0 and path.is_file() else None


def _find_nvdisasm() -> Path:
    found = _from_wheel("nvidia-cuda-nvdisasm", _NVDISASM)
    if found is None:
        path = _nvdisasm_by_pathfinder() or shutil.which("nvdisasm")
        if path is None:
            raise ToolchainError(
                "nvdisasm is not installed, and without it nobody can check what a cubin holds; " + _INSTALL
            )
        found = Path(path)
    return found


def _nvdisasm_by_pathfinder() -> str | None:
    try:
        from cuda.pathfinder import find_nvidia_binary_utility
    except ImportError:
        return None
    found: str | None = find_nvidia_binary_utility("nvdisasm")
    return found


def _nvrtc_version(nvrtc: Path, nvdisasm: Path) -> str:
    job = CompileJob("the probe of NVRTC's version", _PROBE, (), (), "sm_80")
    return read_cubin(_probe(nvrtc, nvdisasm, job).cubin).tool_version


def _probe(nvrtc: Path, nvdisasm: Path, job: CompileJob) -> Compiled:
    died = ""
    for _ in range(2):
        worker = Worker(nvrtc, nvdisasm)
        try:
            return worker.call(job)
        except WorkerDied as error:
            died = str(error)
        finally:
            worker.close()
    raise ToolchainError(f"a compile worker with {nvrtc} died twice while it was asked for its version: {died}")


def _nvdisasm_version(nvdisasm: Path) -> str:
    try:
        done = subprocess.run(
            [str(nvdisasm), "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ToolchainError(f"cannot run {nvdisasm}: {error}; {_INSTALL}") from error
    match = re.search(r"\bV(\d+\.\d+\.\d+)", done.stdout)
    if match is None:
        raise ToolchainError(f"{nvdisasm} --version says {done.stdout.strip()!r}, which is no version; {_INSTALL}")
    return match[1]


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
