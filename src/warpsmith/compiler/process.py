# SPDX-License-Identifier: Apache-2.0
"""The caller's end of a compile worker: start it, give it one job at a time, notice when it dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar, cast

from warpsmith.compiler.worker import Header, read_frame, write_frame
from warpsmith.errors import ToolchainError

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
_ROOT = Path(__file__).parents[2]
_START = "import sys; sys.path.append(sys.argv.pop(1)); from warpsmith.compiler.worker import main; main(*sys.argv[1:])"
_STDERR_LINES = 40


class Job(Protocol[T_co]):
    """What a worker can do: `CompileJob` or `InspectJob`."""

    @property
    def cubin(self) -> str:
        """What the job is about, for messages."""

    @property
    def tool(self) -> str:
        """The tool and version that must run it, or nothing for any."""

    def request(self) -> tuple[Header, bytes]:
        """The job as a worker reads it."""

    def result(self, header: Header, blob: bytes, /) -> T_co:
        """What the worker's reply says; raises what it reports."""


class WorkerDied(Exception):  # noqa: N818 - an event that the pool handles, never one that users see
    """The process ended, or spoke nonsense, before its reply was complete."""


class Worker:
    """One worker process.

    It ignores the caller's ``PYTHON*`` variables, user site and site-packages, and finds this very copy of Warpsmith,
    however that was installed. It leads a process group of its own: Ctrl-C reaches the caller alone, and `kill` ends
    nvdisasm with it.
    """

    def __init__(self, nvrtc: Path, nvdisasm: Path) -> None:
        command = [
            sys.executable,
            "-I",
            "-S",
            "-X",
            "faulthandler",
            "-c",
            _START,
            str(_ROOT),
            str(nvrtc),
            str(nvdisasm),
        ]
        flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                creationflags=flags,
            )
        except OSError as error:
            raise ToolchainError(f"cannot start a compile worker with {sys.executable!r}: {error}") from error
        self._tail: deque[bytes] = deque(maxlen=_STDERR_LINES)
        self._drain = threading.Thread(target=self._read_stderr, daemon=True)
        self._drain.start()
        self._greeted = False

    @property
    def alive(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.poll() is None

    def call(self, job: Job[T]) -> T:
        """Give the worker a job and wait for what comes of it.

        Raises
        ------
        WorkerDied
            If the process ends first; with its exit status and the end of what it wrote to stderr.
        ToolchainError
            If the worker has no usable NVRTC.
        CompileError
            What the job itself reports.
        """
        try:
            if not self._greeted:
                greeting, _ = self._receive()
                if greeting["error"]:
                    raise ToolchainError(greeting["error"])
                self._greeted = True
            write_frame(self._stdin, *job.request())
            reply = self._receive()
        except (OSError, ValueError) as error:
            raise WorkerDied(self._epitaph(str(error))) from error
        return job.result(*reply)

    def kill(self) -> None:
        """End the process and what it started, at once; safe to call twice and from any thread."""
        if self.alive:
            try:
                if sys.platform == "win32":
                    self._process.kill()
                else:
                    os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended in between
        self._process.wait()

    def close(self) -> None:
        """`kill`, and release the pipes; not while another thread is in `call`."""
        self.kill()
        self._drain.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()

    @property
    def _stdin(self) -> BinaryIO:
        return cast(BinaryIO, self._process.stdin)

    def _receive(self) -> tuple[Header, bytes]:
        frame = read_frame(cast(BinaryIO, self._process.stdout))
        if frame is None:
            raise OSError("its reply breaks off")
        return frame

    def _epitaph(self, why: str) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)  # its own exit status says more than that of a kill
        self.kill()
        self._drain.join()
        status = self._process.returncode
        ended = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        tail = b"".join(self._tail).decode(errors="replace").strip()
        return f"{ended} ({why}); its stderr ends: {tail or 'nothing'}"

    def _read_stderr(self) -> None:
        stream = cast(BinaryIO, self._process.stderr)
        for line in stream:
            self._tail.append(line)
