# SPDX-License-Identifier: Apache-2.0
"""Messages between caller and worker, and which NVRTC a worker accepts."""

from __future__ import annotations

import ctypes
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import warpsmith
from warpsmith.compiler.worker import Nvrtc, check_version, read_frame, write_frame
from warpsmith.errors import ToolchainError

headers = st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text()), max_size=4)


def frame(header: dict[str, Any], blob: bytes) -> bytes:
    stream = io.BytesIO()
    write_frame(stream, header, blob)
    return stream.getvalue()


@given(headers, st.binary())
def test_a_message_reads_back_as_it_was_written(header: dict[str, Any], blob: bytes) -> None:
    stream = io.BytesIO(frame(header, blob) + frame({"next": 1}, b""))
    assert read_frame(stream) == (header, blob)
    assert read_frame(stream) == ({"next": 1}, b"")
    assert read_frame(stream) is None


def test_a_stream_that_breaks_off_at_any_byte_gives_no_message() -> None:
    whole = frame({"kind": "compile", "program": "int a;"}, b"\x7fELF")
    for length in range(len(whole)):
        assert read_frame(io.BytesIO(whole[:length])) is None


@pytest.mark.parametrize("noise", [b"Traceback (most recent call last)\n", b"WSJ1" + b"\xff" * 8, b"\0" * 32])
def test_what_is_not_a_message_is_refused(noise: bytes) -> None:
    with pytest.raises(ValueError, match="not a message of a compile worker"):
        read_frame(io.BytesIO(noise))


@pytest.mark.parametrize("version", [(13, 0), (13, 5), (14, 0)])
def test_nvrtc_13_and_newer_is_accepted(version: tuple[int, int]) -> None:
    check_version(version, "libnvrtc.so.13")


@pytest.mark.parametrize("version", [(12, 9), (11, 8)])
def test_an_older_nvrtc_is_refused_with_reason_and_fix(version: tuple[int, int]) -> None:
    with pytest.raises(
        ToolchainError, match=rf"/x/libnvrtc.* is NVRTC {version[0]}.{version[1]};.*sm_88.*pip install -U"
    ):
        check_version(version, "/x/libnvrtc.so.12")


class Function:
    """A function of a library, in so far as ctypes lets its types be set."""


class OldLibrary:
    """As much of NVRTC 12.9 as a worker sees before it refuses it."""

    def __init__(self, _path: str) -> None:
        self.nvrtcGetErrorString = self.nvrtcCreateProgram = self.nvrtcCompileProgram = Function()

    def nvrtcVersion(self, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = 12, 9
        return 0


def test_a_worker_refuses_nvrtc_12(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", OldLibrary)
    with pytest.raises(ToolchainError, match=r"is NVRTC 12\.9; Warpsmith needs 13\.0 or newer"):
        Nvrtc("/somewhere/libnvrtc.so.12")


def test_a_library_that_does_not_load_is_named() -> None:
    with pytest.raises(ToolchainError, match=r"cannot load NVRTC from /nowhere/libnvrtc\.so\.13: .*pip install"):
        Nvrtc("/nowhere/libnvrtc.so.13")


# The worker's own loop, around a compiler that prints, fails or answers as the program tells it.
LOOP = """
import os, sys
sys.path.append(sys.argv[1])
from warpsmith.compiler import worker
class Nvrtc:
    version = (13, 5)
    def __init__(self, path): pass
    def compile(self, program, name, headers, options):
        os.write(1, b"a library prints\\n")
        print("and so does Python", flush=True)
        return "", eval(program), b"cubin"
worker.Nvrtc = Nvrtc
worker.main("nvrtc", "nvdisasm")
"""


def test_a_worker_answers_each_job_and_ends_with_its_input() -> None:
    jobs = io.BytesIO()
    for program in ("'log of ' + name", "1 / 0", "'still here'"):
        write_frame(jobs, {"kind": "compile", "program": program, "name": "a.cu", "headers": [], "options": []})
    root = str(Path(warpsmith.__file__).parents[1])
    worker = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", LOOP, root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with worker:
        pipes = worker.stdin, worker.stdout, worker.stderr
        if not all(pipes):
            pytest.fail("no pipes")
        sent, replies, noise = pipes
        sent.write(jobs.getvalue())
        sent.flush()
        assert read_frame(replies) == ({"error": "", "nvrtc": [13, 5]}, b"")
        assert read_frame(replies) == ({"error": "", "log": "log of a.cu"}, b"cubin")
        failed = read_frame(replies)
        assert failed is not None
        assert (failed[0]["error"], "ZeroDivisionError" in failed[0]["log"]) == ("internal", True)
        assert read_frame(replies) == ({"error": "", "log": "still here"}, b"cubin")
        sent.close()
        assert worker.wait(timeout=10) == 0
        assert noise.read().decode().count("a library prints") == 3
