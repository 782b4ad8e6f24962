"""Imports go strictly downward, and the public surface is exactly what it says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pgscheduler

PACKAGE = Path(pgscheduler.__file__).parent

#: Each module's layer; a package's entry holds for all that is in it. An import goes to a lower number only.
LEVEL = {
    # the public surface
    "__init__": 15, "__main__": 15,
    # a human, a browser
    "cli": 14,
    # a program to watch
    "demo": 13, "web": 13,
    # a test, a laptop, a file
    "testing": 12, "embedded": 12, "bench": 13, "definitions": 12, "doctor": 12, "metrics": 12,
    # a node with its verbs
    "scheduler": 11,
    # builds, starts, stops; the verbs with their promises
    "_node": 10, "_verbs": 9,
    # database and workers; templates of jobs
    "_dispatcher": 9, "_recorder": 7, "templates": 8,
    # threads, asyncio; what the verbs do
    "_executors": 8, "client": 7,
    # processes; kinds of jobs
    "_processes": 7, "jobs": 6,
    # one claim, one outcome; what a run may ask
    "_runner": 6, "_decide": 5,
    "_registry": 4, "_context": 4, "_transaction": 5,
    # what a source declares, and doing it
    "_declared": 4, "_apply": 5,
    # what users subclass; side loops
    "job": 3, "config": 3, "_heartbeat": 4, "_maintenance": 3, "_listener": 3, "records": 3,
    "_subscribers": 3,
    # policies; claims held; all SQL; settings from outside
    "_settings": 2, "_store": 2, "_migrate": 2, "_ledger": 2, "events": 2, "schedule": 2, "retry": 2, "signals": 2, "_foreign": 2,
    "_observer": 2,
    # words, and one thread class
    "_schema": 1, "_sql": 1, "_check": 1, "_hosts": 1, "_marks": 1, "_cron": 1, "_json": 1, "_direct": 1, "states": 1, "_loops": 1,
    "errors": 0, "clock": 0, "_version": 0,
}  # fmt: skip
MODULES = sorted(file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py"))


def layer(parts: tuple[str, ...]) -> str:
    """The entry of `LEVEL` that a module belongs to."""
    return parts[0] if parts else "__init__"


def imported(file: Path) -> set[str]:
    """The entries that a module imports at run time, also inside functions; not those for type checkers only."""
    tree = ast.parse((PACKAGE / file).read_text())
    package = file.parent.parts
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            return
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                target = (*base, *(node.module or "").split(".")) if node.module else base
                add(target, [alias.name for alias in node.names])
            elif node.module and node.module.split(".")[0] == "pgscheduler":
                add(tuple(node.module.split(".")[1:]), [alias.name for alias in node.names])
        if isinstance(node, ast.Import):
            for alias in node.names:
                head, *rest = alias.name.split(".")
                if head == "pgscheduler":
                    add(tuple(rest), [])
        for child in ast.iter_child_nodes(node):
            visit(child)

    def add(target: tuple[str, ...], names: list[str]) -> None:
        if target:
            found.add(layer(target))
            return
        for name in names:  # `from . import states` is a module, `from .. import Job` the surface
            found.add(name if name in LEVEL else "__init__")

    visit(tree)
    return found


@pytest.mark.parametrize("file", MODULES, ids=str)
def test_imports_go_down(file: Path) -> None:
    """Each module has a layer and imports only from lower ones, or from its own package."""
    own = layer(file.with_suffix("").parts)
    assert own in LEVEL, f"say in LEVEL where {own} belongs"
    upward = {name for name in imported(file) if name != own and LEVEL[name] >= LEVEL[own]}
    # What a human or a laptop uses may take the public surface as its users do.
    if LEVEL[own] >= LEVEL["embedded"] or own == "jobs":
        upward.discard("__init__")
    assert upward == set()


def test_public_names_are_sorted_and_exact() -> None:
    """`__all__` is sorted, each of its names exists, and whatever is public and ours is in it."""
    names = pgscheduler.__all__
    assert names == sorted(set(names))
    assert all(hasattr(pgscheduler, name) for name in names)
    ours = {
        name
        for name, value in vars(pgscheduler).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("pgscheduler")
    }
    assert ours <= set(names)
    assert "__version__" in names


def test_every_error_is_public() -> None:
    """Each error that a caller may want to catch can be imported from the package itself."""
    from pgscheduler import errors

    assert set(errors.__all__) <= set(pgscheduler.__all__)
