# SPDX-License-Identifier: Apache-2.0
"""Which NVRTC and nvdisasm are taken, and what is said where there is none: with wheels made up for the purpose."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from warpsmith.compiler import toolchain
from warpsmith.compiler.toolchain import find_toolchain
from warpsmith.errors import ToolchainError

Install = Callable[..., Path]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a script that can be run like a program")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """A site of its own to install made-up wheels in; nothing else is installed, and pathfinder finds nothing."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [str(site)])
    monkeypatch.setattr(toolchain, "_nvrtc_by_pathfinder", lambda: None)
    monkeypatch.setattr(toolchain, "_nvdisasm_by_pathfinder", lambda: None)
    monkeypatch.setattr(toolchain.shutil, "which", lambda _: None)
    find_toolchain.cache_clear()

    def wheel(name: str, *files: str, text: str = "", listed: bool = True) -> Path:
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="ascii")
        for file in files:
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).write_text(text, encoding="ascii")
            (site / file).chmod(0o755)
        if listed:
            (info / "RECORD").write_text("".join(f"{file},,\n" for file in files), encoding="ascii")
        return site / files[0]

    yield wheel
    find_toolchain.cache_clear()


NVRTC = (
    "nvidia/cu13/lib/libnvrtc-builtins.so.13.5",
    "nvidia/cu13/lib/libnvrtc.alt.so.13",
    "nvidia/cu13/lib/libnvrtc.so.13",
)
SAYS = "#!/bin/sh\necho 'Cuda compilation tools, release {0}, V{0}.48'\n"


def disassembler(install: Install, release: str) -> Path:
    return install("nvidia-cuda-nvdisasm", "nvidia/cu13/bin/nvdisasm", text=SAYS.format(release))


def test_both_are_found_through_the_file_lists_of_their_wheels(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, program = install("nvidia-cuda-nvrtc", *NVRTC).parent / "libnvrtc.so.13", disassembler(install, "13.5")
    monkeypatch.setattr(toolchain, "_nvrtc_version", lambda nvrtc, _: f"13.5.37 of {nvrtc.name}")
    found = find_toolchain()
    assert (found.nvrtc, found.nvdisasm) == (library, program)
    assert (found.nvrtc_version, found.disasm_version) == ("13.5.37 of libnvrtc.so.13", "13.5.48")


def test_the_library_of_windows_is_recognised(install: Install) -> None:
    files = ("nvidia/cu13/bin/nvrtc-builtins64_135.dll", "nvidia/cu13/bin/nvrtc64_130_0.alt.dll")
    library = install("nvidia-cuda-nvrtc", "nvidia/cu13/bin/nvrtc64_130_0.dll", *files)
    assert toolchain._find_nvrtc() == library


def test_without_nvrtc_it_says_what_to_install(install: Install) -> None:
    disassembler(install, "13.5")
    with pytest.raises(ToolchainError, match=r"NVRTC is not installed.*pip install 'warpsmith\[build\]'"):
        find_toolchain()


def test_without_nvdisasm_it_says_what_to_install(install: Install) -> None:
    install("nvidia-cuda-nvrtc", *NVRTC)
    with pytest.raises(ToolchainError, match=r"nvdisasm is not installed.*pip install 'warpsmith\[build\]'"):
        find_toolchain()


def test_a_wheel_whose_files_are_gone_counts_as_absent(install: Install) -> None:
    library = install("nvidia-cuda-nvrtc", NVRTC[-1])
    library.unlink()
    with pytest.raises(ToolchainError, match="NVRTC is not installed"):
        toolchain._find_nvrtc()


def test_a_wheel_without_a_file_list_counts_as_absent(install: Install) -> None:
    install("nvidia-cuda-nvrtc", *NVRTC, listed=False)
    with pytest.raises(ToolchainError, match="NVRTC is not installed"):
        toolchain._find_nvrtc()


def test_nvrtc_12_is_taken_only_to_be_refused_by_name(install: Install) -> None:
    old = install("nvidia-cuda-nvrtc-cu12", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12")
    assert toolchain._find_nvrtc() == old
    new = install("nvidia-cuda-nvrtc", NVRTC[-1])
    assert toolchain._find_nvrtc() == new


def test_a_library_that_does_not_load_is_named(install: Install) -> None:
    install("nvidia-cuda-nvrtc", *NVRTC)
    disassembler(install, "13.5")
    with pytest.raises(ToolchainError, match=r"cannot load NVRTC from .*/libnvrtc\.so\.13: .*pip install"):
        find_toolchain()


def test_an_nvdisasm_older_than_nvrtc_is_refused(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("nvidia-cuda-nvrtc", *NVRTC)
    disassembler(install, "13.4")
    monkeypatch.setattr(toolchain, "_nvrtc_version", lambda *_: "13.5.37")
    with pytest.raises(ToolchainError, match=r"nvdisasm is version 13\.4\.48, older than NVRTC 13\.5\.37"):
        find_toolchain()


def test_an_nvdisasm_that_says_no_version_is_refused(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("nvidia-cuda-nvrtc", *NVRTC)
    install("nvidia-cuda-nvdisasm", "nvidia/cu13/bin/nvdisasm", text="#!/bin/sh\necho hello\n")
    monkeypatch.setattr(toolchain, "_nvrtc_version", lambda *_: "13.5.37")
    with pytest.raises(ToolchainError, match=r"--version says 'hello', which is no version"):
        find_toolchain()
