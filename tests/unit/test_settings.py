# SPDX-License-Identifier: Apache-2.0
"""Settings: every variable, its default, and what is refused."""

from __future__ import annotations

import ast
import dataclasses
import os
import sys
from pathlib import Path

import pytest

from warpsmith import settings
from warpsmith.errors import InvalidArgumentError
from warpsmith.settings import Settings, default_cache_dir

VARIABLES = {
    "WARPSMITH_ARCH_LIST",
    "WARPSMITH_BUNDLE_PATH",
    "WARPSMITH_CACHE_DIR",
    "WARPSMITH_JIT",
    "WARPSMITH_REQUIRE_SIGNATURE",
    "WARPSMITH_TUNING_PATH",
}


def test_an_empty_environment_gives_the_defaults() -> None:
    found = Settings.from_environment({"HOME": "/home/ada"})
    assert (found.arch_list, found.bundle_path, found.jit) == ("", (), True)
    assert (found.tuning_path, found.require_signature) == (None, None)
    assert found.cache_dir == default_cache_dir({"HOME": "/home/ada"})


def test_every_variable_is_read() -> None:
    found = Settings.from_environment(
        {
            "WARPSMITH_ARCH_LIST": "12.0 12.1",
            "WARPSMITH_BUNDLE_PATH": os.pathsep.join(["/a", "", "/b.whl"]),
            "WARPSMITH_CACHE_DIR": "/cache",
            "WARPSMITH_JIT": "forbid",
            "WARPSMITH_TUNING_PATH": "/tuned.json",
            "WARPSMITH_REQUIRE_SIGNATURE": "/key.pub",
        }
    )
    assert found == Settings(
        "12.0 12.1", (Path("/a"), Path("/b.whl")), Path("/cache"), False, Path("/tuned.json"), Path("/key.pub")
    )


def test_an_empty_variable_counts_as_absent() -> None:
    empty = dict.fromkeys(VARIABLES, "")
    assert Settings.from_environment({"HOME": "/h", **empty}) == Settings.from_environment({"HOME": "/h"})


@pytest.mark.parametrize(
    ("said", "key", "compiles"),
    [("", "", True), ("", "/k", False), ("allow", "/k", True), ("forbid", "/k", False), ("forbid", "", False)],
)
def test_required_signatures_forbid_compiling_unless_it_is_allowed(said: str, key: str, compiles: bool) -> None:
    found = Settings.from_environment({"WARPSMITH_JIT": said, "WARPSMITH_REQUIRE_SIGNATURE": key})
    assert found.jit == compiles
    assert (found.jit_refusal == "") == compiles
    assert ("WARPSMITH_REQUIRE_SIGNATURE" in found.jit_refusal) == (bool(key) and not compiles)
    assert ("WARPSMITH_JIT" in found.jit_refusal) != compiles


@pytest.mark.parametrize("value", ["0", "no", "ALLOW", "never"])
def test_an_unknown_jit_value_is_refused(value: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"'{value}' is unknown; expected 'allow' or 'forbid'"):
        Settings.from_environment({"WARPSMITH_JIT": value})


def test_the_process_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARPSMITH_ARCH_LIST", "9.0")
    assert Settings.from_environment().arch_list == "9.0"


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"HOME": "/h"}, "/h/.cache/warpsmith"),
        ("linux", {"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/warpsmith"),
        ("darwin", {"HOME": "/h"}, "/h/Library/Caches/warpsmith"),
        ("win32", {"USERPROFILE": "/u"}, "/u/AppData/Local/warpsmith/cache"),
        ("win32", {"USERPROFILE": "/u", "LOCALAPPDATA": "/l"}, "/l/warpsmith/cache"),
    ],
)
def test_cache_folder_of_each_platform(
    monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], expected: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert default_cache_dir(environment) == Path(expected)


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().jit = False  # type: ignore[misc]


def test_no_variable_beyond_the_documented_ones_is_read() -> None:
    tree = ast.parse(Path(settings.__file__).read_text(encoding="utf-8"))
    words = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    assert {w for w in words if w.startswith("WARPSMITH_") and w.isupper() and w.isidentifier()} == VARIABLES
