"""Oban for Python: asyncio workers over psycopg 3 and its C implementation, on the event loop of `oban start` (uvloop)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.contestant import HERE, Contestant, Setting, Unavailable
from tests.benchmarks.install import run

VERSION = "0.7.0"
PROGRAM = HERE / "contestants" / "oban_program.py"
NEEDED = ("3.12", "3.13", "3.14")  # it does not install on an older Python
INSTALL = "import sys, pathlib, tests.benchmarks.install as i; print(i.python(pathlib.Path(sys.argv[1]), *sys.argv[2:]))"


def newer() -> str:
    """A Python of a version that it takes: this one, one on the path, or one that is installed beside this one."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" in NEEDED:
        return sys.executable
    beside = Path(sys.base_prefix).parent
    for version in NEEDED:
        found = [Path(path)] if (path := shutil.which(f"python{version}")) else []
        for python in [*found, *sorted(beside.glob(f"{version}*/bin/python{version}"))]:
            tried = subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True, check=False)
            if tried.returncode == 0:
                return str(python)
    raise Unavailable(f"needs Python {NEEDED[0]} or newer, and none is here")


def install(home: Path) -> list[str]:
    requirements = [f"oban=={VERSION}", "psycopg[binary]==3.3.9", "psycopg-pool==3.3.3", "uvloop==0.23.0"]
    root = HERE.parents[1]
    said = run([newer(), "-P", "-c", INSTALL, home, *requirements], cwd=root, env={"PYTHONPATH": str(root)})
    return [said.strip(), "-P", str(PROGRAM)]  # -P: this file, named like the package, is not to hide it


CONTESTANT = Contestant(
    name="oban",
    version=VERSION,
    language="Python 3.12 or newer",
    settings=(
        Setting(
            "limit 100",
            'queues={"default": 100}; docs/defining_queues.md (higher concurrency for jobs that wait), '
            "docs/managing_queues.md (limit=100)",
        ),
        Setting(
            "default",
            "no setting: limit 10, which docs/quickstart.md writes too, and a pool of 1 to 10 connections",
        ),
    ),
    history="the job's row, finished ones removed after a day",
    unfinished="select exists (select from oban_jobs where state in ('available', 'executing', 'scheduled', 'retryable'))",
    install=install,
)
