# SPDX-License-Identifier: Apache-2.0
"""Settings: the only reader of the environment. Read at the entry points, frozen, passed down."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from warpsmith.errors import InvalidArgumentError


@dataclass(frozen=True)
class Settings:
    """Everything that the environment can say.

    Attributes
    ----------
    arch_list
        ``WARPSMITH_ARCH_LIST``: the default of ``--arch``.
    bundle_path
        ``WARPSMITH_BUNDLE_PATH``: directories or wheels searched before installed bundles, separated as in ``PATH``.
    cache_dir
        ``WARPSMITH_CACHE_DIR``: the compile cache; by default the user's cache folder.
    jit
        ``WARPSMITH_JIT``: whether kernels may be compiled on demand (``allow``, ``forbid``). Where it is not set they
        may, unless signatures are required: what is compiled has none.
    tuning_path
        ``WARPSMITH_TUNING_PATH``: a tuning table that is asked before the built-in ones.
    require_signature
        ``WARPSMITH_REQUIRE_SIGNATURE``: a public key file; bundles that it did not sign are refused.
    """

    arch_list: str = ""
    bundle_path: tuple[Path, ...] = ()
    cache_dir: Path = field(default_factory=lambda: default_cache_dir({}))
    jit: bool = True
    tuning_path: Path | None = None
    require_signature: Path | None = None

    @property
    def jit_refusal(self) -> str:
        """Why nothing may be compiled on demand; empty if it may."""
        if self.jit:
            return ""
        if self.require_signature is None:
            return "compiling is forbidden by WARPSMITH_JIT=forbid"
        return (
            "compiling is refused: WARPSMITH_REQUIRE_SIGNATURE asks for signed kernels, what is compiled here is not "
            "signed, and WARPSMITH_JIT is not set to allow it"
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from the environment (or from a mapping, in tests).

        Raises
        ------
        InvalidArgumentError
            If ``WARPSMITH_JIT`` is neither ``allow`` nor ``forbid``.
        """
        env = os.environ if environment is None else environment
        jit = env.get("WARPSMITH_JIT", "")
        if jit not in ("", "allow", "forbid"):
            raise InvalidArgumentError(f"WARPSMITH_JIT={jit!r} is unknown; expected 'allow' or 'forbid'")
        paths = [p for p in env.get("WARPSMITH_BUNDLE_PATH", "").split(os.pathsep) if p]
        cache, tuning = env.get("WARPSMITH_CACHE_DIR"), env.get("WARPSMITH_TUNING_PATH")
        signature = env.get("WARPSMITH_REQUIRE_SIGNATURE")
        return cls(
            arch_list=env.get("WARPSMITH_ARCH_LIST", ""),
            bundle_path=tuple(Path(p) for p in paths),
            cache_dir=Path(cache) if cache else default_cache_dir(env),
            jit=jit == "allow" or not (jit or signature),
            tuning_path=Path(tuning) if tuning else None,
            require_signature=Path(signature) if signature else None,
        )


def library_path(environment: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """The folders that the dynamic loader is told to look into first."""
    env = os.environ if environment is None else environment
    return tuple(Path(p) for p in env.get("LD_LIBRARY_PATH", "").split(os.pathsep) if p)


def default_cache_dir(environment: Mapping[str, str]) -> Path:
    """The platform's cache folder for Warpsmith."""
    try:
        home = Path(environment.get("HOME") or environment.get("USERPROFILE") or "~").expanduser()
    except RuntimeError:  # no HOME and no password entry, as in some containers: there is nowhere to write
        return Path(os.devnull)
    if sys.platform == "win32":
        return Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local") / "warpsmith" / "cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "warpsmith"
    return Path(environment.get("XDG_CACHE_HOME") or home / ".cache") / "warpsmith"
