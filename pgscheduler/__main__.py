"""`python -m pgscheduler`, and the command `pgscheduler`."""

from __future__ import annotations

import sys

__all__ = ["main"]

_NEEDED = ("click", "rich")


def main() -> None:
    """Run the command and exit with its status."""
    try:
        from . import cli
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        sys.stderr.write(
            'pgscheduler: error: the command needs click and rich: pip install "pgscheduler[cli]"\n'
        )
        sys.exit(1)
    sys.exit(cli.main())


if __name__ == "__main__":
    main()
