"""How contestants come onto the machine: each in an environment of its own, at a pinned version."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.contestant import HERE, Unavailable


def run(argv: Sequence[str | Path], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command of an installation to its end; its output, or `Unavailable` with its last lines."""
    try:
        done = subprocess.run(
            [str(part) for part in argv],
            cwd=cwd,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{argv[0]}: {error}") from error
    if done.returncode != 0:
        tail = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise Unavailable(f"{' '.join(str(part) for part in argv[:4])} … failed: {tail}")
    return done.stdout


def tool(name: str) -> str:
    """The path of a program that must be there already (node, go, mvn); `Unavailable` if it is not."""
    found = shutil.which(name)
    if found is None:
        raise Unavailable(f"no {name} on this machine")
    return found


def python(home: Path, *requirements: str) -> str:
    """A virtual environment in `home` that holds exactly these requirements; returns its interpreter.

    Made anew only when the requirements changed: the list is kept beside it.
    """
    environment, listed = home / "venv", home / "requirements.txt"
    wanted = "\n".join(requirements)
    interpreter = environment / "bin" / "python"
    if interpreter.exists() and listed.exists() and listed.read_text() == wanted:
        return str(interpreter)
    shutil.rmtree(environment, ignore_errors=True)
    home.mkdir(parents=True, exist_ok=True)
    run([sys.executable, "-m", "venv", environment])
    run([interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements])
    listed.write_text(wanted)
    return str(interpreter)


def python_program(home: Path, program: Path, *requirements: str) -> list[str]:
    """The command of a Python program with these requirements.

    With `-P`, so that no file beside the program, such as the contestant's own, hides a package of its name.
    """
    return [python(home, *requirements), "-P", str(program)]


def node(home: Path, source: Path) -> list[str]:
    """A Node program with the packages of its lock file, and the Node that is pinned there; returns its command."""
    copied(source, home)
    shutil.copyfile(HERE / "contestants" / "_protocol.mjs", home / "_protocol.mjs")
    lock, done = home / "package-lock.json", home / "installed-lock.json"
    if not done.exists() or done.read_bytes() != lock.read_bytes():
        run([tool("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=home)
        done.write_bytes(lock.read_bytes())
    pinned = sorted((home / "node_modules").glob("node-linux-*/bin/node"))
    return [str(pinned[0]) if pinned else tool("node"), str(home / "main.mjs")]


def copied(source: Path, home: Path) -> bool:
    """Copy the program's own files into its build directory; whether any of them changed."""
    home.mkdir(parents=True, exist_ok=True)
    changed = False
    for file in sorted(source.rglob("*")):
        if file.is_dir() or "__pycache__" in file.parts:
            continue
        target = home / file.relative_to(source)
        if not target.exists() or target.read_bytes() != file.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
            changed = True
    return changed
