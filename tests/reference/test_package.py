# SPDX-License-Identifier: Apache-2.0
"""The package as a whole: its exports, its imports and its examples."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path
from types import ModuleType

import pytest

from warpsmith import reference

FILES = sorted(Path(reference.__file__).parent.glob("*.py"))


def test_every_export_is_there_and_no_module_hides_it() -> None:
    for name in reference.__all__:
        assert not isinstance(getattr(reference, name), ModuleType)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_module_imports_only_numpy_ml_dtypes_and_errors(file: Path) -> None:
    allowed = ("numpy", "ml_dtypes", "warpsmith.errors", "warpsmith.reference")
    standard = ("__future__", "collections.abc", "dataclasses", "math", "typing")
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            assert name in standard or name.startswith(allowed), f"{file.name} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_examples_run(file: Path) -> None:
    name = "warpsmith.reference" if file.stem == "__init__" else f"warpsmith.reference.{file.stem}"
    assert doctest.testmod(importlib.import_module(name)).failed == 0
