# SPDX-License-Identifier: Apache-2.0
"""The house rules: who may import whom, what is public, what importing may do, how long a file may be."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import warpsmith

PACKAGE = Path(warpsmith.__file__).parent
ROOT = PACKAGE.parents[1]
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 500

PUBLIC = [
    "Decision",
    "Experts",
    "InvalidArgumentError",
    "MissingKernelError",
    "NotLoadedError",
    "Permutation",
    "QTensor",
    "Routing",
    "UnsupportedError",
    "WarpsmithError",
    "__version__",
    "dequantize",
    "explain",
    "fused_moe",
    "gemm",
    "global_scale",
    "grouped_gemm",
    "load",
    "moe_combine",
    "moe_permute",
    "moe_workspace",
    "prepare_weight",
    "quantize",
    "route",
    "silu_and_mul_quantize",
    "warmup",
]

# Who may import whom: a layer may import itself and the layers right of it.
LAYERS = (
    ("cli",),
    ("evidence", "bench"),
    ("ops",),
    ("reference",),
    ("runtime",),
    ("compiler",),
    ("bundle",),
    ("catalog",),
    ("tuning",),
    ("settings",),
    ("arch",),
    ("errors", "_version"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
ALLOWED = {  # narrower than the order
    "reference": {"errors"},
    "settings": {"errors"},
    "arch": {"errors"},
    "tuning": {"arch", "errors"},
    "catalog": {"tuning", "arch", "errors"},
    "bundle": {"catalog", "tuning", "arch", "errors", "_version"},
    "compiler": {"bundle", "catalog", "tuning", "arch", "errors", "_version"},
    "runtime": {"compiler", "bundle", "catalog", "tuning", "settings", "arch", "errors", "_version"},
}
THIRD_PARTY = {
    "reference": {"numpy", "ml_dtypes"},
    "errors": set(),
    "arch": set(),
    "settings": set(),
    "tuning": set(),
    "catalog": set(),
    "bundle": {"cryptography"},
}
TORCH_MAY = {"ops", "bench", "evidence"}


def layer(path: Path) -> str:
    """The layer a module belongs to: the first name below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Every module that a module of `package` imports, anywhere in it, with relative names made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def reversed_edges(text: str, own: str) -> list[str]:
    """What a module of layer `own` imports although it may not."""
    found = []
    for name in imported(ast.parse(text), f"warpsmith.{own}"):
        top, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if top == "warpsmith" and other in ("", *PUBLIC):
            other = "ops"  # the package's own public names stand for the operations
        if top == "warpsmith":
            allowed = ALLOWED.get(own, {n for n, rank in RANK.items() if rank > RANK[own]})
            if other != own and other not in allowed:
                found.append(f"{own} may not import {name}")
        elif top not in sys.stdlib_module_names and own in THIRD_PARTY and top not in THIRD_PARTY[own]:
            found.append(f"{own} may not import {name}")
        if top == "torch" and own not in TORCH_MAY:
            found.append(f"{own} may not import {name}")
    return found


@pytest.mark.parametrize("path", [m for m in MODULES if m.parent != PACKAGE or m.name != "__init__.py"], ids=str)
def test_no_import_goes_against_the_order(path: Path) -> None:
    own = layer(path)
    assert own in RANK, f"{own} has no place in the order"
    assert reversed_edges(path.read_text(encoding="utf-8"), own) == []


@pytest.mark.parametrize(
    ("own", "text"),
    [
        ("arch", "from warpsmith.catalog import spec"),
        ("catalog", "def f():\n    from warpsmith.bundle.manifest import Manifest"),
        ("bundle", "import warpsmith.compiler"),
        ("bundle", "from ..compiler import build"),
        ("bundle", "import importlib\nimportlib.import_module('warpsmith.runtime')"),
        ("compiler", "from warpsmith import runtime"),
        ("compiler", "from warpsmith.settings import Settings"),
        ("runtime", "from warpsmith.ops import quantize"),
        ("runtime", "import warpsmith as ws"),
        ("ops", "from warpsmith.cli import main"),
        ("evidence", "from warpsmith.bench import timing"),
        ("reference", "from warpsmith.catalog import CATALOG"),
        ("reference", "import torch"),
        ("catalog", "import numpy"),
        ("runtime", "import torch"),
        ("cli", "import torch"),
    ],
)
def test_a_reversed_edge_is_seen(own: str, text: str) -> None:
    assert reversed_edges(text, own)


@pytest.mark.parametrize(
    ("own", "text"),
    [
        ("cli", "from warpsmith.ops import quantize"),
        (
            "bundle",
            "from warpsmith.bundle.elf import read_cubin\nfrom . import manifest\nfrom ..errors import ElfError",
        ),
        ("ops", "import torch"),
        ("bench", "import warpsmith as ws\nfrom warpsmith import quantize"),
        ("runtime", "from warpsmith.settings import Settings"),
        ("reference", "import numpy as np"),
    ],
)
def test_a_straight_edge_is_fine(own: str, text: str) -> None:
    assert reversed_edges(text, own) == []


def environment_reads(text: str) -> list[int]:
    """Lines that read the environment."""
    reads = []
    for node in ast.walk(ast.parse(text)):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        names = [a.name for a in node.names] if isinstance(node, ast.ImportFrom) and node.module == "os" else [name]
        if {"environ", "environb", "getenv", "getenvb"} & set(names):
            reads.append(node.lineno)  # type: ignore[attr-defined]
    return reads


def test_only_settings_reads_the_environment() -> None:
    readers = {p.relative_to(PACKAGE).as_posix() for p in MODULES if environment_reads(p.read_text(encoding="utf-8"))}
    assert readers == {"settings.py"}
    for text in ("import os\nos.getenv('X')", "from os import environ", "import os\nos.environ['X']"):
        assert environment_reads(text)


def test_settings_are_read_at_the_entry_points_alone() -> None:
    texts = {p: p.read_text(encoding="utf-8") for p in MODULES}
    readers = {layer(p) for p, text in texts.items() if "from_environment" in text and not runs_by_itself(text)}
    assert readers <= {"settings", "cli", "ops"}


def runs_by_itself(text: str) -> bool:
    """Whether a module is an entry point of its own (``python -m``)."""
    return any("__name__" in ast.dump(n.test) for n in ast.parse(text).body if isinstance(n, ast.If))


def module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run on import, without those for type checkers."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        yield node
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if isinstance(node, (ast.If, ast.Try, ast.With)) and not guarded:
            pending += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]


@pytest.mark.parametrize("path", [m for m in MODULES if layer(m) != "ops"], ids=str)
def test_torch_and_the_driver_are_never_imported_at_the_top(path: Path) -> None:
    for node in module_level(ast.parse(path.read_text(encoding="utf-8"))):
        tops = {name.split(".")[0] for name in imported(node, "warpsmith")} if not _has_body(node) else set()
        assert not tops & {"torch", "cuda"}, f"line {node.lineno}"


def _has_body(node: ast.stmt) -> bool:
    return hasattr(node, "body")


def test_the_public_surface_is_frozen_and_sorted() -> None:
    assert warpsmith.__all__ == PUBLIC == sorted(PUBLIC)
    assert dir(warpsmith) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_is_there_and_documented(name: str) -> None:
    found = getattr(warpsmith, name)
    assert isinstance(found, str) or (found.__doc__ or "").strip()


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'warpsmith' has no attribute 'nothing'"):
        warpsmith.nothing  # noqa: B018


WATCH = """
import json, os, sys

seen = {"written": [], "environment": [], "other": []}
armed = False

def hook(event, args):
    if not armed:
        return
    if event == "open":
        path, mode, flags = args
        if (isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen["written"].append(str(path))
    elif event in CHANGES:
        seen["written"].append(f"{event} {args[0]}")
    elif event.split(".")[0] in FOREIGN or event in ("os.system", "os.posix_spawn"):
        seen["other"].append(event)

FOREIGN = {"socket", "subprocess", "ctypes", "urllib"}
CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.symlink", "os.link", "os.chmod"}

class Watched(type(os.environ)):
    def __getitem__(self, key):
        if armed:
            seen["environment"].append(key)
        return super().__getitem__(key)

os.environ.__class__ = Watched
sys.addaudithook(hook)
armed = True
ACTION
armed = False
seen["modules"] = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps(seen))
"""


def fresh(action: str) -> dict[str, list[str]]:
    """What running some statements does in a new interpreter."""
    # -B: that Python itself keeps compiled modules is no concern of the package.
    command = [sys.executable, "-B", "-c", WATCH.replace("ACTION", action)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_importing_touches_nothing() -> None:
    seen = fresh("import warpsmith")
    assert (seen["written"], seen["environment"], seen["other"]) == ([], [], [])
    assert not {"numpy", "torch", "cuda", "ml_dtypes", "typer", "rich"} & set(seen["modules"])


@pytest.mark.parametrize("module", ["warpsmith.ops", "warpsmith.catalog", "warpsmith.cli"])
def test_importing_an_entry_point_needs_neither_torch_nor_the_driver(module: str) -> None:
    seen = fresh(f"import {module}")
    assert seen["written"] == []
    assert not {"torch", "cuda"} & set(seen["modules"])
    assert [name for name in seen["environment"] if name.startswith("WARPSMITH")] == []


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    action = "; ".join(
        [
            f"open({str(tmp_path / 'f')!r}, 'w').close()",
            f"os.mkdir({str(tmp_path / 'd')!r})",
            "os.environ.get('WARPSMITH_JIT')",
            "os.getenv('HOME')",
            "import socket",
            "socket.socket().close()",
        ]
    )
    seen = fresh(action)
    assert seen["written"] == [str(tmp_path / "f"), f"os.mkdir {tmp_path / 'd'}"]
    assert {"WARPSMITH_JIT", "HOME"} <= set(seen["environment"])
    assert "socket.__new__" in seen["other"]


def test_importing_is_fast() -> None:
    program = "import time; start = time.perf_counter(); import warpsmith; print(time.perf_counter() - start)"
    command = [sys.executable, "-c", program]
    times = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(5)]
    assert min(times) <= 0.1


@pytest.mark.parametrize("path", [*MODULES, *sorted(PACKAGE.rglob("*.cuh"))], ids=lambda p: p.name)
def test_files_are_short_and_carry_the_licence(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES
    assert "SPDX-License-Identifier: Apache-2.0" in lines[0]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_each_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
