# SPDX-License-Identifier: Apache-2.0
"""A runtime over the synthetic catalog, with made-up bundles, a made-up compiler and no GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bundle_samples import fake_for
from driver_fake import FakeApi
from synthetic import CATALOG

from warpsmith.arch import Capability
from warpsmith.bundle.reader import Bundle
from warpsmith.catalog.resolve import DeviceFacts
from warpsmith.catalog.spec import CubinId
from warpsmith.errors import BundleError
from warpsmith.runtime.driver import Driver
from warpsmith.runtime.jit import Jit
from warpsmith.runtime.kernels import Runtime
from warpsmith.settings import Settings

GB10 = DeviceFacts(Capability(12, 1), 48, 13000, "NVIDIA GB10")
FORBIDDEN = "compiling is forbidden by WARPSMITH_JIT=forbid"


class FakeJit(Jit):
    """Compiles nothing, and notes what was asked."""

    def __init__(self, reason: str | None = None) -> None:
        super().__init__(Settings(), CATALOG)
        self.reason = reason
        self.asked = 0
        self.compiled: list[list[str]] = []

    def refusal(self) -> str | None:
        self.asked += 1
        return self.reason

    def compile(self, cubins: Sequence[CubinId]) -> Mapping[CubinId, bytes]:
        self.compiled.append([str(c) for c in cubins])
        return {c: fake_for(CATALOG, c).file() for c in cubins}


def runtime(
    *path: Path,
    installed: Sequence[Bundle | BundleError] = (),
    jit: Jit | None = None,
    api: FakeApi | None = None,
) -> Runtime:
    """A runtime with bundles on its path and installed."""
    settings = Settings(bundle_path=path, jit=False)
    return Runtime(settings, CATALOG, Driver(api or FakeApi()), installed=lambda: installed, jit=jit)
