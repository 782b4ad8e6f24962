"""`python -m tests.model`: search further than the tests do. `--without` shows what a guard is for."""

from __future__ import annotations

import argparse
import sys

from .protocol import GUARDS
from .scopes import GUARDED, scopes
from .search import search


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--nodes", type=int, default=2, choices=(1, 2, 3), help="how many nodes (default: 2)")
    parser.add_argument("--faults", type=int, default=1, help="how many faults, in any order (default: 1)")
    parser.add_argument("--only", default="", help="only the scopes whose name begins so")
    parser.add_argument(
        "--without", choices=sorted(GUARDS), help="take this guard out, show the shortest trace"
    )
    given = parser.parse_args()
    if given.without:
        scope, promise = GUARDED[given.without]
        result = search(scope, given.without, promise)
        print(result, *result.trace, sep="\n")
        return 0
    broken = 0
    for scope in scopes(given.nodes, given.faults):
        if scope.name.startswith(given.only):
            result = search(scope)
            print(result, *result.trace, sep="\n", flush=True)
            broken += bool(result.broken)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
