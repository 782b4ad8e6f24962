"""`python -m tests.chaos`: real nodes, real PostgreSQL, seeded faults, and then the question whether all promises held.

Exit status: 0 nothing was found, 1 a promise was broken, 2 the arguments are wrong, 3 the test itself did not work.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.checker import check, report
from tests.chaos.history import boottime
from tests.chaos.nemesis import FAULTS
from tests.chaos.plants import PLANTS
from tests.chaos.trial import Plan, run

__all__ = ["main"]

_SETS = {
    "none": (),
    "all": tuple(FAULTS),
    # What a laptop without root can play.
    "plain": tuple(name for name in FAULTS if name not in ("memory", "disk", "partition", "thin", "clock")),
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    faults = _faults(options.faults)
    if faults is None:
        print(f"--faults takes {', '.join([*_SETS, *FAULTS])}", file=sys.stderr)
        return 2
    # A pool's words about connections that faults have cut are no news.
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    keep = options.keep or Path(tempfile.mkdtemp(prefix="pgscheduler-chaos-"))
    plan = Plan(
        minutes=options.minutes,
        seed=options.seed,
        nodes=options.nodes,
        faults=faults,
        plant=options.plant,
        keep=keep,
        settle=options.settle,
        gap=options.gap,
    )
    # What was mounted and made in the kernel must go also when somebody ends this.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    began = boottime()

    def tell(line: str) -> None:
        print(f"{boottime() - began:7.1f} s  {line}", flush=True)

    tell(f"seed {plan.seed}, {plan.nodes} nodes, {plan.minutes:g} min, plant {plan.plant}, files in {keep}")
    result = run(plan, tell)
    violations = check(result.history)
    tell("checked")
    print(report(result.history, violations))
    for surprise in result.surprises:
        print(f"  surprise: {surprise}")
    print(f"  again: python -m tests.chaos.checker {keep / 'history.jsonl'}")
    if violations:
        return 1
    return 3 if result.surprises else 0


def _faults(text: str) -> tuple[str, ...] | None:
    """Names and sets, separated by commas; a minus takes one away."""
    found: dict[str, None] = {}
    for word in filter(None, text.split(",")):
        names = _SETS.get(word.lstrip("-"), (word.lstrip("-"),))
        if any(name not in FAULTS for name in names):
            return None
        for name in names:
            if word.startswith("-"):
                found.pop(name, None)
            else:
                found[name] = None
    return tuple(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long faults go on (default: 3)")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is random in the test")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument(
        "--faults",
        default="all",
        help=f"comma-separated: {', '.join([*_SETS, *FAULTS])}; -name leaves one out",
    )
    parser.add_argument(
        "--plant", choices=sorted(PLANTS), help="take a guard out: the run must find something"
    )
    parser.add_argument("--keep", type=Path, help="where the history and the nodes' own words stay")
    parser.add_argument(
        "--settle", type=float, default=45.0, help="seconds for what is due after the last fault"
    )
    parser.add_argument("--gap", type=float, default=3.0, help="seconds between two faults of a lane")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
