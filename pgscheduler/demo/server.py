"""The database of `demo --keep`, a process of its own: `python -m pgscheduler.demo.server FOLDER`.

Says the DSN in one line, then stays until SIGTERM or SIGINT, and removes the database and FOLDER.
"""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

from pgscheduler import embedded

__all__ = ["main"]


def main(folder: Path) -> None:
    """Hold a server until told to end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))  # raised wherever we are, so that all is removed
    try:
        with embedded.start() as server:
            print(server.dsn, flush=True)
            while True:
                signal.pause()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
