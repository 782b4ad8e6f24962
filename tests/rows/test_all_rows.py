"""Which features have a test here, so that none is forgotten."""

from __future__ import annotations

import ast
from pathlib import Path

#: What Bildad, Kronii, Laki, Cron Service or the later versions of go-pg-scheduler can do, by number; what its first
#: version can is tested in `tests/engine/test_upstream.py` and `tests/promises`.
FEATURES = {
    2: "recurring config",
    6: "create schema",
    9: "structured logging",
    10: "yaml job file",
    11: "env config",
    12: "function jobs",
    13: "shell command jobs",
    14: "http call jobs",
    15: "job templates",
    16: "context validation",
    17: "metadata on a job",
    18: "five field cron in utc",
    19: "six field cron with seconds first",
    24: "parameters",
    28: "catch up",
    30: "one run per tick on all nodes",
    31: "never early",
    34: "enable and disable",
    35: "crud by name",
    36: "priority",
    37: "queue position and count",
    38: "caller chosen identifier",
    39: "enqueue and run now",
    40: "batch size",
    41: "interval key notification and callback",
    42: "concurrency limit",
    43: "pick up",
    48: "retries",
    50: "exceptions of all kinds",
    51: "per job timeout",
    52: "expiry",
    53: "stop and cancel",
    54: "execution history",
    58: "history retention",
    60: "database outage",
    61: "graceful shutdown",
    63: "signals",
    64: "metrics endpoint",
    65: "rest api",
    66: "engine endpoint",
    67: "health",
    68: "role processes",
    69: "command line",
    70: "install",
    71: "many nodes",
}


def test_each_feature_has_its_test() -> None:
    """One test is named after each feature, with its number, and says which systems have it."""
    found: dict[str, str] = {}
    for file in Path(__file__).parent.glob("test_*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_row_"):
                found[node.name] = " ".join((ast.get_docstring(node) or "").split())
    wanted = {f"test_row_{number}_{name.replace(' ', '_')}" for number, name in FEATURES.items()}
    assert wanted - found.keys() == set()
    assert {int(name.split("_")[2]) for name in found} == FEATURES.keys()
    systems = ("Bildad", "Kronii", "Laki", "Cron Service", "later versions", "all of them", "all four")
    assert [name for name, said in found.items() if not any(word in said for word in systems)] == []
