"""Imports point one way: a package imports only what stands before it in `LAYERS`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "rlef_jax"
# Names in one tuple may import each other.
LAYERS = (
    ("errors", "types", "assets", "files", "hugging_face"),
    ("reward", "episode", "progress", "files"),
    (
        "config",
        "config_ppo",
        "config_sft",
        "config_checks",
        "config_renamed",
        "paths",
        "overrides",
        "arguments",
        "command_line",
    ),
    ("execution",),
    ("model",),
    ("dialog",),
    ("data",),
    ("metrics",),
    ("sampling", "ppo"),
    ("planning",),
    ("training",),
    ("supervised",),
    ("evaluation",),
    ("analysis",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
COMMANDS = {path.stem for path in PACKAGE.glob("*.py")} - set(RANK) - {"__init__", "api"}  # `api` is above them


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, part of rlef_jax) of each import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "rlef_jax" else [node.module]
        for name in names:
            top, _, rest = name.partition(".")
            if top == "rlef_jax" and rest:
                yield node.lineno, rest.split(".")[0]


def rank(name: str, of_a_command: int) -> int:
    return of_a_command if name in COMMANDS else RANK[name]


def test_imports_point_down():
    up = []
    for path in PACKAGE.rglob("*.py"):
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for line, name in imported(path) if layer not in ("__init__", "api") else ():
            if rank(name, len(LAYERS) + 1) > rank(layer, len(LAYERS)):  # nor does a command import another
                up.append(f"{path}:{line}: {layer} imports {name}")
    assert not up


def test_commands_are_those_that_can_be_run():
    for name in COMMANDS:
        assert '__name__ == "__main__"' in (PACKAGE / f"{name}.py").read_text(), f"{name} is in no layer"


def test_what_takes_seconds_to_import_is_imported_where_it_is_used():
    """A run of the tiny model doesn't pay for `transformers`."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            slow = {name.partition(".")[0] for name in names} & {"transformers", "huggingface_hub"}
            assert not slow, f"{path} imports {slow} when it is imported"


def test_processes_that_need_no_device_do_not_import_jax():
    """Judges, and the process that finds an iteration's problems: JAX takes seconds of a core, and memory."""
    names = ("rlef_jax.judge", "rlef_jax.execution.pool", "rlef_jax.training.problem_feed", "rlef_jax.data.convert")
    program = f"import sys, {', '.join(names)}; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
