"""A process with a wrong wall clock, which may be stepped while it runs; the machine's own is untouched.

    clock = skewed_clock(3600)                     # an hour ahead
    node = nodes(SCRIPT, dsn, env=clock.env)
    clock.set(-86400)                              # the administrator "corrects" it

It works for Python and for PostgreSQL (`own_server(env=clock.env)`): a preload that moves only the
realtime clock. Monotonic clocks stay true, as they do when a real clock is stepped. Linux only.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["SkewedClock", "build_preload", "why_not"]

SOURCE = Path(__file__).with_name("skew.c")


def why_not() -> str | None:
    """Why clocks cannot be skewed here, or None."""
    if sys.platform != "linux":
        return "the clock preload works on Linux only"
    return None if shutil.which("cc") else "the clock preload needs a C compiler (cc)"


def build_preload(directory: Path) -> Path:
    """Compile the preload into a directory, which is opened to every user; once per session is enough."""
    directory.chmod(0o755)  # a server that root starts runs as somebody else
    library = directory / "skew.so"
    command = ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library


class SkewedClock:
    """An offset that any number of processes can be started under: those given `env`."""

    def __init__(self, preload: Path, seconds: float = 0.0) -> None:
        # Readable to everyone, for the same reason.
        handle, self._path = tempfile.mkstemp(prefix="pgscheduler-skew-")
        os.fchmod(handle, 0o644)
        os.close(handle)
        self.set(seconds)
        self.env = {"LD_PRELOAD": str(preload), "SKEW_FILE": self._path}

    def set(self, seconds: float) -> None:
        """Step the clock: from now on it is this far ahead of (negative: behind) the true one."""
        # In place and in one write: the processes have mapped these eight bytes.
        handle = os.open(self._path, os.O_WRONLY)
        try:
            os.pwrite(handle, struct.pack("@q", round(seconds * 1_000_000_000)), 0)
        finally:
            os.close(handle)

    def close(self) -> None:
        """Remove the file; processes that still run keep their last offset."""
        Path(self._path).unlink(missing_ok=True)
